"""Write a planned archive shard by shard, resumable, the index last: the one way for packing and resharding."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from tqdm import tqdm

from ..errors import DataError
from ..shards.index import INDEX_NAME, Index, check_shard_sizes, dump_index, load_index, signed
from ..shards.timeline import with_rain_after
from ..shards.totals import sum_totals
from ..shards.writer import PackedFrame, PlannedSequence, WrittenShard, write_shard
from ..store.storage import Storage
from .resume import close_state, dump_record, held, kept_shard, open_state, record_name, shard_name


class FramesOf(Protocol):
    """Where an archive's frames come from."""

    def __call__(self, planned: PlannedSequence, advance: Callable[[int], object]) -> Iterable[PackedFrame]:
        """Give a sequence's frames, in order, and report how many were made; none: the sequence is left out."""


@dataclass(frozen=True, kw_only=True)
class ArchivePlan:
    """An archive before anything of it is written.

    Attributes:
        draft: Its index without shards, sequences and fingerprint; without statistics where the frames give them.
        sequences: What stands in each tar.
        ready: Keys of ready windows: what comes after them is not the archive's to know.
    """

    draft: Index
    sequences: tuple[tuple[PlannedSequence, ...], ...]
    ready: frozenset[str]


def write_or_keep(storage: Storage, plan: ArchivePlan, frames_of: FramesOf, *, restart: bool = False) -> Index:
    """Write an archive, or go on with it; a finished one of the same plan is left as it is.

    Args:
        storage: The folder or store to write into.
        plan: The archive.
        frames_of: Gives the frames.
        restart: Drop the finished shards of an unfinished archive of another plan; a finished archive stays.

    Raises:
        DataError: About what lies there (another archive, an unfinished one, foreign files, another pack at work, no
            space), or from `frames_of`; then there is no index.
    """
    with held(storage):
        if storage.exists(INDEX_NAME):
            index = _finished(storage, plan.draft)
        else:
            open_state(storage, plan.draft.packed_from, restart=restart)
            index = write_archive(storage, plan, frames_of)
        close_state(storage)
    return index


def _finished(storage: Storage, draft: Index) -> Index:
    """Accept the archive that is there if it is the planned one."""
    index = load_index(storage)
    # Equal digests of input and options mean equal bytes.
    if index.schema_version != draft.schema_version:
        raise DataError(
            f"{storage.url} holds an archive of schema {index.schema_version}, packed by an older version; it is read "
            f"as it is, and rainspark reshard {storage.url} --out NEW renews it: choose another --out"
        )
    if index.packed_from != draft.packed_from:
        raise DataError(
            f"{storage.url} holds an archive packed from other files or with other options (frames of {index.source}, "
            f"{index.rows} x {index.cols} pixels, window {index.window}); choose another --out, or remove that folder "
            "first"
        )
    check_shard_sizes(storage, index)
    sys.stderr.write(f"{storage.url}: already packed from this input with these options\n")
    return index


def write_archive(storage: Storage, plan: ArchivePlan, frames_of: FramesOf) -> Index:
    """Write the shards that are not there yet, then the index, into what nobody else writes to."""
    written: list[WrittenShard] = []
    total = sum(planned.num_frames for sequences in plan.sequences for planned in sequences)
    with tqdm(total=total, desc="packing", unit=" frames", mininterval=0.5) as bar:
        for number, sequences in enumerate(plan.sequences):
            shard = kept_shard(storage, number, sequences)
            if shard is None:
                frames = partial(frames_of, advance=bar.update)
                shard = write_shard(storage, shard_name(number), number, sequences, plan.draft, frames)
                storage.write(record_name(number), dump_record(shard))
            else:
                # Kept from an earlier pack: done already.
                bar.update(sum(planned.num_frames for planned in sequences))
            written.append(shard)

    index = _index(plan, written)
    # Shards of which nothing was kept are no part of the index; it comes last, for it makes the archive.
    for shard in written:
        if not shard.sequences:
            storage.delete(shard.shard.name)
    storage.write(INDEX_NAME, dump_index(index))
    return index


def _index(plan: ArchivePlan, written: Sequence[WrittenShard]) -> Index:
    """Put the index together, without the origins and shards of which nothing was kept."""
    draft = plan.draft
    kept = [shard for shard in written if shard.sequences]
    entries = [replace(entry, shard=number) for number, shard in enumerate(kept) for entry in shard.sequences]
    if not entries:
        raise DataError("no tile holds a measurement in any frame; expected radar data: choose another --crop")

    num_pixels = draft.rows * draft.cols
    if all(missing == num_pixels for entry in entries for missing in entry.missing):
        raise DataError(
            "no pixel of any frame holds a measurement; expected radar data: choose another --crop, or check the "
            "product and the options by which it is read, and start again with --restart"
        )
    origins = sorted({entry.origin for entry in entries})
    _report_left_out(plan, written, origins)

    # Numbers follow the origins that are left, and sequences lie in time order.
    number_of = {origin: number for number, origin in enumerate(origins)}
    entries = sorted(
        (replace(entry, origin=number_of[entry.origin]) for entry in entries),
        key=lambda entry: (entry.start_s, entry.origin),
    )

    # The rain of the next frame is known when all sequences are.
    filled = with_rain_after(entries, draft.cadence_s, draft.rows * draft.cols)
    sequences = [before if before.key in plan.ready else after for before, after in zip(entries, filled, strict=True)]
    return signed(
        replace(
            draft,
            origins=tuple(draft.origins[origin] for origin in origins),
            shards=tuple(shard.shard for shard in kept),
            sequences=tuple(sequences),
            statistics=draft.statistics or sum_totals(shard.totals for shard in kept),
        )
    )


def _report_left_out(plan: ArchivePlan, written: Sequence[WrittenShard], origins: Sequence[int]) -> None:
    """Note which parts hold no measurement, whole or in some of their sequences."""
    num_blind = len(plan.draft.origins) - len(origins)
    if num_blind:
        num_parts = len(plan.draft.origins)
        sys.stderr.write(f"{num_blind} of {num_parts} parts hold no measurement in any frame and are left out\n")

    left_out = {key for shard in written for key in shard.left_out}
    of_others = sum(
        planned.key in left_out and planned.origin in origins for sequences in plan.sequences for planned in sequences
    )
    if of_others:
        sys.stderr.write(f"left out as well, because they hold no measurement: sequences of other parts, {of_others}\n")
