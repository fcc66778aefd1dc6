"""Probabilities of an ensemble: equal to plain counting of members, and what must hold of every ensemble."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from rainspark.data.errors import DataError
from rainspark.trainer.forecasting.probabilities import (
    MOST_MMH,
    Shares,
    check_memory,
    count_exceeding,
    disc_maximum,
    hourly_sums,
    make_ensemble,
    mean_of,
    quantiles_of,
    round_rain,
)
from rainspark.trainer.settings.forecast import EnsembleOptions
from tests.trainer.forecasting.members import OPTIONS, make_members, make_small, seen_pixels


def _slow_probability(
    fields_mhw: npt.NDArray[np.float32], threshold_mmh: float, radius_px: float
) -> npt.NDArray[np.float64]:
    """Count, pixel by pixel, the members that are finite here and exceed a threshold anywhere within a radius."""
    _, rows, cols = fields_mhw.shape
    share_hw = np.full((rows, cols), np.nan)
    for row, col in np.ndindex(rows, cols):
        near = [
            (other_row, other_col)
            for other_row, other_col in np.ndindex(rows, cols)
            if (row - other_row) ** 2 + (col - other_col) ** 2 <= radius_px**2
        ]
        known = [field_hw for field_hw in fields_mhw if np.isfinite(field_hw[row, col])]
        if known:
            hits = sum(any(field_hw[pixel] > np.float32(threshold_mmh) for pixel in near) for field_hw in known)
            share_hw[row, col] = hits / len(known)
    return share_hw


@pytest.mark.parametrize("failing", [False, True])
def test_probabilities_are_what_counting_members_gives(failing: bool) -> None:
    ensemble = make_small(failing=failing)
    for lead, (at, threshold_mmh), (near, radius_km) in itertools.product(
        (0, 2), enumerate(OPTIONS.thresholds_mmh), enumerate(OPTIONS.radii_km)
    ):
        expected = _slow_probability(ensemble.members_mmh_mthw[:, lead], threshold_mmh, radius_km)
        np.testing.assert_allclose(ensemble.exceeding.probability(at, near, lead), expected, rtol=1e-6)

    # Sums: of the first hour, four leads of 15 minutes.
    sums_mm = ensemble.members_mmh_mthw.astype(np.float64).sum(axis=1) / 4
    for at, threshold_mm in enumerate(OPTIONS.sum_thresholds_mm):
        expected = _slow_probability(sums_mm.astype(np.float32), threshold_mm, 0)
        np.testing.assert_allclose(ensemble.sums_exceeding.probability(at, 0), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_probabilities_fall_with_the_threshold_and_rise_with_the_radius(seed: int) -> None:
    random = np.random.default_rng(seed)
    fields = random.gamma(0.5, 4.0, (7, 20, 17)).astype(np.float32)
    fields[random.random(fields.shape) < 0.05] = np.nan
    thresholds = sorted(random.uniform(0, 10, 4))
    counts = count_exceeding(fields, np.isfinite(fields), thresholds, [0, 1, 2.3, 5, 40]).astype(int)
    assert (np.diff(counts, axis=0) <= 0).all()
    assert (np.diff(counts, axis=1) >= 0).all()
    assert (counts <= np.isfinite(fields).sum(axis=0)).all()
    assert counts.max() > counts.min()
    # Members may change places.
    again = count_exceeding(fields[::-1], np.isfinite(fields[::-1]), thresholds, [0, 1, 2.3, 5, 40])
    np.testing.assert_array_equal(again, counts)


@pytest.mark.parametrize("radius_px", [0, 0.9, 1, 1.5, 2**0.5, 3, 4.7, 5, 12, 30, 25 / 3.75])
@pytest.mark.parametrize("shape", [(23, 31), (4, 40), (1, 5), (9, 2)])
def test_discs_are_scipys(shape: tuple[int, int], radius_px: float) -> None:
    values = np.random.default_rng(0).integers(0, 7, shape).astype(np.uint8)
    values[np.random.default_rng(1).random(shape) < 0.9] = 0
    reach = int(radius_px) + 1
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    expected = ndimage.maximum_filter(values, footprint=down**2 + right**2 <= radius_px**2 + 1e-9, mode="constant")
    np.testing.assert_array_equal(disc_maximum(values, radius_px), expected)


def test_radii_are_in_kilometres() -> None:
    members = np.zeros((2, 1, 9, 9), np.float32)
    members[:, 0, 4, 4] = 9.0
    options = EnsembleOptions(members=2, thresholds_mmh=(1.0,), radii_km=(5.0,))
    reached = [
        int(make_ensemble(members, np.ones((9, 9), bool), options, cadence_s=300, pixel_km=pixel_km)
            .exceeding.probability(0, 0, 0).sum())
        for pixel_km in (5.0, 2.5, 2.0)
    ]  # fmt: skip
    assert reached == [5, 13, 21]


def test_quantiles_and_mean_are_numpys_of_the_finite_members() -> None:
    fields = make_members(6, 1, failing=False)[:, 0]
    random = np.random.default_rng(3)
    fields[random.random(fields.shape) < 0.2] = np.nan
    fields[:, 0, 0] = np.nan
    fields[1:, 0, 1] = np.nan
    of = np.isfinite(fields).sum(axis=0).astype(np.uint8)
    quantiles = (0.0, 0.1, 0.5, 0.73, 1.0)
    values = quantiles_of(fields, of, quantiles)
    assert np.isnan(values[:, 0, 0]).all()
    assert np.isnan(mean_of(fields, of)[0, 0])
    known = of > 0
    np.testing.assert_allclose(values[:, known], np.nanquantile(fields[:, known], quantiles, axis=0), atol=1 / 250)
    np.testing.assert_allclose(mean_of(fields, of)[known], np.nanmean(fields[:, known], axis=0), rtol=1e-6)
    assert (np.diff(values[:, known], axis=0) >= 0).all()


def test_sums_are_of_whole_hours() -> None:
    members = make_members(3, 9)
    sums = hourly_sums(members, 900)
    assert sums.shape[:2] == (3, 2)
    plain = sum(float(members[1, lead, 4, 5]) * 0.25 for lead in (4, 5, 6, 7))
    assert sums[1, 1, 4, 5] == pytest.approx(plain, rel=1e-6)
    short = hourly_sums(members[:, :2], 900)
    np.testing.assert_allclose(short[:, 0], members[:, :2].sum(axis=1) / 4, rtol=1e-6)


def test_rounded_rain_is_near_and_sixteen_bits_hold_it() -> None:
    rain = np.random.default_rng(0).gamma(0.5, 20.0, 10_000).astype(np.float32)
    rounded = round_rain(rain)
    assert np.abs(rounded - rain).max() <= 1 / 256
    steps = rounded * 128
    np.testing.assert_array_equal(steps, np.rint(steps))
    assert steps.max() <= 65534
    odd = round_rain(np.array([np.nan, np.inf, -np.inf, -0.2, 0.0, 0.001, 700.0]))
    np.testing.assert_array_equal(odd, np.array([np.nan, np.nan, np.nan, 0, 0, 0, MOST_MMH], np.float32))


def test_a_failed_member_is_counted_and_left_out_where_it_failed_alone() -> None:
    whole, failed = make_small(), make_small(failing=True)
    assert whole.nonfinite_m.tolist() == [0, 0, 0, 0, 0]
    assert failed.nonfinite_m.tolist() == [0, 4, 0, 1, 0]
    assert failed.num_nonfinite == 5
    # Where no radar looks everything is missing, and nothing is a failure.
    unseen = ~seen_pixels()
    for ensemble in (whole, failed):
        assert np.isnan(ensemble.members_mmh_mthw[:, :, unseen]).all()
        assert np.isnan(ensemble.mean_mmh_thw[:, unseen]).all()
        assert np.isnan(ensemble.quantiles_mmh_qthw[:, :, unseen]).all()
        assert np.isnan(ensemble.exceeding.probability(0, 1, 0)[unseen]).all()
        assert np.isnan(ensemble.sums_exceeding.probability(0, 0)[unseen]).all()
        assert np.isfinite(ensemble.exceeding.probability(0, 1, 0)[~unseen]).all()

    # At the pixel the others count: four of them at the first lead, three at the third.
    assert failed.exceeding.of[[0, 2], [5, 6], [5, 5]].tolist() == [4, 3]
    others = np.delete(failed.members_mmh_mthw[:, 0, 5, 5], 1)
    assert failed.mean_mmh_thw[0, 5, 5] == pytest.approx(others.mean())
    # A member whose hour has a gap has no sum.
    assert failed.sums_exceeding.of[0, 5:8, 5].tolist() == [4, 3, 4]
    np.testing.assert_array_equal(failed.mean_mmh_thw[1], whole.mean_mmh_thw[1])


def test_one_hundred_members_are_counted_in_bytes() -> None:
    members = np.full((100, 1, 3, 3), 2.0, np.float32)
    options = EnsembleOptions(members=100)
    ensemble = make_ensemble(members, np.ones((3, 3), bool), options, cadence_s=300, pixel_km=1.0)
    assert (ensemble.exceeding.probability(2) == 1).all()
    assert (ensemble.exceeding.probability(3) == 0).all()
    shares = Shares(counts=np.array([[100]], np.uint8), of=np.array([[0]], np.uint8))
    assert np.isnan(shares.probability()).all()


def test_more_members_than_there_is_memory_are_refused_before_they_are_made() -> None:
    check_memory(EnsembleOptions(members=2), 12, 64, 64)
    text = (
        r"--members 100 of 12 x 1000000 x 1000000 pixels take 10176000\.0 GB of memory, and [\d.]+ GB are free; "
        "ask for fewer, or forecast a smaller --crop"
    )
    with pytest.raises(DataError, match=text):
        check_memory(EnsembleOptions(members=100), 12, 1_000_000, 1_000_000)
