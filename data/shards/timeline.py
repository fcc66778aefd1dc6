"""The frames and windows that an archive holds, from the index alone: which follows which, and how wet each is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..sequences import split_at_gaps
from .index import NO_FRAME_AFTER, Index, SequenceEntry

NO_TIME_S = np.iinfo(np.int64).max
"""Time of the frame after the last one."""


@dataclass(frozen=True, eq=False)
class OriginFrames:
    """The distinct frames of one origin, in time order.

    Attributes:
        times_s: int64 (n,), end times, epoch seconds UTC.
        num_wet: int64 (n,), pixels above zero.
    """

    times_s: npt.NDArray[np.int64]
    num_wet: npt.NDArray[np.int64]


def frame_bases(index: Index) -> npt.NDArray[np.int64]:
    """Number all frames of an archive in sequence order: the number of each sequence's first frame, int64 (s,)."""
    counts = np.array([entry.num_frames for entry in index.sequences], np.int64)
    return np.cumsum(counts) - counts


def rain_fractions(index: Index) -> npt.NDArray[np.float64]:
    """List the rain fraction of every frame of every sequence, one after the other, float64 (n,)."""
    return _joined([entry.rain_fraction for entry in index.sequences], np.float64)


def wet_counts(sequences: Sequence[SequenceEntry], num_pixels: int) -> npt.NDArray[np.int64]:
    """Count the pixels above zero of every frame of every sequence, one after the other, int64 (n,).

    Args:
        sequences: The sequences.
        num_pixels: Pixels of a frame.
    """
    share = _joined([entry.rain_fraction for entry in sequences], np.float64)
    missing = _joined([entry.missing for entry in sequences], np.int64)
    # The share is that of a whole number of pixels among the valid ones, rounded once.
    return np.rint(share * (num_pixels - missing)).astype(np.int64)


def owned_windows(
    index: Index, order: Sequence[int], length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """List the windows that sequences own.

    Args:
        index: The archive's index.
        order: Positions of the sequences in `index.sequences`, in the order that is wanted.
        length: Frames of a window.

    Returns:
        Of every window, the position of its sequence and its first frame inside it: int64 (n,) each.
    """
    own = [index.sequences[position] for position in order]
    counts = np.array([max(0, min(entry.num_starts, entry.num_frames - length + 1)) for entry in own], np.int64)
    # The first frames of a sequence's windows are its own frames, from the first one on.
    sequence = np.repeat(np.array(order, np.int64), counts)
    start = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    return sequence, start


def longest_run(index: Index, origins: Iterable[int]) -> int:
    """Count the frames of the longest run without a gap, of any of these origins; 0 without frames."""
    sequences = by_origin(index.sequences)
    num_pixels = index.rows * index.cols
    longest = 0
    for origin in origins:
        own = [index.sequences[position] for position in sequences.get(origin, ())]
        if own:
            times_s = origin_frames(own, cadence_s=index.cadence_s, num_pixels=num_pixels).times_s.tolist()
            longest = max(longest, *(run.num_frames for run in split_at_gaps(times_s, index.cadence_s).runs))
    return longest


def by_origin(sequences: Sequence[SequenceEntry]) -> dict[int, list[int]]:
    """List the positions of each origin's sequences, in their order."""
    positions: dict[int, list[int]] = {}
    for position, entry in enumerate(sequences):
        positions.setdefault(entry.origin, []).append(position)
    return positions


def origin_frames(own: Sequence[SequenceEntry], *, cadence_s: int, num_pixels: int) -> OriginFrames:
    """List an origin's distinct frames.

    Args:
        own: All sequences of the origin.
        cadence_s: Seconds from frame to frame.
        num_pixels: Pixels of a frame.
    """
    # Sequences overlap: of each time, the first frame that is listed.
    times_s = _joined([entry.start_s + np.arange(entry.num_frames) * cadence_s for entry in own], np.int64)
    distinct_s, first = np.unique(times_s, return_index=True)
    return OriginFrames(times_s=distinct_s, num_wet=wet_counts(own, num_pixels)[first])


def ready_origins(index: Index) -> frozenset[int]:
    """Find the origins whose windows were packed as they came, each alone: nothing can be put together from them.

    Each of their sequences is one window of the packed length, owns its first frame only, and does not know what comes
    after it.
    """
    ordinary = {
        entry.origin
        for entry in index.sequences
        if entry.num_starts != 1 or entry.num_frames != index.window or entry.rain_after != NO_FRAME_AFTER
    }
    return frozenset(range(len(index.origins))) - ordinary if index.window > 1 else frozenset()


def frames_after(
    sequences: Sequence[SequenceEntry], *, cadence_s: int, num_pixels: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Find the next frame that each sequence's origin holds after the sequence's last one, whatever lies between.

    Args:
        sequences: All sequences of the archive.
        cadence_s: Seconds from frame to frame.
        num_pixels: Pixels of a frame.

    Returns:
        Its end time, int64 (s,), NO_TIME_S where there is none; and its share of pixels above zero, of all pixels,
        float64 (s,), NO_FRAME_AFTER where there is none.
    """
    last_s = np.array([entry.start_s + (entry.num_frames - 1) * cadence_s for entry in sequences], np.int64)
    after_s = np.empty(len(sequences), np.int64)
    share = np.empty(len(sequences))

    # Of each sequence, the origin's first frame behind its last one.
    for own in by_origin(sequences).values():
        frames = origin_frames([sequences[i] for i in own], cadence_s=cadence_s, num_pixels=num_pixels)
        following = np.searchsorted(frames.times_s, last_s[own], side="right")
        after_s[own] = np.append(frames.times_s, NO_TIME_S)[following]
        share[own] = np.append(frames.num_wet / num_pixels, NO_FRAME_AFTER)[following]
    return after_s, share


def with_rain_after(sequences: Sequence[SequenceEntry], cadence_s: int, num_pixels: int) -> tuple[SequenceEntry, ...]:
    """Fill in `rain_after` of all sequences of an archive, in the order they came (see `frames_after`)."""
    _, shares = frames_after(sequences, cadence_s=cadence_s, num_pixels=num_pixels)
    return tuple(replace(entry, rain_after=share) for entry, share in zip(sequences, shares.tolist(), strict=True))


def _joined(values: Sequence[npt.ArrayLike], dtype: type) -> npt.NDArray[Any]:
    """Join the values of sequences; there may be none."""
    return np.concatenate([np.asarray(of_one, dtype) for of_one in values] or [np.zeros(0, dtype)])
