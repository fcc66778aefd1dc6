"""Give other trainers a plain webdataset pipeline of an archive's windows: rain in mm/h and a mask.

    pipeline = windows_pipeline("SHARDS", window=24, min_rain_fraction=0.2, shuffle_seed=0)
    loader = torch.utils.data.DataLoader(pipeline.shuffle(1000), batch_size=16, num_workers=4)
    for sample in loader:
        rain_mmh, valid = sample["rain_mmh"], sample["valid"]

It is a `webdataset.DataPipeline`, so its stages compose with webdataset's own (`.shuffle`, `.map`, `.batched`). Workers
that read a store have to be spawned: `DataLoader(..., multiprocessing_context="spawn")`.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import webdataset

from ..errors import ConfigError
from ..sequences import TimeSpan
from ..shards.index import Index, load_index
from ..store.storage import open_storage
from ..units import MISSING_COUNT
from ..windows.selection import Selection, WindowTable, select_windows
from .options import ReadOptions
from .stream import evaluation_batches

A_WORKER: Final = ReadOptions(threads=1, decoded_mb=256, prefetch_steps=4)
"""Of a `DataLoader` with several workers each decodes by one thread."""
STARTED_AS: Final = os.getpid()
"""Another process in which this module was not imported anew is a fork."""


def windows_pipeline(
    shards: str | Path,
    *,
    window: int = 24,
    min_rain_fraction: float = 0.0,
    spans: Sequence[TimeSpan] = (),
    sources: Sequence[str] = (),
    shuffle_seed: int | None = None,
    options: ReadOptions = A_WORKER,
) -> webdataset.DataPipeline:
    """Make a pipeline of an archive's windows, each once an epoch.

    Sequences are dealt to ranks and to the workers of a `DataLoader` by webdataset's own `split_by_node` and
    `split_by_worker`, each to exactly one, with all its windows: ranks may get unequal numbers. They are read by the
    archive's index and verified before they are decoded, as in training; nothing is unpickled.

    A sample is a dictionary:
        `__key__`: "KEY:start", the sequence and the window's first frame in it.
        `rain_mmh`: float32 (window, rows, cols), rain in mm/h, 0 where it is missing.
        `valid`: bool of the same shape, False where a pixel is missing.
        `end_times_s`: int64 (window,), when the period of each frame ends, seconds since 1970 in UTC.

    Args:
        shards: Where packed shards lie: a folder, or the address of a store.
        window: Frames a window.
        min_rain_fraction: Least share of pixels above zero in the last frame.
        spans: Only windows that lie inside one of these; () for all times.
        sources: Only windows of these sources; () for all.
        shuffle_seed: Shuffle each worker's sequences by this seed and the number of the epoch; None: as they lie.
        options: Threads, memory and tolerated losses of each worker; what is lost is left out.

    Raises:
        DataError: The index does not verify, or no window is selected. While reading: a sequence that is damaged.
    """
    with closing(open_storage(shards)) as storage:
        index, in_store = load_index(storage), storage.folder is None
    selection = Selection(
        window=window, min_rain_fraction=min_rain_fraction, spans=tuple(spans), sources=tuple(sources)
    )
    table = select_windows(index, selection)

    # What is dealt and shuffled are sequences, as the ranges of their rows in the table.
    first = np.flatnonzero(np.diff(table.sequence, prepend=-1))
    ranges = list(zip(first.tolist(), [*first[1:].tolist(), len(table)], strict=True))
    stages = [webdataset.split_by_node, webdataset.split_by_worker]
    if shuffle_seed is not None:
        stages.append(webdataset.detshuffle(len(ranges), len(ranges), seed=shuffle_seed))
    read = partial(_read_samples, str(shards), in_store, index, table, options)
    return webdataset.FluidWrapper(partial(iter, ranges)).compose(*stages, read)


def _read_samples(
    shards: str,
    in_store: bool,
    index: Index,
    table: WindowTable,
    options: ReadOptions,
    ranges: Iterable[tuple[int, int]],
) -> Iterator[dict[str, Any]]:
    """Read and decode the windows of ranges of rows, in the process that trains or a worker of its `DataLoader`.

    Raises:
        ConfigError: The worker is a fork, and the shards lie in a store, whose client does not survive that.
    """
    if in_store and os.getpid() != STARTED_AS:
        raise ConfigError(
            "a worker that reads shards from a store has to be spawned, and this one was forked; give the DataLoader "
            'multiprocessing_context="spawn"'
        )
    rows = [np.arange(first, stop) for first, stop in ranges]
    if not rows:
        return
    row_n = np.concatenate(rows)
    own = WindowTable(table.sequence[row_n], table.start[row_n], table.selection)

    with closing(open_storage(shards)) as storage:
        batches = evaluation_batches(storage, index, own, micro_batch=options.threads, options=options)
        with closing(batches):
            for batch in batches:
                for position, row in enumerate(batch.window_b.tolist()):
                    # Padding, and what was lost, is no sample.
                    if row < 0:
                        continue
                    counts_thw = batch.counts_bthw[position].numpy()
                    scale_mmh = batch.scale_mmh_b[position].item()
                    entry = index.sequences[int(own.sequence[row])]
                    frames = int(own.start[row]) + np.arange(own.window)
                    valid_thw = counts_thw != MISSING_COUNT
                    yield {
                        "__key__": own.name(row, index),
                        "rain_mmh": np.where(valid_thw, counts_thw, 0).astype(np.float32) * np.float32(scale_mmh),
                        "valid": valid_thw,
                        "end_times_s": entry.start_s + frames * index.cadence_s,
                    }
