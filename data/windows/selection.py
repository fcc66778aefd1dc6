"""Select an archive's windows: those of its sources and times whose rain a rule finds to be enough."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..sequences import TimeSpan
from ..shards.index import Index, check_source
from ..shards.timeline import (
    by_origin,
    frame_bases,
    frames_after,
    longest_run,
    origin_frames,
    owned_windows,
    rain_fractions,
    ready_origins,
    wet_counts,
)

Rule = Literal["strict", "smaat_compat"]
Published = Literal["nl50", "nl20"]
PUBLISHED_SHARES: Final[dict[str, float]] = {"nl50": 0.5, "nl20": 0.2}
"""Least rain fraction of the NL-50 and NL-20 windows: Trebing, Stanczyk and Mehrkanoon (2021), SmaAt-UNet,
doi:10.1016/j.patrec.2021.01.036, section 4.1."""
PUBLISHED_TARGET: Final = 17
"""The frame that NL-50 and NL-20 are about, counted from 0: the published windows have 18 frames, 12 in and 6 out."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which windows of an archive are read.

    Attributes:
        window: Frames a window.
        min_rain_fraction: Least share of pixels above zero in the frame that `rule` judges (NL-50: 0.5, NL-20: 0.2).
        target_frame: Frame of the window that the strict rule judges, counted from 0; negative counts from the end.
        spans: A window is read when all its frames end inside one of these spans; () reads all.
        sources: Only windows of these sources; () reads all.
        rule: `strict` judges the window's own target frame, by its valid pixels. `smaat_compat` judges the frame that
            comes after the window in its origin (across a gap too, inside the same span), by all pixels, as the
            published NL-50 was made (create_datasets.py of SmaAt-UNet); the target frame has no influence.

    Raises:
        DataError: A window, target frame or share out of range.
    """

    window: int
    min_rain_fraction: float = 0.0
    target_frame: int = -1
    spans: tuple[TimeSpan, ...] = ()
    sources: tuple[str, ...] = ()
    rule: Rule = "strict"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.window < 1:
            raise DataError(f"windows of {self.window} frames were asked for; expected at least 1")
        if not -self.window <= self.target_frame < self.window:
            raise DataError(
                f"the target frame is {self.target_frame}, outside a window of {self.window} frames; expected "
                f"{-self.window} to {self.window - 1}, such as -1 for the last"
            )
        if not 0.0 <= self.min_rain_fraction <= 1.0:
            raise DataError(f"the least rain fraction is {self.min_rain_fraction}; it is a share, from 0 to 1")


@dataclass(frozen=True, eq=False)
class WindowTable:
    """The selected windows, in (shard, offset in the shard, start) order; a window's id is its row number.

    Attributes:
        sequence: int32 (n,), position in `index.sequences`.
        start: int32 (n,), first frame inside the sequence.
        selection: What they were selected by.
    """

    sequence: npt.NDArray[np.int32]
    start: npt.NDArray[np.int32]
    selection: Selection

    @property
    def window(self) -> int:
        """Frames a window."""
        return self.selection.window

    def __len__(self) -> int:
        """Count the windows."""
        return len(self.sequence)

    def name(self, row: int, index: Index) -> str:
        """Name a window for people and logs: "KEY:start"."""
        return f"{index.sequences[int(self.sequence[row])].key}:{int(self.start[row])}"


@dataclass(frozen=True, eq=False)
class Candidates:
    """Windows that may be selected, in the order of a `WindowTable`.

    Attributes:
        sequence: int64 (n,), position in `index.sequences`.
        start: int64 (n,), first frame inside the sequence.
        inside: bool (n,), whether they lie inside the spans.
        enough: bool (n,), whether they are wet enough.
        rain: float64 (n,), the rain fraction that the rule judges; -1 where there is no frame to judge.
    """

    sequence: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    inside: npt.NDArray[np.bool_]
    enough: npt.NDArray[np.bool_]
    rain: npt.NDArray[np.float64]


def choose(
    *,
    window: int,
    select: Published | None,
    min_rain_fraction: float,
    rule: Rule,
    target_frame: int | None,
    spelt: Callable[[str], str],
) -> Selection:
    """Make a selection of what a user set, over all times and sources.

    Args:
        window: Frames a window.
        select: A published selection, or None.
        min_rain_fraction: Least share of rainy pixels; 0 takes every window.
        rule: Which frame it is about.
        target_frame: The frame that the strict rule judges; None: `PUBLISHED_TARGET` for a published selection, else
            the last one.
        spelt: Writes a setting's name as the user knows it, such as "data.select".

    Raises:
        DataError: Settings that contradict one another, or have no effect beside each other.
    """
    if select is not None and min_rain_fraction > 0:
        raise DataError(
            f"{spelt('select')} {select} means a rain fraction of {PUBLISHED_SHARES[select]:g}, and "
            f"{spelt('min_rain_fraction')} is {min_rain_fraction:g}: leave one of them out"
        )
    # A published selection states its own share, and the frame that it is about.
    share = min_rain_fraction if select is None else PUBLISHED_SHARES[select]

    if rule == "smaat_compat":
        if share == 0:
            raise DataError(
                f"{spelt('select_rule')} smaat_compat has no effect on windows of any rain; set {spelt('select')} or "
                f"{spelt('min_rain_fraction')}, or leave it out"
            )
        if target_frame is not None:
            raise DataError(
                f"{spelt('select_rule')} smaat_compat judges the frame after the window, so {spelt('target_frame')} "
                "has no effect; leave it out"
            )
    elif select is not None and target_frame is None:
        if window <= PUBLISHED_TARGET:
            raise DataError(
                f"{spelt('select')} {select} is about frame {PUBLISHED_TARGET} (counted from 0; the published 18th), "
                f"and windows have {window} frames; set {spelt('target_frame')}, such as -1 for the last"
            )
        target_frame = PUBLISHED_TARGET

    # Else the last frame decides.
    target_frame = -1 if target_frame is None else target_frame
    return Selection(window=window, min_rain_fraction=share, target_frame=target_frame, rule=rule)


def candidate_windows(index: Index, selection: Selection) -> Candidates:
    """List the windows that the sequences of a selection's sources own, and judge each.

    Raises:
        DataError: For a window longer than the packed one, or a source that is not there.
    """
    window, sequences = selection.window, index.sequences
    if window > index.window:
        # Packing anew helps only where frames follow each other for so long.
        longest = longest_run(index, _selected_origins(index, selection))
        advice = f"pack again, or rainspark reshard, with --window {window}, or ask for shorter ones"
        if longest < window:
            advice = f"the longest run of frames without a gap has {longest}: ask for shorter ones"
        raise DataError(
            f"windows of {window} frames were asked for, but the shards were packed for windows of 1 to "
            f"{index.window} frames; {advice}"
        )

    # In the order in which they lie in the shards, which evaluations and caches follow.
    origins = set(_selected_origins(index, selection))
    order = [number for number, entry in enumerate(sequences) if entry.origin in origins]
    order.sort(key=lambda number: (sequences[number].shard, sequences[number].offset))
    sequence, start = owned_windows(index, order, window)
    inside, enough, rain = _judge(index, selection, sequence, start)
    return Candidates(sequence, start, inside, enough, rain)


def select_windows(index: Index, selection: Selection) -> WindowTable:
    """Select the windows of an archive: those its sequences own, of the sources, inside the spans, and wet enough.

    Raises:
        DataError: As `candidate_windows`; and for no windows left (with the number of windows there are and the highest
            rain fraction among them).
    """
    candidates = candidate_windows(index, selection)
    wanted = candidates.inside & candidates.enough
    if not wanted.any():
        if not len(wanted):
            longest = longest_run(index, _selected_origins(index, selection))
            raise DataError(
                f"there is no window of {selection.window} frames: the longest run of frames without a gap has "
                f"{longest}; ask for windows of at most that, or pack more frames that follow each other"
            )
        raise DataError(
            f"no windows of {selection.window} frames are selected: the shards hold {len(wanted)}, "
            f"{_describe_wettest(index, selection, candidates)} "
            f"(asked for: at least {selection.min_rain_fraction}, {len(selection.spans) or 'no'} time spans)"
        )
    sequence, start = candidates.sequence[wanted], candidates.start[wanted]
    return WindowTable(sequence.astype(np.int32), start.astype(np.int32), selection)


def _describe_wettest(index: Index, selection: Selection, candidates: Candidates) -> str:
    """Describe how near the windows came to what was asked for."""
    # From the outside in: times first, then rain, then what the rule cannot know.
    if not candidates.inside.any():
        return "none of them inside the time spans"
    highest = candidates.rain[candidates.inside].max()
    if highest >= 0:
        frame = "a target frame" if selection.rule == "strict" else "a frame after a window"
        return f"the highest rain fraction of {frame} inside the time spans is {highest:.3f}"
    if ready_origins(index).issuperset(_selected_origins(index, selection)):
        return "and ready windows do not know the frame after them, which smaat_compat judges: take strict"
    return "and after none of them comes a frame, which smaat_compat judges: take strict"


def lost_to_gaps(index: Index, selection: Selection) -> dict[str, int]:
    """Count, by source, the windows that SmaAt-UNet's list of frames gives across gaps, which no sequence holds.

    Its loop takes the frames i - window to i - 1 of the list wherever frame i is wet enough, whatever their times; each
    span of the selection is a list of its own. Ready windows are no such list.
    """
    origins = _selected_origins(index, selection)
    lost = dict.fromkeys(sorted({index.origins[number].source for number in origins}), 0)
    num_pixels, length_s = index.rows * index.cols, (selection.window - 1) * index.cadence_s
    sequences, ready = by_origin(index.sequences), ready_origins(index)

    for number in (number for number in origins if number not in ready):
        own = [index.sequences[position] for position in sequences.get(number, ())]
        frames = origin_frames(own, cadence_s=index.cadence_s, num_pixels=num_pixels)
        for span in selection.spans or (None,):
            inside = np.ones(len(frames.times_s), bool)
            if span is not None:
                inside = (frames.times_s >= span.start_s) & (frames.times_s < span.stop_s)
            times_s, num_wet = frames.times_s[inside], frames.num_wet[inside]

            # Frame i of the list judges the frames before it; those at another distance lie across a gap.
            wet = num_wet[selection.window :] >= num_pixels * selection.min_rain_fraction
            first_s, last_s = times_s[: len(wet)], times_s[selection.window - 1 : -1][: len(wet)]
            lost[index.origins[number].source] += int(np.count_nonzero(wet & (last_s - first_s != length_s)))
    return lost


def _selected_origins(index: Index, selection: Selection) -> list[int]:
    """Find the positions of the origins that are selected; raises DataError for a source that is not there."""
    for source in selection.sources:
        check_source(index, source)
    return [n for n, origin in enumerate(index.origins) if not selection.sources or origin.source in selection.sources]


def _judge(
    index: Index, selection: Selection, sequence: npt.NDArray[np.int64], start: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Judge candidate windows: whether each lies inside the spans, is wet enough, and the rain fraction that counts."""
    window, cadence_s, num_pixels = selection.window, index.cadence_s, index.rows * index.cols
    # When each window begins, and when its last frame ends.
    first_s = np.array([entry.start_s for entry in index.sequences], np.int64)[sequence] + start * cadence_s
    last_s = first_s + (window - 1) * cadence_s
    base = frame_bases(index)

    if selection.rule == "strict":
        rain = rain_fractions(index)[base[sequence] + start + selection.target_frame % window]
        enough = rain >= selection.min_rain_fraction
    else:
        last_s, rain = _frame_after(index, sequence, start + window, first_s + window * cadence_s)
        # The comparison of the published loop, to the last bit: a number of pixels with a share of them.
        enough = np.rint(rain * num_pixels) >= num_pixels * selection.min_rain_fraction

    # A window belongs to a span with all of its frames; several spans are one choice.
    inside = np.ones(len(sequence), bool)
    if selection.spans:
        inside[:] = False
        for span in selection.spans:
            inside |= (first_s >= span.start_s) & (last_s < span.stop_s)
    return inside, enough, rain


def _frame_after(
    index: Index, sequence: npt.NDArray[np.int64], frame: npt.NDArray[np.int64], time_s: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Find the frame after each window: its time and its share of all pixels above zero.

    It is the sequence's own next one, number `frame` at `time_s`, or the one that the index knows to come after it.
    """
    num_pixels = index.rows * index.cols
    # The sequence's own next frame, where it has one behind the window.
    num_frames = np.array([entry.num_frames for entry in index.sequences], np.int64)[sequence]
    wet = wet_counts(index.sequences, num_pixels)
    share = wet[frame_bases(index)[sequence] + np.minimum(frame, num_frames - 1)] / num_pixels

    after_s, _ = frames_after(index.sequences, cadence_s=index.cadence_s, num_pixels=num_pixels)
    rain_after = np.array([entry.rain_after for entry in index.sequences])
    is_own = frame < num_frames
    return np.where(is_own, time_s, after_s[sequence]), np.where(is_own, share, rain_after[sequence])
