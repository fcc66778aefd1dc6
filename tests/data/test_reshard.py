"""Resharding: windows stay what they were, pixel for pixel, whatever the shards and sequences are cut to."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.data.errors import DataError
from rainspark.data.exit_codes import ExitCode
from rainspark.data.pack.recut import ReshardOptions
from rainspark.data.reshard import main, reshard
from rainspark.data.sequences import cut_run
from rainspark.data.shards.index import Index, dump_index, load_index, signed
from rainspark.data.shards.origins import Origin
from rainspark.data.shards.timeline import ready_origins
from rainspark.data.sources.source import Recipe
from rainspark.data.store.storage import open_storage
from rainspark.data.verify import verify
from tests.data.archives import whole_origin
from tests.data.radar_files import digests
from tests.data.sound_archives import (
    Windows,
    as_schema_2,
    pack_frames,
    rewrite,
    small_archive,
    some_frames,
    windows_of,
)

SAME = ReshardOptions()


def again(source: Path | Sequence[Path], out: Path, options: ReshardOptions = SAME) -> Index:
    """Reshard, and demand that the result is sound in every respect."""
    sources = [source] if isinstance(source, Path) else list(source)
    index = reshard([str(path) for path in sources], str(out), options)
    assert [str(problem) for problem in verify(str(out), threads=1).problems] == []
    assert sorted(path.name for path in out.iterdir()) == ["index.json", *(shard.name for shard in index.shards)]
    return index


def all_windows(folder: Path, window: int) -> Windows:
    """Cut all windows of an archive."""
    storage = open_storage(folder)
    return windows_of(storage, load_index(storage), window)


def pieces_of(runs: Sequence[tuple[int, int]], window: int, max_frames: int) -> list[tuple[int, int, int]]:
    """Cut runs of (first number, frames) as packing does."""
    return [
        (first + piece.first, piece.num_frames, piece.num_starts)
        for first, count in runs
        for piece in cut_run(count, window, max_frames)
    ]


RUNS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), min_size=1, max_size=5)
SIZES = st.integers(1, 12).flatmap(lambda window: st.tuples(st.just(window), st.integers(window, 30)))


@settings(max_examples=20, deadline=None)
@given(RUNS, SIZES, SIZES, st.integers(1, 7), st.sampled_from([200, 3000, 10**6]))
def test_windows_survive_and_the_way_back_gives_the_same(
    lengths: list[tuple[int, int]], before: tuple[int, int], after: tuple[int, int], num_shards: int, shard_bytes: int
) -> None:
    runs = []
    first = 0
    for count, gap in lengths:
        runs.append((first, count))
        first += count + gap
    numbers = [first + i for first, count in runs for i in range(count)]
    origin = whole_origin(4, 4)

    with tempfile.TemporaryDirectory() as folder:
        old, new, back = (Path(folder) / name for name in ("old", "new", "back"))
        frames, pieces = {origin: some_frames(numbers, rows=4, cols=4)}, {origin: pieces_of(runs, *before)}
        packed = pack_frames(old, frames, pieces, window=before[0], max_frames=before[1], num_shards=num_shards)
        # A single frame knows of nothing that comes after it: it looks like a ready window, and is kept as well.
        if ready_origins(packed):
            return
        recut = again(old, new, ReshardOptions(window=after[0], max_frames=after[1], shard_bytes=shard_bytes))
        returned = again(new, back, ReshardOptions(window=before[0], max_frames=before[1]))

        for window in sorted({1, min(before[0], after[0])}):
            assert all_windows(new, window) == all_windows(old, window)
        for window in range(1, before[0] + 1):
            assert all_windows(back, window) == all_windows(old, window)
        # What is cut is what packing would have cut.
        expected = {(piece[0], *piece[1:]) for piece in pieces_of(runs, *after)}
        first_s = packed.sequences[0].start_s
        assert {((e.start_s - first_s) // 300, e.num_frames, e.num_starts) for e in recut.sequences} == expected
        fields = ("start_s", "num_frames", "num_starts", "rain_fraction", "missing", "rain_after", "frame_ends")
        assert [[getattr(e, name) for name in fields] for e in returned.sequences] == [
            [getattr(e, name) for name in fields] for e in packed.sequences
        ]
        assert returned.statistics == packed.statistics


def test_the_same_input_gives_the_same_bytes_and_a_second_call_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_archive(tmp_path / "old")
    options = ReshardOptions(max_frames=6)
    again(tmp_path / "old", tmp_path / "a", options)
    again(tmp_path / "old", tmp_path / "b", options)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    again(tmp_path / "old", tmp_path / "a", options)
    assert "already packed from this input with these options" in capsys.readouterr().err
    with pytest.raises(DataError, match="packed from other files or with other options"):
        reshard([str(tmp_path / "old")], str(tmp_path / "a"), ReshardOptions(max_frames=7))
    with pytest.raises(DataError, match="packed from other files or with other options"):
        reshard([str(tmp_path / "old")], str(tmp_path / "old"), options)


def test_compressed_frames_are_copied_as_they_are(tmp_path: Path) -> None:
    index = small_archive(tmp_path / "old")
    new = again(tmp_path / "old", tmp_path / "new", ReshardOptions(max_frames=5))

    def buffers(folder: Path, packed: Index) -> set[tuple[int, bytes]]:
        stored = set()
        for entry in packed.sequences:
            data = (folder / packed.shards[entry.shard].name).read_bytes()[entry.frames_offset :][: entry.frames_bytes]
            ends = (0, *entry.frame_ends)
            stored |= {(entry.start_s + 300 * i, data[ends[i] : ends[i + 1]]) for i in range(entry.num_frames)}
        return stored

    assert buffers(tmp_path / "new", new) == buffers(tmp_path / "old", index)


def test_shards_of_another_size(tmp_path: Path) -> None:
    origin = whole_origin(6, 8)
    frames = {origin: some_frames(range(400))}
    pieces = {origin: pieces_of([(0, 400)], 4, 9)}
    pack_frames(tmp_path / "old", frames, pieces, window=4, max_frames=9, num_shards=40)
    assert len(again(tmp_path / "old", tmp_path / "few").shards) == 16
    many = again(tmp_path / "old", tmp_path / "many", ReshardOptions(shard_bytes=2000))
    assert len(many.shards) > 20
    assert [entry.shard for entry in many.sequences] == [i % len(many.shards) for i in range(len(many.sequences))]
    assert all_windows(tmp_path / "few", 4) == all_windows(tmp_path / "old", 4) == all_windows(tmp_path / "many", 4)


def test_archives_are_merged_with_their_origins(tmp_path: Path) -> None:
    small_archive(tmp_path / "a", source="one")
    small_archive(tmp_path / "b", source="two", seed=1)
    both = again([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert both.sources == ("one", "two")
    assert len({entry.key for entry in both.sequences}) == len(both.sequences) == 10
    merged = all_windows(tmp_path / "both", 4)
    assert merged == {**all_windows(tmp_path / "a", 4), **all_windows(tmp_path / "b", 4)}
    assert set(both.statistics) == {"one", "two"}


def test_years_of_one_origin_become_one_run(tmp_path: Path) -> None:
    origin = whole_origin(6, 8)
    frames = some_frames(range(24))
    for name, first, count in (("a", 0, 11), ("b", 11, 13), ("whole", 0, 24)):
        own = {number: frames[number] for number in range(first, first + count)}
        pieces = {origin: pieces_of([(first, count)], 4, 9)}
        pack_frames(tmp_path / name, {origin: own}, pieces, window=4, max_frames=9, num_shards=1)
    index = again([tmp_path / "b", tmp_path / "a"], tmp_path / "both")
    assert index.origins == (origin,)
    # The windows across the border are new; all are those of the years packed together.
    assert all_windows(tmp_path / "both", 4) == all_windows(tmp_path / "whole", 4)
    assert [entry.rain_after for entry in index.sequences] == [
        entry.rain_after for entry in load_index(open_storage(tmp_path / "whole")).sequences
    ]


def test_what_a_left_out_neighbour_would_have_owned_stays_unowned(tmp_path: Path) -> None:
    origin = whole_origin(6, 8)
    frames = {origin: some_frames(range(40))}
    pieces = [piece for piece in pieces_of([(0, 40)], 4, 9) if piece[0] != 12]
    old = pack_frames(tmp_path / "old", frames, {origin: pieces}, window=4, max_frames=9, num_shards=1)
    assert not ready_origins(old)
    for max_frames in (4, 5, 7, 9, 20):
        again(tmp_path / "old", tmp_path / f"{max_frames}", ReshardOptions(max_frames=max_frames))
        for window in (1, 3, 4):
            assert all_windows(tmp_path / f"{max_frames}", window) == all_windows(tmp_path / "old", window)


def ready_archive(folder: Path, origin: Origin, numbers: Sequence[int]) -> Index:
    """Pack ready windows of four frames, some of them overlapping."""
    frames = {origin: some_frames(range(max(numbers) + 4), seed=3)}
    pieces = {origin: [(number, 4, 1) for number in numbers]}
    return pack_frames(folder, frames, pieces, window=4, max_frames=4, num_shards=2, ready=True)


def test_ready_windows_survive_unchanged_and_are_not_cut(tmp_path: Path) -> None:
    origin = whole_origin(6, 8, "ready")
    old = ready_archive(tmp_path / "old", origin, [0, 1, 2, 7, 9, 30])
    assert ready_origins(old) == {0}
    new = again(tmp_path / "old", tmp_path / "new", ReshardOptions(shard_bytes=100))
    assert all_windows(tmp_path / "new", 4) == all_windows(tmp_path / "old", 4)
    assert [(e.start_s, e.num_frames, e.num_starts, e.rain_after) for e in new.sequences] == [
        (e.start_s, e.num_frames, e.num_starts, e.rain_after) for e in old.sequences
    ]
    for options in (ReshardOptions(window=3), ReshardOptions(max_frames=9), ReshardOptions(window=5, max_frames=9)):
        with pytest.raises(DataError, match="holds ready windows of 4 frames, which cannot be cut anew"):
            reshard([str(tmp_path / "old")], str(tmp_path / "no"), options)
    small_archive(tmp_path / "runs")
    both = again([tmp_path / "runs", tmp_path / "old"], tmp_path / "both", ReshardOptions(max_frames=9))
    assert ready_origins(both) == {1}
    parts = {**all_windows(tmp_path / "runs", 4), **all_windows(tmp_path / "old", 4)}
    assert all_windows(tmp_path / "both", 4) == parts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cadence_s": 600},
            r"b does not fit .*cadence_s is 600; expected 300, as in the first; one archive has",
        ),
        ({"rows": 8, "cols": 6}, r"b does not fit .*rows, cols is \(6, 8\); expected \(8, 6\), those of origins\[1\]"),
    ],
)
def test_archives_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, int], message: str) -> None:
    small_archive(tmp_path / "a")
    other = small_archive(tmp_path / "b", source="other")
    if "rows" in change:
        change["origins"] = (whole_origin(8, 6, source="other"),)  # type: ignore[assignment]
    changed = signed(dataclasses.replace(other, **change))  # type: ignore[arg-type]
    (tmp_path / "b" / "index.json").write_bytes(dump_index(changed))
    with pytest.raises(DataError, match=message):
        reshard([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "out"), SAME)
    assert not (tmp_path / "out").exists()


def test_an_archive_of_schema_2_is_renewed_with_the_same_shards(tmp_path: Path) -> None:
    new = small_archive(tmp_path / "new")
    old = as_schema_2(tmp_path / "old", new, tmp_path / "new")
    assert old.schema_version == 2
    renewed = again(tmp_path / "old", tmp_path / "renewed")
    # Frames as they were; digests and wetness as packing makes them. Nobody knows any more how the files were read.
    assert all_windows(tmp_path / "renewed", 4) == all_windows(tmp_path / "old", 4)
    expected = {(entry.origin, entry.start_s): entry for entry in new.sequences}
    for entry in renewed.sequences:
        before = expected[entry.origin, entry.start_s]
        assert entry.num_frames == before.num_frames
        assert entry.frame_digests == before.frame_digests
        assert (entry.wetness_1mmh, entry.wetness_5mmh) == (before.wetness_1mmh, before.wetness_5mmh)
    assert renewed.schema_version == 3


def test_what_one_archive_knows_of_a_source_fills_in_another_of_schema_2(tmp_path: Path) -> None:
    early = small_archive(tmp_path / "early")
    as_schema_2(tmp_path / "old", early, tmp_path / "early")
    late = small_archive(tmp_path / "late", first=1000)
    known = dataclasses.replace(late.origins[0], period_s=0, recipe=Recipe(kind="knmi"))
    rewrite(tmp_path / "late", late, origins=(known,))
    for order in (("old", "late"), ("late", "old")):
        joined = again([tmp_path / name for name in order], tmp_path / "-".join(order))
        assert joined.origins == (known,)


def test_the_newest_archive_says_how_a_source_is_read(tmp_path: Path) -> None:
    for first, name in ((1000, "new"), (0, "old")):
        index = small_archive(tmp_path / name, first=first)
        read = Recipe(kind="odim", options={"name": name})
        rewrite(tmp_path / name, index, origins=(dataclasses.replace(index.origins[0], period_s=0, recipe=read),))
    for order in (("new", "old"), ("old", "new")):
        joined = again([tmp_path / name for name in order], tmp_path / "-".join(order))
        assert [origin.recipe for origin in joined.origins] == [Recipe(kind="odim", options={"name": "new"})]


def test_archives_of_one_source_whose_values_are_over_other_spans_are_refused(tmp_path: Path) -> None:
    for first, name, period_s in ((0, "a", 300), (1000, "b", 600)):
        index = small_archive(tmp_path / name, first=first)
        known = dataclasses.replace(index.origins[0], period_s=period_s, recipe=Recipe(kind="knmi"))
        rewrite(tmp_path / name, index, origins=(known,))
    with pytest.raises(
        DataError, match=r"b does not fit .*origins\[1\]\.period_s is 600; expected 300, as in the source"
    ):
        reshard([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "out"), SAME)


def test_the_same_frame_twice_is_an_error(tmp_path: Path) -> None:
    small_archive(tmp_path / "a")
    small_archive(tmp_path / "b", num_shards=1)
    message = "the frame of 2010-01-01T00:00:00Z of test stands in .*a and in .*b; expected every frame once"
    with pytest.raises(DataError, match=message):
        reshard([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "out"), SAME)
    assert not (tmp_path / "out").exists()


def test_archives_packed_with_different_options_need_one(tmp_path: Path) -> None:
    small_archive(tmp_path / "a", source="one")
    small_archive(tmp_path / "b", source="two")
    again(tmp_path / "b", tmp_path / "c", ReshardOptions(window=5))
    with pytest.raises(DataError, match=r"packed with different --window \(.*a: 4, .*c: 5\); give the one to use"):
        reshard([str(tmp_path / "a"), str(tmp_path / "c")], str(tmp_path / "out"), SAME)
    again([tmp_path / "a", tmp_path / "c"], tmp_path / "out", ReshardOptions(window=4))
    assert all_windows(tmp_path / "out", 4) == {**all_windows(tmp_path / "a", 4), **all_windows(tmp_path / "b", 4)}


def test_damaged_sequences_stop_it_without_an_index_and_it_goes_on_when_they_are_mended(tmp_path: Path) -> None:
    index = small_archive(tmp_path / "old")
    entry = index.sequences[4]
    path = tmp_path / "old" / index.shards[entry.shard].name
    whole = path.read_bytes()
    data = bytearray(whole)
    data[entry.frames_offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"shard {path.name}, key {entry.key}: SHA-256"):
        reshard([str(tmp_path / "old")], str(tmp_path / "new"), SAME)
    assert not (tmp_path / "new" / "index.json").exists()
    path.write_bytes(whole)
    kept = {path.name: path.stat().st_ino for path in (tmp_path / "new").glob("*.tar")}
    assert len(kept) == 4
    again(tmp_path / "old", tmp_path / "new")
    assert {name: (tmp_path / "new" / name).stat().st_ino for name in kept} == kept
    again(tmp_path / "old", tmp_path / "other")
    assert digests(tmp_path / "new") == digests(tmp_path / "other")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_archive(tmp_path / "old")
    new = str(tmp_path / "new")
    assert main([str(tmp_path / "old"), "--out", new, "--frames", "6", "--window", "3", "--shard-mb", "1"]) == 0
    shown = capsys.readouterr().out
    assert "sequences     " in shown
    assert shown.endswith(f"packed        {new}\n")
    for wrong in (["--frames", "0"], ["--window", "-1"], ["--shard-mb", "0"], ["--window", "10", "--frames", "9"]):
        assert main([str(tmp_path / "old"), "--out", str(tmp_path / "no"), *wrong]) == ExitCode.DATA
        assert "expected" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing"), "--out", str(tmp_path / "no")]) == ExitCode.DATA
    assert "is missing: no packed archive lies there" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_source_of_two_scales_or_licences_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    origin = whole_origin(6, 8, "one")
    others = {
        "0.5": dataclasses.replace(origin, scale_mmh=0.5),
        "CC0": dataclasses.replace(origin, licence="CC0"),
    }
    small_archive(tmp_path / "a", source="one")
    for word, other in others.items():
        frames, pieces = {other: some_frames(range(40, 48))}, {other: [(40, 8, 8)]}
        pack_frames(tmp_path / word, frames, pieces, window=4, max_frames=9, num_shards=1)
        with pytest.raises(
            DataError, match=rf"/{word} does not fit .*is {word}; expected .*one scale and licence of each source"
        ):
            reshard([str(tmp_path / "a"), str(tmp_path / word)], str(tmp_path / "new"), SAME)
    assert not (tmp_path / "new" / "index.json").exists()


def test_a_folder_inside_an_archive_that_is_read_is_refused(tmp_path: Path) -> None:
    small_archive(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for out in (tmp_path / "a" / "new", tmp_path / "link" / "deep" / "new"):
        with pytest.raises(DataError, match=r"lies inside .*/a, which is read; choose another --out"):
            reshard([str(tmp_path / "a")], str(out), SAME)
    assert sorted(path.name for path in (tmp_path / "a").iterdir())[0] == "index.json"
    assert not list((tmp_path / "a").rglob("*new*"))
