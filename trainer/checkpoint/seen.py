"""Which frames the weights of a checkpoint have seen: the times and sources that its state records."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from ...data.sequences import TimeSpan
from ...data.sources.source import SYNTHETIC
from ...models.weights.manifest import MANIFEST_NAME, CheckpointError, chosen_weights
from .folder import STATE_FILE
from .state import TrainState, parse_state

PARTS: Final = ("train", "validation", "test")

Spans = Mapping[str, tuple[TimeSpan, ...]]
"""The times of the parts of an archive."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowTimes:
    """The end times of the frames of some windows.

    Attributes:
        first_s: Of each window's first frame, epoch seconds.
        num_frames: Frames a window.
        cadence_s: Seconds from frame to frame.
    """

    first_s: npt.NDArray[np.int64]
    num_frames: int
    cadence_s: int

    def inside(self, spans: Sequence[TimeSpan]) -> npt.NDArray[np.bool_]:
        """Find the windows with a frame that ends inside one of the spans."""
        is_inside = np.zeros(len(self.first_s), bool)
        for span in spans:
            # The first frame that does not end before the span.
            frame = np.maximum(-(-(span.start_s - self.first_s) // self.cadence_s), 0)
            is_inside |= (frame < self.num_frames) & (self.first_s + frame * self.cadence_s < span.stop_s)
        return is_inside

    def seconds_from(self, spans: Sequence[TimeSpan]) -> float:
        """Measure the shortest time between a window and a span; infinite without spans."""
        last_s = self.first_s + (self.num_frames - 1) * self.cadence_s
        gaps_s = [np.maximum(span.start_s - last_s, self.first_s - span.stop_s).min() for span in spans]
        return max(min(gaps_s, default=np.inf), 0)


@dataclass(frozen=True, kw_only=True)
class SeenFrames:
    """The frames that a run has learned from, and those by which its best checkpoint was chosen.

    Attributes:
        sources: The radar products.
        spans: The times of its parts.
    """

    sources: tuple[str | None, ...]
    spans: Spans

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self | None:
        """Read what a checkpoint's state records of the data; None where it records no times."""
        try:
            spans = {split: tuple(TimeSpan(**span) for span in data["spans"][split]) for split in PARTS}
        except (KeyError, TypeError):
            return None
        # Checkpoints from before sources were mixed name the only one.
        return cls(sources=tuple(data.get("sources") or [data.get("source")]), spans=spans)

    def has_times_of(self, source: str) -> bool:
        """Check whether times of both mean the same: made-up storms have made-up times, and a mix may hold such too."""
        return (source == SYNTHETIC) in {own == SYNTHETIC for own in self.sources}

    def shared(self, part: str, windows: WindowTimes, whose: str) -> str | None:
        """Report how many windows share frames with a part of a run, named as `whose`; None for none."""
        seen = windows.inside(self.spans[part])
        if not (count := int(seen.sum())):
            return None
        first = np.datetime64(int(windows.first_s[seen][0]), "s")
        return (
            f"{count} of {len(seen)} windows share frames with the {part} part of {whose} ({listed(self.spans[part])}; "
            f"first: {first} UTC)"
        )


def listed(spans: Sequence[TimeSpan]) -> str:
    """Format spans."""
    return ", ".join(map(str, spans)) or "all times"


def state_beside(weights: Path) -> TrainState | None:
    """Read the state of the checkpoint that a file of weights belongs to; None for a file that stands alone.

    Raises:
        CheckpointError: The state is damaged.
    """
    path = weights.parent / STATE_FILE
    if not (path.is_file() and weights.parent.joinpath(MANIFEST_NAME).is_file()):
        return None
    return parse_state(path, path.read_bytes())


def starting_states(init_from: str | None) -> Iterator[tuple[str, TrainState | None]]:
    """Follow `init_from` back from run to run, each once; the last state is None where it cannot be read here."""
    source, met = init_from, set[str]()
    while source is not None and source not in met:
        met.add(source)
        try:
            state = state_beside(chosen_weights(Path(source)))
        except (OSError, CheckpointError):
            state = None
        yield source, state
        source = None if state is None else state.config.get("init_from")
