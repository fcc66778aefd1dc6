"""Cut frames into gap-free runs and overlapping sequences, measure rain, and split by time without leakage."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .frames import iso_time
from .units import MISSING_COUNT

SATURATIONS_MMH: Final = (1.0, 5.0)
"""Rates at which a pixel counts 63% in `wetness`."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Frames at the exact cadence: positions first to first + num_frames - 1 of the sorted times."""

    first: int
    num_frames: int


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Missing frames between two runs: the end times on both sides, and how many frames are missing."""

    after_s: int
    before_s: int
    num_missing: int

    def __str__(self) -> str:
        """Format the gap for people."""
        return f"{self.num_missing} frames missing between {iso_time(self.after_s)} and {iso_time(self.before_s)}"


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The gap-free runs of an archive and the gaps between them, in time order."""

    runs: tuple[Run, ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One sequence of a run.

    Attributes:
        first: First frame, counted from the run's first.
        num_frames: Number of frames.
        num_starts: Windows that begin at frames 0 to num_starts - 1 of this piece, and fit into it, are this piece's.
    """

    first: int
    num_frames: int
    num_starts: int


@dataclass(frozen=True, kw_only=True)
class TimeSpan:
    """A half-open span of frame end times, epoch seconds UTC: start_s <= end time < stop_s."""

    start_s: int
    stop_s: int

    def __str__(self) -> str:
        """Format the span for people."""
        return f"{iso_time(self.start_s)} to {iso_time(self.stop_s)}"


def find_runs(end_times_s: Sequence[int], cadence_s: int) -> Runs:
    """Split sorted frame times into runs at the exact cadence.

    Args:
        end_times_s: End times, strictly rising.
        cadence_s: Seconds from frame to frame.

    Raises:
        DataError: No frames, times off the grid of the cadence, or a cadence that no two neighbouring frames have.
    """
    if cadence_s < 1:
        raise DataError(f"a cadence of {cadence_s} s; expected at least 1 s")
    if not end_times_s:
        raise DataError("no frames; expected at least one")

    steps = [after - before for before, after in pairwise(end_times_s)]
    # A wrong cadence is reported before single frames: files 10 minutes apart are no 5-minute archive full of gaps.
    if steps and min(steps) != cadence_s:
        raise DataError(
            f"a cadence of {_minutes(cadence_s)} was asked for, but the closest frames are {_minutes(min(steps))} "
            f"apart ({_closest(end_times_s, steps)}); expected frames every {_minutes(cadence_s)}: "
            f"set the cadence to the files' own (--cadence-min {min(steps) / 60:g}), or remove the files that do not "
            "belong"
        )

    # Off the first frame's cadence, a frame belongs to no run.
    for time_s in end_times_s:
        if (time_s - end_times_s[0]) % cadence_s:
            raise DataError(
                f"the frame of {iso_time(time_s)} is not a multiple of {_minutes(cadence_s)} after the first one, "
                f"{iso_time(end_times_s[0])}; remove it, or set the cadence to the files' own"
            )

    return split_at_gaps(end_times_s, cadence_s)


def split_at_gaps(end_times_s: Sequence[int], cadence_s: int) -> Runs:
    """Split frame times that rise in whole steps of the cadence, at least one of them, wherever frames are missing."""
    breaks = [i for i, (before, after) in enumerate(pairwise(end_times_s), start=1) if after - before != cadence_s]
    gaps = tuple(
        Gap(
            after_s=end_times_s[i - 1],
            before_s=end_times_s[i],
            num_missing=(end_times_s[i] - end_times_s[i - 1]) // cadence_s - 1,
        )
        for i in breaks
    )
    # A run reaches from one break to the next.
    edges = [0, *breaks, len(end_times_s)]
    return Runs(runs=tuple(Run(first=a, num_frames=b - a) for a, b in pairwise(edges)), gaps=gaps)


def cut_run(num_frames: int, window: int, max_frames: int) -> tuple[Piece, ...]:
    """Cut a run into sequences that overlap by one window less one frame.

    Every window of the run, of any length up to `window`, belongs to exactly one piece: the one whose first
    `num_starts` frames hold its first frame. A run shorter than the window is one piece, for shorter windows.

    Raises:
        DataError: A window that does not fit into the longest sequence.
    """
    if window < 1 or max_frames < window:
        raise DataError(
            f"sequences of at most {max_frames} frames cannot hold windows of {window}; "
            "expected a window of at least 1 frame and sequences at least as long"
        )

    # The next piece begins where the windows of this one no longer fit into it.
    step = max_frames - window + 1
    pieces = []
    first = 0
    while num_frames - first > max_frames:
        pieces.append(Piece(first=first, num_frames=max_frames, num_starts=step))
        first += step
    pieces.append(Piece(first=first, num_frames=num_frames - first, num_starts=num_frames - first))
    return tuple(pieces)


def rain_fraction(counts: npt.NDArray[np.uint16]) -> float:
    """Give the share of valid pixels with rain (count > 0), 0 to 1; 0 where no pixel is valid.

    Args:
        counts: uint16, any shape; 65535 is missing.
    """
    # The missing code counts as above zero, and is taken off again.
    num_valid = int(np.count_nonzero(counts != MISSING_COUNT))
    num_wet = int(np.count_nonzero(counts)) - (counts.size - num_valid)
    return num_wet / num_valid if num_valid else 0.0


def wetness(counts: npt.NDArray[np.uint16], scale_mmh: float) -> tuple[float, float]:
    """Give the means of 1 - exp(-R / s) over the valid pixels for s of 1 and 5 mm/h, each 0 to 1, rounded to 1e-6.

    Where no pixel is valid they are 0. The measure by which rainy frames are drawn more often: Ravuri et al. (2021),
    Skilful precipitation nowcasting using deep generative models of radar, doi:10.1038/s41586-021-03854-z.

    Args:
        counts: uint16, any shape; 65535 is missing.
        scale_mmh: mm/h a count.
    """
    # A histogram first: one exponential a distinct count.
    per_count = np.bincount(counts.ravel(), minlength=MISSING_COUNT + 1)[:MISSING_COUNT]
    seen = np.flatnonzero(per_count)
    num_valid = max(int(per_count.sum()), 1)

    # Rounded, so that machines agree whose exponentials differ in the last bit.
    gentle, heavy = (
        round(float(np.sum(per_count[seen] * -np.expm1(-seen * (scale_mmh / saturation_mmh)))) / num_valid, 6)
        for saturation_mmh in SATURATIONS_MMH
    )
    return gentle, heavy


def split_spans(
    first_s: int, last_s: int, *, validation_share: float, test_share: float, guard_s: int
) -> dict[str, tuple[TimeSpan, ...]]:
    """Split an archive in time: training first, then validation, then test, with a guard between parts.

    A window belongs to a part when all its frames end inside it, so no frame is in two; more than `guard_s` lies
    between the last frame of one part and the first of the next.

    Args:
        first_s: End time of the first frame.
        last_s: End time of the last frame.
        validation_share: Share of the time without guards, 0 to 1; 0 makes no such part and no guard for it.
        test_share: Likewise.
        guard_s: Seconds between parts; 0 is allowed.

    Returns:
        Spans of "train", "validation" and "test"; () for a part whose share is 0.

    Raises:
        DataError: Shares out of range, or guards that leave no time.
    """
    shares = {"train": 1.0 - validation_share - test_share, "validation": validation_share, "test": test_share}
    if not (validation_share >= 0 and test_share >= 0 and shares["train"] > 0):
        raise DataError(
            f"a validation share of {validation_share} and a test share of {test_share} leave {shares['train']:.3g} "
            "for training; expected shares of at least 0 whose sum is below 1"
        )
    if guard_s < 0 or last_s < first_s:
        raise DataError(
            f"a guard of {guard_s} s over {first_s} to {last_s} s; expected a guard of at least 0 and a span"
        )

    # Guards are taken off first; what rounding leaves over goes to training.
    parts = [name for name, share in shares.items() if share > 0]
    total_s = last_s + 1 - first_s
    usable_s = total_s - guard_s * (len(parts) - 1)
    lengths_s = [round(usable_s * shares[name]) for name in parts[1:]]
    lengths_s = [usable_s - sum(lengths_s), *lengths_s]
    if min(lengths_s) < 1:
        raise DataError(
            f"the archive spans {total_s / 3600:.1f} h, too little for {len(parts)} parts ({', '.join(parts)}) with a "
            f"guard of {guard_s / 3600:g} h between them; take a shorter guard (0 is allowed) or more data"
        )

    spans: dict[str, tuple[TimeSpan, ...]] = dict.fromkeys(shares, ())
    start_s = first_s
    for name, length_s in zip(parts, lengths_s, strict=True):
        spans[name] = (TimeSpan(start_s=start_s, stop_s=start_s + length_s),)
        start_s += length_s + guard_s
    return spans


def _minutes(time_s: int) -> str:
    return f"{time_s / 60:g} min"


def _closest(end_times_s: Sequence[int], steps: Sequence[int]) -> str:
    at = steps.index(min(steps))
    return f"{iso_time(end_times_s[at])} and {iso_time(end_times_s[at + 1])}"
