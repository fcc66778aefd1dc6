"""Small archives that are right in every respect, statistics too, and what windows they hold."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rainspark.data.shards.decode import check_sequence, decode_frame
from rainspark.data.shards.index import Index, dump_index, load_index, signed
from rainspark.data.shards.origins import Origin
from rainspark.data.shards.writer import PlannedSequence, pack_frame
from rainspark.data.store.storage import Storage, open_storage
from tests.data.archives import CADENCE_S, FIRST_S, whole_origin, write_planned

Frames = dict[int, npt.NDArray[np.uint16]]
"""Frames of one origin, uint16 (rows, cols), by number: number i ends i times the cadence after the first."""


def some_frames(numbers: Sequence[int], *, rows: int = 6, cols: int = 8, seed: int = 0) -> Frames:
    """Make frames that differ from each other: rain, dry ones, a missing pixel now and then."""
    frames = {}
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        counts = rng.integers(0, 300, (rows, cols)) * (rng.random((rows, cols)) < 0.2 * (number % 6))
        counts[rng.random((rows, cols)) < 0.02] = 65535
        frames[number] = counts.astype(np.uint16)
    return frames


def pack_frames(
    folder: Path,
    origins: dict[Origin, Frames],
    pieces: dict[Origin, list[tuple[int, int, int]]],
    *,
    window: int,
    max_frames: int,
    num_shards: int,
    ready: bool = False,
) -> Index:
    """Write an archive of given sequences.

    Args:
        folder: Where.
        origins: Frames by origin.
        pieces: (number of the first frame, frames, starts) of each sequence, by origin.
        window: Longest window.
        max_frames: Longest sequence.
        num_shards: Shards.
        ready: Whether the sequences are ready windows.
    """
    packed = {
        (origin, number): pack_frame(counts, origin.scale_mmh)
        for origin, frames in origins.items()
        for number, counts in frames.items()
    }
    named = list(origins)
    cut = sorted((number, named.index(origin), *more) for origin in origins for number, *more in pieces[origin])
    planned = [
        PlannedSequence(
            key=f"s{at:04d}",
            origin=origin,
            start_s=FIRST_S + number * CADENCE_S,
            first=number,
            num_frames=count,
            num_starts=starts,
        )
        for at, (number, origin, count, starts) in enumerate(cut)
    ]
    _, index = write_planned(
        folder,
        named,
        planned,
        lambda sequence: [packed[named[sequence.origin], sequence.first + i] for i in range(sequence.num_frames)],
        window=window,
        max_frames=max_frames,
        num_shards=num_shards,
        ready=ready,
    )
    return index


def small_archive(folder: Path, *, seed: int = 0, num_shards: int = 3, source: str = "test", first: int = 0) -> Index:
    """Write an archive of one origin: runs of 20, 3 and 9 frames from `first` on, cut for windows of 4."""
    runs = {0: 20, 25: 3, 30: 9}
    numbers = [first + begin + i for begin, count in runs.items() for i in range(count)]
    origin = whole_origin(6, 8, source=source)
    sequences = [(0, 9, 6), (6, 9, 6), (12, 8, 8), (25, 3, 3), (30, 9, 9)]
    pieces = [(first + begin, num_frames, num_starts) for begin, num_frames, num_starts in sequences]
    frames = {origin: some_frames(numbers, seed=seed)}
    return pack_frames(folder, frames, {origin: pieces}, window=4, max_frames=9, num_shards=num_shards)


def as_schema_2(folder: Path, index: Index, source: Path) -> Index:
    """Copy an archive as a version before schema 3 wrote it: its shards were the same bytes."""
    shutil.copytree(source, folder)
    origins = tuple(replace(origin, period_s=None, recipe=None) for origin in index.origins)
    news: dict[str, Any] = {"frame_digests": None, "wetness_1mmh": None, "wetness_5mmh": None}
    sequences = tuple(replace(entry, **news) for entry in index.sequences)
    rewrite(folder, index, schema_version=2, variables=None, origins=origins, sequences=sequences)
    return load_index(open_storage(folder))


def rewrite(folder: Path, index: Index, **changes: Any) -> None:
    """Change an index and sign it again."""
    (folder / "index.json").write_bytes(dump_index(signed(replace(index, **changes))))


def with_entry(folder: Path, index: Index, number: int, **changes: Any) -> None:
    """Change one sequence in an index and sign it again."""
    entries = list(index.sequences)
    entries[number] = replace(entries[number], **changes)
    rewrite(folder, index, sequences=tuple(entries))


def resign(folder: Path, index: Index, number: int, edit: Callable[[bytearray], object]) -> None:
    """Change the bytes of a sequence in place, and put the new digests of sequence and shard into the index."""
    entry = index.sequences[number]
    path = folder / index.shards[entry.shard].name
    whole = bytearray(path.read_bytes())
    data = whole[entry.offset : entry.offset + entry.num_bytes]
    edit(data)
    whole[entry.offset : entry.offset + entry.num_bytes] = data
    path.write_bytes(whole)

    shards = list(index.shards)
    shards[entry.shard] = replace(shards[entry.shard], sha256=hashlib.sha256(whole).hexdigest())
    with_entry(folder, replace(index, shards=tuple(shards)), number, sha256=hashlib.sha256(data).hexdigest())


Windows = dict[tuple[Origin, int], bytes]
"""Pixels of every window, by its origin and the time of its first frame."""


def windows_of(storage: Storage, index: Index, window: int) -> Windows:
    """Cut every window of an archive, one at a time, by the plainest means; every one stands in one sequence."""
    windows: Windows = {}
    for entry in index.sequences:
        data = storage.read(index.shards[entry.shard].name, entry.offset, entry.offset + entry.num_bytes)
        check_sequence(index, entry, data)
        frames = entry.frames_of(data)
        counts_thw = np.zeros((entry.num_frames, index.rows, index.cols), np.uint16)
        for number in range(entry.num_frames):
            decode_frame(index, entry, frames, number, counts_thw[number])
        for start in range(min(entry.num_starts, entry.num_frames - window + 1)):
            begun = (index.origins[entry.origin], entry.start_s + start * index.cadence_s)
            assert begun not in windows
            windows[begun] = counts_thw[start : start + window].tobytes()
    return windows
