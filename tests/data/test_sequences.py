"""Runs, sequences and splits: every window once, none across a gap, no frame in two parts."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rainspark.data.errors import DataError
from rainspark.data.sequences import cut_run, find_runs, rain_fraction, split_spans, wetness

CADENCE_S = 300


@st.composite
def archives(draw: st.DrawFn) -> list[int]:
    """Times of an archive with gaps, the cadence held at least once."""
    steps = [1, *draw(st.lists(st.sampled_from([1, 1, 1, 1, 2, 5]), max_size=60))]
    first = draw(st.integers(0, 2**31))
    return [first, *(first + CADENCE_S * int(total) for total in np.cumsum(steps))]


@given(archives(), st.integers(1, 9), st.integers(0, 12), st.data())
def test_every_window_belongs_to_exactly_one_sequence(
    times_s: list[int], window: int, extra: int, data: st.DataObject
) -> None:
    length = data.draw(st.integers(1, window))
    # The slow way: all stretches of consecutive frames whose times are evenly spaced.
    expected = [
        i
        for i in range(len(times_s) - length + 1)
        if all(b - a == CADENCE_S for a, b in pairwise(times_s[i : i + length]))
    ]
    owned = [
        run.first + piece.first + start
        for run in find_runs(times_s, CADENCE_S).runs
        for piece in cut_run(run.num_frames, window, window + extra)
        for start in range(piece.num_starts)
        if start + length <= piece.num_frames
    ]
    assert sorted(owned) == expected


@given(st.integers(1, 400), st.integers(1, 30), st.integers(0, 150))
def test_pieces_cover_a_run_and_own_every_frame_once(num_frames: int, window: int, extra: int) -> None:
    pieces = cut_run(num_frames, window, window + extra)
    owned = [piece.first + i for piece in pieces for i in range(piece.num_starts)]
    assert owned == list(range(num_frames))
    assert pieces[-1].first + pieces[-1].num_frames == num_frames
    assert all(piece.num_frames <= window + extra for piece in pieces)
    for before, after in pairwise(pieces):
        assert before.first + before.num_frames - after.first == window - 1
        assert after.num_frames >= window


@given(archives())
def test_gaps_and_runs_account_for_the_whole_time(times_s: list[int]) -> None:
    series = find_runs(times_s, CADENCE_S)
    assert len(series.gaps) == len(series.runs) - 1
    frames = sum(run.num_frames for run in series.runs)
    assert frames == len(times_s)
    assert frames + sum(gap.num_missing for gap in series.gaps) == (times_s[-1] - times_s[0]) // CADENCE_S + 1
    for run, gap in zip(series.runs, series.gaps, strict=False):
        assert gap.after_s == times_s[run.first + run.num_frames - 1]


@pytest.mark.parametrize(
    ("times_s", "cadence_s", "message"),
    [
        ([], 300, "no frames"),
        (
            [0, 600, 1200],
            300,
            r"cadence of 5 min was asked for, but the closest frames are 10 min apart.*--cadence-min 10\)",
        ),
        ([0, 300, 600], 600, r"cadence of 10 min was asked for, but the closest frames are 5 min apart"),
        (
            [0, 300, 600, 750],
            300,
            r"closest frames are 2.5 min apart \(1970-01-01T00:10:00Z and 1970-01-01T00:12:30Z\)",
        ),
        ([0, 300, 600, 1050, 1350], 300, r"1970-01-01T00:17:30Z is not a multiple of 5 min after"),
        ([0], 0, "a cadence of 0 s"),
    ],
)
def test_times_that_are_no_series(times_s: list[int], cadence_s: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_runs(times_s, cadence_s)


@pytest.mark.parametrize(("window", "max_frames"), [(0, 5), (6, 5)])
def test_windows_that_do_not_fit(window: int, max_frames: int) -> None:
    with pytest.raises(DataError, match="cannot hold windows"):
        cut_run(10, window, max_frames)


def test_wetness_is_the_mean_of_saturated_rates() -> None:
    counts = np.random.default_rng(3).integers(0, 700, (9, 7)).astype(np.uint16)
    counts[2, :4] = 65535
    valid = [int(count) for count in counts.ravel() if count != 65535]
    expected = [sum(1 - math.exp(-count * 0.12 / rate) for count in valid) / len(valid) for rate in (1.0, 5.0)]
    assert wetness(counts, 0.12) == pytest.approx(expected, abs=1e-6)
    assert wetness(np.full((2, 2), 65535, np.uint16), 0.12) == (0.0, 0.0)
    assert wetness(np.zeros((2, 2), np.uint16), 0.12) == (0.0, 0.0)


def test_rain_fraction_leaves_missing_pixels_out() -> None:
    assert rain_fraction(np.array([[0, 1], [65535, 65535]], np.uint16)) == 0.5
    assert rain_fraction(np.array([65534, 3], np.uint16)) == 1.0
    assert rain_fraction(np.array([65535, 65535], np.uint16)) == 0.0
    assert rain_fraction(np.array([0, 0, 0], np.uint16)) == 0.0


@given(
    st.integers(0, 2**31),
    st.integers(200, 3000),
    st.just(0.0) | st.floats(0.05, 0.4),
    st.just(0.0) | st.floats(0.05, 0.4),
    st.integers(0, 20 * CADENCE_S),
    st.integers(1, 12),
)
def test_splits_share_no_frame_and_keep_the_guard(
    first_s: int, num_frames: int, validation_share: float, test_share: float, guard_s: int, window: int
) -> None:
    times_s = np.arange(num_frames, dtype=np.int64) * CADENCE_S + first_s
    spans = split_spans(
        first_s, int(times_s[-1]), validation_share=validation_share, test_share=test_share, guard_s=guard_s
    )
    ends = {}
    for name, parts in spans.items():
        starts = times_s[: num_frames - window + 1]
        lasts = starts + (window - 1) * CADENCE_S
        inside = [(starts >= span.start_s) & (lasts < span.stop_s) for span in parts]
        chosen = np.flatnonzero(np.any(inside, axis=0)) if inside else np.zeros(0, int)
        ends[name] = np.unique(chosen[:, None] + np.arange(window))
    frames = np.concatenate(list(ends.values()))
    assert len(np.unique(frames)) == len(frames)
    parts_used = [ends[name] for name in ("train", "validation", "test") if len(ends[name])]
    for before, after in pairwise(parts_used):
        assert times_s[after[0]] - times_s[before[-1]] > guard_s
    if guard_s == 0 and window == 1:
        assert len(frames) == num_frames
    assert (spans["test"] == ()) == (test_share == 0)


def test_split_shares_are_those_asked_for() -> None:
    spans = split_spans(0, 99, validation_share=0.2, test_share=0.1, guard_s=0)
    edges = [(span.start_s, span.stop_s) for name in ("train", "validation", "test") for span in spans[name]]
    assert edges == [(0, 70), (70, 90), (90, 100)]


@pytest.mark.parametrize(
    ("validation_share", "test_share", "guard_s", "message"),
    [
        (0.6, 0.4, 0, "leave 0 for training"),
        (-0.1, 0.0, 0, "shares of at least 0"),
        (0.1, 0.0, -1, "a guard of at least 0"),
        (0.1, 0.0, 86400, r"spans 5.0 h, too little for 2 parts \(train, validation\) with a guard of 24 h"),
    ],
)
def test_splits_that_cannot_be(validation_share: float, test_share: float, guard_s: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_spans(0, 18_000, validation_share=validation_share, test_share=test_share, guard_s=guard_s)
