"""Verifying: every kind of damage has its line, all of them are reported, and a sound archive has none."""

import dataclasses
import hashlib
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rainspark.data.counts import Rounding
from rainspark.data.exit_codes import ExitCode
from rainspark.data.shards.index import dump_index
from rainspark.data.shards.timeline import with_rain_after
from rainspark.data.shards.totals import RainTotals
from rainspark.data.verify import Report, main, verify
from tests.data.archives import whole_origin
from tests.data.sound_archives import pack_frames, resign, rewrite, small_archive, some_frames, with_entry

OFFSETS = ("offset", "json_offset", "frames_offset")


def lines(report: Report) -> list[str]:
    """Give the report's lines."""
    return [str(problem) for problem in report.problems]


def test_a_sound_archive_has_no_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = small_archive(tmp_path)
    report = verify(str(tmp_path))
    assert lines(report) == []
    assert (report.shards, report.sequences) == (3, 5)
    assert report.frames == sum(entry.num_frames for entry in index.sequences)
    assert report.num_bytes == sum(shard.num_bytes for shard in index.shards)
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(" bytes: sound\n")


def test_several_origins_and_ready_windows_are_sound(tmp_path: Path) -> None:
    first, second = whole_origin(6, 8, "one"), whole_origin(6, 8, "two", scale_mmh=0.01)
    frames = {first: some_frames(range(12)), second: some_frames(range(3, 20), seed=1)}
    pieces = {first: [(0, 8, 5), (5, 7, 7)], second: [(3, 8, 5), (8, 8, 5), (13, 7, 7)]}
    pack_frames(tmp_path / "two", frames, pieces, window=4, max_frames=8, num_shards=2)
    assert lines(verify(str(tmp_path / "two"))) == []
    ready = {first: [(number, 4, 1) for number in (0, 1, 2, 5, 6, 8)]}
    pack_frames(tmp_path / "r", {first: frames[first]}, ready, window=4, max_frames=4, num_shards=2, ready=True)
    assert lines(verify(str(tmp_path / "r"))) == []


def test_all_problems_are_reported_each_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = small_archive(tmp_path, num_shards=5)
    names = [shard.name for shard in index.shards]
    flipped, cut, longer = (tmp_path / name for name in names[:3])

    # A bit, a cut, bytes behind the end, and a missing shard.
    data = bytearray(flipped.read_bytes())
    data[index.sequences[0].frames_offset + 5] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-600])
    longer.write_bytes(longer.read_bytes() + b"more")
    (tmp_path / names[3]).unlink()

    assert main([str(tmp_path)]) == ExitCode.DATA
    printed = capsys.readouterr().out.splitlines()
    problems = [line for line in printed if line.startswith("problem")]
    for expected in (
        rf"shard {names[0]}, key s0000: SHA-256 of its bytes is [0-9a-f]+, expected {index.sequences[0].sha256}",
        rf"shard {names[0]}: SHA-256 is [0-9a-f]+, expected {index.shards[0].sha256}",
        rf"shard {names[1]}: has \d+ bytes, expected {index.shards[1].num_bytes}",
        rf"shard {names[1]}: 424 bytes follow the last sequence, expected 1024 zeros",
        rf"shard {names[2]}: has \d+ bytes, expected {index.shards[2].num_bytes}",
        rf"shard {names[2]}: 1028 bytes follow the last sequence",
        rf"shard {names[3]}: cannot be read: .*No such file",
    ):
        assert [line for line in problems if re.search(expected, line)], expected
    assert printed[-1].endswith(" problems")


def header_edit(change: Callable[[tarfile.TarInfo], None], at: int = 0) -> Callable[[bytearray], None]:
    """Make an edit of the tar header at a byte of a sequence."""

    def edit(data: bytearray) -> None:
        info = tarfile.TarInfo.frombuf(bytes(data[at : at + 512]), "utf-8", "strict")
        change(info)
        data[at : at + 512] = info.tobuf(format=tarfile.GNU_FORMAT)

    return edit


def set_field(name: str, value: object) -> Callable[[tarfile.TarInfo], None]:
    """Make a change of a tar header's field."""
    return lambda info: setattr(info, name, value)


@pytest.mark.parametrize(
    "edit",
    [
        header_edit(set_field("type", tarfile.SYMTYPE)),
        header_edit(set_field("name", "../../evil.json")),
        header_edit(set_field("name", "a\x1b[31m")),
        header_edit(set_field("size", 7)),
        header_edit(set_field("mode", 0o777)),
        header_edit(set_field("mtime", 5)),
        lambda data: data.__setitem__(slice(0, 512), bytes(512)),
        lambda data: data.__setitem__(-1, 7),
    ],
)
def test_members_are_plain_files_with_plain_headers(tmp_path: Path, edit: Callable[[bytearray], None]) -> None:
    index = small_archive(tmp_path)
    resign(tmp_path, index, 0, edit)
    (problem,) = lines(verify(str(tmp_path)))
    message = (
        r"key s0000: its tar headers, padding or places differ from byte \d+ on; expected plain files s0000.json of"
    )
    assert re.search(message, problem), problem
    assert problem.isprintable()


def test_what_lies_between_the_sequences_is_seen(tmp_path: Path) -> None:
    index = small_archive(tmp_path, num_shards=1)
    path = tmp_path / index.shards[0].name
    hole = tarfile.TarInfo("evil")
    data, second = path.read_bytes(), index.sequences[1].offset
    data = data[:second] + hole.tobuf(format=tarfile.GNU_FORMAT) + data[second:]
    path.write_bytes(data)
    moved = tuple(
        dataclasses.replace(entry, **{name: getattr(entry, name) + shift for name in OFFSETS})
        for entry, shift in zip(index.sequences, (0, 512, 512, 512, 512), strict=True)
    )
    shard = dataclasses.replace(index.shards[0], num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    rewrite(tmp_path, index, sequences=moved, shards=(shard,))
    (problem,) = lines(verify(str(tmp_path)))
    assert f"key s0001: its bytes begin at {second + 512}, the sequence before it ends at {second}" in problem


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (0, {"missing": (1, *[0] * 8)}, "frame 0: missing is 1; the pixels give"),
        (1, {"rain_fraction": (1.0,) * 9}, r"frame \d: rain_fraction is 1.0; the pixels give"),
        (1, {"wetness_5mmh": (1.0,) * 9}, r"frame \d: wetness_5mmh is 1.0; the pixels give"),
        (1, {"frame_digests": "0" * 144}, r"frame \d: its digest is not that of its buffer"),
        (2, {"rain_after": 0.5}, "index.json, key s0002: rain_after is 0.5; the frames give"),
        (3, {"start_s": 1_262_304_000 + 24 * 300}, "key s0003: s0003.json says start_"),
        (4, {"num_starts": 8}, "key s0004: s0004.json says starts = 9, the index says 8"),
    ],
)
def test_the_index_is_compared_with_the_frames(
    tmp_path: Path, number: int, changes: dict[str, object], message: str
) -> None:
    index = small_archive(tmp_path)
    with_entry(tmp_path, index, number, **changes)
    problems = lines(verify(str(tmp_path)))
    assert [line for line in problems if re.search(message, line)], problems


def test_statistics_are_recomputed(tmp_path: Path) -> None:
    index = small_archive(tmp_path)
    own = index.statistics["test"]
    # What requantising changed is known from the source files alone.
    changed = dataclasses.replace(own, sum_counts=own.sum_counts + 1, rounding=Rounding(max_error_mmh=0.005))
    rewrite(tmp_path, index, statistics={"test": changed, "ghost": RainTotals(frames=3)})
    assert [line.partition(" is ")[0] for line in lines(verify(str(tmp_path)))] == [
        "index.json: statistics: frames of ghost",
        "index.json: statistics: sum_counts of test",
    ]


def test_an_index_that_cannot_be_trusted_is_the_one_problem(tmp_path: Path) -> None:
    assert "is missing: no packed archive lies there" in lines(verify(str(tmp_path)))[0]
    index = small_archive(tmp_path)
    (tmp_path / "index.json").write_bytes(dump_index(dataclasses.replace(index, cadence_s=600)))
    assert "fingerprint is" in lines(verify(str(tmp_path)))[0]


def test_frames_of_another_kind_are_not_decoded(tmp_path: Path) -> None:
    index = small_archive(tmp_path)
    begin = index.sequences[0].frames_offset - index.sequences[0].offset

    def lazy(data: bytearray) -> None:
        data[begin + 31] |= 0b1000

    resign(tmp_path, index, 0, lazy)
    (problem,) = lines(verify(str(tmp_path)))
    assert "frame 0 of 6 x 8 uint16: its Blosc2 header has blosc2_flags 000" in problem
    assert "expected no lazy, special or dictionary chunk" in problem


def test_a_window_that_two_sequences_own_is_found(tmp_path: Path) -> None:
    origin = whole_origin(6, 8)
    pieces = {origin: [(0, 8, 8), (5, 7, 7)]}
    pack_frames(tmp_path, {origin: some_frames(range(12))}, pieces, window=4, max_frames=8, num_shards=2)
    (line,) = lines(verify(str(tmp_path)))
    assert line == (
        "index.json, key s0001: frame 0, 2010-01-01T00:25:00Z: a window begins there in key s0000 too; expected every "
        "window once"
    )


def test_a_frame_that_is_another_one_in_the_next_sequence_is_found(tmp_path: Path) -> None:
    """Each sequence is sound by itself, and the index is signed."""
    origin = whole_origin(6, 8)
    pieces = {origin: [(0, 8, 5), (5, 7, 7)]}
    indexes = []
    for seed in (0, 1):
        frames = {origin: some_frames(range(12), seed=seed)}
        indexes.append(pack_frames(tmp_path / f"{seed}", frames, pieces, window=4, max_frames=8, num_shards=2))
    first, second = indexes
    name = first.shards[1].name
    (tmp_path / "0" / name).write_bytes((tmp_path / "1" / name).read_bytes())
    sequences = with_rain_after((first.sequences[0], second.sequences[1]), 300, 48)
    rewrite(tmp_path / "0", first, shards=(first.shards[0], second.shards[1]), sequences=sequences)
    line, *_ = lines(verify(str(tmp_path / "0")))
    assert re.fullmatch(r"index.json, key s0001: frame \d, 2010-01-01T00:\S+ key s0000 holds other pixels of .*", line)


def test_sequences_out_of_order_are_found(tmp_path: Path) -> None:
    index = small_archive(tmp_path)
    rewrite(tmp_path, index, sequences=index.sequences[::-1])
    problems = lines(verify(str(tmp_path)))
    assert len(problems) == 4
    assert problems[0].endswith("key s0003: begins at 2010-01-01T02:05:00Z, before the one listed above it")
