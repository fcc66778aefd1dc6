"""Requantising: pixels that are no rain rate become missing and are counted, up to a limit."""

from pathlib import Path

import numpy as np
import pytest

from rainspark.data.counts import Rounding, requantise
from rainspark.data.errors import DataError
from rainspark.data.json_checks import canonical
from rainspark.data.pack.__main__ import main
from rainspark.data.shards.index import load_index
from rainspark.data.store.storage import open_storage
from tests.data.radar_files import FIRST_S, odim_name, write_odim_file


@pytest.mark.parametrize("code", [-0.1, -0.006, -9999.0, np.inf, -np.inf])
@pytest.mark.parametrize(("num_pixels", "most"), [(1, 1), (999, 1), (1999, 1), (2000, 2), (50_000, 50)])
def test_single_codes_become_missing_and_more_are_refused(code: float, num_pixels: int, most: int) -> None:
    rain_mmh = np.full(num_pixels, 2.5)
    rain_mmh[:most] = code
    counts, rounding = requantise(rain_mmh, lambda at: (at,))
    assert counts.tolist() == [65535] * most + [250] * (num_pixels - most)
    assert rounding == Rounding(discarded=most)
    if most < num_pixels:
        rain_mmh[most] = code
        message = rf"pixel \(0,\) is {code:g} .*one of {most + 1}.* in all but {most} of the frame's pixels"
        with pytest.raises(DataError, match=message):
            requantise(rain_mmh, lambda at: (at,))


def test_the_limit_is_the_frames_however_many_parts_it_is_read_in() -> None:
    piece_mmh = np.array([1.0, -1.0, np.nan, -0.004])
    before = Rounding()
    for number in range(1, 4):
        counts, before = requantise(piece_mmh, lambda at: (at,), frame_pixels=3999, before=before)
        assert counts.tolist() == [100, 65535, 65535, 0]
        assert before.discarded == number
    with pytest.raises(DataError, match="in all but 3 of the frame's pixels"):
        requantise(piece_mmh, lambda at: (at,), frame_pixels=3999, before=before)


@pytest.mark.parametrize("code", [655.36, 9999.0, 1e20, 9.97e36])
def test_a_frame_of_rates_beyond_the_range_is_no_rain(code: float) -> None:
    rain_mmh = np.full(1000, 2.5)
    rain_mmh[:50] = code
    counts, rounding = requantise(rain_mmh, lambda at: (at,))
    assert (set(counts[:50].tolist()), rounding.clamped) == ({65534}, 50)
    rain_mmh[50] = code
    with pytest.raises(DataError, match=r"pixel \(0,\) is .*one of 51.* its units are others, or .* no data"):
        requantise(rain_mmh, lambda at: (at,))
    # The limit is the frame's, however many parts it is read in.
    with pytest.raises(DataError, match="one of 51"):
        requantise(rain_mmh, lambda at: (at,), frame_pixels=2000, before=Rounding(clamped=50))


def test_older_archives_state_roundings_as_before() -> None:
    assert canonical(Rounding(max_error_mmh=0.005, clamped=2)) == b'{"clamped":2,"max_error_mmh":0.005}'
    assert Rounding(clamped=2).plus(Rounding(clamped=3)) == Rounding(clamped=5)
    assert Rounding(discarded=2).plus(Rounding()).plus(Rounding(discarded=3)) == Rounding(discarded=5)


@pytest.mark.parametrize("frames", ["2", "144"])
def test_the_summary_counts_them_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], frames: str) -> None:
    (tmp_path / "in").mkdir()
    for number in range(20):
        rain_mmh = np.full((40, 40), 1.0)
        # The first tile holds no measurement, and is left out.
        rain_mmh[:20, :20] = np.nan
        rain_mmh[25, 12] = -0.1
        time_s = FIRST_S + 300 * number
        write_odim_file(tmp_path / "in" / odim_name(time_s), rain_mmh, time_s)
    # Sequences of 2 frames are many: the tiles of each are made together; long ones are made tile by tile.
    command = ["odim", str(tmp_path / "in"), "--window", "2", "--frames", frames, "--tile", "16"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "; 20 pixels no rain rate (negative, infinite), now missing\n" in capsys.readouterr().out
    rounding = load_index(open_storage(tmp_path / "out")).statistics["ODIM ORG:247 RATE"].rounding
    assert rounding == Rounding(discarded=20)
