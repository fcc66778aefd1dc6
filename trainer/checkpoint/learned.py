"""What a checkpoint records of the sources that its run learned from."""

from dataclasses import dataclass

from ...data.frames import Crop, Grid
from ...data.json_checks import JsonRecord
from ...data.sources.source import Recipe


@dataclass(frozen=True, kw_only=True)
class Learned(JsonRecord):
    """What a run records of one of its sources, so that a forecast can read the newest files in the same way.

    Attributes:
        recipe: How it was read; None where the archive does not say (schema 2).
        grid: Its whole grid.
        crop: The part of it that the archive holds; None for tiles.
        period_s: Seconds that a value is a mean over, see `data.sources.source.Header`.
    """

    recipe: Recipe | None = None
    grid: Grid
    crop: Crop | None = None
    period_s: int | None = None
