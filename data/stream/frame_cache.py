"""Keep decoded frames that later windows need again, and cut windows out of them."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..shards.decode import decode_frame
from ..shards.index import Index
from .blocks import Block

# In the place of "where in the block's order this frame is read next" when it is not.
NEVER = np.iinfo(np.int64).max


class FrameCache:
    """Cuts one lane's windows out of decoded frames; used by one thread at a time.

    The order of reading is known, so the frames kept are those that are needed again soonest (Belady, 1966), not the
    ones used last; a frame that nothing needs again is decoded into the batch and never held.

    Args:
        index: The archive's index.
        window: Frames a window.
        max_frames: Decoded frames held at most.

    Attributes:
        counts: Windows, frames decoded, most bytes of decoded frames held.
    """

    def __init__(self, index: Index, window: int, max_frames: int) -> None:
        self._index, self._window, self._max_frames = index, window, max_frames
        self.counts: dict[str, float] = dict.fromkeys(("windows", "frames_decoded", "decoded_bytes_peak"), 0)
        self._frames_shw: npt.NDArray[np.uint16] | None = None
        self._num_slots = 0
        self._free: list[int] = []
        self._slot_frame = np.full(max_frames, -1, np.int64)
        self._slot_next = np.full(max_frames, -1, np.int64)

    def open_block(self, block: Block) -> None:
        """Forget the last block and look up, for every frame of every window, where it is needed next."""
        self._free = list(range(self._num_slots))
        self._slot_next[:] = -1

        # Number the frames of the block's sequences, one sequence after the other.
        sequences, local = np.unique(block.sequence_n, return_inverse=True)
        counts = [self._index.sequences[int(s)].num_frames if s >= 0 else self._window for s in sequences]
        base = np.cumsum([0, *counts])
        self._frame_nw = (base[local] + block.start_n)[:, None] + np.arange(self._window)
        self._slot_of = np.full(int(base[-1]), -1, np.int64)

        # Sorted by frame, each use stands before the next one of the same frame.
        flat = self._frame_nw.ravel()
        by_frame = np.argsort(flat, kind="stable")
        again = np.flatnonzero(flat[by_frame[1:]] == flat[by_frame[:-1]])
        next_use = np.full(len(flat), NEVER, np.int64)
        next_use[by_frame[again]] = by_frame[again + 1]
        self._next_nw = next_use.reshape(self._frame_nw.shape)

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

        entry, data = self._index.sequences[sequence], payload(sequence)
        first = int(block.start_n[number])
        frames, next_uses = self._frame_nw[number].tolist(), self._next_nw[number].tolist()
        # A frame that is kept below never replaces one of these: they are needed sooner.
        slots = self._slot_of[self._frame_nw[number]].tolist()

        for t, (slot, frame, next_use) in enumerate(zip(slots, frames, next_uses, strict=True)):
            if slot >= 0:
                assert self._frames_shw is not None
                counts_thw[t] = self._frames_shw[slot]
                self._touch(slot, frame, next_use)
                continue

            decode_frame(self._index, entry, data, first + t, counts_thw[t])
            self.counts["frames_decoded"] += 1
            if next_use != NEVER:
                self._keep(frame, next_use, counts_thw[t])

        self.counts["windows"] += 1

    def _touch(self, slot: int, frame: int, next_use: int) -> None:
        """Note when a held frame is needed next, or free its slot."""
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
        elif self._num_slots < self._max_frames:
            slot = self._num_slots
            self._num_slots += 1
            self.counts["decoded_bytes_peak"] = self._num_slots * counts_hw.nbytes
        elif self._max_frames == 0:
            return
        else:
            slot = int(self._slot_next.argmax())
            if self._slot_next[slot] <= next_use:
                return
            self._slot_of[self._slot_frame[slot]] = -1

        if self._frames_shw is None:
            # Pages are touched, and so counted by the system, slot by slot as they are first used.
            self._frames_shw = np.empty((self._max_frames, *counts_hw.shape), np.uint16)
        self._frames_shw[slot] = counts_hw
        self._slot_of[frame] = slot
        self._slot_frame[slot] = frame
        self._slot_next[slot] = next_use
