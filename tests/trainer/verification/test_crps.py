"""CRPS, threshold-weighted and pooled, spread and skill: equal to scoringrules, `scores`, pysteps and plain loops."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
import scores.probability
import scoringrules
import xarray as xr
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rainspark.trainer.verification.crps import POOLS_PX, pooled, sort_members, whole_blocks
from rainspark.trainer.verification.ensemble import compute, merge, score_members
from tests.trainer.verification.ensembles import SHAPE, SMALL, Field, mask, smooth_rain, tied_rain, window

CASES = {
    "smooth": (smooth_rain, 1.0),
    "tied": (tied_rain, 1.0),
    "missing": (smooth_rain, 0.8),
    "tied and missing": (tied_rain, 0.8),
}


def case(kind: str, members: int) -> tuple[Field, Field, npt.NDArray[np.bool_]]:
    """Draw an ensemble (m, t, h, w), the radar and what it measured."""
    draw, share_valid = CASES[kind]
    return draw(1, members, *SHAPE), draw(2, *SHAPE), mask(3, share_valid)


def block_means(field: Field, side: int) -> Field:
    """Average over blocks, one by one: (..., rows, cols)."""
    rows, cols = (length // side for length in field.shape[-2:])
    means = np.empty((*field.shape[:-2], rows, cols))
    for row, col in np.ndindex(rows, cols):
        block = field[..., row * side : (row + 1) * side, col * side : (col + 1) * side]
        means[..., row, col] = block.mean(axis=(-2, -1))
    return means


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("members", [2, 5, 8, 16])
def test_crps_equals_scoringrules_at_every_pool_and_lead_time(kind: str, members: int) -> None:
    ensemble, observed, valid = case(kind, members)
    ours = compute(score_members(SMALL, window(0), ensemble, observed, valid))
    for pool_px in POOLS_PX:
        whole = block_means(valid.astype(float), pool_px) == 1
        x, y = block_means(ensemble, pool_px), block_means(observed, pool_px)
        assert whole.any(axis=(1, 2)).all()
        for lead, lead_min in ((0, 5), (1, 10), (slice(None), None)):
            forecast, radar = np.moveaxis(x[:, lead][:, whole[lead]], 0, -1), y[lead][whole[lead]]
            for score, estimator in (("crps", "nrg"), ("crps_fair", "fair")):
                theirs = scoringrules.crps_ensemble(radar, forecast, estimator=estimator).mean()
                value = ours.at(score, lead_min=lead_min, pool_px=pool_px)
                assert value == pytest.approx(theirs, abs=1e-10), (score, pool_px)


@pytest.mark.parametrize("kind", CASES)
def test_crps_above_a_threshold_equals_scoringrules_and_scores(kind: str) -> None:
    ensemble, observed, valid = case(kind, 8)
    ours = compute(score_members(SMALL, window(0), ensemble, observed, valid))
    for threshold_mmh in SMALL.thresholds_mmh:
        for lead, lead_min in enumerate(SMALL.leads_min):
            x, y = np.moveaxis(ensemble[:, lead][:, valid[lead]], 0, -1), observed[lead][valid[lead]]
            forecast, radar = xr.DataArray(x, dims=("pixel", "member")), xr.DataArray(y, dims=("pixel",))
            for score, method, estimator in (("twcrps", "ecdf", "nrg"), ("twcrps_fair", "fair", "fair")):
                value = ours.at(score, lead_min=lead_min, threshold_mmh=threshold_mmh)
                theirs = scoringrules.twcrps_ensemble(y, x, a=threshold_mmh, estimator=estimator).mean()
                assert value == pytest.approx(theirs, abs=1e-10)
                tail = scores.probability.tail_tw_crps_for_ensemble(
                    forecast, radar, "member", threshold_mmh, tail="upper", method=method
                )
                assert value == pytest.approx(tail.item(), abs=1e-10)


@pytest.mark.parametrize("kind", CASES)
def test_crps_equals_scores_and_without_ties_pysteps(kind: str) -> None:
    ensemble, observed, valid = case(kind, 8)
    ours = compute(score_members(SMALL, window(0), ensemble, observed, valid))
    radar = xr.DataArray(observed, dims=("t", "h", "w")).where(valid)
    forecast = xr.DataArray(ensemble, dims=("m", "t", "h", "w"))
    for score, method in (("crps", "ecdf"), ("crps_fair", "fair")):
        theirs = scores.probability.crps_for_ensemble(forecast, radar, "m", method=method, preserve_dims="t")
        for lead, lead_min in enumerate(SMALL.leads_min):
            assert ours.at(score, lead_min=lead_min) == pytest.approx(theirs[lead].item(), abs=1e-10)
    if CASES[kind][0] is smooth_rain:
        probscores = pytest.importorskip("pysteps.verification.probscores")
        theirs = probscores.CRPS(ensemble, np.where(valid, observed, np.nan))
        assert ours.at("crps") == pytest.approx(theirs, abs=1e-10)


def test_fair_crps_is_the_mean_over_pairs_and_pools_windows_by_their_pixels() -> None:
    rows, pixels = [], []
    for number in range(3):
        ensemble, observed, valid = tied_rain(number, 4, *SHAPE), tied_rain(50 + number, *SHAPE), mask(number, 0.5)
        rows.append(score_members(SMALL, window(number), ensemble, observed, valid))
        # A pixel's fair CRPS, plainly: errors of members less half of the mean difference of two distinct ones.
        apart = np.mean([np.abs(ensemble[i] - ensemble[j]) for i, j in combinations(range(4), 2)], axis=0)
        pixels.extend((np.abs(ensemble - observed).mean(axis=0) - apart / 2)[valid])
    assert compute(merge(*rows)).at("crps_fair") == pytest.approx(np.mean(pixels), abs=1e-12)


@hypothesis_settings(max_examples=60, deadline=None)
@given(data=st.data(), members=st.integers(1, 6))
def test_any_rain_has_the_crps_of_the_double_sum(data: st.DataObject, members: int) -> None:
    rain = st.one_of(st.sampled_from([0.0, 0.5, 2.0]), st.floats(0, 300), st.floats(-1, 0))
    ensemble = data.draw(arrays(np.float64, (members, 2, 3, 2), elements=rain))
    observed = data.draw(arrays(np.float64, (2, 3, 2), elements=rain))
    ours = compute(score_members(SMALL, window(0), ensemble, observed, None))
    for threshold_mmh in (None, *SMALL.thresholds_mmh):
        x, y = (np.maximum(each, -1 if threshold_mmh is None else threshold_mmh) for each in (ensemble, observed))
        error = np.abs(x - y).mean()
        apart = np.abs(x[:, None] - x[None]).sum(axis=(0, 1)).mean()
        plain, fair = error - apart / (2 * members**2), error - apart / (2 * max(members * (members - 1), 1))
        if threshold_mmh is None:
            assert (ours.at("crps"), ours.at("crps_fair")) == pytest.approx((plain, fair), abs=1e-10)
        else:
            values = [ours.at(f"twcrps{suffix}", threshold_mmh=threshold_mmh) for suffix in ("", "_fair")]
            assert values == pytest.approx([plain, fair], abs=1e-10)


@pytest.mark.parametrize("members", [1, 2, 7, 16])
def test_one_member_repeated_has_its_absolute_error_as_crps(members: int) -> None:
    forecast, observed = smooth_rain(1, 1, *SHAPE), smooth_rain(2, *SHAPE)
    ours = compute(score_members(SMALL, window(0), forecast.repeat(members, axis=0), observed, None))
    error = np.abs(forecast[0] - observed).mean()
    chained = [np.abs(np.maximum(forecast[0], t) - np.maximum(observed, t)).mean() for t in SMALL.thresholds_mmh]
    for suffix in ("", "_fair"):
        assert ours.at(f"crps{suffix}") == pytest.approx(error, rel=1e-13)
        np.testing.assert_allclose(ours.values[f"twcrps{suffix}"][-1], chained, rtol=1e-13)
    # One member has no spread; several equal ones have the spread 0.
    spread = ours.values["spread"]
    assert np.isnan(spread).all() if members == 1 else np.abs(spread).max() < 1e-12
    assert ours.at("mean_rmse") == pytest.approx(np.sqrt(np.square(forecast[0] - observed).mean()))


@pytest.mark.parametrize("kind", CASES)
def test_spread_and_skill_equal_plain_means(kind: str) -> None:
    ensemble, observed, valid = case(kind, 5)
    ours = compute(score_members(SMALL, window(0), ensemble, observed, valid))
    for pool_px in POOLS_PX:
        whole = block_means(valid.astype(float), pool_px) == 1
        x, y = block_means(ensemble, pool_px)[:, whole], block_means(observed, pool_px)[whole]
        variance, squared = x.var(axis=0, ddof=1).mean(), np.square(x.mean(axis=0) - y).mean()
        assert ours.at("spread", pool_px=pool_px) == pytest.approx(np.sqrt(variance), abs=1e-10)
        assert ours.at("mean_rmse", pool_px=pool_px) == pytest.approx(np.sqrt(squared), abs=1e-10)
        expected = np.sqrt(6 / 5 * variance / squared)
        assert ours.at("spread_skill", pool_px=pool_px) == pytest.approx(expected, abs=1e-10)


def test_members_are_sorted_at_every_number_of_them() -> None:
    for members in range(1, 41):
        rain_mn = np.random.default_rng(members).integers(0, 9, (members, 50)).astype(float)
        np.testing.assert_array_equal(sort_members(rain_mn), np.sort(rain_mn, axis=0))


def test_blocks_are_averaged_and_those_with_a_missing_pixel_are_left_out() -> None:
    fields = smooth_rain(1, 3, 11, 9)
    np.testing.assert_allclose(pooled(fields, 4), block_means(fields, 4), rtol=1e-14)
    valid = np.ones((11, 9), bool)
    valid[5, 2] = valid[10, 8] = False
    # The last pixel lies in no block.
    assert whole_blocks(valid, 4).tolist() == [[True, True], [False, True]]
