"""Mixed archives, made in memory and packed: several origins in one index."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rainspark.data.sequences import cut_run
from rainspark.data.shards.index import Index, SequenceEntry
from rainspark.data.shards.timeline import with_rain_after
from rainspark.data.shards.writer import PlannedSequence, pack_frame
from tests.data.archives import CADENCE_S, FIRST_S, PackedArchive, index_in_memory, whole_origin, write_planned


def mixed_index(parts: Sequence[Index], *, sources: Sequence[str], scales_mmh: Sequence[float] | None = None) -> Index:
    """Put archives of one cadence, size and number of shards into one, their sequences one after the other in each tar.

    Args:
        parts: One index an origin, with shards of equal names.
        sources: The source of each; equal names are tiles of one.
        scales_mmh: The scale of each source's count.
    """
    first = parts[0]
    origins = []
    for number, source in enumerate(sources):
        origin = whole_origin(first.rows, first.cols, source, 0.12 if scales_mmh is None else scales_mmh[number])
        crop = replace(origin.crop, row0=number * first.rows, row1=(number + 1) * first.rows)
        origins.append(replace(origin, grid=replace(origin.grid, rows=first.rows * len(parts)), crop=crop))
    filled = [0] * len(first.shards)
    entries: list[SequenceEntry] = []
    for number, part in enumerate(parts):
        for entry in part.sequences:
            moved = filled[entry.shard] - entry.offset
            filled[entry.shard] += entry.num_bytes
            entries.append(
                replace(
                    entry,
                    key=f"{entry.key}-{number}",
                    origin=number,
                    offset=entry.offset + moved,
                    json_offset=entry.json_offset + moved,
                    frames_offset=entry.frames_offset + moved,
                )
            )
    entries.sort(key=lambda entry: (entry.start_s, entry.origin))
    return replace(
        first,
        origins=tuple(origins),
        shards=tuple(replace(shard, num_bytes=size + 1024) for shard, size in zip(first.shards, filled, strict=True)),
        sequences=with_rain_after(entries, first.cadence_s, first.rows * first.cols),
    )


def two_sources(
    first: Sequence[int], second: Sequence[int], *, window: int = 4, max_frames: int = 20, num_shards: int = 3
) -> Index:
    """Make an archive of two radars with runs of so many frames each."""
    parts = [
        index_in_memory(runs, window=window, max_frames=max_frames, num_shards=num_shards, rain=(0.1, 0.6, 0.3))
        for runs in (first, second)
    ]
    return mixed_index(parts, sources=("A", "B"), scales_mmh=(0.12, 0.01))


def pack_mixed(
    folder: str | Path,
    frames: Mapping[str, npt.NDArray[np.uint16]],
    *,
    scales_mmh: Sequence[float],
    window: int,
    max_frames: int,
    num_shards: int,
    pixel_km: float = 1.0,
) -> PackedArchive:
    """Pack one run of each of several radars, uint16 (t, rows, cols), all from the same time on, into one archive."""
    rows, cols = next(iter(frames.values())).shape[1:]
    origins = [
        whole_origin(rows, cols, source, scale, pixel_km) for source, scale in zip(frames, scales_mmh, strict=True)
    ]
    planned, counts_thw = [], {}
    for number, (source, run_thw) in enumerate(frames.items()):
        for piece in cut_run(len(run_thw), window, max_frames):
            key = f"{source}-{piece.first:04d}"
            counts_thw[key] = run_thw[piece.first : piece.first + piece.num_frames]
            start_s = FIRST_S + piece.first * CADENCE_S
            planned.append(PlannedSequence(key=key, origin=number, start_s=start_s, **vars(piece)))
    storage, index = write_planned(
        folder,
        origins,
        planned,
        lambda sequence: [
            pack_frame(counts, origins[sequence.origin].scale_mmh) for counts in counts_thw[sequence.key]
        ],
        window=window,
        max_frames=max_frames,
        num_shards=num_shards,
    )
    return PackedArchive(folder=Path(folder), storage=storage, index=index, counts_thw=counts_thw)
