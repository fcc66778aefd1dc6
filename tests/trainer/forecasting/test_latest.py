"""The latest files as input: the right frames and pixels, and every reason to refuse, by name."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop, Grid
from rainspark.data.sources.knmi import KnmiSource
from rainspark.data.sources.knmi_writer import KNMI_PROJECTION as PROJECTION
from rainspark.data.sources.knmi_writer import file_name, write_knmi_file
from rainspark.data.sources.source import FileRef, FrameRef, Surveyed
from rainspark.data.units import KNMI_MMH_PER_COUNT, MISSING_COUNT
from rainspark.trainer.forecasting.latest import Latest, find_area, read_latest
from rainspark.trainer.forecasting.readers import Radar
from tests.data import knmi_frames
from tests.data.radar_files import FIRST_S, change, random_counts, read_header, set_attribute, write_series

SIZE = (24, 20)
CROP = Crop(row0=4, row1=20, col0=2, col1=18)


OPENED: list[str] = []
"""Every file that this process opens."""


def note_open(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what is opened; an audit hook, which stays for as long as the process."""
    if event == "open":
        OPENED.append(str(arguments[0]))


sys.addaudithook(note_open)


def _grid(folder: Path) -> Grid:
    return read_header(sorted(folder.glob("*.h5"))[0]).grid


def latest_of(paths: Sequence[Path], grid: Grid, frames_in: int, **settings: Any) -> Latest:
    """Read the latest frames of the part that a run learned on."""
    radar = Radar(name="synthetic storms", source=KnmiSource(), grid=None, part=grid)
    return read_latest(paths, radar=radar, cadence_s=300, frames_in=frames_in, **{"area": "run", **settings})


@pytest.fixture
def radar(tmp_path: Path) -> Path:
    write_series(tmp_path / "radar", range(6), size=SIZE)
    return tmp_path / "radar"


def test_only_the_files_that_are_used_are_opened(radar: Path) -> None:
    grid = _grid(radar).cropped(CROP)
    OPENED.clear()
    latest = latest_of([radar], grid, 4)
    # One of each kind of name is looked into; then the newest come first, each for its header and for its pixels.
    looked, *read = [path for path in OPENED if path.endswith(".h5")]
    assert Path(looked).parent == radar
    assert read == [name for name in reversed(latest.frames) for _ in range(2)]


def test_the_last_frames_are_read_and_cut_to_the_grid(radar: Path) -> None:
    latest = latest_of([radar], _grid(radar).cropped(CROP), 4)
    assert latest.end_times_s == tuple(FIRST_S + number * 300 for number in range(2, 6))
    assert [Path(name).name for name in latest.frames] == [file_name(time_s) for time_s in latest.end_times_s]
    for frame, number in enumerate(range(2, 6)):
        counts = random_counts(number, *SIZE)[4:20, 2:18]
        valid = counts != MISSING_COUNT
        np.testing.assert_array_equal(latest.valid_thw[frame], valid)
        expected = np.where(valid, counts * KNMI_MMH_PER_COUNT, 0)
        np.testing.assert_allclose(latest.rain_mmh_thw[frame], expected, rtol=1e-6)
    assert latest.rain_mmh_thw.dtype == np.float32
    assert latest.source == "synthetic storms"


def test_files_in_any_order_and_the_whole_grid(radar: Path) -> None:
    grid = _grid(radar)
    files = sorted(radar.glob("*.h5"))
    in_order = latest_of([radar], grid, 6)
    shuffled = latest_of([*files[3:], *files[:3], files[0]], grid, 6)
    np.testing.assert_array_equal(in_order.rain_mmh_thw, shuffled.rain_mmh_thw)
    assert in_order.frames == shuffled.frames
    assert in_order.rain_mmh_thw.shape == (6, *SIZE)


def test_a_file_of_another_scale_is_read_by_its_own(radar: Path) -> None:
    grid = _grid(radar)
    before = latest_of([radar], grid, 6)
    last = sorted(radar.glob("*.h5"))[-1]
    change(last, set_attribute("image1/calibration", "calibration_formulas", np.bytes_("GEO=0.02*PV+0.0")))
    after = latest_of([radar], grid, 6)
    np.testing.assert_array_equal(after.rain_mmh_thw[:5], before.rain_mmh_thw[:5])
    np.testing.assert_allclose(after.rain_mmh_thw[5], 2 * before.rain_mmh_thw[5], rtol=1e-6)


def test_too_few_files_are_counted(radar: Path) -> None:
    with pytest.raises(DataError, match=r"6 radar files were given .*the model needs 12, one every 5 min"):
        latest_of([radar], _grid(radar), 12)


def test_gaps_are_named(radar: Path) -> None:
    grid = _grid(radar)
    (radar / file_name(FIRST_S + 3 * 300)).unlink()
    with pytest.raises(DataError, match=r"the frame of 2020-01-01T00:05:00Z is missing \(1 in all\)"):
        latest_of([radar], grid, 5)
    # What lies before the frames that are used may have gaps.
    assert latest_of([radar], grid, 2).end_times_s[0] == FIRST_S + 4 * 300


@pytest.mark.parametrize(("cadence_s", "steps"), [(600, "10 min apart"), (420, "7 min apart")])
def test_another_cadence_is_named(tmp_path: Path, cadence_s: int, steps: str) -> None:
    # KNMI's names hold minutes: the first frame of a series ends at one.
    write_series(tmp_path, range(4), size=SIZE, cadence_s=cadence_s)
    with pytest.raises(DataError, match=f"{steps}; the run was trained on frames every 5 min"):
        latest_of([tmp_path], _grid(tmp_path), 4)


def test_other_grids_are_named(radar: Path) -> None:
    grid = _grid(radar)
    for path in radar.glob("*.h5"):
        change(path, set_attribute("geographic", "geo_column_offset", np.array([1.0], dtype=np.float32)))
    with pytest.raises(DataError, match=r"RAD_NL25.*the run's area is rows 0 to 24 and columns \d+ to \d+ of"):
        latest_of([radar], grid, 4)


def test_frames_without_any_measurement_are_a_gap(radar: Path) -> None:
    empty: npt.NDArray[np.uint16] = np.full(SIZE, MISSING_COUNT, dtype=np.uint16)
    grid = _grid(radar)
    write_knmi_file(radar / file_name(FIRST_S + 4 * 300), empty, FIRST_S + 4 * 300)
    with pytest.raises(DataError, match=r"no pixel .* a measurement at 2020-01-01T00:10:00Z; .*--allow-missing 1"):
        latest_of([radar], grid, 6)


def test_files_of_two_products_are_refused(radar: Path) -> None:
    grid = _grid(radar)
    change(sorted(radar.glob("*.h5"))[-2], set_attribute("overview", "product_group_name", np.bytes_("RAD_X")))
    with pytest.raises(DataError, match=r"files of two products: .* is 'KNMI RAD_X'.*'synthetic storms'"):
        latest_of([radar], grid, 4)


WHOLE = Grid(rows=765, cols=700, pixel_km=1.0, projection=PROJECTION, x0_km=0.0, y0_km=-3650.0)


@given(
    row0=st.integers(0, 700),
    col0=st.integers(0, 600),
    size=st.tuples(st.integers(1, 65), st.integers(1, 100)),
    pixel_km=st.sampled_from([0.25, 1.0, 2.5]),
)
def test_a_crop_is_found_again(row0: int, col0: int, size: tuple[int, int], pixel_km: float) -> None:
    whole = Grid(rows=765, cols=700, pixel_km=pixel_km, projection=PROJECTION, x0_km=0.1, y0_km=-3650.3)
    crop = Crop(row0=row0, row1=row0 + size[0], col0=col0, col1=col0 + size[1])
    radar = Radar(name="KNMI", source=KnmiSource(), grid=None, part=whole.cropped(crop))
    assert find_area("run", radar, whole) == crop
    assert find_area("whole", radar, whole) == Crop(row0=0, row1=765, col0=0, col1=700)
    assert find_area(crop, radar, whole) == crop


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projection": PROJECTION.replace("60.0", "52.0")}, "the projection is .*lat_ts=60.0.*the run's is"),
        ({"pixel_km": 2.0}, r"pixels of 1 km; the run's are 2 km"),
        ({"x0_km": 10.5}, r"10\.500 columns into the file's; expected whole numbers"),
        ({"y0_km": -3649.0}, "rows -1 to 31"),
        ({"cols": 701}, "columns 0 to 701 of the file's grid, which has 765 rows and 700 columns"),
    ],
)
def test_what_differs_between_grids_is_named(changes: dict[str, object], message: str) -> None:
    small = WHOLE.cropped(Crop(row0=0, row1=32, col0=0, col1=32)).to_json() | changes
    with pytest.raises(DataError, match=message):
        find_area("run", Radar(name="x", source=KnmiSource(), grid=None, part=Grid.from_json(small)), WHOLE)


def test_the_real_files_give_the_crop_without_missing_pixels(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "knmi"
    crop = Crop(row0=284, row1=572, col0=225, col1=513)
    latest = latest_of([folder], _grid(folder).cropped(crop), 12)
    assert latest.valid_thw.all()
    assert latest.rain_mmh_thw.shape == (12, 288, 288)
    np.testing.assert_array_equal(
        latest.rain_mmh_thw[-1],
        knmi_frames.read(Path(latest.frames[-1]), crop).counts.astype(np.float32) * np.float32(0.12),
    )


def test_missing_and_damaged_frames_are_bridged_where_that_is_asked_for(radar: Path) -> None:
    grid = _grid(radar)
    whole = latest_of([radar], grid, 6)
    newest = radar / file_name(FIRST_S + 5 * 300)
    newest.write_bytes(newest.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"cannot be read as a KNMI HDF5 .*--allow-missing 1 bridges the frame"):
        latest_of([radar], grid, 6)
    (radar / file_name(FIRST_S + 2 * 300)).unlink()
    with pytest.raises(DataError, match=r"00:00:00Z, 2020-01-01T00:15:00Z is missing \(2 in all\); of those"):
        latest_of([radar], grid, 6, allow_missing=1)

    latest = latest_of([radar], grid, 6, allow_missing=2)
    assert latest.end_times_s == whole.end_times_s
    assert latest.bridged_s == (FIRST_S + 2 * 300, FIRST_S + 5 * 300)
    assert len(latest.frames) == 4
    assert len(latest.problems) == 1
    assert "cannot be read" in latest.problems[0]
    for number in (0, 1, 3, 4):
        np.testing.assert_array_equal(latest.rain_mmh_thw[number], whole.rain_mmh_thw[number])
    assert np.isfinite(latest.rain_mmh_thw).all()
    assert (latest.rain_mmh_thw[~latest.valid_thw] == 0).all()


def test_two_frames_are_the_least_that_a_gap_is_bridged_from(radar: Path) -> None:
    grid = _grid(radar)
    for number in (1, 2, 3, 4):
        (radar / file_name(FIRST_S + number * 300)).unlink()
    assert len(latest_of([radar], grid, 6, allow_missing=4).bridged_s) == 4
    (radar / file_name(FIRST_S)).unlink()
    with pytest.raises(DataError, match=r"5 in all\); .* bridge up to 4"):
        latest_of([radar], grid, 6, allow_missing=6)


class Written(KnmiSource):
    """KNMI's files, one of which is written to between its header and its pixels."""

    def survey(self, ref: FrameRef) -> Surveyed:
        """Survey a file, and give it other pixels afterwards."""
        surveyed = super().survey(ref)
        if ref.end_time_s == FIRST_S + 4 * 300:
            assert isinstance(ref, FileRef)
            counts_hw = random_counts(99, *SIZE)
            write_knmi_file(ref.path, counts_hw, ref.end_time_s)
        return surveyed


def test_a_file_that_is_written_to_meanwhile_is_not_taken(radar: Path) -> None:
    radars = Radar(name="synthetic storms", source=Written(), grid=None, part=_grid(radar))
    with pytest.raises(DataError, match=r"202001010010\.h5 changed while it was read"):
        read_latest([radar], radar=radars, cadence_s=300, frames_in=4)


def test_frames_of_one_product_on_two_grids_are_refused(radar: Path) -> None:
    grid = _grid(radar)
    # One column further east: still the run's pixels, and another place.
    change(sorted(radar.glob("*.h5"))[-2], set_attribute("geographic", "geo_column_offset", np.float32(grid.x0_km + 1)))
    with pytest.raises(DataError, match=r"files of two products: .* on Grid.*give files of one"):
        latest_of([radar], grid, 4, area="whole")
