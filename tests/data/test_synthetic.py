"""Synthetic storms: reproducible, like real radar in their statistics, and readable as KNMI files."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from data.sources.knmi import read, scan
from data.sources.synthetic import main, storms, write_knmi_file


def wet_shares(counts_thw: npt.NDArray[np.uint16]) -> npt.NDArray[np.float64]:
    return np.asarray((counts_thw > 0).mean((1, 2)))


def spectral_slope(counts_thw: npt.NDArray[np.uint16]) -> float:
    """Fit the slope of the power spectrum between 64 and 4 km wavelength."""
    size = counts_thw.shape[-1]
    taper = np.hanning(size)[:, None] * np.hanning(size)
    rain_mmh = counts_thw * 0.12
    power = (np.abs(np.fft.fft2((rain_mmh - rain_mmh.mean((1, 2), keepdims=True)) * taper)) ** 2).mean(0)
    wavenumber = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    chosen = (wavenumber > 1 / 64) & (wavenumber < 1 / 4)
    return float(np.polyfit(np.log(wavenumber[chosen]), np.log(power[chosen]), 1)[0])


def motion(before: npt.NDArray[np.uint16], after: npt.NDArray[np.uint16]) -> tuple[int, int]:
    """Find the displacement, (rows, columns), by which two frames match best (phase-free cross-correlation)."""
    a, b = np.fft.fft2(before - before.mean()), np.fft.fft2(after - after.mean())
    correlation = np.fft.ifft2(np.conj(a) * b).real
    row, col = np.unravel_index(int(correlation.argmax()), correlation.shape)
    rows, cols = correlation.shape
    return int((row + rows // 2) % rows - rows // 2), int((col + cols // 2) % cols - cols // 2)


@pytest.fixture(scope="module")
def frames() -> npt.NDArray[np.uint16]:
    """Make two hours of two seeds, 288 x 288."""
    return np.concatenate([storms(24, 288, 288, seed) for seed in (1, 2)])


def test_equal_seeds_give_equal_storms() -> None:
    first = storms(3, 40, 50, seed=7)
    assert first.shape == (3, 40, 50)
    assert first.dtype == np.uint16
    np.testing.assert_array_equal(first, storms(5, 40, 50, seed=7)[:3])
    assert (first != storms(3, 40, 50, seed=8)).any()


def test_rain_is_as_wet_and_as_skewed_as_radar(frames: npt.NDArray[np.uint16]) -> None:
    shares = wet_shares(frames)
    assert 0.1 < shares.mean() < 0.8
    assert np.ptp(shares) > 0.1
    rates_mmh = frames[frames > 0] * 0.12
    median, high, top = np.quantile(rates_mmh, [0.5, 0.9, 0.999])
    # The real files: 0.48, 1.92 and 8.6 mm/h.
    assert 0.3 < median < 0.8
    assert 1.2 < high < 4
    assert 5 < top < 40
    assert -4.5 < spectral_slope(frames) < -2.0


def test_rain_moves_and_keeps_its_shape_for_a_while(frames: npt.NDArray[np.uint16]) -> None:
    rain = np.log1p(frames[:24].astype(np.float64))
    correlations = [np.corrcoef(rain[0].ravel(), rain[i].ravel())[0, 1] for i in (1, 3, 12)]
    assert correlations[0] > 0.7
    assert correlations[0] > correlations[1] > correlations[2]
    rows, cols = motion(frames[0], frames[3])
    # 45 km/h is 11 pixels in a quarter of an hour.
    assert 4 < np.hypot(rows, cols) < 25


def test_borders_are_smooth(frames: npt.NDArray[np.uint16]) -> None:
    wet = frames > 0
    inside = wet[:, 1:-1, 1:-1] & wet[:, :-2, 1:-1] & wet[:, 2:, 1:-1] & wet[:, 1:-1, :-2] & wet[:, 1:-1, 2:]
    rain = frames[:, 1:-1, 1:-1]
    border = wet[:, 1:-1, 1:-1] & ~inside
    assert np.median(rain[border]) < 0.5 * np.median(rain[inside])


def test_a_radar_circle_leaves_the_corners_missing() -> None:
    counts = storms(2, 41, 61, seed=0, radar_circle=True)
    missing = counts == 65535
    assert missing[:, 0, 0].all()
    assert not missing[:, 20, 30].any()
    assert 1 - missing.mean() == pytest.approx(np.pi * 20.5**2 / (41 * 61), rel=0.02)
    assert not (storms(2, 41, 61, seed=0) == 65535).any()


@pytest.mark.parametrize(("rows", "cols"), [(765, 700), (288, 288), (64, 48), (801, 900)])
def test_written_files_are_read_back(tmp_path: Path, rows: int, cols: int) -> None:
    counts = np.random.default_rng(0).integers(0, 65534, (rows, cols)).astype(np.uint16)
    counts[0, 0] = 65535
    path = tmp_path / "RAD_NL25_RAP_5min_202001010000.h5"
    write_knmi_file(path, counts, 1_577_836_800)
    frame = read(path)
    np.testing.assert_array_equal(frame.counts, counts)
    assert (frame.end_time_s, frame.scale_mmh) == (1_577_836_800, 0.12)
    assert frame.source == "synthetic storms"
    assert "KNMI" not in frame.licence
    centre = (frame.grid.y0_km - rows / 2, frame.grid.x0_km + cols / 2)
    assert np.allclose(centre, (-3650 - 765 / 2, 350), atol=0.51)


def test_the_command_writes_a_gap_free_series(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "a"), "--hours", "0.5", "--size", "32", "--seed", "4"]) == 0
    refs = scan([tmp_path / "a"])
    assert np.diff([ref.end_time_s for ref in refs]).tolist() == [300] * 5
    np.testing.assert_array_equal(np.stack([read(ref.path).counts for ref in refs]), storms(6, 32, 32, seed=4))
    assert main(["--out", str(tmp_path / "b"), "--hours", "0.5", "--size", "32", "--seed", "4"]) == 0
    for ref in refs:
        assert ref.path.read_bytes() == (tmp_path / "b" / ref.path.name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hours", "0"], "--hours is 0.0"),
        (["--hours", "nan"], "--hours is nan"),
        (["--hours", "inf"], "--hours is inf"),
        (
            ["--hours", "1e10"],
            "--hours is 10000000000.0; expected at least one frame of 5 minutes and at most ten years",
        ),
        (["--size", "0"], "0 x 0 pixels"),
        (["--size", "99999"], "99999 x 99999 pixels"),
    ],
)
def test_series_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["--out", str(tmp_path / "a"), *arguments]) == 4
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.h5"))


def test_a_folder_of_other_radar_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "RAD_NL25_RAP_5min_201008260000.h5").touch()
    assert main(["--out", str(tmp_path), "--hours", "0.5", "--size", "8"]) == 4
    assert "holds other radar files" in capsys.readouterr().err
