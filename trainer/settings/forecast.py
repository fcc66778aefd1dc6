"""Options of a forecast's command line."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from ...data.command import MOST_SEED, CommandParser, last_time, whole_number
from ...data.errors import ConfigError, DataError
from ...data.frames import Crop, parse_crop
from ...data.json_checks import shown

PRODUCTS: Final = ("netcdf", "png", "cog", "odim")
"""What a forecast can be written as; the first two are written unless others are asked for."""

MOST_MEMBERS: Final = 100
"""Members are counted in bytes, and 100 of KNMI's hours are 2.6 GB."""

MOST_RADIUS_KM: Final = 200.0


@dataclass(frozen=True, kw_only=True)
class Site:
    """A point that a plume is drawn for: its name, "" for none, and its place in degrees."""

    name: str
    latitude_deg: float
    longitude_deg: float

    def __str__(self) -> str:
        """Format it for titles and messages."""
        north, east = ("N" if self.latitude_deg >= 0 else "S"), ("E" if self.longitude_deg >= 0 else "W")
        degrees = f"{abs(self.latitude_deg):g} {north}, {abs(self.longitude_deg):g} {east}"
        return f"{self.name} ({degrees})" if self.name else degrees


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions:
    """What is made of an ensemble.

    Attributes:
        members: How many.
        seed: Of their noise.
        thresholds_mmh: Rain rates whose exceedance is counted, rising.
        sum_thresholds_mm: The same of rain sums over an hour.
        radii_km: How far around a pixel rain counts, rising; 0 is the pixel itself.
        quantiles: Rising.
        sites: Points that plumes are drawn for.
    """

    members: int
    seed: int = 0
    thresholds_mmh: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
    sum_thresholds_mm: tuple[float, ...] = (1.0, 2.5, 5.0, 10.0, 20.0)
    radii_km: tuple[float, ...] = (0.0, 5.0, 10.0, 25.0)
    quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    sites: tuple[Site, ...] = ()


def ensemble_options(options: argparse.Namespace) -> EnsembleOptions | None:
    """Take what is made of an ensemble from a command line; None for one forecast.

    Raises:
        ConfigError: What only an ensemble has is asked for without --members.
    """
    names = [field.name for field in fields(EnsembleOptions)]
    stated = {name: value for name in names if (value := getattr(options, name)) is not None}
    if "members" not in stated and stated:
        words = ", ".join(OPTION_WORDS[name] for name in stated)
        raise ConfigError(f"{words}: has an effect with --members only; add --members 20, or leave it out")
    rising: dict[str, Any] = {
        name: tuple(value) if name == "sites" else tuple(sorted(set(value))) if isinstance(value, list) else value
        for name, value in stated.items()
    }
    return EnsembleOptions(**rising) if stated else None


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark forecast`."""
    parser = CommandParser(
        prog="rainspark forecast",
        description="Forecast from the latest radar files, which are read as the run's archive was packed.",
    )

    # From what.
    parser.add_argument("--run", required=True, type=Path, help="folder of a fine-tuning run, or of a checkpoint")
    input_help = "radar files, archives, folders of them, or s3://BUCKET/PREFIX-OR-PATTERN, as rainspark pack takes"
    parser.add_argument("--input", required=True, nargs="+", metavar="FILES", help=input_help)
    at_help = "forecast from the newest frame up to this time, UTC, as if nothing later were there (the newest)"
    parser.add_argument("--at", type=last_time, metavar="TIME", help=at_help)
    parser.add_argument("--source", help="which radar of a run on several (all of them)")
    reader_help = "how the files are read, in the words of rainspark pack, such as 'odim --zr 200,1.6' (as the run's)"
    parser.add_argument("--reader", metavar="WORDS", help=reader_help)

    # What is forecast of it, and from how much.
    crop_help = "what is forecast: whole (all that the files hold), run (where the run learned), or rows and columns"
    parser.add_argument("--crop", type=_area, default="whole", metavar="AREA", help=crop_help)
    missing_help = "frames that may be missing or damaged, and are bridged (0; with --watch 3)"
    parser.add_argument("--allow-missing", type=whole_number(0), metavar="N", help=missing_help)

    # What is written.
    parser.add_argument("--out", required=True, type=Path, help="folder to write to; made if need be")
    products_help = f"what to write ({' '.join(PRODUCTS[:2])})"
    parser.add_argument("--products", nargs="+", choices=PRODUCTS, default=PRODUCTS[:2], help=products_help)
    parser.add_argument("--no-pictures", action="store_true", help="leave png out of the products")
    parser.add_argument("--name", help="the model's name in files and pictures (the run folder's name)")
    parser.add_argument("--institution", default="not stated", help="goes into the files (not stated)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the model runs (cpu)")

    _add_ensemble(parser)

    # Kept running.
    watch_help = "forecast every new cycle as its files come, until this process is ended; --out gets a folder a cycle"
    parser.add_argument("--watch", action="store_true", help=watch_help)
    poll_help = "with --watch: seconds between two looks at the files (5)"
    parser.add_argument("--poll-s", type=whole_number(1), default=5, metavar="INT", help=poll_help)
    keep_help = "with --watch: cycles that stay in --out (300)"
    parser.add_argument("--keep", type=whole_number(1), default=300, metavar="INT", help=keep_help)
    return parser


OPTION_WORDS: Final = {
    "seed": "--seed",
    "thresholds_mmh": "--thresholds",
    "sum_thresholds_mm": "--sum-thresholds",
    "radii_km": "--radius-km",
    "quantiles": "--quantiles",
    "sites": "--place",
}
"""The options that belong to --members, as command lines write them."""


def _add_ensemble(parser: argparse.ArgumentParser) -> None:
    """Add the options of ensembles; what is not stated is None, so that it can be told from what is."""
    members_help = "of a run that forecasts ensembles: members to forecast (one forecast without noise)"
    parser.add_argument("--members", type=whole_number(2, MOST_MEMBERS), metavar="INT", help=members_help)
    seed_help = "with --members: the same seed and frames give the same members (0)"
    parser.add_argument("--seed", type=whole_number(0, MOST_SEED - 1), metavar="INT", help=seed_help)

    # Lists of numbers, whose defaults stand in EnsembleOptions.
    for name, flags, most, purpose in (
        ("thresholds_mmh", ("--thresholds",), 1000, "rain rates in mm/h whose exceedance is counted"),
        ("sum_thresholds_mm", ("--sum-thresholds", "--sum_thresholds"), 1000, "the same of rain sums over an hour, mm"),
        ("radii_km", ("--radius-km", "--radius_km"), MOST_RADIUS_KM, "how near rain counts, km; 0 is the pixel itself"),
        ("quantiles", ("--quantiles",), 1, "quantiles of the rain rate"),
    ):
        default = " ".join(f"{value:g}" for value in getattr(EnsembleOptions, name))
        words = f"with --members: {purpose} ({default})"
        parser.add_argument(*flags, dest=name, nargs="+", type=_number(0, most), metavar="NUMBER", help=words)
    site_help = "with --members: draw a plume for a place, in degrees (--place=-33.9,18.4 in the south); again for more"
    parser.add_argument("--place", dest="sites", action="append", type=_site, metavar="[NAME=]LAT,LON", help=site_help)


def _number(least: float, most: float) -> Callable[[str], float]:
    """Make the type of an option that takes numbers from `least` to `most`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        # A comparison with NaN is false.
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{shown(text)!r} is no number from {least:g} to {most:g}")
        return value

    return read


def _site(text: str) -> Site:
    """Read a point, 52.1,5.18, which may have a name, De Bilt=52.1,5.18."""
    name, _, degrees = text.rpartition("=")
    try:
        latitude_deg, longitude_deg = (
            _number(-most, most)(word) for word, most in zip(degrees.split(","), (90, 360), strict=True)
        )
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"{shown(text)!r}; expected degrees north and east, 52.1,5.18, or with a name, 'De Bilt=52.1,5.18'"
        ) from None
    return Site(name=name.strip(), latitude_deg=latitude_deg, longitude_deg=longitude_deg)


def _area(text: str) -> Crop | str:
    if text in ("whole", "run"):
        return text
    try:
        return parse_crop(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(f"{error}, or whole, or run") from error
