"""From a sequence's bytes to frames in memory: checks first, then Blosc2."""

import hashlib

import numpy as np
import numpy.typing as npt

from ..errors import DamagedError, DataError
from ..store.storage import Storage
from .blosc import blosc2
from .chunk import check_chunk
from .description import wrong_in_json
from .index import DIGEST_DIGITS, Index, SequenceEntry, verify_sequence_bytes


def check_sequence(index: Index, entry: SequenceEntry, data: bytes) -> None:
    """Check a sequence's bytes against the index before anything of them is used: digest first, then its JSON member.

    Raises:
        DamagedError: Naming shard and key, what was expected and what was found.
    """
    verify_sequence_bytes(index, entry, data)
    wrong = wrong_in_json(index, entry, data)
    if wrong:
        raise DamagedError(
            f"shard {index.shards[entry.shard].name}, key {entry.key}: {wrong[0]}; "
            "the index is not this shard's: copy both from one place, or pack the source again"
        )


def read_sequence(storage: Storage, index: Index, entry: SequenceEntry) -> memoryview:
    """Read and check a sequence: the data of its KEY.frames member.

    Raises:
        DamagedError: It is not there, or not what the index says.
        DataError: The storage fails.
    """
    name = index.shards[entry.shard].name
    # What fails the check is read again where the way may have damaged it.
    stop = entry.offset + entry.num_bytes
    data = storage.read_checked(name, entry.offset, stop, lambda data: check_sequence(index, entry, data))
    return entry.frames_of(data)


def checked_frame(index: Index, entry: SequenceEntry, frames: memoryview, frame: int) -> memoryview:
    """Take one frame's buffer, and check its own header before Blosc2 sees it.

    Blosc2 writes as many bytes as the header says, whatever room there is, and runs whatever filters and codecs it
    names.

    Args:
        index: The archive's index.
        entry: The sequence.
        frames: The data of its KEY.frames member.
        frame: Number of the frame in the sequence.

    Raises:
        DataError: For a buffer of other sizes than the index says, or of another kind than packing writes.
    """
    begin = entry.frame_ends[frame - 1] if frame else 0
    buffer = frames[begin : entry.frame_ends[frame]]
    try:
        check_chunk(buffer, index.rows * index.cols * np.dtype(np.uint16).itemsize)
    except DataError as error:
        size = f"{index.rows} x {index.cols} uint16"
        raise DataError(f"{_name(index, entry, frame)} of {size}: {error}; pack this source again") from error
    return buffer


def frame_digest(entry: SequenceEntry, frames: memoryview, frame: int) -> str:
    """Digest one frame's buffer as the index does, from the data of the sequence's KEY.frames member."""
    begin = entry.frame_ends[frame - 1] if frame else 0
    return hashlib.sha256(frames[begin : entry.frame_ends[frame]]).hexdigest()[:DIGEST_DIGITS]


def decode_frame(
    index: Index, entry: SequenceEntry, frames: memoryview, frame: int, counts_hw: npt.NDArray[np.uint16]
) -> None:
    """Decode one frame into place, without the GIL once `blosc2.set_releasegil(True)` was called.

    Args:
        index: The archive's index.
        entry: The sequence.
        frames: The data of its KEY.frames member.
        frame: Number of the frame in the sequence.
        counts_hw: C-contiguous uint16 (rows, cols), overwritten.

    Raises:
        DataError: As `checked_frame`, or for a buffer that Blosc2 cannot decode.
    """
    # Blosc2's own errors name neither shard nor frame.
    buffer = checked_frame(index, entry, frames, frame)
    try:
        blosc2.decompress2(buffer, dst=counts_hw, nthreads=1)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{_name(index, entry, frame)}: cannot be decoded ({error}); pack this source again") from error


def _name(index: Index, entry: SequenceEntry, frame: int) -> str:
    return f"shard {index.shards[entry.shard].name}, key {entry.key}, frame {frame}"
