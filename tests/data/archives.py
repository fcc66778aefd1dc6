"""Archives for tests: indexes made in memory, and small packed ones."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rainspark.data.frames import Crop, Grid
from rainspark.data.pack.resume import close_state
from rainspark.data.pack.writing import ArchivePlan, write_archive
from rainspark.data.sequences import cut_run
from rainspark.data.shards.index import Index, SequenceEntry, ShardEntry, draft_index
from rainspark.data.shards.origins import Origin
from rainspark.data.shards.writer import PackedFrame, PlannedSequence, pack_frame
from rainspark.data.store.storage import Storage, open_storage
from rainspark.data.windows.selection import WindowTable

DAY_S = 86400
CADENCE_S = 300
FIRST_S = 1262304000
GAP_FRAMES = 7
"""Frames lost between two runs."""


def whole_origin(rows: int, cols: int, source: str = "test", scale_mmh: float = 0.12, pixel_km: float = 1.0) -> Origin:
    """Make an origin that packs the whole of a grid."""
    return Origin(
        source=source,
        licence="none",
        scale_mmh=scale_mmh,
        grid=Grid(rows=rows, cols=cols, pixel_km=pixel_km, projection="", x0_km=0.0, y0_km=0.0),
        crop=Crop(row0=0, row1=rows, col0=0, col1=cols),
    )


def index_in_memory(
    runs: Sequence[int],
    *,
    window: int,
    max_frames: int,
    num_shards: int,
    frame_bytes: int = 1000,
    rain: Sequence[float] = (0.5,),
) -> Index:
    """Make the index of an archive with runs of so many frames, dealt round-robin to the shards as pack does.

    Args:
        runs: Frames of each gap-free run.
        window: Packed window.
        max_frames: Longest sequence.
        num_shards: Shards.
        frame_bytes: Compressed bytes a frame.
        rain: Rain fractions, repeated over the frames.
    """
    sequences: list[SequenceEntry] = []
    filled = [0] * num_shards
    time_s, seen = FIRST_S, 0
    for num_run_frames in runs:
        for piece in cut_run(num_run_frames, window, max_frames):
            shard = len(sequences) % num_shards
            frames_bytes = piece.num_frames * frame_bytes
            offset, num_bytes = filled[shard], frames_bytes + 2048
            key = f"s{len(sequences):06d}"
            sequences.append(
                SequenceEntry(
                    key=key,
                    origin=0,
                    shard=shard,
                    start_s=time_s + piece.first * CADENCE_S,
                    num_frames=piece.num_frames,
                    num_starts=piece.num_starts,
                    offset=offset,
                    num_bytes=num_bytes,
                    sha256=hashlib.sha256(key.encode()).hexdigest(),
                    json_offset=offset + 512,
                    json_bytes=512,
                    frames_offset=offset + 2048,
                    frames_bytes=frames_bytes,
                    frame_ends=tuple(range(frame_bytes, frames_bytes + 1, frame_bytes)),
                    rain_fraction=tuple(rain[(seen + piece.first + i) % len(rain)] for i in range(piece.num_frames)),
                    missing=(0,) * piece.num_frames,
                    rain_after=-1.0,
                    frame_digests="0123456789abcdef" * piece.num_frames,
                    wetness_1mmh=(0.0,) * piece.num_frames,
                    wetness_5mmh=(0.0,) * piece.num_frames,
                )
            )
            filled[shard] += num_bytes
        seen += num_run_frames
        time_s += (num_run_frames + GAP_FRAMES) * CADENCE_S
    draft = draft_index([whole_origin(32, 32)], cadence_s=CADENCE_S, window=window, max_frames=max_frames)
    shards = tuple(
        ShardEntry(name=f"shard-{i:05d}.tar", num_bytes=filled[i] + 1024, sha256="0" * 64) for i in range(num_shards)
    )
    # Not signed: the digest of a long archive takes longer than planning it.
    return replace(draft, shards=shards, sequences=tuple(sequences))


def write_planned(
    folder: str | Path,
    origins: Sequence[Origin],
    planned: Sequence[PlannedSequence],
    frames_of: Callable[[PlannedSequence], Iterable[PackedFrame]],
    *,
    window: int,
    max_frames: int,
    num_shards: int,
    ready: bool = False,
) -> tuple[Storage, Index]:
    """Write an archive of given sequences, dealt round-robin to shards as pack does.

    Args:
        folder: Where.
        origins: The origins.
        planned: The sequences.
        frames_of: Gives the frames of a sequence.
        window: Longest window.
        max_frames: Longest sequence.
        num_shards: Shards.
        ready: Whether the sequences are ready windows.
    """
    num_shards = min(num_shards, len(planned))
    plan = ArchivePlan(
        draft=draft_index(origins, cadence_s=CADENCE_S, window=window, max_frames=max_frames),
        sequences=tuple(tuple(planned[i::num_shards]) for i in range(num_shards)),
        ready=frozenset(sequence.key for sequence in planned if ready),
    )
    storage = open_storage(folder)
    index = write_archive(storage, plan, lambda planned, advance: frames_of(planned))  # noqa: ARG005
    close_state(storage)
    return storage, index


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedArchive:
    """An archive on disk and the frames it was packed from, uint16 (rows, cols), by sequence key."""

    folder: Path
    storage: Storage
    index: Index
    counts_thw: dict[str, npt.NDArray[np.uint16]]

    def window(self, table: WindowTable, row: int) -> npt.NDArray[np.uint16]:
        """Cut a window from the frames that were packed: uint16 (window, rows, cols)."""
        key = self.index.sequences[int(table.sequence[row])].key
        start = int(table.start[row])
        return self.counts_thw[key][start : start + table.window]


def pack_archive(
    folder: Path,
    runs: Iterable[npt.NDArray[np.uint16]],
    *,
    window: int,
    max_frames: int,
    num_shards: int,
    keep_counts: bool = True,
) -> PackedArchive:
    """Pack runs of frames, uint16 (t, rows, cols), as pack does: cut into sequences, dealt round-robin to shards."""
    planned: list[PlannedSequence] = []
    times_s: list[int] = []
    packed: list[PackedFrame] = []
    known: dict[bytes, PackedFrame] = {}
    counts_thw: dict[str, npt.NDArray[np.uint16]] = {}
    rows = cols = 0
    for run_thw in runs:
        first = len(times_s)
        rows, cols = run_thw.shape[1:]
        begin_s = times_s[-1] + (1 + GAP_FRAMES) * CADENCE_S if times_s else FIRST_S
        times_s += [begin_s + i * CADENCE_S for i in range(len(run_thw))]
        for counts_hw in run_thw:
            digest = hashlib.sha256(counts_hw.tobytes()).digest()
            if digest not in known:
                known[digest] = pack_frame(counts_hw, 0.12)
            packed.append(known[digest])
        for piece in cut_run(len(run_thw), window, max_frames):
            key = f"s{len(planned):04d}"
            planned.append(
                PlannedSequence(
                    key=key,
                    origin=0,
                    start_s=times_s[first + piece.first],
                    first=first + piece.first,
                    num_frames=piece.num_frames,
                    num_starts=piece.num_starts,
                )
            )
            if keep_counts:
                counts_thw[key] = run_thw[piece.first : piece.first + piece.num_frames]

    storage, index = write_planned(
        folder,
        [whole_origin(rows, cols)],
        planned,
        lambda sequence: packed[sequence.first : sequence.first + sequence.num_frames],
        window=window,
        max_frames=max_frames,
        num_shards=num_shards,
    )
    return PackedArchive(folder=folder, storage=storage, index=index, counts_thw=counts_thw)


def random_runs(
    lengths: Sequence[int], rows: int, cols: int, seed: int = 0, missing: bool = False
) -> list[npt.NDArray[np.uint16]]:
    """Make runs of random frames; with `missing`, one frame in five lacks a pixel."""
    rng = np.random.default_rng(seed)
    runs = [rng.integers(0, 50, (length, rows, cols)).astype(np.uint16) for length in lengths]
    for run_thw in runs if missing else ():
        run_thw[rng.random(len(run_thw)) < 0.2, 0, 0] = 65535
    return runs
