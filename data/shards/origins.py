"""Where an archive's sequences come from: a product, and the part of its grid that was packed."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Final

from ..errors import DataError
from ..frames import Crop, Grid
from ..json_checks import Limits, demand, shown
from ..sources.source import UNSTATED, Recipe
from ..units import SCALES_MMH

MAX_PERIOD_S: Final = 366 * 86400
"""Longest span that a value is a sum over: a year of gauges."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a product's grid: what KEY.json says of it too.

    Attributes:
        source: The product's name. Several origins may share it (tiles of a large grid); scale and licence agree then.
        licence: Licence of the data.
        scale_mmh: mm/h a count.
        grid: The source's whole grid.
        crop: The part of it that was packed; as many rows and columns in every origin of an archive.
    """

    source: str
    licence: str
    scale_mmh: float
    grid: Grid
    crop: Crop


@dataclass(frozen=True, kw_only=True)
class Origin(Part):
    """Where some of an archive's sequences come from.

    Attributes:
        period_s: Seconds over which a value is a mean or a sum; 0: instantaneous; None: the source does not say, or
            the archive is of schema 2.
        recipe: How the source was read; None where the archive is of schema 2.
    """

    period_s: Annotated[int, Limits(ge=0, le=MAX_PERIOD_S)] | None = None
    recipe: Recipe | None = None

    @property
    def part(self) -> Part:
        """The part of the product's grid, without how it was read."""
        return Part(**{field.name: getattr(self, field.name) for field in fields(Part)})


def check_origins(origins: Sequence[Origin], rows: int, cols: int) -> None:
    """Check the ranges of every value of an archive's origins, and that they can stand in one archive.

    Args:
        origins: The origins.
        rows: Rows of a packed frame.
        cols: Columns of a packed frame.

    Raises:
        DataError: Naming the key.
    """
    demand(len(origins) > 0, "origins", "empty", "at least one")
    lowest_mmh, highest_mmh = SCALES_MMH
    first_of: dict[str, Origin] = {}
    for i, origin in enumerate(origins):
        where = f"origins[{i}]."
        texts = {"source": origin.source, "licence": origin.licence, "grid.projection": origin.grid.projection}
        for name, text in texts.items():
            demand(text.isprintable(), where + name, text, "printable text")
        possible = lowest_mmh <= origin.scale_mmh <= highest_mmh
        demand(possible, where + "scale_mmh", origin.scale_mmh, f"{lowest_mmh:g} to {highest_mmh:g} mm/h")

        # One size of frame in the archive, inside every grid.
        shape = (origin.crop.rows, origin.crop.cols)
        demand((rows, cols) == shape, "rows, cols", (rows, cols), f"{shape}, those of {where}crop")
        origin.crop.check_inside(origin.grid.rows, origin.grid.cols)

        # One scale and licence of a source, and every part of its grid once.
        first = first_of.setdefault(origin.source, origin)
        for name in ("licence", "scale_mmh", "period_s"):
            value = getattr(origin, name)
            expected = getattr(first, name)
            demand(value == expected, where + name, value, f"{shown(expected)}, as in the source's other origin")
        is_new = origin.part not in (other.part for other in origins[:i])
        demand(is_new, f"origins[{i}]", "one that came before", "distinct origins")


def describe(recipe: Recipe) -> str:
    """Write a recipe in one line."""
    stated = {name: value for name, value in recipe.options.items() if value not in ({}, [], False, UNSTATED)}
    options = ", ".join(f"{shown(name)} {_words(value)}" for name, value in stated.items())
    return f"{shown(recipe.kind)} ({options:.400})" if options else shown(recipe.kind)


def sources_of(origins: Sequence[Origin]) -> tuple[str, ...]:
    """List the distinct sources, in the order in which they first come."""
    return tuple(dict.fromkeys(origin.source for origin in origins))


def common(origins: Sequence[Origin], name: str) -> Any:
    """Take the value of a field that all origins share; raises DataError where they differ in it."""
    first, *others = (getattr(origin, name) for origin in origins)
    other = next((value for value in others if value != first), first)
    if other == first:
        return first

    # Several sources: one can be chosen. Tiles of one: it has to be packed for this.
    sources = sources_of(origins)
    if len(sources) > 1:
        advice = "choose one of its sources (data.source, or --source on the command line): " + "; ".join(sources)
    else:
        advice = f"its sequences are tiles of {sources[0]}: pack one part of the grid (--crop) for this"
    raise DataError(
        f"{name}: the archive holds several, such as {_format(first)} and {_format(other)}, and one is needed here; "
        f"{advice}"
    )


def _words(value: Any) -> str:
    """Write an option's value without the brackets of JSON."""
    if isinstance(value, dict):
        return " ".join(f"{shown(name)}={_words(inner)}" for name, inner in value.items())
    return " ".join(map(_words, value)) if isinstance(value, list) else shown(value)


def _format(value: object) -> str:
    if isinstance(value, Grid):
        return f"{value.rows} x {value.cols} pixels from x {value.x0_km:g} km, y {value.y0_km:g} km"
    return shown(value)
