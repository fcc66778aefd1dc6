"""Pack surveyed radar files into an archive of shards, resumable and with the same bytes for the same input."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..counts import MAX_COUNT, Rounding
from ..errors import DataError
from ..shards.blosc import blosc2
from ..shards.index import Index
from ..shards.writer import PackedFrame, PlannedSequence, pack_frame
from ..sources.files import Place
from ..sources.source import Source
from ..store.storage import Storage, open_storage
from ..units import MISSING_COUNT
from .survey import MAX_BAD_HINT, Job, PackInput, PackOptions, Supply, supply_of, survey
from .tiling import Unit
from .writing import write_or_keep


def pack(
    paths: Sequence[Place],
    out: str | Path,
    options: PackOptions,
    *,
    source: Source | None = None,
    more: Sequence[PackInput] = (),
    restart: bool = False,
) -> Index:
    """Pack radar data; a finished archive of the same input and options is left as it is.

    Shards are written one by one under temporary names, and index.json last of all: without it there is no archive. A
    killed pack goes on where it stopped, and ends with the same bytes.

    Args:
        paths: Files, folders, archives and objects of stores.
        out: Folder to make, or the address of an object store.
        options: How to pack.
        source: What reads `paths`; None for KNMI composites.
        more: Further sources of the same archive.
        restart: Drop the finished shards of an unfinished pack of other files or options; a finished archive stays.

    Raises:
        DataError: About the input, with nothing written; about OUT (another archive, an unfinished one, foreign files,
            another pack at work, no space); about pixels that cannot be decoded or a file that changed meanwhile: then
            OUT holds no index.
    """
    storage = open_storage(out, to_write=True)
    job = survey(paths, options, source, more)
    sys.stderr.write("".join(f"{note}\n" for note in job.notes))
    return write_job(storage, job, restart=restart)


def write_job(storage: Storage, job: Job, *, restart: bool = False) -> Index:
    """Write a surveyed archive, as `pack` does."""
    # Blosc2 then lets other threads work while it compresses; h5py reads one file at a time whatever we do.
    blosc2.set_releasegil(True)
    executor = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="pack")
    try:
        return write_or_keep(storage, job.plan, _UnitFrames(executor, job), restart=restart)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


class _UnitFrames:
    """Packed frames of sequences: a unit's are made at once, so that a frame is read once for all its tiles."""

    def __init__(self, executor: ThreadPoolExecutor, job: Job) -> None:
        self._executor = executor
        self._job = job
        self._unit_of = {planned.key: unit for unit in job.units for planned in unit}
        self._frames: dict[str, list[PackedFrame]] = {}

    def __call__(self, planned: PlannedSequence, advance: Callable[[int], object]) -> Iterator[PackedFrame]:
        """Give a sequence's frames, in order; none where a tile holds no measurement in any of them."""
        if planned.key not in self._frames:
            self._make(self._unit_of[planned.key], advance)
        # The unit's other sequences follow in the same shard; each takes its frames out.
        frames = self._frames.pop(planned.key)
        supply = supply_of(self._job.supplies, planned)
        crop = supply.crops[planned.origin - supply.first_origin]
        if not supply.tiled or any(frame.missing < crop.rows * crop.cols for frame in frames):
            yield from frames

    def _make(self, unit: Unit, advance: Callable[[int], object]) -> None:
        first = unit[0]
        supply = supply_of(self._job.supplies, first)
        numbers = range(first.first, first.first + first.num_frames)
        # Frames are read and compressed side by side, and put together in their order.
        futures = [self._executor.submit(_packed_tiles, supply, unit, number) for number in numbers]

        made: list[list[PackedFrame]] = [[] for _ in unit]
        for future in futures:
            for frames, frame in zip(made, future.result(), strict=True):
                frames.append(frame)
            advance(len(unit))
        self._frames = {planned.key: frames for planned, frames in zip(unit, made, strict=True)}


def _packed_tiles(supply: Supply, unit: Unit, number: int) -> list[PackedFrame]:
    """Read one frame, make sure that its input is still what the survey saw, and compress it tile by tile."""
    ref = supply.refs[number]
    whole = supply.crop_of(unit)

    try:
        reading = supply.source.read(ref, whole)
    except DataError as error:
        if supply.ready:
            raise
        raise DataError(f"{error} ({MAX_BAD_HINT}; with --restart if shards were finished before)") from error
    # The digest is of the bytes that were decoded: whoever wrote to them since the survey is found out.
    if reading.sha256 != supply.sha256s[number]:
        raise DataError(
            f"{ref} changed while it was packed; expected files that stay as they are: start again when nothing "
            "writes to them (with --restart if shards were finished before)"
        )

    # Cut the tiles out of the rectangle that was read.
    tiles = []
    for planned in unit:
        crop = supply.crops[planned.origin - supply.first_origin]
        rows = slice(crop.row0 - whole.row0, crop.row1 - whole.row0)
        cols = slice(crop.col0 - whole.col0, crop.col1 - whole.col0)
        tiles.append(reading.counts[rows, cols])

    frames = []
    discarded = reading.rounding.discarded
    # The frame's discarded pixels are counted once, by the fullest tile: one without any measurement may be left out.
    missing = [int((counts_hw == MISSING_COUNT).sum()) if discarded else 0 for counts_hw in tiles]
    for position, counts_hw in enumerate(tiles):
        # Of a tile only its own pixels; where none was clamped, the largest count is a measurement.
        clamped = int((counts_hw == MAX_COUNT).sum()) if reading.rounding.clamped else 0
        is_fullest = position == missing.index(min(missing))
        rounding = Rounding(
            max_error_mmh=reading.rounding.max_error_mmh, clamped=clamped, discarded=discarded if is_fullest else None
        )
        frames.append(pack_frame(counts_hw, supply.header.scale_mmh, rounding))
    return frames
