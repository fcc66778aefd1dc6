"""Selections against slow oracles: the published loop over a list of frames, and windows found on a time axis."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.data.count import main
from rainspark.data.errors import DataError
from rainspark.data.sequences import TimeSpan, find_runs
from rainspark.data.shards.index import Index, dump_index, signed
from rainspark.data.shards.timeline import with_rain_after
from rainspark.data.store.storage import open_storage
from rainspark.data.windows.selection import Published, Rule, Selection, choose, lost_to_gaps, select_windows
from tests.data.archives import CADENCE_S, FIRST_S, index_in_memory, whole_origin
from tests.data.mixed import mixed_index
from tests.data.sound_archives import pack_frames, some_frames

PIXELS = 32 * 32


def archive_of(frames: dict[int, tuple[int, int]], *, window: int, max_frames: int) -> Index:
    """Make the index of frames, place on the cadence's grid -> (pixels above zero, missing pixels)."""
    places = sorted(frames)
    runs = find_runs([FIRST_S + place * CADENCE_S for place in places], CADENCE_S).runs
    index = index_in_memory([run.num_frames for run in runs], window=window, max_frames=max_frames, num_shards=3)
    # The helper's times have gaps of its own: each sequence moves to where its run begins.
    begins = [places[run.first] for run in runs]
    entries, run, seen = [], 0, 0
    for entry in index.sequences:
        if seen == runs[run].num_frames:
            run, seen = run + 1, 0
        own = [frames[begins[run] + seen + i] for i in range(entry.num_frames)]
        entries.append(
            replace(
                entry,
                start_s=FIRST_S + (begins[run] + seen) * CADENCE_S,
                rain_fraction=tuple(wet / (PIXELS - missing) if missing < PIXELS else 0.0 for wet, missing in own),
                missing=tuple(missing for _, missing in own),
            )
        )
        seen += entry.num_starts
    return replace(index, sequences=with_rain_after(entries, CADENCE_S, PIXELS))


def published_windows(frames: list[tuple[int, int]], window: int, threshold: float) -> tuple[list[list[int]], int]:
    """Run create_datasets.py of SmaAt-UNet on a list of frames (place, pixels above zero).

    Returns:
        The places of each window's frames where they follow each other, and the number of windows across gaps.
    """
    whole, lost = [], 0
    for i in range(window, len(frames)):
        if frames[i][1] >= PIXELS * threshold:
            places = [place for place, _ in frames[i - window : i]]
            if places == list(range(places[0], places[0] + window)):
                whole.append(places)
            else:
                lost += 1
    return whole, lost


@st.composite
def frame_lists(draw: st.DrawFn) -> dict[int, tuple[int, int]]:
    """Draw frames with gaps; half of them near the thresholds, some with missing pixels."""
    runs = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(2, 25)), min_size=1, max_size=5))
    frames, place = {}, 0
    for gap, count in runs:
        place += gap
        for _ in range(count):
            missing = draw(st.sampled_from([0, 0, 0, 100, PIXELS]))
            wet = draw(st.sampled_from([0, 204, 205, 300, 511, 512, PIXELS]))
            frames[place] = (min(wet, PIXELS - missing), missing)
            place += 1
    return frames


SPANS = st.lists(st.integers(0, 60), min_size=2, max_size=2, unique=True) | st.none()


def within(
    ends: list[int] | None, frames: dict[int, tuple[int, int]]
) -> tuple[tuple[TimeSpan, ...], dict[int, tuple[int, int]]]:
    """Give the span between two places, and the frames inside it; no span and all frames for None."""
    if ends is None:
        return (), frames
    first, stop = sorted(ends)
    span = TimeSpan(start_s=FIRST_S + first * CADENCE_S, stop_s=FIRST_S + stop * CADENCE_S)
    return (span,), {place: frame for place, frame in frames.items() if first <= place < stop}


def windows_selected(index: Index, selection: Selection) -> list[list[int]]:
    try:
        table = select_windows(index, selection)
    except DataError:
        return []
    places = [
        (index.sequences[number].shard, index.sequences[number].offset, start)
        for number, start in zip(table.sequence.tolist(), table.start.tolist(), strict=True)
    ]
    assert places == sorted(places)
    assert table.name(0, index) == f"{index.sequences[int(table.sequence[0])].key}:{int(table.start[0])}"
    windows = []
    for number, start in zip(table.sequence.tolist(), table.start.tolist(), strict=True):
        first = (index.sequences[number].start_s - FIRST_S) // CADENCE_S + start
        windows.append(list(range(first, first + selection.window)))
    return sorted(windows)


@settings(max_examples=150, deadline=None)
@given(
    frame_lists(),
    st.integers(1, 6),
    st.integers(0, 6),
    st.sampled_from([0.2, 0.5]),
    SPANS,
)
def test_smaat_compat_equals_the_published_loop(
    frames: dict[int, tuple[int, int]], window: int, more: int, threshold: float, ends: list[int] | None
) -> None:
    index = archive_of(frames, window=window, max_frames=2 * window + more)
    spans, frames = within(ends, frames)
    selection = Selection(window=window, min_rain_fraction=threshold, rule="smaat_compat", spans=spans)
    listed = [(place, frames[place][0]) for place in sorted(frames)]
    whole, lost = published_windows(listed, window, threshold)
    assert windows_selected(index, selection) == whole
    assert lost_to_gaps(index, selection) == {"test": lost}


@settings(max_examples=100, deadline=None)
@given(
    frame_lists(),
    st.integers(1, 6),
    st.integers(0, 2),
    st.integers(0, 6),
    st.sampled_from([0.0, 0.2, 0.5]),
    st.integers(-6, 5),
    SPANS,
)
def test_strict_judges_the_target_frame_of_windows_without_gaps(
    frames: dict[int, tuple[int, int]],
    window: int,
    longer: int,
    more: int,
    threshold: float,
    target: int,
    ends: list[int] | None,
) -> None:
    target = max(-window, min(target, window - 1))
    index = archive_of(frames, window=window + longer, max_frames=2 * (window + longer) + more)
    spans, frames = within(ends, frames)
    expected = []
    for first in sorted(frames):
        places = list(range(first, first + window))
        if all(place in frames for place in places):
            wet, missing = frames[places[target]]
            share = wet / (PIXELS - missing) if missing < PIXELS else 0.0
            if share >= threshold:
                expected.append(places)
    selection = Selection(window=window, min_rain_fraction=threshold, target_frame=target, spans=spans)
    assert windows_selected(index, selection) == expected


def test_the_frame_after_a_sequence_is_found_across_gaps_and_origins() -> None:
    frames = {place: (wet, 24) for place, wet in enumerate([10, 20, 30, 40]) if place != 2} | {90: (500, 0)}
    index = archive_of(frames, window=1, max_frames=2)
    assert [entry.rain_after * PIXELS for entry in index.sequences] == [40, 500, -PIXELS]
    mixed = mixed_index([index, index_in_memory([5], window=1, max_frames=9, num_shards=3)], sources=("A", "B"))
    assert [entry.rain_after for entry in mixed.sequences if entry.origin == 0] == [
        entry.rain_after for entry in index.sequences
    ]


def test_a_published_selection_is_about_the_published_frame() -> None:
    def chosen(window: int = 24, select: Published | None = None, rule: Rule = "strict", share: float = 0.0,
               target: int | None = None) -> Selection:  # fmt: skip
        return choose(window=window, select=select, min_rain_fraction=share, rule=rule, target_frame=target, spelt=str)

    assert chosen() == Selection(window=24)
    assert chosen(select="nl50") == Selection(window=24, min_rain_fraction=0.5, target_frame=17)
    assert chosen(select="nl20", target=-1) == Selection(window=24, min_rain_fraction=0.2, target_frame=-1)
    assert chosen(12, "nl20", "smaat_compat") == Selection(window=12, min_rain_fraction=0.2, rule="smaat_compat")
    assert chosen(share=0.3) == Selection(window=24, min_rain_fraction=0.3)
    with pytest.raises(DataError, match=r"select nl50 means a rain fraction of 0.5, and min_rain_fraction is 0.3"):
        chosen(select="nl50", share=0.3)
    with pytest.raises(DataError, match=r"frame 17 .*the published 18th.*windows have 17 frames; set target_frame"):
        chosen(17, "nl50")
    with pytest.raises(DataError, match=r"smaat_compat has no effect on windows of any rain"):
        chosen(rule="smaat_compat")
    with pytest.raises(DataError, match=r"judges the frame after the window, so target_frame has no effect"):
        chosen(select="nl50", rule="smaat_compat", target=3)
    with pytest.raises(DataError, match=r"target frame is 24, outside a window of 24 frames"):
        chosen(target=24)
    with pytest.raises(DataError, match=r"rain fraction is 1.5; it is a share"):
        chosen(share=1.5)


def written(folder: Path) -> str:
    """Write the index of two radars with gaps."""
    parts = [
        index_in_memory(runs, window=20, max_frames=48, num_shards=2, rain=rain)
        for runs, rain in (([60, 30], (0.1, 0.6)), ([50], (0.3, 0.3, 0.9)))
    ]
    index = signed(mixed_index(parts, sources=("Radar A", "B")))
    open_storage(folder).write("index.json", dump_index(index))
    return str(folder)


def test_the_command_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = written(tmp_path)
    assert main([shards, "--select", "nl50"]) == 0
    text = capsys.readouterr().out
    assert "of 20 frames every 5 min" in text
    assert "at least 50% of the valid pixels of frame 17 (counted from 0) are wet" in text
    assert re.search(r"^Radar A +27 windows$", text, re.MULTILINE)
    assert re.search(r"^B +11 windows$", text, re.MULTILINE)
    assert re.search(r"^together +38 windows$", text, re.MULTILINE)
    assert main([shards, "--select", "nl50", "--rule", "smaat_compat", "--source", "Radar A"]) == 0
    # Every other of the frames 20 to 89 of the list is wet: 35. Those from 61 to 79 have a window across the gap: 10.
    text = capsys.readouterr().out
    assert re.search(r"^Radar A +25 windows, and 10 across gaps that cannot be rebuilt$", text, re.MULTILINE)
    assert "together" not in text
    assert main([shards, "--window", "2", "--min-rain-fraction", "0.125"]) == 0
    assert "at least 12.5% of the valid pixels" in capsys.readouterr().out
    assert main([shards, "--window", "2", "--target-frame", "0"]) == 0
    assert "at least 0% of the valid pixels of frame 0 (counted from 0) are wet" in capsys.readouterr().out
    assert main([shards, "--window", "2"]) == 0
    assert re.search(r"^Radar A +88 windows\nB +49 windows$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--select", "nl50", "--window", "12"], r"--select nl50 is about frame 17.*set --target-frame"),
        (["--window", "21"], r"packed for windows of 1 to 20 frames"),
        (["--source", "C"], r"the source 'C' is not in the archive; its sources: Radar A; B"),
        (["--rule", "smaat_compat"], r"--rule smaat_compat has no effect"),
        (["--min-rain-fraction", "7"], r"least rain fraction is 7.0"),
    ],
)
def test_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([written(tmp_path), *arguments]) == 4
    assert re.search(message, capsys.readouterr().err)


def test_ready_windows_have_no_frame_after_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin = whole_origin(6, 8)
    frames = {origin: some_frames(range(12))}
    pieces = {origin: [(number, 4, 1) for number in (0, 1, 5, 8)]}
    index = pack_frames(tmp_path, frames, pieces, window=4, max_frames=4, num_shards=2, ready=True)
    published = Selection(window=4, min_rain_fraction=0.2, rule="smaat_compat")
    assert lost_to_gaps(index, published) == {"test": 0}
    with pytest.raises(DataError, match=r"hold 4, and ready windows do not know the frame after them.*: take strict"):
        select_windows(index, published)
    assert main([str(tmp_path), "--min-rain-fraction", "0.2", "--rule", "smaat_compat"]) == 0
    assert "its ready windows do not know the frame after them: take --rule strict" in capsys.readouterr().out
    alone = archive_of(dict.fromkeys(range(4), (500, 0)), window=4, max_frames=9)
    with pytest.raises(DataError, match=r"after none of them comes a frame, which smaat_compat judges: take strict"):
        select_windows(alone, published)
    dry = archive_of(dict.fromkeys(range(9), (50, 0)), window=4, max_frames=9)
    with pytest.raises(DataError, match=r"highest rain fraction of a frame after a window inside .* is 0.049"):
        select_windows(dry, published)
