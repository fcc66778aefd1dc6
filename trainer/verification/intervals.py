"""How sure a score is: bootstrap over days or blocks of hours, and two models compared in pairs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Generic, Self

import numpy as np
import numpy.typing as npt

from ...data.randomness import generator
from .fss import FloatArray
from .rows import DAY_S, IntArray, ScoresT, Windowed, values_of

NUM_DRAWS: Final = 1000
LEVEL: Final = 0.95
_FEW_DAYS: Final = 10
_HOUR_S: Final = 3600
BLOCK_LENGTHS_S: Final = (DAY_S, 2 * _HOUR_S, _HOUR_S, _HOUR_S // 2)
"""What may be drawn, the longest first: the shorter a block, the more its neighbours know of it."""
MIN_BLOCKS: Final = 5
"""Fewer blocks make no interval: chance alone lets four agree on the better of two models one time in eight."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Interval:
    """Scores, or differences or skills of scores, and the interval that resampling days or blocks puts around them.

    All arrays are by score and shaped as those of the scores; bounds are NaN where there is none: with a single day or
    few blocks, where the value is NaN, or where no draw gave one.

    Args:
        num_days: Days with windows.
        num_blocks: Days or blocks of hours with windows, whichever were drawn.
        block_s: Length of a block in seconds; DAY_S: days.
        num_draws: Resamples; 0 with a single day or few blocks.
        level: Share of the draws that lies inside the interval.
        note: What the interval is, or why there is none.
        value: From all windows.
        low: Lower bounds.
        high: Upper bounds.
        above_zero: Share of the draws with a value above 0, of those with one.
    """

    num_days: int
    num_blocks: int
    block_s: int
    num_draws: int
    level: float
    note: str
    value: Mapping[str, FloatArray]
    low: Mapping[str, FloatArray]
    high: Mapping[str, FloatArray]
    above_zero: Mapping[str, FloatArray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampled(Generic[ScoresT]):
    """The scores of a model, or differences of scores, and those of resamples of its days or blocks of hours.

    Args:
        rows: Of the model.
        block_s: Length of a block in seconds; DAY_S: days.
        values: Scores from all windows.
        draws: Scores of every resample, (draws, ...); None with a single day or few blocks.
    """

    rows: Windowed[ScoresT]
    block_s: int
    values: Mapping[str, FloatArray]
    draws: Mapping[str, FloatArray] | None

    @property
    def scores(self) -> ScoresT:
        """The scores from all windows, beside what was scored."""
        return self.rows.scores(self.values)

    def less(self, other: "Resampled[Any]") -> Self:
        """Subtract the scores of another model of the same windows, draw by draw: both were resampled with one seed.

        Scores that only one of them has, or that have other classes for another number of members, are left out.
        """
        assert self.rows.windows == other.rows.windows
        assert self.block_s == other.block_s
        shared = [score for score in self.values if score in other.values]
        both = [score for score in shared if self.values[score].shape == other.values[score].shape]
        values = {score: self.values[score] - other.values[score] for score in both}
        draws = None
        if self.draws is not None and other.draws is not None:
            draws = {score: self.draws[score] - other.draws[score] for score in both}
        return replace(self, values=values, draws=draws)

    def interval(self) -> Interval:
        """Put percentile intervals around the scores: Efron and Tibshirani (1993), section 13.3."""
        if self.draws is None:
            bounds = {score: (np.full_like(estimate, math.nan),) * 3 for score, estimate in self.values.items()}
        else:
            bounds = {score: _summarise(self.draws[score], estimate) for score, estimate in self.values.items()}
        low, high, above_zero = ({score: bound[number] for score, bound in bounds.items()} for number in range(3))
        return Interval(
            num_days=len(np.unique(self.rows.day)),
            num_blocks=len(np.unique(self.rows.issue_s // self.block_s)),
            block_s=self.block_s,
            num_draws=0 if self.draws is None else len(next(iter(self.draws.values()))),
            level=LEVEL,
            note=self._note(),
            value=self.values,
            low=low,
            high=high,
            above_zero=above_zero,
        )

    def _note(self) -> str:
        """Describe the interval, or explain why there is none."""
        days = np.unique(self.rows.day)
        num_blocks = len(np.unique(self.rows.issue_s // self.block_s))
        length = block_text(self.block_s)
        days_text = f"1 day, {day_text(days[0])}" if len(days) == 1 else f"{len(days)} days"

        # With a single day or few blocks there is nothing to draw from.
        if self.draws is None and self.block_s == DAY_S:
            which = "the only window is" if len(self.rows) == 1 else f"all {len(self.rows)} windows are"
            return f"no interval: {which} of one day, {day_text(days[0])}, and one day says nothing about others"
        if self.draws is None:
            blocks = "1 block" if num_blocks == 1 else f"{num_blocks} blocks"
            return f"no interval: {blocks} of {length} of {days_text} (UTC); at least {MIN_BLOCKS} are drawn from"

        note = f"{LEVEL:.0%} percentile interval of {len(next(iter(self.draws.values())))} resamples of "
        if self.block_s == DAY_S:
            few = "; of so few days it is too narrow rather than too wide" if len(days) < _FEW_DAYS else ""
            return f"{note}{len(days)} days (UTC){few}"
        return (
            f"{note}{num_blocks} blocks of {length} of {days_text} (UTC); it is about this weather and not about other "
            "days, and too narrow rather than too wide: rain systems outlast a block"
        )


def block_length_s(rows: Windowed[Any]) -> int:
    """Choose what to draw: the longest of BLOCK_LENGTHS_S of which the windows fill MIN_BLOCKS, else days."""
    enough = [length for length in BLOCK_LENGTHS_S if len(np.unique(rows.issue_s // length)) >= MIN_BLOCKS]
    return max(enough, default=DAY_S)


def block_text(block_s: int) -> str:
    """Format the length of a block."""
    if block_s < _HOUR_S:
        return f"{block_s / 60:g} minutes"
    return "1 hour" if block_s == _HOUR_S else f"{block_s / _HOUR_S:g} hours"


def resample(
    rows: Windowed[ScoresT], *, seed: int = 0, num_draws: int = NUM_DRAWS, block_s: int = DAY_S
) -> Resampled[ScoresT]:
    """Compute all scores, and those of days, or of blocks of hours, that are drawn with replacement.

    Windows of one day belong to one rain system: to draw windows would make intervals too narrow. Block bootstrap:
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 8.6, doi:10.1007/978-1-4899-4541-9.

    Args:
        rows: Of one model.
        seed: Equal seeds draw equal days.
        num_draws: Resamples.
        block_s: Windows issued in the same interval of so many seconds since 1970 are drawn together. Of blocks
            shorter than a day there have to be MIN_BLOCKS, of days two.
    """
    # Windows are sorted by time: those of a block stand together.
    first_of_block = np.unique(rows.issue_s // block_s, return_index=True)[1]
    draws = None
    if len(first_of_block) >= (2 if block_s == DAY_S else MIN_BLOCKS):
        draws = _drawn_scores(rows, first_of_block, draw_blocks(len(first_of_block), seed, num_draws))
    return Resampled(rows=rows, block_s=block_s, values=values_of(rows), draws=draws)


def draw_blocks(num_blocks: int, seed: int, num_draws: int) -> IntArray:
    """Draw as many days or blocks as there are, with replacement: how often each was drawn, (draws, blocks)."""
    drawn = generator(seed, "bootstrap").integers(0, num_blocks, size=(num_draws, num_blocks))
    # One count for all draws: each draw has numbers of its own.
    numbers = drawn + num_blocks * np.arange(num_draws)[:, None]
    return np.bincount(numbers.ravel(), minlength=num_draws * num_blocks).reshape(num_draws, num_blocks)


def _drawn_scores(
    rows: Windowed[Any], first_of_block: npt.NDArray[np.intp], weights: IntArray
) -> dict[str, FloatArray]:
    """Compute all scores of all draws, (draws, lead times + 1, ...): one matrix product for each sum."""
    sums: dict[str, FloatArray] = {}
    for field, array in rows.numbers.items():
        of_block = np.add.reduceat(array, first_of_block, axis=0).astype(np.float64)
        flat = of_block.reshape(len(first_of_block), -1)
        failed = np.isnan(flat)
        drawn = weights.astype(np.float64) @ np.where(failed, 0.0, flat)

        # 0 times NaN is NaN: a block without a finite forecast spoils the draws that it is in, and no other.
        drawn[weights.astype(np.float64) @ failed > 0] = math.nan
        sums[field] = drawn.reshape(len(weights), *of_block.shape[1:])
    return rows.scores_of_sums(sums)


def _summarise(draws: FloatArray, estimate: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute the lower and upper bound and the share above zero, over the draws that have a value."""
    # What does not exist is computed as 0, so that quantiles raise no warning, and made NaN again.
    exists = ~np.isnan(draws)
    lacking = np.isnan(estimate) | ~exists.any(axis=0)
    filled = np.where(lacking, 0.0, draws)
    share = (1 - LEVEL) / 2
    # Quantiles that look for NaN go place by place, a hundred times as slow: only places with draws that lack a value.
    bounds = np.full((2, *estimate.shape), math.nan)
    complete = ~np.isnan(filled).any(axis=0)
    bounds[:, complete] = np.quantile(filled[:, complete], (share, 1 - share), axis=0)
    if not complete.all():
        bounds[:, ~complete] = np.nanquantile(filled[:, ~complete], (share, 1 - share), axis=0)
    low, high = (np.where(lacking, math.nan, bound) for bound in bounds)
    above = (filled > 0).sum(axis=0) / np.maximum(exists.sum(axis=0), 1)
    return low, high, np.where(lacking, math.nan, above)


def day_text(day: int) -> str:
    """Format a day, counted since 1970, as a UTC date."""
    return f"{datetime.fromtimestamp(int(day) * DAY_S, UTC):%Y-%m-%d}"
