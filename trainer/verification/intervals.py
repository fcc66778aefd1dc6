"""How sure a score is: bootstrap over days, and paired differences between two models."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np

from ...data.errors import DataError
from ...data.randomness import generator
from .contingency import scores_of_sums
from .fss import FloatArray
from .rows import DAY_S, FIELDS, IntArray, Rows, check_same_settings, compute

NUM_DRAWS: Final = 1000
LEVEL: Final = 0.95
_FEW_DAYS: Final = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Interval:
    """Scores, or differences of scores, and the interval that resampling the days puts around them.

    All arrays are by score and shaped as trainer.verification.Scores.values.

    Args:
        num_days: Days with windows.
        num_draws: Resamples of the days.
        level: Share of the draws that lies inside the interval.
        note: What the interval is, or why there is none.
        value: From all windows.
        low: Lower bound; None with a single day. NaN where the value is, or where no draw gave one.
        high: Upper bound, the same.
        above_zero: Share of the draws with a value above 0, of those with one; None with a single day.
    """

    num_days: int
    num_draws: int
    level: float
    note: str
    value: Mapping[str, FloatArray]
    low: Mapping[str, FloatArray] | None
    high: Mapping[str, FloatArray] | None
    above_zero: Mapping[str, FloatArray] | None


def bootstrap(rows: Rows, *, seed: int = 0, num_draws: int = NUM_DRAWS, level: float = LEVEL) -> Interval:
    """Put percentile intervals around all scores by drawing days with replacement.

    Windows of one day belong to one rain system: to draw windows would make intervals too narrow. Block bootstrap and
    percentile interval: Efron and Tibshirani (1993), An Introduction to the Bootstrap, sections 8.6 and 13.3,
    doi:10.1007/978-1-4899-4541-9.

    Args:
        rows: Of one model.
        seed: Equal seeds draw equal days.
        num_draws: Resamples.
        level: Share of the draws inside the interval, 0 to 1.
    """
    return _interval(rows, compute(rows).values, [rows], seed, num_draws, level)


def paired_difference(
    rows_a: Rows, rows_b: Rows, *, seed: int = 0, num_draws: int = NUM_DRAWS, level: float = LEVEL
) -> Interval:
    """Put intervals around the scores of one model less those of another, both with the same draws of days.

    Args:
        rows_a: Of the first model.
        rows_b: Of the second model, subtracted; the same windows.
        seed: Equal seeds draw equal days.
        num_draws: Resamples.
        level: Share of the draws inside the interval, 0 to 1.

    Raises:
        ConfigError: The models were scored with different settings.
        DataError: A window that one of them lacks, or one that was compared with different radar.
    """
    check_comparable(rows_a, rows_b)
    values_a, values_b = compute(rows_a).values, compute(rows_b).values
    value = {score: values_a[score] - values_b[score] for score in values_a}
    return _interval(rows_a, value, [rows_a, rows_b], seed, num_draws, level)


def check_comparable(rows_a: Rows, rows_b: Rows) -> None:
    """Refuse to compare models that were not scored alike: settings, windows and radar must be the same.

    Raises:
        ConfigError: The models were scored with different settings.
        DataError: A window that one of them lacks, or one that was compared with different radar.
    """
    check_same_settings(rows_a.settings, rows_b.settings)
    windows_a, windows_b = rows_a.windows, rows_b.windows
    if lacking := sorted(set(windows_a) ^ set(windows_b)):
        which = "second" if lacking[0] in set(windows_a) else "first"
        raise DataError(
            f"window {lacking[0]} is missing from the {which} model's scores ({len(lacking)} windows are in one only); "
            "score both models on the same windows"
        )
    for field in ("num_valid", "observed_histogram"):
        different = getattr(rows_a, field) != getattr(rows_b, field)
        if (differs := different.any(axis=tuple(range(1, different.ndim)))).any():
            window = windows_a[int(np.flatnonzero(differs)[0])]
            raise DataError(
                f"window {window}: the models were compared with different radar; score both on one archive"
            )


def _interval(
    rows: Rows, value: Mapping[str, FloatArray], models: list[Rows], seed: int, num_draws: int, level: float
) -> Interval:
    """Resample the score of the first of `models`, less that of the second where there is one."""
    if num_draws < 1 or not 0 < level < 1:
        raise ValueError(f"{num_draws} draws at level {level}; expected 1 or more draws and a level between 0 and 1")
    days = np.unique(rows.day)
    num_days = len(days)
    if num_days < 2:
        note = "no interval: there are no windows"
        if num_days:
            which = "the only window is" if len(rows) == 1 else f"all {len(rows)} windows are"
            note = f"no interval: {which} of one day, {day_text(int(days[0]))}, and one day says nothing about others"
        return Interval(
            num_days=num_days,
            num_draws=0,
            level=level,
            note=note,
            value=value,
            low=None,
            high=None,
            above_zero=None,
        )
    note = f"{level:.0%} percentile interval of {num_draws} resamples of {num_days} days (UTC)"
    if num_days < _FEW_DAYS:
        note += "; of so few days it is too narrow rather than too wide"
    weights = draw_days(num_days, seed, num_draws)
    drawn = [_drawn_scores(model, weights) for model in models]
    low, high, above_zero = {}, {}, {}
    for score, estimate in value.items():
        draws = drawn[0][score] - drawn[1][score] if len(drawn) == 2 else drawn[0][score]
        low[score], high[score], above_zero[score] = _summarise(draws, estimate, level)
    return Interval(
        num_days=num_days,
        num_draws=num_draws,
        level=level,
        note=note,
        value=value,
        low=low,
        high=high,
        above_zero=above_zero,
    )


def draw_days(num_days: int, seed: int, num_draws: int) -> IntArray:
    """Draw as many days as there are, with replacement: how often each was drawn, (draws, days)."""
    drawn = generator(seed, "bootstrap").integers(0, num_days, size=(num_draws, num_days))
    places = drawn + num_days * np.arange(num_draws)[:, None]
    return np.bincount(places.ravel(), minlength=num_draws * num_days).reshape(num_draws, num_days)


def _drawn_scores(rows: Rows, weights: IntArray) -> dict[str, FloatArray]:
    """Compute all scores of all draws, (draws, lead times + 1, ...): one matrix product for each sum."""
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


def _summarise(draws: FloatArray, estimate: FloatArray, level: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Give the lower and upper bound and the share above zero, over the draws that have a value."""
    exists = ~np.isnan(draws)
    none = np.isnan(estimate) | ~exists.any(axis=0)
    filled = np.where(none, 0.0, draws)
    share = (1 - level) / 2
    low, high = (np.where(none, math.nan, bound) for bound in np.nanquantile(filled, (share, 1 - share), axis=0))
    above = (filled > 0).sum(axis=0) / np.maximum(exists.sum(axis=0), 1)
    return low, high, np.where(none, math.nan, above)


def day_text(day: int) -> str:
    """Write a day, counted since 1970, as a UTC date."""
    return f"{datetime.fromtimestamp(day * DAY_S, UTC):%Y-%m-%d}"
