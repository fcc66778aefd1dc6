"""Small archives and streams of them, for all tests of this room."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from rainspark.data.shards.index import Index
from rainspark.data.store.storage import Storage
from rainspark.data.stream.options import ReadOptions
from rainspark.data.stream.stream import Batch, Stream
from rainspark.data.units import MISSING_COUNT
from rainspark.data.windows.mixing import BatchLayout
from rainspark.data.windows.selection import Selection, WindowTable, select_windows
from tests.data.archives import PackedArchive, pack_archive, random_runs

ROWS, COLS, WINDOW = 12, 16, 4
FRAME_MB = ROWS * COLS * 2 / 2**20
LAYOUT = BatchLayout(seed=3, global_batch=24, micro_batch=12, lanes=4, block_bytes=60_000)


def pack(folder: Path, lengths: list[int], *, num_shards: int, missing: bool = True, seed: int = 0) -> PackedArchive:
    """Pack runs of so many random frames."""
    runs = random_runs(lengths, ROWS, COLS, seed, missing)
    return pack_archive(folder, runs, window=WINDOW, max_frames=15, num_shards=num_shards)


def table_of(index: Index) -> WindowTable:
    """Select all windows."""
    return select_windows(index, Selection(window=WINDOW))


def stream_of(
    storage: Storage, index: Index, layout: BatchLayout = LAYOUT, *, rank: int = 0, world_size: int = 1, **changes: Any
) -> Stream:
    """Open a stream; each change belongs to the layout or to the options of reading, whichever has such a field."""
    of_layout = {item.name: changes.pop(item.name) for item in fields(BatchLayout) if item.name in changes}
    return Stream(
        storage,
        index,
        table_of(index),
        replace(layout, **of_layout),
        rank=rank,
        world_size=world_size,
        options=ReadOptions(**({"decoded_mb": 1} | changes)),
    )


def read_epochs(stream: Stream, num_epochs: int = 1) -> dict[str, float]:
    """Read whole epochs, and give the stream's statistics."""
    for _ in stream.steps(0, num_epochs * stream.steps_per_epoch):
        pass
    return stream.stats()


def content(batches: list[Batch]) -> list[tuple[Any, ...]]:
    """Give all that batches hold, to be compared."""
    return [
        (
            batch.step,
            batch.micro_step,
            batch.epoch,
            batch.has_missing,
            batch.window_b.tolist(),
            batch.index_b.tolist(),
            batch.scale_mmh_b.tolist(),
            batch.counts_bthw.numpy().tobytes(),
        )
        for batch in batches
    ]


def check_pixels(archive: PackedArchive, table: WindowTable, batch: Batch, lost: int | None = None) -> None:
    """Check every window against the frames that were packed; a row of -1 is padding, or `lost` in every pixel."""
    counts = batch.counts_bthw.numpy()
    for counts_thw, row in zip(counts, batch.window_b.tolist(), strict=True):
        expected = archive.window(table, row) if row >= 0 else np.full_like(counts_thw, lost or 0)
        np.testing.assert_array_equal(counts_thw, expected)
    assert batch.has_missing == bool((counts == MISSING_COUNT).any())
    assert (batch.scale_mmh_b.numpy()[batch.window_b < 0] == 1).all()


def flip(archive: PackedArchive, number: int) -> None:
    """Damage a sequence."""
    entry = archive.index.sequences[number]
    path = archive.folder / archive.index.shards[entry.shard].name
    data = bytearray(path.read_bytes())
    data[entry.frames_offset + entry.frames_bytes // 2] ^= 1
    path.write_bytes(bytes(data))
