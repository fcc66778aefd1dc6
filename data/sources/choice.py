"""Choose what reads a kind of radar files: each kind's options, the source made of them, and its recipe and back."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, Protocol, cast

from ..command import CommandParser
from ..errors import ConfigError, DataError
from ..json_checks import JsonRecord, canonical, read_json, shown
from .foreign.opening import ENGINES
from .foreign.xarray_source import XarraySource
from .importer import ImporterSource
from .knmi import KnmiSource
from .odim import QUANTITIES, OdimSource, parse_zr
from .smaat import GROUPS, SmaatSource
from .source import UNSTATED, Recipe, Source

SOURCES: Final[dict[str, type[JsonRecord]]] = {
    source.kind: source for source in (KnmiSource, SmaatSource, OdimSource, ImporterSource, XarraySource)
}
ODIM_TIMES: Final = (
    "A composite of RATE or DBZH is a frame of its nominal time (/what), which the end of its data may follow or "
    "precede by minutes (OPERA's of 2018: by 5); one of ACRR is a frame of the time at which its accumulation ends."
)


class Commands(Protocol):
    """What argparse gives for sub-commands."""

    def add_parser(self, name: str, **settings: Any) -> argparse.ArgumentParser:
        """Add one."""


def add_kinds(commands: Commands) -> tuple[argparse.ArgumentParser, ...]:
    """Add a sub-command a kind of source, with the options that the source is made of; gives their parsers."""
    knmi = commands.add_parser("knmi", help="KNMI HDF5 composites, also inside tars and zips")
    smaat = commands.add_parser("smaat", help="SmaAt-UNet's collected HDF5: frames, or ready windows as they are")
    smaat.add_argument("--group", choices=(*GROUPS, "both"), default="both", help="which group to take (both)")
    smaat.add_argument("--skip-gaps", action="store_true", help="leave out ready windows across gaps, and count them")
    odim_help = "ODIM_H5 composites (OPERA and others), also inside tars and zips"
    odim = commands.add_parser("odim", help=odim_help, description=ODIM_TIMES)
    odim.add_argument("--quantity", choices=QUANTITIES, help="which to take where a file holds several")
    importer = commands.add_parser("importer", help="any format that pysteps imports")
    importer.add_argument("--importer", required=True, metavar="NAME", help="pysteps' importer, such as mrms_grib")
    pattern_help = "names of the files as strftime writes their end time, * and ? for what varies; may be repeated"
    importer.add_argument("--time-pattern", action="append", required=True, metavar="PATTERN", help=pattern_help)
    argument_help = "a further argument of the importer"
    importer.add_argument("--argument", action="append", default=[], metavar="NAME=VALUE", help=argument_help)

    xarray = commands.add_parser("xarray", help="NetCDF, Zarr, GRIB, GeoTIFF, RADOLAN: whatever xarray opens")
    xarray.add_argument("--variable", required=True, metavar="NAME", help="which to take (GeoTIFF and GRIB: band_data)")
    xarray.add_argument("--engine", choices=tuple(ENGINES), help="what opens the files (the usual one of their format)")
    xarray.add_argument("--units", help="the variable's, such as mm/h (what the files say)")
    scale_help = "what makes the variable of its numbers, such as 0.5,-32 (what the files say)"
    xarray.add_argument("--scale", type=_pair, metavar="GAIN,OFFSET", help=scale_help)
    missing_help = "a number that is no measurement, beside those that the files state; may be repeated"
    xarray.add_argument("--missing", type=float, action="append", default=[], metavar="NUMBER", help=missing_help)
    period_help = "minutes that its values are sums or means over (what the files say)"
    xarray.add_argument("--period-min", type=float, metavar="MINUTES", help=period_help)
    xarray.add_argument("--time-pattern", action="append", default=[], metavar="PATTERN", help=pattern_help)
    xarray.add_argument("--name", help="the product's name (what the files say)")
    xarray.add_argument("--licence", help="licence of the data (what the files say)")

    # What several kinds share.
    for parser in (knmi, odim, importer, xarray):
        parser.add_argument("--zr", metavar="A,B", help="Z = A R**B for reflectivity, such as 200,1.6")
    for parser in (odim, importer):
        parser.add_argument("--name", help="the product's name (what the files say)")
        parser.add_argument("--licence", default=UNSTATED, help=f"licence of the data ({UNSTATED})")
    return knmi, smaat, odim, importer, xarray


def source_of(arguments: argparse.Namespace, cadence_s: int) -> Source:
    """Make the source that a sub-command's options ask for.

    Raises:
        DataError: Values that no source can have.
    """
    if arguments.command == "smaat":
        return SmaatSource(group=arguments.group, cadence_s=cadence_s, skip_gaps=arguments.skip_gaps)

    zr = None if arguments.zr is None else parse_zr(arguments.zr)
    if arguments.command == "knmi":
        return KnmiSource(zr=zr)
    if arguments.command == "odim":
        return OdimSource(quantity=arguments.quantity, zr=zr, name=arguments.name, licence=arguments.licence)
    if arguments.command == "xarray":
        return XarraySource(
            variable=arguments.variable,
            engine=arguments.engine,
            units=arguments.units,
            scale=arguments.scale,
            missing=tuple(arguments.missing),
            period_min=arguments.period_min,
            zr=zr,
            name=arguments.name,
            licence=arguments.licence,
            time_patterns=tuple(arguments.time_pattern),
        )
    pairs = [_argument(text) for text in arguments.argument]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ConfigError(f"--argument {max(names, key=names.count)} is given twice; expected each once")
    return ImporterSource(
        importer=arguments.importer,
        time_patterns=tuple(arguments.time_pattern),
        # In one order, however they were given: the same arguments make the same archive.
        arguments=dict(sorted(pairs)),
        zr=zr,
        name=arguments.name,
        licence=arguments.licence,
    )


def source_of_words(words: Sequence[str], cadence_s: int) -> Source:
    """Make the source that a text such as "odim --zr 200,1.6" asks for, split into words.

    Raises:
        ConfigError: It is none that a sub-command of `rainspark pack` understands.
    """
    parser = CommandParser(prog="--reader")
    add_kinds(parser.add_subparsers(dest="command", required=True))
    try:
        return source_of(parser.parse_args(words), cadence_s)
    except DataError as error:
        raise ConfigError(f"--reader {' '.join(words)!r}: {error}") from error


def recipe_of(source: Source) -> Recipe:
    """Write down how a source reads: its kind, and its options as JSON values, without those that are None."""
    values = {name: value for name, value in asdict(cast(Any, source)).items() if value is not None}
    return Recipe(kind=source.kind, options=json.loads(canonical(values)))


def source_of_recipe(recipe: Recipe) -> Source:
    """Make the source that a recipe describes, checked as strictly as an index.

    Raises:
        DataError: A kind or an option that is not known, or a value that it cannot have.
    """
    if recipe.kind not in SOURCES:
        raise DataError(f"the recipe's kind of source is {shown(recipe.kind)}; expected one of {', '.join(SOURCES)}")
    try:
        return cast(Source, read_json(SOURCES[recipe.kind], canonical(recipe.options)))
    except DataError as error:
        raise DataError(f"the recipe of a source {recipe.kind}: {error}; state it with --reader") from error


def _pair(text: str) -> tuple[float, float]:
    """Parse two finite numbers; raises ValueError for anything else."""
    first, second = (float(number) for number in text.split(","))
    if not (math.isfinite(first) and math.isfinite(second)):
        raise ValueError("not finite")
    return first, second


def _argument(text: str) -> tuple[str, str]:
    """Split an argument of an importer into name and value."""
    name, between, value = text.partition("=")
    if not between or not name.isidentifier():
        raise ConfigError(f"--argument {text!r}: expected NAME=VALUE, such as qty=DBZH")
    return name, value
