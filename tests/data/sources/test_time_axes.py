"""Time axes with gaps, disorder, duplicates, skew, changes of clocks and new year: windows equal a slow oracle's."""

import random
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.data.errors import DataError
from rainspark.data.pack.archive import pack
from rainspark.data.pack.survey import PackOptions
from rainspark.data.sources.knmi_writer import file_name, write_knmi_file
from rainspark.data.store.storage import open_storage
from rainspark.data.stream.stream import evaluation_batches
from rainspark.data.windows.selection import Selection, select_windows
from tests.data.radar_files import FIRST_S, random_counts, write_series

SIZE = (4, 5)
CLOCKS_FORWARD_S = int(datetime(2020, 3, 29, 1, tzinfo=UTC).timestamp())
CLOCKS_BACK_S = int(datetime(2020, 10, 25, 1, tzinfo=UTC).timestamp())


def write_at(folder: Path, time_s: int, number: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_knmi_file(folder / file_name(time_s), random_counts(number, *SIZE), time_s)
    return folder / file_name(time_s)


def packed_windows(paths: list[Path], out: Path, options: PackOptions, window: int) -> list[tuple[int, bytes]]:
    """Pack files and read every window back: (end time of its first frame, its bytes), in time order."""
    index = pack(paths, out, options)
    table = select_windows(index, Selection(window=window))
    found = []
    for batch in evaluation_batches(open_storage(out), index, table, micro_batch=7):
        for place, row in enumerate(batch.window_b.tolist()):
            if row >= 0:
                entry = index.sequences[int(table.sequence[row])]
                first_s = entry.start_s + int(table.start[row]) * index.cadence_s
                found.append((first_s, batch.counts_bthw[place].numpy().tobytes()))
    return sorted(found)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=4).filter(
        lambda runs: any(count >= 3 for _, count in runs)
    ),
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.integers(0, 4),
    st.sampled_from([FIRST_S, CLOCKS_FORWARD_S - 1500, CLOCKS_BACK_S - 1500]),
)
def test_windows_of_packed_files_equal_the_oracle(
    runs: list[tuple[int, int]], seed: int, window: int, more: int, begin_s: int
) -> None:
    """Files with gaps, in any order and in several folders, over new year and the hours when clocks change."""
    numbers: list[int] = []
    place = 0
    for gap, count in runs:
        place += gap
        numbers += range(place, place + count)
        place += count
    expected = []
    for first in numbers:
        # Slowly: every frame of the window has to be there.
        if all(first + i in numbers for i in range(window)):
            frames = np.stack([random_counts(first + i, *SIZE) for i in range(window)])
            expected.append((begin_s + first * 300, frames.tobytes()))
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_at(Path(folder) / draw.choice("ab"), begin_s + 300 * n, n) for n in numbers]
        draw.shuffle(paths)
        options = PackOptions(window=3, max_frames=3 + more)
        assert packed_windows(paths, Path(folder) / "out", options, window) == sorted(expected)


@pytest.mark.parametrize("skew_s", [60, -120, 240])
def test_a_frame_off_the_cadence_is_refused(tmp_path: Path, skew_s: int) -> None:
    paths = write_series(tmp_path / "a", [0, 1, 2, 5, 6], size=SIZE)
    late = write_at(tmp_path / "b", FIRST_S + 1200 + skew_s, 99)
    with pytest.raises(DataError, match=r"closest frames are|is not a multiple of 5 min"):
        pack([*paths, late], tmp_path / "out", PackOptions(window=3))
    assert not (tmp_path / "out").exists()
