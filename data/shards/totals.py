"""The rain of many frames in exact integers: the statistics of an archive, by source."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Self

import numpy as np
import numpy.typing as npt

from ..counts import NO_ROUNDING, Rounding
from ..json_checks import Count, Listed
from ..units import MISSING_COUNT
from .palette import RAIN_LEVELS_MMH

NUM_CLASSES = len(RAIN_LEVELS_MMH) + 1


@dataclass(frozen=True, kw_only=True)
class RainTotals:
    """Sums over frames, all integers: the same whatever the order of adding.

    Attributes:
        frames: Frames.
        pixels: Pixels of them.
        valid: Those that are no missing ones.
        wet: Those above zero.
        sum_counts: Sum of the valid counts.
        max_count: Largest valid count.
        rain_classes: Valid pixels below 0.1 mm/h, and in each class of data.palette.RAIN_LEVELS_MMH.
        rounding: What requantising changed; None where it changed nothing.
    """

    frames: Count = 0
    pixels: Count = 0
    valid: Count = 0
    wet: Count = 0
    sum_counts: Count = 0
    max_count: Count = 0
    rain_classes: Listed[Count] = (0,) * NUM_CLASSES
    rounding: Rounding | None = None

    @classmethod
    def of_frame(cls, counts_hw: npt.NDArray[np.uint16], scale_mmh: float, rounding: Rounding = NO_ROUNDING) -> Self:
        """Sum up one frame, uint16 (rows, cols), 65535 missing."""
        # A histogram of the counts, without the missing ones, holds all sums of the frame.
        per_count = np.bincount(counts_hw.ravel(), minlength=MISSING_COUNT + 1)[:MISSING_COUNT]
        seen = np.flatnonzero(per_count)
        valid = int(per_count.sum())

        # A count belongs to the class that its rate to 1e-6 mm/h lies in: 10 * 0.12 is 1.2, whatever binary says.
        first_counts = [math.ceil(round(level / scale_mmh, 6)) for level in RAIN_LEVELS_MMH]
        class_of = np.searchsorted(first_counts, seen, side="right")
        classes = np.bincount(class_of, weights=per_count[seen], minlength=NUM_CLASSES)

        return cls(
            frames=1,
            pixels=counts_hw.size,
            valid=valid,
            wet=valid - int(per_count[0]),
            sum_counts=int(np.dot(per_count[seen], seen)),
            max_count=int(seen[-1]) if len(seen) else 0,
            rain_classes=tuple(int(count) for count in classes),
            rounding=None if rounding == NO_ROUNDING else rounding,
        )

    def plus(self, other: "RainTotals") -> "RainTotals":
        """Add two sums."""
        # None for sources of counts: what was never rounded stays unstated.
        roundings = [totals.rounding for totals in (self, other) if totals.rounding is not None]
        return RainTotals(
            frames=self.frames + other.frames,
            pixels=self.pixels + other.pixels,
            valid=self.valid + other.valid,
            wet=self.wet + other.wet,
            sum_counts=self.sum_counts + other.sum_counts,
            max_count=max(self.max_count, other.max_count),
            rain_classes=tuple(a + b for a, b in zip(self.rain_classes, other.rain_classes, strict=True)),
            rounding=reduce(Rounding.plus, roundings) if roundings else None,
        )


def sum_totals(sums: Iterable[Mapping[str, RainTotals]]) -> dict[str, RainTotals]:
    """Add sums by source."""
    totals: dict[str, RainTotals] = {}
    for by_source in sums:
        for source, rain in by_source.items():
            totals[source] = totals.get(source, RainTotals()).plus(rain)
    return totals
