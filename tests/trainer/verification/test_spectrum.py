"""Spectral densities: pysteps' rings in wavelength bands, a wave in its own band, and missing pixels."""

import numpy as np
import pytest

from rainspark.trainer.verification.ensemble import compute, score_members
from rainspark.trainer.verification.rows import Settings
from rainspark.trainer.verification.spectrum import (
    FLOOR_DBR,
    FLOOR_MMH,
    WAVELENGTH_EDGES_PX,
    band_density,
    bands_of,
    can_be_taken,
    to_dbr,
)
from tests.trainer.verification.ensembles import Field, smooth_rain, window

ONE_LEAD = Settings(leads_min=(5,), thresholds_mmh=(0.5,), scales_px=(1,))


def band_of(wavelength_px: float) -> int:
    """Number the band of a wavelength."""
    return int(np.searchsorted(WAVELENGTH_EDGES_PX, wavelength_px, side="right")) - 1


def hann(side: int) -> Field:
    """Make the window function of a square."""
    weights = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(side) + 0.5) / side)
    return weights[:, None] * weights[None, :]


@pytest.mark.parametrize("side", [48, 45])
def test_bands_are_the_means_of_pysteps_rings(side: int) -> None:
    spectral = pytest.importorskip("pysteps.utils.spectral")
    field = smooth_rain(1, side, side)
    weighted = field * hann(side)
    theirs, frequency = spectral.rapsd(weighted, fft_method=np.fft, return_freq=True)
    theirs *= weighted.size / np.square(hann(side)).sum()
    ours = band_density(field)
    taken = np.zeros(len(ours), int)
    for band in range(len(ours)):
        wavelengths = 1 / frequency[1:]
        rings = (wavelengths >= WAVELENGTH_EDGES_PX[band]) & (wavelengths < WAVELENGTH_EDGES_PX[band + 1])
        taken[band] = rings.any()
        if taken[band]:
            assert ours[band] == pytest.approx(theirs[1:][rings].mean(), rel=1e-10)
    assert (bands_of(side, side) == taken).all()
    assert (ours[taken == 0] == 0).all()


def test_density_of_several_fields_is_their_mean() -> None:
    fields = smooth_rain(1, 3, 40, 40)
    np.testing.assert_allclose(band_density(*fields), np.mean([band_density(field) for field in fields], axis=0))


@pytest.mark.parametrize(("rows", "cols"), [(96, 96), (96, 64), (64, 96)])
@pytest.mark.parametrize("along", [0, 1])
def test_a_wave_lies_in_the_band_of_its_length_also_in_a_rectangle(rows: int, cols: int, along: int) -> None:
    place = np.arange((rows, cols)[along]) * 2 * np.pi / 8.0
    wave = np.cos(place)[:, None] * np.ones((1, cols)) if along == 0 else np.cos(place)[None] * np.ones((rows, 1))
    density = band_density(wave)
    # The window spreads a wave over three wave numbers: 8 pixels are the lower bound of their band.
    assert density[band_of(8.0) - 1 : band_of(8.0) + 1].sum() > 0.999 * density.sum()


def test_white_noise_has_the_same_density_in_all_bands() -> None:
    noise = np.random.default_rng(0).normal(0, 2.0, (40, 64, 64))
    density = band_density(*noise)[bands_of(64, 64) > 0]
    # Its variance, 4, at every wavelength: the shortest band averages thousands of coefficients, the longest some.
    assert density[0] == pytest.approx(4.0, rel=0.02)
    np.testing.assert_allclose(density, 4.0, rtol=0.2)


def test_dbr_is_pysteps_less_its_floor() -> None:
    transformation = pytest.importorskip("pysteps.utils.transformation")
    rain = smooth_rain(1, 30, 30)
    rain[:4] = 0
    theirs, _ = transformation.dB_transform(rain, threshold=FLOOR_MMH, zerovalue=FLOOR_DBR)
    np.testing.assert_allclose(to_dbr(rain), theirs - FLOOR_DBR, atol=1e-10)
    assert to_dbr(np.array([0.0, -1.0, 0.0999])).tolist() == [0, 0, 0]


def test_ratios_tell_members_that_are_alike_from_blurred_ones() -> None:
    rng = np.random.default_rng(5)
    wave = np.exp(rng.normal(0, 1, (9, 1, 64, 64)))
    radar, members = wave[0], wave[1:]
    scores = compute(score_members(ONE_LEAD, window(0), members, radar, None))
    held = bands_of(64, 64) > 0
    for unit in ("dbr", "mmh"):
        # Eight members alike: the density of one is the radar's, that of their mean an eighth (in mm/h).
        assert scores.values[f"psd_ratio_members_{unit}"][0, 0] == pytest.approx(1.0, rel=0.1)
        assert np.isnan(scores.values[f"psd_ratio_members_{unit}"][0, ~held]).all()
        values = {name: scores.values[f"psd_{name}_{unit}"][0, held] for name in ("observed", "members", "mean")}
        fields = [radar[0], *members[:, 0], members[:, 0].mean(axis=0)]
        drawn = [band_density(to_dbr(field) if unit == "dbr" else field)[held] for field in fields]
        np.testing.assert_allclose(values["observed"], drawn[0], rtol=1e-10)
        np.testing.assert_allclose(values["members"], np.mean(drawn[1:-1], axis=0), rtol=1e-10)
        np.testing.assert_allclose(values["mean"], drawn[-1], rtol=1e-10)
    assert scores.values["psd_ratio_mean_mmh"][0, 0] == pytest.approx(1 / 8, rel=0.15)


def test_missing_pixels_at_the_border_are_dry_and_frames_that_lack_more_are_left_out() -> None:
    members, radar = smooth_rain(1, 3, 1, 64, 64), smooth_rain(2, 1, 64, 64)
    border = np.ones((1, 64, 64), bool)
    border[:, :6] = False
    assert can_be_taken(border[0])
    rows = score_members(ONE_LEAD, window(0), members, np.where(border, radar, np.nan), border)
    assert (rows.numbers["spectrum_frames"][0, 0] == bands_of(64, 64)).all()
    expected = band_density(np.where(border[0], radar[0], 0))
    np.testing.assert_allclose(rows.numbers["psd_observed_mmh"][0, 0], expected, rtol=1e-12)
    expected = band_density(*np.where(border[0], members[:, 0], 0))
    np.testing.assert_allclose(rows.numbers["psd_members_mmh"][0, 0], expected, rtol=1e-12)

    centre = np.ones((1, 64, 64), bool)
    centre[:, 28:36, 28:36] = False
    assert not can_be_taken(centre[0])
    rows = score_members(ONE_LEAD, window(0), members, radar, centre)
    assert rows.numbers["spectrum_frames"].sum() == 0
    assert np.isnan(compute(rows).values["psd_ratio_members_dbr"]).all()
