"""Packing: what is stored, restarts that end with the same bytes, and input refused with nothing half-written."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt
import pytest
import webdataset

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop
from rainspark.data.pack.__main__ import main
from rainspark.data.pack.archive import pack
from rainspark.data.pack.survey import PackOptions
from rainspark.data.shards.contact_sheet import draw_contact_sheet, read_frame
from rainspark.data.shards.index import Index, dump_index, load_index, signed, verify_sequence_bytes
from rainspark.data.shards.summary import count_windows, runs_of, summarise
from rainspark.data.sources.odim import OdimSource
from rainspark.data.store.storage import open_storage
from tests.data.radar_files import (
    CROP,
    FIRST_S,
    NUMBERS,
    OPTIONS,
    digests,
    odim_name,
    random_counts,
    rates,
    write_odim_file,
)
from tests.data.sound_archives import as_schema_2


def cropped(number: int) -> npt.NDArray[np.uint16]:
    return random_counts(number, 12, 10)[2:10, 1:9]


def decoded(frames: bytes, ends: list[int]) -> list[npt.NDArray[np.uint16]]:
    begins = [0, *ends[:-1]]
    return [
        np.frombuffer(blosc2.decompress2(frames[begin:end]), np.uint16).reshape(8, 8)
        for begin, end in zip(begins, ends, strict=True)
    ]


def test_every_frame_is_stored_as_it_was(radar: Path, tmp_path: Path) -> None:
    index = pack([radar], tmp_path / "out", OPTIONS)
    storage = open_storage(tmp_path / "out")
    assert load_index(storage) == index
    seen: set[int] = set()
    for entry in index.sequences:
        first = (entry.start_s - FIRST_S) // 300
        for i in range(entry.num_frames):
            counts = read_frame(storage, index, entry, i)
            np.testing.assert_array_equal(counts, cropped(first + i))
            valid = counts[counts != 65535]
            assert entry.rain_fraction[i] == (valid > 0).mean()
            assert entry.missing[i] == (counts == 65535).sum()
        seen.update(range(first, first + entry.num_starts))
    assert sorted(seen) == NUMBERS
    assert sum(entry.num_starts for entry in index.sequences) == len(NUMBERS)
    assert [shard.sha256 for shard in index.shards] == [
        hashlib.sha256(storage.read(shard.name)).hexdigest() for shard in index.shards
    ]


def test_sequences_are_dealt_round_robin(radar: Path, tmp_path: Path) -> None:
    index = pack([radar], tmp_path / "out", OPTIONS)
    assert len(index.shards) == len(index.sequences) == 7
    options = PackOptions(crop=CROP, window=2, max_frames=2)
    many = pack([radar], tmp_path / "many", options)
    assert len(many.shards) == 16
    assert [entry.shard for entry in many.sequences] == [i % 16 for i in range(len(many.sequences))]


def test_statistics_count_every_frame_once(radar: Path, tmp_path: Path) -> None:
    index = pack([radar], tmp_path / "out", OPTIONS)
    rain = index.statistics[index.source]
    counts = np.stack([cropped(number) for number in NUMBERS])
    valid = counts[counts != 65535].astype(np.int64)
    assert (rain.frames, rain.pixels, rain.valid) == (len(NUMBERS), counts.size, valid.size)
    assert (rain.wet, rain.sum_counts, rain.max_count) == ((valid > 0).sum(), valid.sum(), valid.max())
    edges = [0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, np.inf]
    assert rain.rain_classes == tuple(np.histogram(np.round(valid * 0.12, 6), edges)[0])
    assert sum(rain.rain_classes) == rain.valid


def test_the_index_knows_the_rain_after_every_sequence(radar: Path, tmp_path: Path) -> None:
    """It is the next frame's, across gaps too, a share of all pixels, the missing ones too."""
    index = pack([radar], tmp_path / "out", OPTIONS)
    for entry in index.sequences:
        last = (entry.start_s - FIRST_S) // 300 + entry.num_frames - 1
        later = [number for number in NUMBERS if number > last]
        counts = cropped(later[0]) if later else None
        expected = -1.0 if counts is None else ((counts > 0) & (counts != 65535)).sum() / counts.size
        assert entry.rain_after == expected
    assert index.sequences[-1].rain_after == -1.0


def test_the_summary_counts_gaps_runs_and_windows(radar: Path, tmp_path: Path) -> None:
    index = pack([radar], tmp_path / "out", OPTIONS)
    series = runs_of(index)
    assert [run.num_frames for run in series.runs] == [30, 2, 8]
    assert [gap.num_missing for gap in series.gaps] == [5, 3]
    # The slow way: every window of 3 whose frames all exist.
    lasts = [n + 2 for n in NUMBERS if {n + 1, n + 2} <= set(NUMBERS)]
    for share in (0.0, 0.2, 0.5):
        wet = [(c := cropped(n))[c != 65535] for n in lasts]
        assert count_windows(index, 3, share) == sum((pixels > 0).mean() >= share for pixels in wet)
    text = summarise(index)
    assert "frames        40 every 5 min, 2019-12-31T23:50:00Z to 2020-01-01T03:45:00Z" in text
    assert "gaps          2 (8 frames missing)" in text
    assert "5 frames missing between 2020-01-01T02:15:00Z and 2020-01-01T02:45:00Z" in text
    assert "1 of 3 gap-free runs are shorter than 4 frames (2 frames" in text


def test_stock_webdataset_opens_the_shards(radar: Path, tmp_path: Path) -> None:
    index = pack([radar], tmp_path / "out", OPTIONS)
    urls = [str(tmp_path / "out" / shard.name) for shard in index.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert sorted(sample["__key__"] for sample in samples) == sorted(entry.key for entry in index.sequences)
    for sample in samples:
        about = json.loads(sample["json"])
        first = (about["start_s"] - FIRST_S) // 300
        for i, counts in enumerate(decoded(sample["frames"], about["frame_ends"])):
            np.testing.assert_array_equal(counts, cropped(first + i))
        assert (about["rows"], about["cols"], about["scale_mmh"], about["missing_count"]) == (8, 8, 0.12, 65535)


def test_tar_headers_tell_nothing_of_the_machine(radar: Path, tmp_path: Path) -> None:
    index = pack([radar], tmp_path / "out", OPTIONS)
    for number, shard in enumerate(index.shards):
        payload = (tmp_path / "out" / shard.name).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(payload)) as tar:
            members = tar.getmembers()
        assert all((m.mtime, m.uid, m.gid, m.uname, m.gname) == (0, 0, 0, "", "") for m in members)
        entries = [entry for entry in index.sequences if entry.shard == number]
        assert [m.name for m in members] == [f"{entry.key}.{kind}" for entry in entries for kind in ("json", "frames")]
        assert [(m.offset_data, m.size) for m in members[1::2]] == [(e.frames_offset, e.frames_bytes) for e in entries]
        assert [(m.offset_data, m.size) for m in members[::2]] == [(e.json_offset, e.json_bytes) for e in entries]
        for entry in entries:
            verify_sequence_bytes(index, entry, payload[entry.offset : entry.offset + entry.num_bytes])


def test_equal_input_gives_equal_bytes_wherever_it_lies(radar: Path, tmp_path: Path) -> None:
    shutil.copytree(radar, tmp_path / "elsewhere")
    pack([radar], tmp_path / "a", OPTIONS)
    pack(list((tmp_path / "elsewhere").iterdir()), tmp_path / "b", OPTIONS)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_packing_again_changes_nothing(radar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = pack([radar], tmp_path / "out", OPTIONS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert pack([radar], tmp_path / "out", OPTIONS) == first
    assert "already packed" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_a_finished_archive_of_schema_2_is_kept_and_can_be_renewed(radar: Path, tmp_path: Path) -> None:
    as_schema_2(tmp_path / "old", pack([radar], tmp_path / "new", OPTIONS), tmp_path / "new")
    before = digests(tmp_path / "old")
    with pytest.raises(DataError, match=r"an archive of schema 2, .*rainspark reshard \S+old --out NEW renews it"):
        pack([radar], tmp_path / "old", OPTIONS)
    assert digests(tmp_path / "old") == before


def test_a_finished_archive_of_other_input_or_options_is_kept(radar: Path, tmp_path: Path) -> None:
    pack([radar], tmp_path / "out", OPTIONS)
    before = digests(tmp_path / "out")
    with pytest.raises(DataError, match="packed from other files or with other options"):
        pack([radar], tmp_path / "out", PackOptions(crop=CROP, window=5, max_frames=9))
    with pytest.raises(DataError, match="packed from other files or with other options"):
        pack(sorted(radar.iterdir())[:20], tmp_path / "out", OPTIONS)
    assert digests(tmp_path / "out") == before


def test_a_folder_with_foreign_files_is_left_alone(radar: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(DataError, match=r"holds files that are not from packing \(thesis\.txt\)"):
        pack([radar], tmp_path, OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="could not be made a folder"):
        pack([radar], tmp_path / "thesis.txt", OPTIONS)


def test_a_shard_that_changed_after_packing_is_noticed(radar: Path, tmp_path: Path) -> None:
    index = pack([radar], tmp_path / "out", OPTIONS)
    shard = tmp_path / "out" / index.shards[0].name
    payload = bytearray(shard.read_bytes())
    payload[index.sequences[0].frames_offset + 40] ^= 1
    shard.write_bytes(payload)
    with pytest.raises(DataError, match=r"shard-00000\.tar, key .* SHA-256"):
        draw_contact_sheet(open_storage(tmp_path / "out"), index)
    shard.write_bytes(payload[:-1])
    with pytest.raises(DataError, match=r"shard-00000\.tar has .* bytes, expected"):
        pack([radar], tmp_path / "out", OPTIONS)


def test_the_commands_pack_and_inspect(
    radar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["knmi", str(radar), "--out", "out", "--crop", "2:10,1:9", "--window", "4", "--frames", "9"]) == 0
    written = capsys.readouterr()
    assert "packing: 100%" in written.err
    assert main(["inspect", "out"]) == 0
    inspected = capsys.readouterr()
    summary = summarise(load_index(open_storage("out")))
    assert written.out.startswith(summary)
    assert inspected.out.startswith(summary)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--crop", "1:2"], "crop '1:2' was not understood"),
        (["--window", "0"], "--window 0"),
        (["--window", "9", "--frames", "8"], "--window 9, --frames 8"),
        (["--cadence-min", "0"], "--cadence-min 0"),
        (["--cadence-min", "nan"], "--cadence-min: 'nan' is no number from"),
        (["--cadence-min", "inf"], "--cadence-min: 'inf' is no number from"),
        (["--cadence-min", "1e300"], "--cadence-min: '1e300' is no number from"),
        (["--shard-mb", "0"], "--shard-mb 0"),
    ],
)
def test_wrong_options_are_named(
    radar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["knmi", str(radar), "--out", str(tmp_path / "out"), *arguments]) in (3, 4)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_real_files_pack_to_a_fifth_of_their_bytes(shared_dir: Path, tmp_path: Path) -> None:
    options = PackOptions(crop=Crop(row0=284, row1=572, col0=225, col1=513))
    index: Index = pack([shared_dir / "data" / "knmi"], tmp_path / "out", options)
    assert [run.num_frames for run in runs_of(index).runs] == [62]
    assert [count_windows(index, 12, share) for share in (0.0, 0.2, 0.5)] == [51, 51, 25]
    assert [count_windows(index, 24, share) for share in (0.0, 0.2, 0.5)] == [39, 39, 17]
    assert sum(shard.num_bytes for shard in index.shards) < 16_000 * 62
    assert index.statistics[index.source].valid == 62 * 288 * 288


BAD_STATISTICS = [
    ({"frames": 0, "pixels": 0, "valid": 0, "wet": 0}, "frames .* is 0; expected that of 40 frames"),
    ({"pixels": 0}, "pixels .* is 0"),
    ({"valid": 40 * 64 + 1}, "valid .* is 2561"),
    ({"wet": 40 * 64}, "wet .* is 2560"),
    ({"max_count": 65535}, "max_count .* is 65535"),
    ({"max_count": 10**400}, "max_count .* is 10+;"),
    ({"sum_counts": 10**400}, "sum_counts .* is 10+;"),
    ({"sum_counts": 0}, "sum_counts .* is 0"),
    ({"rain_classes": (0,) * 11}, r"rain_classes .* is \(0, 0"),
    ({"rain_classes": (1,)}, r"rain_classes .* is \(1,"),
]


@pytest.mark.parametrize(("values", "message"), BAD_STATISTICS)
def test_inspect_refuses_statistics_that_cannot_be(
    radar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], message: str
) -> None:
    index = pack([radar], tmp_path / "out", OPTIONS)
    changed = signed(replace(index, statistics={index.source: replace(index.statistics[index.source], **values)}))
    (tmp_path / "out" / "index.json").write_bytes(dump_index(changed))
    assert main(["inspect", str(tmp_path / "out")]) == 4
    assert re.search(f"key {message}.*: copy or pack the archive again", capsys.readouterr().err)


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000)])
def test_very_long_and_flat_frames_are_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    for time_s in (FIRST_S, FIRST_S + 300):
        write_odim_file(tmp_path / odim_name(time_s), rates(time_s, *size), time_s)
    # A name that matplotlib must not take for a formula.
    source = OdimSource(name="$\\frac{")
    index = pack(sorted(tmp_path.iterdir()), tmp_path / "out", PackOptions(window=2), source=source)
    assert draw_contact_sheet(open_storage(tmp_path / "out"), index).startswith(b"\x89PNG")
