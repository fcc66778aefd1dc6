"""The survey before packing: what all files say about themselves, checked, and the archive that will come of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tqdm import tqdm

from data.frames import Crop, DataError, iso_time
from data.sequences import cut_run, find_runs
from data.shard_writer import PlannedSequence
from data.shards import SCHEMA_VERSION
from data.sources import knmi

MIN_SHARDS: Final = 16
MEGABYTE: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How to pack.

    Attributes:
        crop: Part of the grid to keep; None for all of it.
        window: Longest window that shall be read, in frames.
        max_frames: Frames of a sequence at most.
        cadence_s: Seconds from frame to frame.
        shard_bytes: Size that shards shall not pass by much.
    """

    crop: Crop | None = None
    window: int = 24
    max_frames: int = 144
    cadence_s: int = 300
    shard_bytes: int = 256 * MEGABYTE


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be packed, known before anything is written.

    Attributes:
        refs: The files in time order.
        sha256s: Digest of each file's bytes, in the same order.
        header: What all of them agree on.
        crop: Part of the grid.
        options: How to pack.
        sequences: The sequences, in time order.
        num_shards: How many tars they are dealt to.
        digest: SHA-256 of options and input bytes: equal digests give equal archives.
    """

    refs: tuple[knmi.FileRef, ...]
    sha256s: tuple[str, ...]
    header: knmi.Header
    crop: Crop
    options: PackOptions
    sequences: tuple[PlannedSequence, ...]
    num_shards: int
    digest: str

    @property
    def times_s(self) -> tuple[int, ...]:
        """End times of the frames."""
        return tuple(ref.end_time_s for ref in self.refs)


def survey(paths: Sequence[Path], options: PackOptions) -> Job:
    """Read what all files say about themselves, and plan the archive; nothing is written.

    Raises:
        DataError: Naming the file, whatever of it can be known without decoding pixels.
    """
    refs = knmi.scan(paths)
    # The cheapest check comes first: file names alone tell a wrong cadence.
    runs = find_runs([ref.end_time_s for ref in refs], options.cadence_s)
    digest = hashlib.sha256(repr((SCHEMA_VERSION, options)).encode())
    first: knmi.Header | None = None
    num_input_bytes = 0
    sha256s = []
    for ref in tqdm(refs, desc="checking", unit=" files", mininterval=0.5):
        header = knmi.read_header(ref.path)
        if first is None:
            first = header
            if options.crop is not None:
                options.crop.check_inside(header.grid.rows, header.grid.cols)
        _check_agreement(ref.path, header, refs[0].path, first)
        num_file_bytes, sha256 = digest_of(ref.path)
        num_input_bytes += num_file_bytes
        sha256s.append(sha256)
        digest.update(ref.end_time_s.to_bytes(8, "little", signed=True) + bytes.fromhex(sha256))
    assert first is not None
    grid = first.grid
    crop = options.crop or Crop(row0=0, row1=grid.rows, col0=0, col1=grid.cols)
    sequences = tuple(
        PlannedSequence(
            key=_key(refs[run.first + piece.first].end_time_s),
            first=run.first + piece.first,
            num_frames=piece.num_frames,
            num_starts=piece.num_starts,
        )
        for run in runs.runs
        for piece in cut_run(run.num_frames, options.window, options.max_frames)
    )
    # Gzip-compressed composites and Blosc2 buffers are about as long a pixel, so the files' sizes tell the shards'.
    stored = sum(planned.num_frames for planned in sequences) / len(refs)
    expected_bytes = num_input_bytes * stored * (crop.rows * crop.cols) / (grid.rows * grid.cols)
    num_shards = min(max(-int(-expected_bytes // options.shard_bytes), MIN_SHARDS), len(sequences))
    return Job(
        refs=tuple(refs),
        sha256s=tuple(sha256s),
        header=first,
        crop=crop,
        options=options,
        sequences=sequences,
        num_shards=num_shards,
        digest=digest.hexdigest(),
    )


def _check_agreement(path: Path, header: knmi.Header, first_path: Path, first: knmi.Header) -> None:
    for name in ("grid", "scale_mmh", "missing_codes", "licence", "source"):
        found, expected = getattr(header, name), getattr(first, name)
        if found != expected:
            raise DataError(
                f"{path}: {name} is {found}, but {expected} in {first_path}; expected one product in one archive: "
                "pack them apart"
            )


def digest_of(path: Path) -> tuple[int, str]:
    """Give a file's length in bytes and its SHA-256; raises DataError when it cannot be read."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return file.tell(), sha256
    except OSError as error:
        raise DataError(f"{path}: could not read: {error.strerror or error}") from error


def _key(time_s: int) -> str:
    return iso_time(time_s).replace("-", "").replace(":", "")
