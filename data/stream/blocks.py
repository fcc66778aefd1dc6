"""Look up which frames of which sequences the windows of a lane are cut from, block by block."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from ..shards.index import Index
from ..shards.timeline import frame_bases
from ..windows.selection import WindowTable


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
        # The first use of each comes from np.unique, the last one from the reversed order.
        used = np.flatnonzero(self.sequence_n >= 0)
        sequences, first = np.unique(self.sequence_n[used], return_index=True)
        last = len(used) - 1 - np.unique(self.sequence_n[used][::-1], return_index=True)[1]
        order = np.argsort(first)
        return [(int(sequences[i]), int(self.step_n[used[first[i]]]), int(used[last[i]])) for i in order]


class BlockMaker:
    """Makes blocks from rows of a window table.

    Args:
        index: The archive's index.
        table: The windows.
    """

    def __init__(self, index: Index, table: WindowTable) -> None:
        self._table = table
        self._base = frame_bases(index)
        # Running counts: a window lacks pixels where the count rises between its ends.
        has_missing = np.concatenate([np.asarray(entry.missing, np.int64) > 0 for entry in index.sequences])
        self._missing_before = np.concatenate([[0], np.cumsum(has_missing)])
        scale_mmh_o = np.array([origin.scale_mmh for origin in index.origins], np.float64)
        self._scale_mmh_s = scale_mmh_o[[entry.origin for entry in index.sequences]]

    def scale_mmh(self, row_b: npt.NDArray[np.int64]) -> torch.Tensor:
        """Give the rain rate of one count of each row's window, mm/h, float64 (b,); 1 for padding."""
        return torch.from_numpy(np.where(row_b >= 0, self._scale_mmh_s[self._table.sequence[row_b]], 1.0))

    def blocks(
        self,
        block_n: npt.NDArray[np.int64],
        row_n: npt.NDArray[np.int64],
        step_n: npt.NDArray[np.int64],
        micro_step_n: npt.NDArray[np.int64],
        column_n: npt.NDArray[np.int64],
    ) -> Iterator[Block]:
        """Split a lane's rows (-1 for padding) where the block number changes, and look up what they stand for.

        Args:
            block_n: int64 (n,), the block of each row.
            row_n: As in `Block`, like the others.
            step_n: Likewise.
            micro_step_n: Likewise.
            column_n: Likewise.
        """
        bounds = [*np.flatnonzero(np.diff(block_n, prepend=-1)).tolist(), len(block_n)]
        for low, high in pairwise(bounds):
            row = row_n[low:high]
            # Row -1 is padding: it stands for no sequence and reads nothing.
            real = row >= 0
            sequence = np.where(real, self._table.sequence[row], -1).astype(np.int64)
            start = np.where(real, self._table.start[row], 0).astype(np.int64)
            first = np.where(real, self._base[sequence] + start, 0)
            missing = self._missing_before[first + self._table.window] > self._missing_before[first]
            yield Block(
                sequence_n=sequence,
                start_n=start,
                row_n=row,
                step_n=step_n[low:high],
                micro_step_n=micro_step_n[low:high],
                column_n=column_n[low:high],
                missing_n=missing & real,
            )
