"""Keep decoded frames that later windows need again, and cut windows out of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..shards.decode import decode_frame
from ..shards.index import Index

# In the place of "where in the block's order this frame is read next" when it is not.
NEVER = np.iinfo(np.int64).max


@dataclass(eq=False)
class Block:
    """One lane's next windows that are read from the same few sequences.

    Attributes:
        sequence_n: int64 (n,), position in `index.sequences`, -1 for padding.
        start_n: int64 (n,), first frame inside the sequence.
        row_n: int64 (n,), the window's id, -1 for padding.
        step_n: int64 (n,), non-decreasing: the global step that each window belongs to.
        micro_step_n: int64 (n,).
        column_n: int64 (n,), place in this rank's part of the micro-batch.
        missing_n: bool (n,), whether any pixel of the window is missing.
    """

    sequence_n: npt.NDArray[np.int64]
    start_n: npt.NDArray[np.int64]
    row_n: npt.NDArray[np.int64]
    step_n: npt.NDArray[np.int64]
    micro_step_n: npt.NDArray[np.int64]
    column_n: npt.NDArray[np.int64]
    missing_n: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Count the windows."""
        return len(self.sequence_n)

    def sequences(self) -> list[tuple[int, int, int]]:
        """List (sequence, step of its first window, number of its last window in the block), first needed first."""
        used = np.flatnonzero(self.sequence_n >= 0)
        sequences, first = np.unique(self.sequence_n[used], return_index=True)
        last = len(used) - 1 - np.unique(self.sequence_n[used][::-1], return_index=True)[1]
        order = np.argsort(first)
        return [(int(sequences[i]), int(self.step_n[used[first[i]]]), int(used[last[i]])) for i in order]


@dataclass
class DecodeCounts:
    """What a cache did: frames and windows, seconds in Blosc2, seconds copying, bytes of decoded frames held."""

    windows: int = 0
    frames_decoded: int = 0
    decode_s: float = 0.0
    cut_s: float = 0.0
    held_bytes_peak: int = 0


@dataclass(eq=False)
class FrameCache:
    """Cuts one lane's windows out of decoded frames; used by one thread at a time.

    The order of reading is known, so the frames kept are those that are needed again soonest (Belady, 1966), not the
    ones used last; a frame that nothing needs again is decoded into the batch and never held.

    Args:
        index: The archive's index.
        window: Frames a window.
        max_frames: Decoded frames held at most.
    """

    index: Index
    window: int
    max_frames: int
    counts: DecodeCounts = field(default_factory=DecodeCounts)
    _frames_shw: npt.NDArray[np.uint16] | None = None

    def __post_init__(self) -> None:
        """Start with every slot free."""
        self._num_slots = 0
        self._free: list[int] = []
        self._slot_frame = np.full(self.max_frames, -1, np.int64)
        self._slot_next = np.full(self.max_frames, -1, np.int64)

    def open_block(self, block: Block) -> None:
        """Forget the last block and look up, for every frame of every window, where it is needed next."""
        self._free = list(range(self._num_slots))
        self._slot_next[:] = -1
        sequences, local = np.unique(block.sequence_n, return_inverse=True)
        counts = [self.index.sequences[int(s)].num_frames if s >= 0 else self.window for s in sequences]
        base = np.cumsum([0, *counts])
        self._base_n = base[local]
        frame_nw = (self._base_n + block.start_n)[:, None] + np.arange(self.window)
        flat = frame_nw.ravel()
        by_frame = np.argsort(flat, kind="stable")
        again = np.flatnonzero(flat[by_frame[1:]] == flat[by_frame[:-1]])
        next_use = np.full(len(flat), NEVER, np.int64)
        next_use[by_frame[again]] = by_frame[again + 1]
        self._frame_nw, self._next_nw = frame_nw, next_use.reshape(frame_nw.shape)
        self._slot_of = np.full(int(base[-1]), -1, np.int64)

    def cut(
        self, block: Block, number: int, payload: Callable[[int], memoryview], counts_thw: npt.NDArray[np.uint16]
    ) -> None:
        """Write the block's window `number` into `counts_thw`, uint16 (window, rows, cols); windows come in order.

        Args:
            block: The block last opened.
            number: Which of its windows.
            payload: Gives the KEY.frames data of a sequence.
            counts_thw: Overwritten; zeros for padding.
        """
        sequence = int(block.sequence_n[number])
        if sequence < 0:
            counts_thw[:] = 0
            return
        began = time.perf_counter()
        decode_s = 0.0
        entry, frames = self.index.sequences[sequence], payload(sequence)
        first = int(block.start_n[number])
        slots = self._slot_of[self._frame_nw[number]].tolist()
        for t, (slot, frame, next_use) in enumerate(
            zip(slots, self._frame_nw[number].tolist(), self._next_nw[number].tolist(), strict=True)
        ):
            if slot >= 0:
                assert self._frames_shw is not None
                counts_thw[t] = self._frames_shw[slot]
                self._touch(slot, frame, next_use)
                continue
            decode_began = time.perf_counter()
            decode_frame(self.index, entry, frames, first + t, counts_thw[t])
            decode_s += time.perf_counter() - decode_began
            self.counts.frames_decoded += 1
            if next_use != NEVER:
                self._keep(frame, next_use, counts_thw[t])
        self.counts.windows += 1
        self.counts.decode_s += decode_s
        self.counts.cut_s += time.perf_counter() - began - decode_s

    def _touch(self, slot: int, frame: int, next_use: int) -> None:
        if next_use == NEVER:
            self._free.append(slot)
            self._slot_of[frame] = -1
            self._slot_next[slot] = -1
        else:
            self._slot_next[slot] = next_use

    def _keep(self, frame: int, next_use: int, counts_hw: npt.NDArray[np.uint16]) -> None:
        """Hold a frame, in the place of the one needed last if there is no room, or not at all if it is that one."""
        if self._free:
            slot = self._free.pop()
        elif self._num_slots < self.max_frames:
            slot = self._num_slots
            self._num_slots += 1
            self.counts.held_bytes_peak = self._num_slots * counts_hw.nbytes
        elif self.max_frames == 0:
            return
        else:
            slot = int(self._slot_next.argmax())
            if self._slot_next[slot] <= next_use:
                return
            self._slot_of[self._slot_frame[slot]] = -1
        if self._frames_shw is None:
            # Pages are touched, and so counted by the system, slot by slot as they are first used.
            self._frames_shw = np.empty((self.max_frames, *counts_hw.shape), np.uint16)
        self._frames_shw[slot] = counts_hw
        self._slot_of[frame] = slot
        self._slot_frame[slot] = frame
        self._slot_next[slot] = next_use
