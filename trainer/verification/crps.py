"""Sums over pixels, from sorted members, of what CRPS, spread and skill are made of."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import numpy as np

from .fss import BoolArray, FloatArray

POOLS_PX: Final = (1, 4, 16)
"""Sides of the blocks over whose means the CRPS, spread and skill are computed; each divides the next one."""


def sort_members(members_mn: FloatArray) -> FloatArray:
    """Sort the members of every pixel, so that no sum depends on their order.

    A sorting network compares whole rows: Batcher's odd-even merge sort in Knuth (1998), The Art of Computer
    Programming, volume 3, second edition, section 5.2.2, algorithm M. It is several times as fast as numpy's sort of
    columns of ten.

    Args:
        members_mn: Finite values, (members, pixels).
    """
    rows = list(members_mn)
    for low, high in _comparators(len(rows)):
        rows[low], rows[high] = np.minimum(rows[low], rows[high]), np.maximum(rows[low], rows[high])
    return np.stack(rows)


@lru_cache
def _comparators(size: int) -> tuple[tuple[int, int], ...]:
    """List the pairs of rows that a network for so many rows compares, in order."""
    return tuple(_merge_exchange(size))


def _merge_exchange(size: int) -> Iterator[tuple[int, int]]:
    """Merge sorted runs of rising length; within a merge, compare rows of falling distance."""
    run = 1
    while run < size:
        distance = run
        while distance >= 1:
            for first in range(distance % run, size - distance, 2 * distance):
                for low in range(first, first + min(distance, size - distance - first)):
                    # Only rows of one pair of runs are merged.
                    if low // (2 * run) == (low + distance) // (2 * run):
                        yield low, low + distance
            distance //= 2
        run *= 2


def crps_sums(sorted_mn: FloatArray, observed_n: FloatArray, threshold_mmh: float = -math.inf) -> tuple[float, float]:
    """Sum up over pixels what the CRPS of an ensemble is made of.

    CRPS = mean |x_i - y| - sum_{i<j} |x_i - x_j| / m^2: Gneiting and Raftery (2007), Strictly proper scoring rules,
    prediction, and estimation, equation 21, doi:10.1198/016214506000001437. The fair CRPS divides the second sum by
    m (m - 1): Ferro (2014), Fair scores for ensemble forecasts, equation 8, doi:10.1002/qj.2270. The
    threshold-weighted CRPS is that of max(x, t): Gneiting and Ranjan (2011), doi:10.1198/jbes.2010.08110, with the
    chaining function of Allen, Ginsbourger and Ziegel (2023), Evaluating forecasts for high-impact events using
    transformed kernel scores, doi:10.1137/22M1532184.

    Args:
        sorted_mn: Members in mm/h, rising along the first axis, (members, pixels).
        observed_n: Rain in mm/h.
        threshold_mmh: Below this all rain is equal.

    Returns:
        The sum over pixels of mean |x_i - y|, and that of sum_{i<j} |x_i - x_j|.
    """
    members = len(sorted_mn)
    chained_mn = np.maximum(sorted_mn, threshold_mmh)
    # The member of rank i is the larger one in i - 1 pairs and the smaller one in m - i: in steps of 2 from m - 1.
    of_rank = chained_mn.sum(axis=1)
    half = members // 2
    weights = np.arange(members - 1, 0, -2)[:half]
    pairs = float((weights * (of_rank[::-1][:half] - of_rank[:half])).sum())

    # In place: memory is what this waits for.
    np.subtract(chained_mn, np.maximum(observed_n, threshold_mmh), out=chained_mn)
    return float(np.abs(chained_mn, out=chained_mn).sum()) / members, pairs


def spread_sums(sorted_mn: FloatArray, observed_n: FloatArray) -> tuple[float, float]:
    """Sum up the members' unbiased variance and the squared error of their mean over pixels; of one member NaN, error.

    Args:
        sorted_mn: Members in mm/h, rising along the first axis, (members, pixels).
        observed_n: Rain in mm/h.
    """
    members = len(sorted_mn)
    mean_n = sorted_mn.sum(axis=0) / members
    error = float(np.square(mean_n - observed_n).sum())
    if members == 1:
        return math.nan, error
    deviation_mn = sorted_mn - mean_n
    return float(np.square(deviation_mn, out=deviation_mn).sum()) / (members - 1), error


def pooled(fields_mhw: FloatArray, factor: int) -> FloatArray:
    """Average over square blocks from the first row and column on; pixels left over at the end count in none.

    Args:
        fields_mhw: Any number of fields, (fields, rows, cols).
        factor: Side of a block in pixels.
    """
    rows, cols = (length // factor * factor for length in fields_mhw.shape[1:])
    whole_mhw = fields_mhw[:, :rows, :cols]
    strips_mhw = sum((whole_mhw[:, row::factor] for row in range(1, factor)), start=whole_mhw[:, ::factor])
    sums_mhw = sum((strips_mhw[:, :, col::factor] for col in range(1, factor)), start=strips_mhw[:, :, ::factor])
    return np.asarray(sums_mhw) / factor**2


def whole_blocks(valid_hw: BoolArray, factor: int) -> BoolArray:
    """Mark the blocks without a missing pixel."""
    rows, cols = (length // factor for length in valid_hw.shape)
    blocks = valid_hw[: rows * factor, : cols * factor].reshape(rows, factor, cols, factor)
    return np.asarray(blocks.all(axis=(1, 3)))
