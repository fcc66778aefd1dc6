"""Pack surveyed radar files into an archive of shards, resumable and with the same bytes for the same input."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import blosc2
from tqdm import tqdm

from ..counts import MAX_COUNT, NO_ROUNDING, Rounding
from ..errors import DataError
from ..shards.index import (
    INDEX_NAME,
    SCHEMA_VERSION,
    Index,
    SequenceEntry,
    check_shard_sizes,
    describe_archive,
    dump_index,
    load_index,
    signed,
)
from ..shards.summary import sum_totals, totals_to_json
from ..shards.timeline import with_rain_after
from ..shards.writer import PackedFrame, PlannedSequence, WrittenShard, pack_frame, write_shard
from ..sources.source import Source
from ..store.storage import Storage, open_storage
from ..units import MISSING_COUNT
from .resume import close_state, dump_record, held, kept_shard, open_state, record_name, shard_name
from .survey import MAX_BAD_HINT, Job, PackInput, PackOptions, Part, survey
from .tiling import Unit


def pack(
    paths: Sequence[Path],
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
        paths: Files, folders and archives.
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
    return pack_or_keep(paths, out, options, source, more, restart=restart)[0]


def pack_or_keep(
    paths: Sequence[Path],
    out: str | Path,
    options: PackOptions,
    source: Source | None,
    more: Sequence[PackInput],
    *,
    restart: bool,
) -> tuple[Index, bool]:
    """Pack as `pack` does, and say whether the archive was complete already."""
    storage = open_storage(out, to_write=True)
    job = survey(paths, options, source, more)
    sys.stderr.write("".join(f"{note}\n" for note in job.notes))
    with held(storage):
        complete = storage.exists(INDEX_NAME)
        if complete:
            index = _finished(storage, job)
        else:
            open_state(storage, job.digest, restart=restart)
            index = write_archive(storage, job)
        close_state(storage)
    return index, complete


def write_archive(storage: Storage, job: Job) -> Index:
    """Write the shards that are not there yet, then the index; raises DataError as `pack` does."""
    written: list[WrittenShard] = []
    # Blosc2 then lets other threads work while it compresses; h5py reads one file at a time whatever we do.
    blosc2.set_releasegil(True)
    draft = _draft(job)
    descriptions = [describe_archive(draft, origin) for origin in draft.origins]
    stored = sum(planned.num_frames for unit in job.units for planned in unit)
    executor = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="pack")
    try:
        with tqdm(total=stored, desc="packing", unit=" frames", mininterval=0.5) as bar:
            for number in range(job.num_shards):
                units = job.units[number :: job.num_shards]
                planned = [sequence for unit in units for sequence in unit]
                shard = kept_shard(storage, number, planned)
                if shard is None:
                    frames = _UnitFrames(executor, job, units, bar)
                    shard = write_shard(
                        storage, shard_name(number), number, planned, descriptions, frames.of
                    )  # fmt: skip
                    storage.write(record_name(number), dump_record(shard))
                else:
                    bar.update(sum(sequence.num_frames for sequence in planned))
                written.append(shard)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    index = _index(job, written)
    for shard in written:
        if not shard.sequences:
            storage.delete(shard.shard.name)
    storage.write(INDEX_NAME, dump_index(index))
    return index


class _UnitFrames:
    """Packed frames of a shard's sequences: a unit's are made at once, so that a frame is read once for its tiles."""

    def __init__(self, executor: ThreadPoolExecutor, job: Job, units: Iterable[Unit], bar: "tqdm[Any]") -> None:
        self._executor, self._job, self._bar = executor, job, bar
        self._unit_of = {planned.key: unit for unit in units for planned in unit}
        self._frames: dict[str, list[PackedFrame]] = {}

    def of(self, planned: PlannedSequence) -> Iterator[PackedFrame]:
        """Give a sequence's frames, in order; none where a tile holds no measurement in any of them."""
        if planned.key not in self._frames:
            self._make(self._unit_of[planned.key])
        frames = self._frames.pop(planned.key)
        part = self._job.part_of(planned)
        crop = part.crops[planned.origin - part.first_origin]
        if not part.tiled or any(frame.missing < crop.rows * crop.cols for frame in frames):
            yield from frames

    def _make(self, unit: Unit) -> None:
        first = unit[0]
        part = self._job.part_of(first)
        numbers = range(first.first, first.first + first.num_frames)
        futures: list[Future[list[PackedFrame]]] = [
            self._executor.submit(_packed_tiles, part, unit, number) for number in numbers
        ]
        made: list[list[PackedFrame]] = [[] for _ in unit]
        for future in futures:
            for tile, frame in zip(made, future.result(), strict=True):
                tile.append(frame)
            self._bar.update(len(unit))
        self._frames = {planned.key: frames for planned, frames in zip(unit, made, strict=True)}


def _packed_tiles(part: Part, unit: Unit, number: int) -> list[PackedFrame]:
    """Read one frame, make sure that its input is still what the survey saw, and compress it tile by tile."""
    ref = part.refs[number]
    whole = part.crop_of(unit)
    try:
        reading = part.source.read(ref, whole)
    except DataError as error:
        if part.ready:
            raise
        raise DataError(f"{error} ({MAX_BAD_HINT}; with --restart if shards were finished before)") from error
    # The digest is of the bytes that were decoded: whoever wrote to them since the survey is found out.
    if reading.sha256 != part.sha256s[number]:
        raise DataError(
            f"{ref} changed while it was packed; expected files that stay as they are: start again when nothing "
            "writes to them (with --restart if shards were finished before)"
        )
    frames = []
    for planned in unit:
        crop = part.crops[planned.origin - part.first_origin]
        counts_hw = reading.counts[
            crop.row0 - whole.row0 : crop.row1 - whole.row0, crop.col0 - whole.col0 : crop.col1 - whole.col0
        ]
        clamped = int((counts_hw == MAX_COUNT).sum()) if reading.rounding.clamped else 0
        rounding = Rounding(max_error_mmh=reading.rounding.max_error_mmh, clamped=clamped)
        frames.append(pack_frame(counts_hw, part.header.scale_mmh, rounding))
    return frames


def _draft(job: Job) -> Index:
    """Say what is known of the archive before any frame is packed."""
    origins = job.origins
    return Index(
        schema_version=SCHEMA_VERSION,
        cadence_s=job.options.cadence_s,
        rows=origins[0].crop.rows,
        cols=origins[0].crop.cols,
        missing_count=MISSING_COUNT,
        window=job.window,
        max_frames=job.options.max_frames,
        origins=origins,
        shards=(),
        sequences=(),
        statistics={},
        packed_from=job.digest,
    )


def _index(job: Job, written: Sequence[WrittenShard]) -> Index:
    """Put the index together, without the origins and shards of which nothing was kept."""
    draft = _draft(job)
    kept = [shard for shard in written if shard.sequences]
    entries = [replace(entry, shard=place) for place, shard in enumerate(kept) for entry in shard.sequences]
    if not entries:
        raise DataError("no tile holds a measurement in any frame; expected radar data: choose another --crop")
    held = sorted({entry.origin for entry in entries})
    place_of = {origin: place for place, origin in enumerate(held)}
    entries = sorted(
        (replace(entry, origin=place_of[entry.origin]) for entry in entries),
        key=lambda entry: (entry.start_s, entry.origin),
    )
    sys.stderr.write(_left_out(job, written, held))
    statistics = totals_to_json(sum_totals(shard.totals for shard in kept))
    for source, rounding in _rounding(kept).items():
        if rounding.max_error_mmh or rounding.clamped:
            statistics[source]["rounding"] = vars(rounding)
    return signed(
        replace(
            draft,
            origins=tuple(draft.origins[origin] for origin in held),
            shards=tuple(shard.shard for shard in kept),
            sequences=_with_rain_after(job, entries, held, draft),
            statistics=statistics,
        )
    )


def _left_out(job: Job, written: Sequence[WrittenShard], held: Sequence[int]) -> str:
    """Say which tiles hold no measurement, whole or in some of their sequences."""
    num_tiles = sum(len(part.crops) for part in job.parts if part.tiled)
    blind = len(job.origins) - len(held)
    of_blind = sum(planned.origin not in held for unit in job.units for planned in unit)
    of_others = sum(len(shard.left_out) for shard in written) - of_blind
    said = []
    if blind:
        said.append(f"{blind} of {num_tiles} tiles hold no measurement in any frame and are left out\n")
    if of_others:
        sequences = (
            "1 sequence of another tile holds" if of_others == 1 else f"{of_others} sequences of other tiles hold"
        )
        said.append(f"{sequences} no measurement and {'is' if of_others == 1 else 'are'} left out\n")
    return "".join(said)


def _with_rain_after(
    job: Job, entries: Sequence[SequenceEntry], held: Sequence[int], draft: Index
) -> tuple[SequenceEntry, ...]:
    """Fill in the rain after every sequence but ready windows, whose next frame is not the archive's to know."""
    ready = {
        origin
        for part in job.parts
        if part.ready
        for origin in range(part.first_origin, part.first_origin + len(part.crops))
    }
    filled = with_rain_after(entries, draft.cadence_s, draft.rows * draft.cols)
    return tuple(
        before if held[before.origin] in ready else after for before, after in zip(entries, filled, strict=True)
    )


def _rounding(written: Iterable[WrittenShard]) -> dict[str, Rounding]:
    found: dict[str, list[Rounding]] = {}
    for shard in written:
        for source, rounding in shard.rounding.items():
            found.setdefault(source, []).append(rounding)
    return {source: reduce(Rounding.plus, roundings, NO_ROUNDING) for source, roundings in found.items()}


def _finished(storage: Storage, job: Job) -> Index:
    """Accept the archive that is there if it is this job's."""
    index = load_index(storage)
    if index.packed_from != job.digest:
        raise DataError(
            f"{storage.url} holds an archive packed from other files or with other options (frames of {index.source}, "
            f"{index.rows} x {index.cols} pixels, window {index.window}); choose another --out, or remove that folder "
            "first"
        )
    check_shard_sizes(storage, index)
    sys.stderr.write(f"{storage.url}: already packed from these files with these options\n")
    return index
