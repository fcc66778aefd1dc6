"""From a sequence's bytes to frames in memory: checks, Blosc2, and the cache of decoded frames."""

import json
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..frames import iso_time
from .chunk import check_chunk
from .index import Index, SequenceEntry, describe_archive, verify_sequence_bytes


def check_sequence(index: Index, entry: SequenceEntry, data: bytes) -> None:
    """Check a sequence's bytes against the index before anything of them is used: digest first, then its JSON member.

    Raises:
        DataError: Naming shard and key, what was expected and what was found.
    """
    verify_sequence_bytes(index, entry, data)
    wrong = wrong_in_json(index, entry, data)
    if wrong:
        raise DataError(
            f"shard {index.shards[entry.shard].name}, key {entry.key}: {wrong[0]}; "
            "the index is not this shard's: copy both from one place, or pack the source again"
        )


def wrong_in_json(index: Index, entry: SequenceEntry, data: bytes) -> list[str]:
    """Compare a sequence's KEY.json with the index, all of it; returns what differs, in words."""
    begin = entry.json_offset - entry.offset
    try:
        found = json.loads(data[begin : begin + entry.json_bytes])
    except (ValueError, RecursionError) as error:
        return [f"{entry.key}.json is no JSON ({error})"]
    expected: dict[str, Any] = {
        **describe_archive(index, index.origins[entry.origin]),
        "schema_version": index.schema_version,
        "key": entry.key,
        "start_s": entry.start_s,
        "start_time": iso_time(entry.start_s),
        "num_frames": entry.num_frames,
        "starts": entry.num_starts,
        "frame_ends": list(entry.frame_ends),
        "rain_fraction": list(entry.rain_fraction),
        "missing": list(entry.missing),
    }
    said = found if isinstance(found, dict) else {}
    return [
        f"{entry.key}.json says {name} = {said.get(name)!r:.80}, the index says {value!r:.80}"
        for name, value in expected.items()
        if said.get(name) != value
    ]


def decode_frame(
    index: Index, entry: SequenceEntry, frames: memoryview, frame: int, counts_hw: npt.NDArray[np.uint16]
) -> None:
    """Decode one frame into place, without the GIL once `blosc2.set_releasegil(True)` was called.

    The buffer's own header is checked first: Blosc2 writes as many bytes as it says, whatever the room there is, and
    runs whatever filters and codecs it names.

    Args:
        index: The archive's index.
        entry: The sequence.
        frames: The data of its KEY.frames member.
        frame: Number of the frame in the sequence.
        counts_hw: C-contiguous uint16 (rows, cols), overwritten.

    Raises:
        DataError: For a buffer of other sizes than the index says, of another kind than packing writes, or one that
            Blosc2 cannot decode.
    """
    begin = entry.frame_ends[frame - 1] if frame else 0
    buffer = frames[begin : entry.frame_ends[frame]]
    where = f"shard {index.shards[entry.shard].name}, key {entry.key}, frame {frame}"
    try:
        check_chunk(buffer, counts_hw.nbytes)
    except DataError as error:
        raise DataError(f"{where} of {index.rows} x {index.cols} uint16: {error}; pack this source again") from error
    try:
        blosc2.decompress2(buffer, dst=counts_hw, nthreads=1)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{where}: cannot be decoded ({error}); pack this source again") from error
