"""Synthetic storms: reproducible, like real radar in their statistics, and readable as KNMI files."""

import hashlib
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.data.exit_codes import ExitCode
from rainspark.data.sequences import find_runs
from rainspark.data.sources.knmi_writer import file_name, write_knmi_file
from rainspark.data.sources.synthetic import events, iterate_storms, main
from rainspark.models.nowcasting.motion import estimate_motion
from tests.data.knmi_frames import read, scan
from tests.data.radar_files import storms


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


@pytest.mark.parametrize(
    ("radar_circle", "digest"),
    [
        (False, "c0bf4a7b083c442e8b771439b86f0f330df89e8f236211db2b3f24a2058cc38a"),
        (True, "af35e36c79912f5e428fd490ecdf2d09562e490cc028cfe0b27f3d8e0a67a523"),
    ],
)
def test_default_storms_are_those_of_the_first_release(radar_circle: bool, digest: str) -> None:
    """SHA-256 of the counts, computed before speed and lifetime could be chosen."""
    frames = storms(3, 64, 64, seed=1, radar_circle=radar_circle)
    assert hashlib.sha256(frames.astype("<u2").tobytes()).hexdigest() == digest


def test_series_of_plain_systems_are_those_of_before() -> None:
    """SHA-256 of the counts of three systems, computed before cells, growth and shear could be chosen."""
    digest = hashlib.sha256()
    for event in events(30, 9, 5, (25.0, 115.0), (20.0, 40.0)):
        for counts in iterate_storms(event, 64, 64):
            digest.update(counts.astype("<u2").tobytes())
    assert digest.hexdigest() == "9ca2400ebacc80726887a8f1528ab402abe5fe4762f74e7eb1ccbd515bde71da"


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
    assert 16 < found_kmh(frames[:3]) < 100


@pytest.mark.parametrize(("rows", "cols"), [(765, 700), (288, 288), (64, 48), (801, 900)])
def test_written_files_are_read_back(tmp_path: Path, rows: int, cols: int) -> None:
    counts = np.random.default_rng(0).integers(0, 65534, (rows, cols)).astype(np.uint16)
    counts[0, 0] = 65535
    path = tmp_path / "RAD_NL25_RAP_5min_202001010000.h5"
    write_knmi_file(path, counts, 1_577_836_800)
    assert file_name(1_577_836_800) == path.name
    assert [other.name for other in tmp_path.iterdir()] == [path.name]
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


def write(folder: Path, *arguments: str) -> tuple[list[int], npt.NDArray[np.uint16]]:
    """Run the command; end times and counts of what it wrote."""
    assert main(["--out", str(folder), "--size", "32", "--seed", "4", *arguments]) == 0
    refs = scan([folder])
    return [ref.end_time_s for ref in refs], np.stack([read(ref.path).counts for ref in refs])


def test_no_window_holds_two_events(tmp_path: Path) -> None:
    """Two hours of half-hour events: 6 frames and one left out, three times, then what is left."""
    times_s, counts = write(tmp_path / "a", "--hours", "2", "--event-hours", "0.5")
    assert [(time_s - times_s[0]) // 300 for time_s in times_s] == [i for i in range(24) if i % 7 != 6]
    runs = find_runs(times_s, 300).runs
    assert [run.num_frames for run in runs] == [6, 6, 6, 3]
    series = events(24, 6, 4, (45.0, 45.0), (20.0, 20.0))
    assert [event.first for event in series] == [0, 7, 14, 21]
    for run, event in zip(runs, series, strict=True):
        expected = storms(run.num_frames, 32, 32, seed=event.seed)
        np.testing.assert_array_equal(counts[run.first : run.first + run.num_frames], expected)
    assert len({event.seed for event in series} | {4}) == 5


@settings(max_examples=50, deadline=None)
@given(
    num_frames=st.integers(1, 300),
    event_frames=st.integers(0, 60),
    seed=st.integers(0, 1000),
    speeds=st.tuples(st.floats(1, 200), st.floats(1, 200)).map(sorted),
    lifetimes=st.tuples(st.floats(1, 200), st.floats(1, 200)).map(sorted),
)
def test_events_divide_a_series(
    num_frames: int, event_frames: int, seed: int, speeds: list[float], lifetimes: list[float]
) -> None:
    """One frame left out between two, none elsewhere; a longer series begins with the same events."""
    ranges = ((speeds[0], speeds[1]), (lifetimes[0], lifetimes[1]))
    series = events(num_frames, event_frames, seed, *ranges)
    held = [event.first + i for event in series for i in range(event.num_frames)]
    step = event_frames + 1 if event_frames else num_frames + 1
    assert held == [i for i in range(num_frames) if i % step != step - 1]
    for event in series:
        assert event.num_frames >= 1
        assert speeds[0] * (1 - 1e-9) <= event.speed_kmh <= speeds[1] * (1 + 1e-9)
        assert lifetimes[0] * (1 - 1e-9) <= event.lifetime_min <= lifetimes[1] * (1 + 1e-9)
    if event_frames:
        assert events(num_frames + event_frames + 1, event_frames, seed, *ranges)[: len(series) - 1] == series[:-1]
    else:
        assert [event.seed for event in series] == [seed]


def found_kmh(counts_thw: npt.NDArray[np.uint16]) -> float:
    """Speed that is seen in frames, 1 km and 5 minutes apart."""
    rain = torch.from_numpy(counts_thw * 0.12)[None]
    return 12 * float(estimate_motion(rain).mean((0, 2, 3)).norm())


def test_storms_are_as_fast_as_asked_for() -> None:
    """The wind's own turns are those of the seed: speeds of one seed stand in the asked proportion."""
    ratios = []
    for seed in range(8):
        slow, fast = (found_kmh(storms(3, 128, 128, seed, speed_kmh=kmh, lifetime_min=500)) for kmh in (30, 90))
        assert fast / slow == pytest.approx(3, rel=0.15)
        ratios.append(math.log(fast / 90))
    # The logarithm of the wind's speed drifts with a deviation of 0.25.
    assert abs(np.mean(ratios)) < 0.3
    assert np.std(ratios) < 0.6


def test_longer_lifetimes_are_forgotten_later() -> None:
    """Storms that hardly move, half an hour apart."""
    kept = []
    for lifetime_min in (5, 20, 80, 320):
        rain = [np.log1p(storms(7, 128, 128, seed, speed_kmh=0.01, lifetime_min=lifetime_min)) for seed in range(3)]
        kept.append(float(np.mean([np.corrcoef(one[0].ravel(), one[6].ravel())[0, 1] for one in rain])))
    assert sorted(kept) == kept
    assert kept[0] < kept[1] - 0.05
    assert kept[1] < kept[3] - 0.15


@pytest.mark.parametrize("option", ["--speed-kmh", "--lifetime-min"])
@pytest.mark.parametrize(
    "text", ["0", "-5", "50:20", "fast", "nan", "nan:3", "3:nan", "inf", "10:inf", "1e9", "", ":", "5:", ":5", "1:2:3"]
)
def test_ranges_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, text: str) -> None:
    assert main(["--out", str(tmp_path / "a"), f"{option}={text}"]) == ExitCode.CONFIG
    message = capsys.readouterr().err
    assert f"argument {option}: {text!r} is no range; expected a number above 0 and up to 10000, or LOW:HIGH" in message
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--event-hours", "-1"], "--event-hours is -1.0; expected 0, or from one frame of 5 minutes to --hours 6"),
        (["--event-hours", "0.01"], "--event-hours is 0.01; expected 0, or from one frame"),
        (["--event-hours", "7"], "--event-hours is 7.0; expected 0, or from one frame of 5 minutes to --hours 6"),
        (["--hours", "0"], "--hours is 0.0"),
        (["--hours", "1e6"], "--hours is 1000000.0; expected at least one frame of 5 minutes and at most ten years"),
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


@pytest.mark.parametrize("text", ["nan", "inf", "1e10", "-1e400"])
@pytest.mark.parametrize("option", ["--hours", "--event-hours"])
def test_numbers_beyond_every_bound_are_refused_as_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, text: str
) -> None:
    assert main(["--out", str(tmp_path / "a"), f"{option}={text}"]) == 3
    assert f"argument {option}: {text!r} is no number from -1000000000 to 1000000000" in capsys.readouterr().err


def test_a_folder_of_other_radar_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "RAD_NL25_RAP_5min_201008260000.h5").touch()
    assert main(["--out", str(tmp_path), "--hours", "0.5", "--size", "8"]) == 4
    assert "holds other radar files" in capsys.readouterr().err
