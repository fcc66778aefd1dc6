"""Packing from any source: tiles of a large domain, several radars in one archive, damaged input, object stores."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop, Grid
from rainspark.data.pack.__main__ import main
from rainspark.data.pack.archive import pack
from rainspark.data.pack.survey import PackInput, PackOptions, survey
from rainspark.data.pack.tiling import cut_tiles
from rainspark.data.shards.contact_sheet import draw_contact_sheet, read_frame
from rainspark.data.shards.index import Index, load_index
from rainspark.data.shards.summary import rain_of
from rainspark.data.sources.knmi import KnmiSource
from rainspark.data.sources.odim import OdimSource
from rainspark.data.sources.source import FrameRef, Reading
from rainspark.data.store.storage import open_storage
from tests.data.pack.test_resume import signal_when, start_pack
from tests.data.radar_files import (
    FIRST_S,
    change,
    digests,
    odim_name,
    random_counts,
    set_attribute,
    write_archive,
    write_odim_file,
    write_odim_series,
    write_series,
)
from tests.s3_server import S3, s3, s3_server  # noqa: F401

SIZE = (44, 36)
GRID = Grid(rows=44, cols=36, pixel_km=2.0, projection="+proj=laea", x0_km=0, y0_km=0)
TILES = PackOptions(tile=16, stride=None, window=2, max_frames=4)
NUMBERS = [*range(9), *range(20, 23)]
LIVE_TILE = Crop(row0=0, row1=16, col0=16, col1=32)


def raw(number: int) -> npt.NDArray[np.float64]:
    """A domain of 2 x 2 whole tiles: one never seen, one seen until frame 20, one dry."""
    random = np.random.default_rng(number)
    rain_mmh = random.integers(0, 70_000, SIZE) / 100
    rain_mmh[random.random(SIZE) < 0.2] = -9999000.0
    rain_mmh[:16, :16] = -9999000.0
    rain_mmh[16:32, :16] = -8888000.0 if number < 20 else -9999000.0
    return rain_mmh


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a series of that domain."""
    folder = tmp_path_factory.mktemp("domain")
    for number in NUMBERS:
        time_s = FIRST_S + number * 300
        write_odim_file(folder / odim_name(time_s), raw(number), time_s, chunks=(10, 11), compression="gzip")
    return folder


def expected_counts(number: int, crop: Crop) -> npt.NDArray[np.uint16]:
    rain_mmh = raw(number)[crop.row0 : crop.row1, crop.col0 : crop.col1]
    counts = np.clip(np.rint(rain_mmh * 100), 0, 65534)
    counts[rain_mmh == -9999000.0] = 65535
    return counts.astype(np.uint16)


def check_frames(out: Path | str, index: Index) -> None:
    storage = open_storage(out)
    for entry in index.sequences:
        first = (entry.start_s - FIRST_S) // 300
        for i in range(entry.num_frames):
            counts = read_frame(storage, index, entry, i)
            np.testing.assert_array_equal(counts, expected_counts(first + i, index.origins[entry.origin].crop))


def test_tiles_are_origins_of_one_source(domain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = pack([domain], tmp_path / "out", TILES, source=OdimSource())
    errors = capsys.readouterr().err
    assert "4 whole tiles of 16 x 16 pixels; the last 12 rows and 4 columns of 44 x 36 lie beyond them" in errors
    # Each of four sequences (0-3, 3-6, 6-8 and 20-22) of the blind tile, and the last one of the tile that went blind.
    assert "1 of 4 parts hold no measurement in any frame and are left out\n" in errors
    assert "left out as well, because they hold no measurement: sequences of other parts, 1\n" in errors
    assert [str(origin.crop) for origin in index.origins] == ["0:16,16:32", "16:32,0:16", "16:32,16:32"]
    assert index.sources == ("ODIM ORG:247 RATE",)
    assert len(index.sequences) == 11
    assert index.sequences == tuple(sorted(index.sequences, key=lambda entry: (entry.start_s, entry.origin)))
    check_frames(tmp_path / "out", index)
    assert load_index(open_storage(tmp_path / "out")) == index
    clamped = [expected_counts(n, origin.crop) for origin in index.origins for n in NUMBERS]
    rounding = index.statistics[index.source].rounding
    assert rounding is not None
    assert rounding.clamped == sum(int((counts == 65534).sum()) for counts in clamped)
    assert rounding.max_error_mmh < 1e-9
    assert rain_of(index, index.source).frames == 2 * 12 + 9


def test_a_frame_is_read_once_for_all_its_tiles(domain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Crop] = []
    real = OdimSource.read

    def counted(source: OdimSource, ref: FrameRef, crop: Crop) -> Reading:
        read.append(crop)
        return real(source, ref, crop)

    monkeypatch.setattr(OdimSource, "read", counted)
    monkeypatch.setattr("rainspark.data.pack.survey.MIN_SHARDS", 2)
    index = pack([domain], tmp_path / "out", TILES, source=OdimSource())
    # Frames 3 and 6 stand in two sequences each.
    assert len(read) == len(NUMBERS) + 2
    assert set(read) == {Crop(row0=0, row1=32, col0=0, col1=32)}
    check_frames(tmp_path / "out", index)


@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.one_of(st.none(), st.integers(1, 25)), st.booleans()
)
def test_tiles_are_whole_and_a_stride_apart(rows: int, cols: int, tile: int, stride: int | None, cropped: bool) -> None:
    grid = Grid(rows=rows, cols=cols, pixel_km=1, projection="x", x0_km=0, y0_km=0)
    crop = Crop(row0=rows // 3, row1=rows, col0=0, col1=cols - cols // 4) if cropped else None
    whole = crop or Crop(row0=0, row1=rows, col0=0, col1=cols)
    step = stride or tile
    expected = [
        (row, col)
        for row in range(rows)
        for col in range(cols)
        if row >= whole.row0 and (row - whole.row0) % step == 0 and row + tile <= whole.row1
        if col >= whole.col0 and (col - whole.col0) % step == 0 and col + tile <= whole.col1
    ]
    if not expected:
        with pytest.raises(DataError, match=r"no tile of .* fits into"):
            cut_tiles(grid, crop, tile, stride)
    else:
        tiles = cut_tiles(grid, crop, tile, stride)
        assert [(one.row0, one.col0) for one in tiles] == expected
        assert {(one.rows, one.cols) for one in tiles} == {(tile, tile)}


def test_a_domain_without_any_measurement_is_refused(tmp_path: Path) -> None:
    write_odim_file(tmp_path / odim_name(FIRST_S), np.full(SIZE, -9999000.0), FIRST_S)
    with pytest.raises(DataError, match="no tile holds a measurement in any frame"):
        pack([tmp_path], tmp_path / "out", TILES, source=OdimSource())
    assert not (tmp_path / "out" / "index.json").exists()


def test_several_radars_stand_in_one_archive(domain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_series(tmp_path / "knmi", range(5, 15), size=(20, 20))
    out = tmp_path / "out"
    first = ["knmi", str(tmp_path / "knmi"), "--out", str(out), "--crop", "2:18,3:19", "--window", "2", "--frames", "4"]
    assert main([*first, "+", "odim", str(domain), "--tile", "16", "--licence", "CC BY 4.0"]) == 0

    index = load_index(open_storage(out))
    assert index.sources == ("synthetic storms", "ODIM ORG:247 RATE")
    assert [origin.scale_mmh for origin in index.origins] == [0.12, 0.01, 0.01, 0.01]

    storage = open_storage(out)
    for entry in index.sequences:
        number = (entry.start_s - FIRST_S) // 300
        for i in range(entry.num_frames):
            crop = index.origins[entry.origin].crop
            knmi = random_counts(number + i, 20, 20)[2:18, 3:19]
            expected = expected_counts(number + i, crop) if entry.origin else knmi
            np.testing.assert_array_equal(read_frame(storage, index, entry, i), expected)
    assert draw_contact_sheet(storage, index).startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    text = capsys.readouterr().out
    assert "frames        10 every 5 min, 2020-01-01T00:15:00Z to 2020-01-01T01:00:00Z\n" in text
    num_frames = sum(entry.num_starts for entry in index.sequences if entry.origin)
    assert f"frames        {num_frames} every 5 min, " in text
    assert text.count("all parts together") == 1
    rounding = index.statistics["ODIM ORG:247 RATE"].rounding
    assert rounding is not None
    assert f"to counts of 0.01 mm/h: no rate changed; {rounding.clamped} pixels above 655.34 mm/h set to it\n" in text


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (["odim", "DOMAIN", "--tile", "8"], "ODIM ORG:247 RATE would have 8 x 8 pixels, those of .* storms 16 x 16"),
        (["knmi", "KNMI", "--crop", "0:16,0:16"], "two inputs hold rows and columns 0:16,0:16 of s"),
        (
            ["odim", "DOMAIN", "--tile", "16", "--name", "synthetic storms"],
            "licence of synthetic storms is not stated in one input, CC0-1.0, synthetic in another",
        ),
        (["odim", "DOMAIN", "--stride", "8"], "a stride only with a tile"),
        (["odim", "DOMAIN", "--tile", "0"], "expected pixels above 0"),
        (["odim", "DOMAIN", "--tile", "50"], "no tile of 50 x 50 pixels fits into 44 x 36"),
    ],
)
def test_sources_that_do_not_fit_are_refused(
    domain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], second: list[str], message: str
) -> None:
    knmi = tmp_path / "knmi"
    write_series(knmi, range(5), size=(20, 20))
    first = ["knmi", str(knmi), "--out", str(tmp_path / "out"), "--crop", "0:16,0:16", "--window", "2"]
    folders = {"DOMAIN": str(domain), "KNMI": str(knmi)}
    assert main([*first, "+", *(folders.get(word, word) for word in second)]) == 4
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_inspect_takes_one_archive(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "out", "+", "knmi", "x"]) == 4
    assert "expected no + after it" in capsys.readouterr().err


def test_a_killed_pack_of_tiles_goes_on_to_the_same_bytes(domain: Path, tmp_path: Path) -> None:
    pack([domain], tmp_path / "whole", TILES, source=OdimSource())
    out = tmp_path / "out"
    process = start_pack("odim", str(domain), "--out", str(out), "--tile", "16", "--window", "2", "--frames", "4")
    signal_when(process, out / ".packing" / "shard-00002.json", signal.SIGKILL)
    pack([domain], out, TILES, source=OdimSource())
    assert digests(out) == digests(tmp_path / "whole")


def test_another_relation_or_tile_is_another_archive(domain: Path, tmp_path: Path) -> None:
    jobs = [
        survey([domain], TILES, OdimSource()),
        survey([domain], PackOptions(tile=8, window=2, max_frames=4), OdimSource()),
        survey([domain], TILES, OdimSource(licence="CC BY 4.0")),
        survey([domain], TILES, OdimSource(), [PackInput(source=OdimSource(name="x"), paths=(domain,), tile=16)]),
    ]
    assert len({job.plan.draft.packed_from for job in jobs}) == 4
    pack([domain], tmp_path / "out", TILES, source=OdimSource())
    with pytest.raises(DataError, match="packed from other files or with other options"):
        pack([domain], tmp_path / "out", TILES, source=OdimSource(licence="CC BY 4.0"))


def test_damaged_files_are_left_out_where_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_series(tmp_path / "radar", range(12))
    files[0].write_bytes(b"no radar")
    change(files[4], set_attribute("image1/calibration", "calibration_formulas", np.bytes_("GEO=PV**2")))
    damaged = bytearray(files[8].read_bytes())
    at = damaged.rfind(b"\x78\x5e")  # the image's gzip stream
    damaged[at + 20 : at + 40] = bytes(20)
    files[8].write_bytes(damaged)

    command = ["knmi", str(tmp_path / "radar"), "--out", str(tmp_path / "out"), "--window", "2"]
    assert main(command) == 4
    errors = capsys.readouterr().err
    assert f"error: {files[0]} cannot be read" in errors
    assert "(--max-bad N leaves out up to N damaged files and lists them)" in errors
    assert main([*command, "--max-bad", "2"]) == 4
    errors = capsys.readouterr().err
    assert "error: more damaged files than --max-bad 2 lets be left out" in errors
    assert f"\n  {files[0]} cannot" in errors
    assert f"\n  {files[4]}: calibration_formulas" in errors
    assert f"\n  {files[8]}" in errors
    assert not (tmp_path / "out").exists()
    assert main([*command, "--max-bad", "3"]) == 0
    written = capsys.readouterr()
    assert f"left out: {files[8]}" in written.err
    assert "frames        9 every 5 min" in written.out
    assert "gaps          2 (2 frames missing)" in written.out


def test_all_files_damaged_is_an_error(tmp_path: Path) -> None:
    for file in write_series(tmp_path / "radar", range(3)):
        file.write_bytes(b"no radar")
    with pytest.raises(DataError, match="all 3 frames are damaged; the first: "):
        pack([tmp_path / "radar"], tmp_path / "out", PackOptions(max_bad=5))


def test_packing_into_a_store(
    domain: Path,
    tmp_path: Path,
    s3: S3,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    pack([domain], tmp_path / "out", TILES, source=OdimSource())
    # This server makes a bucket with the first file in it.
    open_storage(s3.url).write("elsewhere/x", b"x")
    url = f"{s3.url}/shards"
    index = pack([domain], url, TILES, source=OdimSource())
    assert "cannot be locked: do not start a second pack into it" in capsys.readouterr().err
    store, folder = open_storage(url), open_storage(tmp_path / "out")
    assert store.names() == folder.names()
    assert all(store.read(name) == folder.read(name) for name in store.names())
    assert pack([domain], url, TILES, source=OdimSource()) == index

    # Stopped after its third shard, with nothing left of the index.
    job = survey([domain], TILES, OdimSource())
    store.delete("index.json")
    for name in folder.names("shard-")[3:]:
        store.delete(name)
    store.write(".packing/job.json", ('{"job": "' + job.plan.draft.packed_from + '"}').encode())
    assert pack([domain], url, TILES, source=OdimSource()) == index
    assert store.names() == folder.names()
    with pytest.raises(DataError, match="packed from other files or with other options"):
        pack([domain], url, PackOptions(tile=8, window=2), source=OdimSource())
    store.write("foreign/x.txt", b"x")
    with pytest.raises(DataError, match="holds files that are not from packing"):
        pack([domain], f"{s3.url}/shards/foreign", TILES, source=OdimSource())
    assert main(["inspect", url, "--out", str(tmp_path / "sheet.png")]) == 0


def test_one_odim_file_of_another_product_is_named(tmp_path: Path) -> None:
    files = write_odim_series(tmp_path, range(3))
    change(files[1], set_attribute("what", "source", np.bytes_("ORG:1")))
    with pytest.raises(
        DataError, match=f"{files[1]}: source is ODIM ORG:1 RATE, but ODIM ORG:247 RATE in {files[0]}.* with --name "
    ):
        survey([tmp_path], PackOptions(window=2), OdimSource())
    assert survey([tmp_path], PackOptions(window=2), OdimSource(name="OPERA")).plan.draft.source == "OPERA"
    os.truncate(files[1], 100)
    with pytest.raises(DataError, match=f"{files[1]} cannot be read as an ODIM_H5 composite"):
        survey([tmp_path], PackOptions(window=2), OdimSource())
    assert KnmiSource().settings == "knmi"


PACK_AND_MEASURE = """
import resource, sys
from rainspark.data.pack.__main__ import main
assert main(sys.argv[1:]) == 0
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    peaks_kb = []
    for number in (100, 1000):
        files = write_series(tmp_path / str(number), range(number), size=(128, 128))
        tar = write_archive(tmp_path / f"{number}.tar", files)
        command = [sys.executable, "-c", PACK_AND_MEASURE, "knmi", str(tar), "--out", str(tmp_path / f"out{number}")]
        printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        peaks_kb.append(int(printed.rsplit("\n", 1)[-1]))
    # References, digests and the index grow: some 2 kB a frame.
    assert peaks_kb[1] - peaks_kb[0] < 8_000
