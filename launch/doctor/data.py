"""Checks of the data: the index, a sample of the shards, the cache."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...data.errors import ConfigError
from .findings import DATA, GIB, SETTINGS, Finding, Job, fail, guarded, number, ok, warn

if TYPE_CHECKING:
    from ...data.shards.index import SequenceEntry
    from ...trainer.training.windows import Windows

GIGABYTE: Final = 1_000_000_000


def check_archive(job: Job) -> tuple["Windows | None", list[Finding]]:
    """Open the archive as a run does: credentials, index, split, frames that the model takes."""
    from ...trainer.training.windows import open_windows

    windows: Windows | None = None

    def look() -> list[Finding]:
        nonlocal windows
        try:
            found = open_windows(job.config.data, window_of(job))
        except ConfigError as error:
            return [fail("shards", str(error), SETTINGS)]
        index = found.index
        what = f"{found.storage.url}: fingerprint {index.fingerprint[:12]}, {number(len(index.shards), 'shard')}, "
        what += f"{number(len(index.sequences), 'sequence')}, frames of {index.rows} x {index.cols}"
        parts = [f"{number(len(found.train), 'window')} to train on", f"{len(found.held_out or ())} held out"]
        unfit = _unfit(job, index.rows, index.cols)
        if unfit:
            return [ok("shards", what), unfit]
        windows = found
        return [ok("shards", what), ok("split", ", ".join(parts))]

    found = guarded("shards", DATA, look)
    return windows, found


def window_of(job: Job) -> int:
    """Give the frames of a window."""
    from ...trainer.settings.experiment import FinetuneConfig

    config = job.config
    if isinstance(config, FinetuneConfig):
        return config.model.frames_in + config.model.frames_out
    return config.data.window


def _unfit(job: Job, rows: int, cols: int) -> Finding | None:
    """Refuse frames that no whole number of patches makes up, as the entry point does."""
    from ...models.patches import PATCH
    from ...trainer.settings.experiment import FinetuneConfig

    crop = job.config.data.crop if isinstance(job.config, FinetuneConfig) else None
    if crop is not None and crop > min(rows, cols):
        return fail("frames", f"{rows} x {cols} pixels, data.crop {crop}", DATA, expected="a crop that fits in")
    if crop is None and (rows % PATCH or cols % PATCH):
        return fail(
            "frames",
            f"{rows} x {cols} pixels",
            DATA,
            expected=f"sides that are multiples of {PATCH}",
            advice="pack with such a crop, or set data.crop where there is one",
        )
    return None


def check_sample(job: Job, windows: "Windows") -> list[Finding]:
    """Read, verify and decode some sequences, evenly spread over those that are trained on."""
    import numpy as np

    numbers = np.unique(windows.train.sequence).tolist()
    count = min(job.sample, len(numbers))
    entries = [windows.index.sequences[int(numbers[place * len(numbers) // count])] for place in range(count)]

    def look() -> list[Finding]:
        began, num_bytes, num_frames = time.monotonic(), 0, 0
        for entry in entries:
            _read(windows, entry)
            num_bytes += entry.num_bytes
            num_frames += entry.num_frames
        seconds = max(time.monotonic() - began, 1e-9)
        rates = f"{num_bytes / 1e6 / seconds:.1f} MB/s, {num_frames / seconds:.0f} frames/s by one thread"
        return [ok("sample", f"{count} of {number(len(numbers), 'sequence')} read, verified and decoded: {rates}")]

    return _sizes(windows) + guarded("sample", DATA, look)


def _sizes(windows: "Windows") -> list[Finding]:
    """Compare the shards' lengths; of a store, where each is a request, the sample alone is looked at."""
    from ...data.shards.index import check_shard_sizes

    if windows.storage.folder is None:
        return []

    def look() -> list[Finding]:
        check_shard_sizes(windows.storage, windows.index)
        return []

    return guarded("shard lengths", DATA, look)


def _read(windows: "Windows", entry: "SequenceEntry") -> None:
    import numpy as np

    from ...data.shards.decode import check_sequence, decode_frame

    index = windows.index
    data = windows.storage.read_checked(
        index.shards[entry.shard].name,
        entry.offset,
        entry.offset + entry.num_bytes,
        lambda found: check_sequence(index, entry, found),
    )
    begin = entry.frames_offset - entry.offset
    frames = memoryview(data)[begin : begin + entry.frames_bytes]
    counts_hw = np.empty((index.rows, index.cols), np.uint16)
    for frame in range(entry.num_frames):
        decode_frame(index, entry, frames, frame, counts_hw)


def check_cache(job: Job) -> list[Finding]:
    """Look whether the folder that caches shards of a store can be written, and holds what it may take."""
    data = job.config.data
    if data.cache_dir is None:
        return []
    from .disk import nearest, write_once

    folder = Path(data.cache_dir)

    def look() -> list[Finding]:
        write_once(nearest(folder))
        disk = os.statvfs(nearest(folder))
        free = disk.f_bavail * disk.f_frsize
        if free < data.cache_gb * GIGABYTE:
            return [
                warn(
                    "cache",
                    f"{folder}: {free / GIB:.1f} GiB free",
                    expected=f"data.cache_gb {data.cache_gb:g}",
                    advice="free space there, lower data.cache_gb, or choose another data.cache_dir",
                )
            ]
        return [ok("cache", f"{folder} can be written, {free / GIB:.1f} GiB free")]

    return guarded("cache", SETTINGS, look)
