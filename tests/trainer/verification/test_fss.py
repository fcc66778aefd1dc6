"""The fractions skill score: pysteps' on complete fields, and a slow plain loop where pixels are missing."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.trainer.verification.fss import fss_sums

Bools = npt.NDArray[np.bool_]


def slow_sums(forecast_hw: Bools, observed_hw: Bools, valid_hw: Bools, scale: int) -> tuple[float, float]:
    """Loop over the pixels and their neighbourhoods, as Roberts and Lean write it, missing pixels left out."""
    rows, cols = forecast_hw.shape
    numerator = denominator = 0.0
    for i in range(rows):
        for j in range(cols):
            if not valid_hw[i, j]:
                continue
            first_row, first_col = i - scale // 2, j - scale // 2
            inside = [
                (a, b)
                for a in range(first_row, first_row + scale)
                for b in range(first_col, first_col + scale)
                if 0 <= a < rows and 0 <= b < cols
            ]
            measured = [pixel for pixel in inside if valid_hw[pixel]]
            share = len(inside) / scale**2
            f, o = (
                share * sum(bool(field[p]) for p in measured) / len(measured) for field in (forecast_hw, observed_hw)
            )
            numerator += (f - o) ** 2
            denominator += f**2 + o**2
    return numerator, denominator


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 9, 16, 31, 64, 2000])
@pytest.mark.parametrize("shape", [(24, 31), (40, 8)])
def test_complete_fields_give_what_pysteps_gives(scale: int, shape: tuple[int, int]) -> None:
    spatialscores = pytest.importorskip("pysteps.verification.spatialscores")
    rng = np.random.default_rng(scale)
    thresholds = (0.5, 1.0, 4.0)
    forecast, observed = rng.gamma(0.4, 3.0, shape), rng.gamma(0.4, 3.0, shape)
    events = [np.stack([field > threshold for threshold in thresholds]) for field in (forecast, observed)]
    for valid in (None, np.ones(shape, bool)):
        numerator, denominator = fss_sums(events[0], events[1], valid, (scale,))
        expected = [spatialscores.fss(forecast, observed, threshold, scale) for threshold in thresholds]
        np.testing.assert_allclose(1 - numerator[:, 0] / denominator[:, 0], expected, rtol=0, atol=1e-12)


@settings(max_examples=60)
@given(data=st.data())
def test_missing_pixels_are_left_out_as_the_slow_loop_does(data: Any) -> None:
    rows, cols = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    scales = tuple(sorted(data.draw(st.sets(st.integers(1, 9), min_size=1, max_size=3))))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    valid_hw = rng.random((rows, cols)) < data.draw(st.sampled_from((0.0, 0.3, 0.8, 1.0)))
    forecast_hw, observed_hw = (valid_hw & (rng.random((rows, cols)) < 0.4) for _ in range(2))
    numerator, denominator = fss_sums(forecast_hw[None], observed_hw[None], valid_hw, scales)
    for s, scale in enumerate(scales):
        expected = slow_sums(forecast_hw, observed_hw, valid_hw, scale)
        np.testing.assert_allclose((numerator[0, s], denominator[0, s]), expected, rtol=1e-12, atol=1e-15)


def test_thresholds_and_scales_do_not_touch_each_other() -> None:
    rng = np.random.default_rng(3)
    valid_hw = rng.random((20, 17)) < 0.9
    forecast_khw, observed_khw = (valid_hw & (rng.random((4, 20, 17)) < 0.3) for _ in range(2))
    together = fss_sums(forecast_khw, observed_khw, valid_hw, (1, 4, 15))
    for k in range(4):
        for s, scale in enumerate((1, 4, 15)):
            alone = fss_sums(forecast_khw[k : k + 1], observed_khw[k : k + 1], valid_hw, (scale,))
            # Bit for bit: what else is scored changes nothing.
            assert [one[k, s] for one in together] == [one[0, 0] for one in alone]


def test_no_event_at_all_is_no_sum_and_a_perfect_forecast_no_error() -> None:
    none, diagonal = np.zeros((1, 9, 9), bool), np.eye(9, dtype=bool)[None]
    for valid in (None, np.zeros((9, 9), bool)):
        assert not np.any(fss_sums(none, none, valid, (1, 5)))
    numerator, denominator = fss_sums(diagonal, diagonal, None, (1, 5))
    assert not numerator.any()
    assert (denominator > 0).all()
    numerator, denominator = fss_sums(none, diagonal, None, (1, 5))
    assert (numerator == denominator).all()
