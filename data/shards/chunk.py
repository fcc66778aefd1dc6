"""The header of a stored frame: read and compared before Blosc2 itself sees the buffer.

A Blosc2 buffer may ask for more than its bytes: code that a filter or codec runs, data that lie elsewhere (lazy
chunks), pixels left as the memory was. Only what `data.shards.writer.pack_frame` writes is let through; the blocks
behind the header are for Blosc2 to check. Layout: Blosc Chunk Format, README_CHUNK_FORMAT.rst of c-blosc2 (header of 32
bytes, little endian).
"""

import struct
from typing import Any, Final

from ..errors import DataError

HEADER: Final = struct.Struct("<BBBBiii6sBB6sBB")
FIELDS: Final = (
    *("version", "versionlz", "flags", "typesize", "nbytes", "blocksize", "cbytes"),
    *("filters", "codec", "codec_meta", "filters_meta", "reserved", "blosc2_flags"),
)
EXTENDED: Final = 0b0000_0101
"""In flags, both shuffle bits: the header is the long one."""
COPIED: Final = 0b0000_0010
"""In flags: the pixels are stored as they are, behind the header."""
NOT_SPLIT: Final = 0b0001_0000
ZSTD: Final = 0b1000_0000
"""Codec 4 in the upper three bits; buffers too small to compress are marked 0 there."""
FLAGS: Final = (EXTENDED | ZSTD, EXTENDED | COPIED | ZSTD, EXTENDED | COPIED)
ZEROS: Final = 0b0001_0000
"""In blosc2_flags: every pixel is zero, and nothing follows the header."""
WRITTEN: Final[dict[str, tuple[frozenset[Any], str]]] = {
    "version": (frozenset({5}), "5"),
    "versionlz": (frozenset({1}), "1"),
    "flags": (frozenset({*FLAGS, *(flags | NOT_SPLIT for flags in FLAGS)}), "zstd behind an extended header"),
    "typesize": (frozenset({2}), "2"),
    "filters": (frozenset({bytes((1, 0, 0, 0, 0, 0))}), "byte shuffle alone"),
    # Zstd's own number, as releases from 2.0 on note it beside the flags, or none.
    "codec": (frozenset({0, 5}), "zstd"),
    "codec_meta": (frozenset({0}), "zstd without parameters"),
    "filters_meta": (frozenset({bytes(6)}), "a filter without parameters"),
    "reserved": (frozenset({0}), "0"),
    "blosc2_flags": (frozenset({0, ZEROS}), "no lazy, special or dictionary chunk"),
}
"""What packing writes into the fields that do not depend on the frame's size, and what that means."""


def check_chunk(buffer: memoryview, num_bytes: int) -> None:
    """Refuse a buffer that is no whole Blosc2 chunk of 16-bit counts, byte-shuffled and compressed with zstd.

    Args:
        buffer: The stored bytes of one frame.
        num_bytes: Bytes of the decoded frame.

    Raises:
        DataError: Naming the field of the header, what was found and what was expected.
    """
    if len(buffer) < HEADER.size:
        raise DataError(f"is no Blosc2 buffer: {len(buffer)} bytes; expected a header of {HEADER.size} at least")
    header = dict(zip(FIELDS, HEADER.unpack_from(buffer), strict=True))

    # Sizes first: Blosc2 believes them, whatever memory there is.
    decoded = header["nbytes"]
    stored = header["cbytes"]
    if (decoded, stored) != (num_bytes, len(buffer)):
        raise DataError(
            f"its Blosc2 header says {decoded} bytes from {stored}; expected {num_bytes} from {len(buffer)}"
        )

    # What runs and what is read besides the buffer depends on the other fields.
    for name, (values, meaning) in WRITTEN.items():
        if header[name] not in values:
            value = f"{header[name]:08b}" if "flags" in name else header[name]
            raise DataError(f"its Blosc2 header has {name} {value}; expected {meaning}")
