"""How sure a score is: bootstrap over days, and paired differences between two models."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Self

import numpy as np

from ...data.randomness import generator
from .contingency import scores_of_sums
from .fss import FloatArray
from .rows import DAY_S, FIELDS, IntArray, Rows, Scores, compute

NUM_DRAWS: Final = 1000
LEVEL: Final = 0.95
_FEW_DAYS: Final = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Interval:
    """Scores, or differences of scores, and the interval that resampling the days puts around them.

    All arrays are by score and shaped as trainer.verification.Scores.values; bounds are NaN where there is none: with a
    single day, where the value is NaN, or where no draw gave one.

    Args:
        num_days: Days with windows.
        num_draws: Resamples of the days; 0 with a single day.
        level: Share of the draws that lies inside the interval.
        note: What the interval is, or why there is none.
        value: From all windows.
        low: Lower bounds.
        high: Upper bounds.
        above_zero: Share of the draws with a value above 0, of those with one.
    """

    num_days: int
    num_draws: int
    level: float
    note: str
    value: Mapping[str, FloatArray]
    low: Mapping[str, FloatArray]
    high: Mapping[str, FloatArray]
    above_zero: Mapping[str, FloatArray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampled:
    """The scores of a model, or differences of scores, and those of resamples of its days.

    Args:
        rows: Of the model.
        scores: From all windows.
        draws: Scores of every resample, (draws, ...); None with a single day, which has no other to stand for it.
    """

    rows: Rows
    scores: Scores
    draws: Mapping[str, FloatArray] | None

    def less(self, other: Self) -> Self:
        """Subtract the scores of another model of the same windows, draw by draw: both were resampled with one seed."""
        assert self.rows.windows == other.rows.windows
        names = self.scores.values
        values = {score: self.scores.values[score] - other.scores.values[score] for score in names}
        draws = None
        if self.draws is not None and other.draws is not None:
            draws = {score: self.draws[score] - other.draws[score] for score in names}
        return replace(self, scores=replace(self.scores, values=values), draws=draws)

    def interval(self) -> Interval:
        """Put percentile intervals around the scores: Efron and Tibshirani (1993), section 13.3."""
        days = np.unique(self.rows.day)
        num_days = len(days)
        values = self.scores.values

        # With a single day there is nothing to draw from: the note explains why there is no interval.
        if self.draws is None:
            num_draws = 0
            which = "the only window is" if len(self.rows) == 1 else f"all {len(self.rows)} windows are"
            note = f"no interval: {which} of one day, {day_text(days[0])}, and one day says nothing about others"
            bounds = {score: (np.full_like(estimate, math.nan),) * 3 for score, estimate in values.items()}
        else:
            num_draws = len(next(iter(self.draws.values())))
            note = f"{LEVEL:.0%} percentile interval of {num_draws} resamples of {num_days} days (UTC)"
            if num_days < _FEW_DAYS:
                note += "; of so few days it is too narrow rather than too wide"
            bounds = {score: _summarise(self.draws[score], estimate) for score, estimate in values.items()}

        low, high, above_zero = ({score: bound[number] for score, bound in bounds.items()} for number in range(3))
        return Interval(
            num_days=num_days,
            num_draws=num_draws,
            level=LEVEL,
            note=note,
            value=values,
            low=low,
            high=high,
            above_zero=above_zero,
        )


def resample(rows: Rows, *, seed: int = 0, num_draws: int = NUM_DRAWS) -> Resampled:
    """Compute all scores, and those of days that are drawn with replacement.

    Windows of one day belong to one rain system: to draw windows would make intervals too narrow. Block bootstrap:
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 8.6, doi:10.1007/978-1-4899-4541-9.

    Args:
        rows: Of one model.
        seed: Equal seeds draw equal days.
        num_draws: Resamples.
    """
    num_days = len(np.unique(rows.day))
    draws = None if num_days < 2 else _drawn_scores(rows, draw_days(num_days, seed, num_draws))
    return Resampled(rows=rows, scores=compute(rows), draws=draws)


def draw_days(num_days: int, seed: int, num_draws: int) -> IntArray:
    """Draw as many days as there are, with replacement: how often each was drawn, (draws, days)."""
    drawn = generator(seed, "bootstrap").integers(0, num_days, size=(num_draws, num_days))
    # One count for all draws: each draw has numbers of its own.
    numbers = drawn + num_days * np.arange(num_draws)[:, None]
    return np.bincount(numbers.ravel(), minlength=num_draws * num_days).reshape(num_draws, num_days)


def _drawn_scores(rows: Rows, weights: IntArray) -> dict[str, FloatArray]:
    """Compute all scores of all draws, (draws, lead times + 1, ...): one matrix product for each sum."""
    # Windows are sorted by time: those of a day stand together.
    first_of_day = np.unique(rows.day, return_index=True)[1]
    sums: dict[str, FloatArray] = {}
    for field in FIELDS:
        of_day = np.add.reduceat(getattr(rows, field), first_of_day, axis=0).astype(np.float64)
        flat = of_day.reshape(len(first_of_day), -1)
        failed = np.isnan(flat)
        drawn = weights.astype(np.float64) @ np.where(failed, 0.0, flat)

        # 0 times NaN is NaN: a day without a finite forecast spoils the draws that it is in, and no other.
        drawn[weights.astype(np.float64) @ failed > 0] = math.nan
        sums[field] = drawn.reshape(len(weights), *of_day.shape[1:])
    return scores_of_sums(sums)


def _summarise(draws: FloatArray, estimate: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute the lower and upper bound and the share above zero, over the draws that have a value."""
    # What does not exist is computed as 0, so that quantiles raise no warning, and made NaN again.
    exists = ~np.isnan(draws)
    lacking = np.isnan(estimate) | ~exists.any(axis=0)
    filled = np.where(lacking, 0.0, draws)
    share = (1 - LEVEL) / 2
    low, high = (np.where(lacking, math.nan, bound) for bound in np.nanquantile(filled, (share, 1 - share), axis=0))
    above = (filled > 0).sum(axis=0) / np.maximum(exists.sum(axis=0), 1)
    return low, high, np.where(lacking, math.nan, above)


def day_text(day: int) -> str:
    """Format a day, counted since 1970, as a UTC date."""
    return f"{datetime.fromtimestamp(int(day) * DAY_S, UTC):%Y-%m-%d}"
