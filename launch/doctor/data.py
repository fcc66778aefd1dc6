"""Check the data: the index, and a sample of the shards."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...data.exit_codes import ExitCode
from .findings import Finding, Job, Known, checked, number, ok

if TYPE_CHECKING:
    from ...trainer.training.windows import Windows


@checked("shards", ExitCode.DATA)
def check_archive(job: Job, known: Known) -> Iterator[Finding]:
    """Open the archive as a run does: credentials, index, split, frames that the model takes."""
    from ...trainer.training.windows import check_frames, open_windows

    windows = open_windows(job.config.data, job.config.window)
    index = windows.index
    counts = f"{number(len(index.shards), 'shard')}, {number(len(index.sequences), 'sequence')}"
    size = f"frames of {index.rows} x {index.cols}"
    yield ok("shards", f"{windows.storage.url}: fingerprint {index.fingerprint[:12]}, {counts}, {size}")

    check_frames(job.config, index)
    known.windows = windows
    yield ok("split", f"{number(len(windows.train), 'window')} to train on, {len(windows.held_out or ())} held out")


@checked("sample", ExitCode.DATA)
def check_sample(job: Job, windows: "Windows") -> Iterator[Finding]:
    """Read, verify and decode some sequences, evenly spread over those that are trained on."""
    import numpy as np

    from ...data.shards.decode import decode_frame, read_sequence
    from ...data.shards.index import check_shard_sizes

    # In a store each length is a request: there the sample alone is read.
    if windows.storage.folder is not None:
        check_shard_sizes(windows.storage, windows.index)

    # Evenly spread, so that damage in any part of the archive has its chance to be met.
    index = windows.index
    counts_hw = np.empty((index.rows, index.cols), np.uint16)
    sequences = np.unique(windows.train.sequence).tolist()
    count = min(job.sample, len(sequences))
    began = time.monotonic()
    num_bytes = num_frames = 0
    for position in range(count):
        entry = index.sequences[int(sequences[position * len(sequences) // count])]
        frames = read_sequence(windows.storage, index, entry)
        for frame in range(entry.num_frames):
            decode_frame(index, entry, frames, frame, counts_hw)
        num_bytes += entry.num_bytes
        num_frames += entry.num_frames

    seconds = max(time.monotonic() - began, 1e-9)
    rates = f"{num_bytes / 1e6 / seconds:.1f} MB/s, {num_frames / seconds:.0f} frames/s by one thread"
    yield ok("sample", f"{count} of {number(len(sequences), 'sequence')} read, verified and decoded: {rates}")
