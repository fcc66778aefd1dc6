"""What may be called the best: a figure whose paired difference to every other one is told from zero."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Literal

import numpy as np

from ..verification.contingency import ratio
from ..verification.fss import FloatArray
from ..verification.intervals import LEVEL, MIN_BLOCKS

Aim = Literal["↑", "↓", "→1"]
RULE: Final = (
    f"Bold: the best, for the {LEVEL:.0%} interval of its paired difference to every other one excludes 0. "
    "≈: the best value and those that are not told apart from it. Without an interval, or of fewer than "
    f"{MIN_BLOCKS} days or blocks, nothing is marked; of many figures a few are bold by chance."
)


class Mark(StrEnum):
    """What a figure may be called among those of its column."""

    BEST = "best"
    LEADING = "leading"


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """A figure of one model, or of two of them in a pair.

    Attributes:
        value: From all windows; NaN where it does not exist.
        draws: From every resample, (draws,), the same resamples for all models; None without any.
        num_blocks: Days or blocks that were resampled.
    """

    value: float
    draws: FloatArray | None = None
    num_blocks: int = 0

    def less(self, other: "Figure") -> "Figure":
        """Subtract that of another model, draw by draw."""
        draws = None if self.draws is None or other.draws is None else self.draws - other.draws
        return replace(self, value=self.value - other.value, draws=draws)

    def skill(self, other: "Figure") -> "Figure":
        """Compute 1 - own / the other error, draw by draw: 0 is as good as it, 1 is perfect; NaN where that is 0."""
        value = 1 - float(ratio(np.array(self.value), np.array(other.value)))
        draws = None if self.draws is None or other.draws is None else 1 - ratio(self.draws, other.draws)
        return replace(self, value=value, draws=draws)

    def interval(self) -> tuple[float, float, float]:
        """Give the bounds of the interval and the share of draws above 0; NaN where there is none."""
        exist = np.empty(0) if self.draws is None else self.draws[~np.isnan(self.draws)]
        if math.isnan(self.value) or not len(exist):
            return math.nan, math.nan, math.nan
        share = (1 - LEVEL) / 2
        low, high = np.quantile(exist, (share, 1 - share)).tolist()
        return low, high, float((exist > 0).mean())


def marks_of(figures: Sequence[Figure], aim: Aim) -> list[Mark | None]:
    """Mark the figures of one column: the best one, or all that are not told apart from the best value.

    Args:
        figures: Of all models.
        aim: What is better: more, less, or nearer to 1.
    """
    marks: list[Mark | None] = [None] * len(figures)
    known = [number for number, figure in enumerate(figures) if math.isfinite(figure.value)]
    # A single figure is no comparison, and without resamples, or of few blocks, nothing is known of chance.
    if len(known) < 2 or not all(_can_be_told(figures[number]) for number in known):
        return marks

    worth = [_worth(figures[number], aim) for number in known]
    first = max(range(len(known)), key=lambda number: worth[number].value)
    rivals = [number for number in range(len(known)) if number != first]
    close = [rival for rival in rivals if not worth[first].less(worth[rival]).interval()[0] > 0]
    if not close:
        marks[known[first]] = Mark.BEST
        return marks
    for number in (first, *close):
        marks[known[number]] = Mark.LEADING
    return marks


def _can_be_told(figure: Figure) -> bool:
    """Tell whether chance is known well enough.

    The percentile interval of the mean of n normal differences without an effect excludes 0 in 49% of all cases for n =
    2, in 26% for 3, 17% for 5 and 10% for 10, instead of in 5%.
    """
    return figure.draws is not None and figure.num_blocks >= MIN_BLOCKS


def _worth(figure: Figure, aim: Aim) -> Figure:
    """Give a figure that is higher for a better one."""

    def change(values: FloatArray) -> FloatArray:
        if aim == "→1":
            # Half and double are equally far from 1.
            return -np.abs(np.log(np.maximum(values, 1e-9)))
        return values if aim == "↑" else -values

    draws = None if figure.draws is None else change(figure.draws)
    return replace(figure, value=float(change(np.array(figure.value))), draws=draws)
