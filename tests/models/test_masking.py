"""Masks: how many patches stay, which ones, and from what alone they follow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.models.masking import num_visible, visible_positions

GRIDS = st.tuples(st.integers(1, 12), st.integers(1, 12))
RATIOS = st.floats(0.0, 0.999)


@settings(max_examples=80, deadline=None)
@given(grid_hw=GRIDS, ratio=RATIOS, seed=st.integers(0, 2**63))
def test_positions_are_sorted_distinct_inside_and_as_many_as_published(
    grid_hw: tuple[int, int], ratio: float, seed: int
) -> None:
    total = grid_hw[0] * grid_hw[1]
    positions = visible_positions(grid_hw, ratio, np.random.default_rng(seed))
    assert positions.dtype == np.int64
    assert len(positions) == num_visible(grid_hw, ratio) == max(1, round(total * (1 - ratio)))
    assert positions[0] >= 0
    assert positions[-1] < total
    assert (np.diff(positions) > 0).all()
    again = visible_positions(grid_hw, ratio, np.random.default_rng(seed))
    np.testing.assert_array_equal(positions, again)


def test_every_patch_is_visible_equally_often() -> None:
    generator, counts = np.random.default_rng(0), np.zeros(12)
    draws = 4000
    for _ in range(draws):
        counts[visible_positions((3, 4), 0.6, generator)] += 1
    expected = draws * num_visible((3, 4), 0.6) / 12
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_outside_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= ratio < 1"):
        num_visible((3, 3), ratio)


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="0 x 3 patches holds none"):
        num_visible((0, 3), 0.5)
