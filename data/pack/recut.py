"""Plan how shards are packed anew: what the archives hold, put together into runs and cut into other sequences."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..frames import iso_time
from ..json_checks import canonical, demand, shown
from ..sequences import cut_run
from ..shards.index import SCHEMA_VERSION, Index, SequenceEntry, draft_index
from ..shards.origins import Origin, check_origins
from ..shards.summary import rain_of
from ..shards.timeline import ready_origins
from ..shards.totals import sum_totals
from ..shards.writer import PlannedSequence
from ..store.storage import Storage
from .survey import MEGABYTE, MIN_SHARDS
from .tiling import time_key
from .writing import ArchivePlan


@dataclass(frozen=True, kw_only=True)
class ReshardOptions:
    """What the new archive shall be like.

    Attributes:
        window: Longest window that shall be read, in frames; None keeps the archives' own.
        max_frames: Frames of a sequence at most; None keeps the archives' own.
        shard_bytes: Size that shards shall not pass by much.
    """

    window: int | None = None
    max_frames: int | None = None
    shard_bytes: int = 256 * MEGABYTE


@dataclass(frozen=True, kw_only=True)
class OpenArchive:
    """One archive that is read.

    Attributes:
        storage: Where it lies.
        index: Its index.
        origin_of: Position of each of its origins in the new archive.
        ready: Origins of its index whose windows are ready ones.
    """

    storage: Storage
    index: Index
    origin_of: tuple[int, ...]
    ready: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Frames that are copied from one sequence."""

    archive: int
    sequence: int
    first: int
    num_frames: int


@dataclass(frozen=True, kw_only=True)
class ReshardJob:
    """The new archive before anything of it is written.

    Attributes:
        archives: What is read.
        plan: The archive; its sequences lie in time order.
        segments: Where the frames of each sequence come from, by key.
    """

    archives: tuple[OpenArchive, ...]
    plan: ArchivePlan
    segments: dict[str, tuple[Segment, ...]]


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """One sequence of the new archive, where its frames come from, and whether it is a ready window."""

    planned: PlannedSequence
    segments: tuple[Segment, ...]
    ready: bool = False


_Owner = tuple[int, int, SequenceEntry]
"""An archive's place, a sequence's in it, and the sequence."""


def plan_reshard(opened: Sequence[tuple[Storage, Index]], options: ReshardOptions) -> ReshardJob:
    """Lay out the new archive from the indexes alone.

    Args:
        opened: The archives that are read.
        options: What the new one shall be like.

    Raises:
        DataError: They do not fit together, a frame stands in two of them, or ready windows would have to be cut.
    """
    origins = _joined_origins(opened)
    parts = [origin.part for origin in origins]
    archives = tuple(
        OpenArchive(
            storage=storage,
            index=index,
            origin_of=tuple(parts.index(origin.part) for origin in index.origins),
            ready=ready_origins(index),
        )
        for storage, index in opened
    )

    # What no option says is as it was, where all archives agree.
    window = options.window or _own(archives, "window", [index.window for _, index in opened])
    max_frames = options.max_frames or _own(archives, "frames", [index.max_frames for _, index in opened])
    cut_run(1, window, max_frames)
    _check_ready(archives, options, window, max_frames)

    cuts = [cut for number in range(len(origins)) for cut in _cuts(archives, origins, number, window, max_frames)]
    cuts.sort(key=lambda cut: (cut.planned.start_s, cut.planned.origin))
    # As many shards as their size asks for, but enough for the usual number of readers.
    num_bytes = sum(_stored_bytes(archives, cut.segments) for cut in cuts)
    num_shards = min(max(-(-num_bytes // options.shard_bytes), MIN_SHARDS), len(cuts))

    # The same archives and options make the same archive.
    made_from = (SCHEMA_VERSION, window, max_frames, options.shard_bytes, [index.fingerprint for _, index in opened])
    draft = draft_index(
        origins,
        cadence_s=opened[0][1].cadence_s,
        window=window,
        max_frames=max_frames,
        # Every frame is owned once before and after, so the sums stay what they were.
        statistics=sum_totals({name: rain_of(index, name) for name in index.sources} for _, index in opened),
        packed_from=hashlib.sha256(canonical(made_from)).hexdigest(),
    )
    plan = ArchivePlan(
        draft=draft,
        sequences=tuple(tuple(cut.planned for cut in cuts[number::num_shards]) for number in range(num_shards)),
        ready=frozenset(cut.planned.key for cut in cuts if cut.ready),
    )
    return ReshardJob(archives=archives, plan=plan, segments={cut.planned.key: cut.segments for cut in cuts})


def _joined_origins(opened: Sequence[tuple[Storage, Index]]) -> tuple[Origin, ...]:
    """List the origins of all archives, each once; raises DataError for an archive that does not fit the others."""
    first = opened[0][1]
    origins: tuple[Origin, ...] = ()
    for (storage, index), own in zip(opened, _read_as_newest(opened), strict=True):
        origins = tuple(dict.fromkeys((*origins, *own)))
        try:
            demand(
                index.cadence_s == first.cadence_s, "cadence_s", index.cadence_s, f"{first.cadence_s}, as in the first"
            )
            check_origins(origins, first.rows, first.cols)
        except DataError as error:
            raise DataError(
                f"{storage.url} does not fit the other archives: {error}; one archive has one cadence and size, and "
                "one scale and licence of each source: keep them apart"
            ) from error
    return origins


def _read_as_newest(opened: Sequence[tuple[Storage, Index]]) -> list[tuple[Origin, ...]]:
    """Fill in how each archive's origins were read: as the source's newest archive says, where one of them does.

    Archives of schema 2 do not say it, and names of files change over the years: the newest ones are what a forecast
    has to read.
    """
    by_time = sorted((index for _, index in opened), key=lambda index: index.sequences[-1].start_s)
    known = {origin.source: origin for index in by_time for origin in index.origins if origin.recipe is not None}

    def filled(origin: Origin) -> Origin:
        newest = known.get(origin.source, origin)
        period_s = newest.period_s if origin.recipe is None else origin.period_s
        return replace(origin, recipe=newest.recipe, period_s=period_s)

    return [tuple(map(filled, index.origins)) for _, index in opened]


def _own(archives: Sequence[OpenArchive], option: str, values: Sequence[int]) -> int:
    """Take the value that all archives share."""
    if len(set(values)) > 1:
        listed = ", ".join(f"{archive.storage.url}: {value}" for archive, value in zip(archives, values, strict=True))
        raise DataError(f"the archives were packed with different --{option} ({listed}); give the one to use")
    return values[0]


def _check_ready(archives: Sequence[OpenArchive], options: ReshardOptions, window: int, max_frames: int) -> None:
    """Raise DataError where ready windows would have to be cut."""
    all_ready = all(len(archive.ready) == len(archive.index.origins) for archive in archives)
    for archive in archives:
        own = archive.index.window
        recut = all_ready and options.max_frames not in (None, archive.index.max_frames)
        if archive.ready and (recut or window != own or max_frames < own):
            raise DataError(
                f"{archive.storage.url} holds ready windows of {own} frames, which cannot be cut anew; leave --window "
                f"at {own}, and --frames away"
            )


def _cuts(
    archives: Sequence[OpenArchive], origins: Sequence[Origin], number: int, window: int, max_frames: int
) -> Iterator[_Cut]:
    """Put the runs of one origin together from what the sequences own, and cut them; ready windows stay as they are."""
    cadence_s = archives[0].index.cadence_s
    owners = [
        (archive, sequence, entry)
        for archive, opened in enumerate(archives)
        for sequence, entry in enumerate(opened.index.sequences)
        if opened.origin_of[entry.origin] == number
    ]
    owned = _owned_frames(owners, cadence_s)
    _check_distinct(archives, origins[number], owners, owned, cadence_s)

    # Runs are stretches at the exact cadence of frames that are no ready windows.
    ready = np.array([entry.origin in archives[archive].ready for archive, _, entry in owners], bool)
    in_runs = owned[~ready[owned["owner"]]]
    edges = [0, *(np.flatnonzero(np.diff(in_runs["time_s"]) != cadence_s) + 1).tolist(), len(in_runs)]
    suffix = f"-{number:04d}" if len(origins) > 1 else ""
    for begin, end in pairwise(edges):
        if end > begin:
            yield from _cut_stretch(owners, in_runs[begin:end], number, suffix, window, max_frames)

    for archive, sequence, entry in (owner for owner, is_ready in zip(owners, ready, strict=True) if is_ready):
        whole = Segment(archive=archive, sequence=sequence, first=0, num_frames=entry.num_frames)
        yield _cut(entry.start_s, number, suffix, entry.num_starts, (whole,), ready=True)


def _owned_frames(owners: Sequence[_Owner], cadence_s: int) -> npt.NDArray[np.void]:
    """List the frames that sequences own in time order: (n,) of time_s, owner (its place in `owners`), frame in it."""
    counts = [entry.num_starts for _, _, entry in owners]
    owned = np.zeros(sum(counts), [("time_s", np.int64), ("owner", np.int64), ("frame", np.int64)])
    if len(owned):
        owned["owner"] = np.repeat(np.arange(len(owners)), counts)
        owned["frame"] = np.concatenate([np.arange(count) for count in counts])
        first_s = np.array([entry.start_s for _, _, entry in owners], np.int64)
        owned["time_s"] = first_s[owned["owner"]] + cadence_s * owned["frame"]
    return owned[np.argsort(owned["time_s"], kind="stable")]


def _check_distinct(
    archives: Sequence[OpenArchive],
    origin: Origin,
    owners: Sequence[_Owner],
    owned: npt.NDArray[np.void],
    cadence_s: int,
) -> None:
    """Raise DataError where two sequences own a frame of one time, or frames closer than the cadence."""
    # In time order, frames that come twice stand beside each other.
    steps_s = np.diff(owned["time_s"])
    for at in np.flatnonzero(steps_s < cadence_s)[:1].tolist():
        first, second = (archives[owners[owner][0]].storage.url for owner in owned["owner"][at : at + 2])
        what = f"the frame of {iso_time(int(owned['time_s'][at + 1]))} of {shown(origin.source)}"
        if steps_s[at] == 0:
            raise DataError(f"{what} stands in {first} and in {second}; expected every frame once: leave one out")
        raise DataError(
            f"{what} in {second} comes {steps_s[at]} s after one in {first}; expected {cadence_s} s at least"
        )


def _cut_stretch(
    owners: Sequence[_Owner], owned: npt.NDArray[np.void], origin: int, suffix: str, window: int, max_frames: int
) -> Iterator[_Cut]:
    """Cut owned frames that follow each other, and the ones behind that their last windows need."""
    last = owned[-1]
    # Where a tile's next sequence was left out, nobody owns the frames that the last windows of this one end with.
    behind = owners[last["owner"]][2].num_frames - int(last["frame"]) - 1
    for piece in cut_run(len(owned) + behind, window, max_frames):
        num_starts = min(piece.num_starts, len(owned) - piece.first)
        if num_starts < 1:
            continue

        # Walk over the piece, from each frame's owner as far as that one's frames go.
        segments = []
        position = piece.first
        stop = piece.first + piece.num_frames
        while position < stop:
            frame = owned[min(position, len(owned) - 1)]
            archive, sequence, entry = owners[frame["owner"]]
            first = int(frame["frame"]) + max(position - len(owned) + 1, 0)
            # What a sequence holds beyond its own frames is the next one's too: one sequence less is read.
            count = min(entry.num_frames - first, stop - position)
            segments.append(Segment(archive=archive, sequence=sequence, first=first, num_frames=count))
            position += count
        yield _cut(int(owned["time_s"][piece.first]), origin, suffix, num_starts, tuple(segments))


def _cut(
    start_s: int, origin: int, suffix: str, num_starts: int, segments: tuple[Segment, ...], *, ready: bool = False
) -> _Cut:
    planned = PlannedSequence(
        key=time_key(start_s) + suffix,
        origin=origin,
        start_s=start_s,
        first=0,
        num_frames=sum(segment.num_frames for segment in segments),
        num_starts=num_starts,
    )
    return _Cut(planned=planned, segments=segments, ready=ready)


def _stored_bytes(archives: Sequence[OpenArchive], segments: Sequence[Segment]) -> int:
    total = 0
    for segment in segments:
        ends = (0, *archives[segment.archive].index.sequences[segment.sequence].frame_ends)
        total += ends[segment.first + segment.num_frames] - ends[segment.first]
    return total
