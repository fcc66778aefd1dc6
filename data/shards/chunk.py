"""The header of a stored frame: read and compared before Blosc2 itself sees the buffer.

A Blosc2 buffer may ask for more than its bytes: code that a filter or codec runs, data that lie elsewhere (lazy
chunks), pixels left as the memory was. Only what `data.shards.writer.pack_frame` writes is let through. Layout: Blosc
Chunk Format, README_CHUNK_FORMAT.rst of c-blosc2 (header of 32 bytes, little endian; blocks section).
"""

import struct
from typing import Any, Final

from ..errors import DataError

HEADER: Final = struct.Struct("<BBBBiii6sBB6sBB")
"""version, versionlz, flags, typesize, nbytes, blocksize, cbytes, filter codes, codec, its meta, filter meta, reserved,
blosc2_flags."""
VERSION: Final = 5
VERSION_LZ: Final = 1
TYPE_BYTES: Final = 2
EXTENDED: Final = 0b0000_0101
"""Both shuffle bits: the header is the long one."""
COPIED: Final = 0b0000_0010
"""The pixels are stored as they are, behind the header."""
NOT_SPLIT: Final = 0b0001_0000
ZSTD: Final = 0b1000_0000
"""Codec 4 in the upper three bits; buffers too small to compress are marked 0 there."""
FLAGS: Final = frozenset({EXTENDED | ZSTD, EXTENDED | COPIED | ZSTD, EXTENDED | COPIED})
BYTE_SHUFFLE: Final = bytes((1, 0, 0, 0, 0, 0))
NO_META: Final = bytes(6)
CODECS: Final = (0, 5)
"""Zstd's own number, as releases from 2.0 on note it beside the flags, or none."""
FIXED: Final = (VERSION, VERSION_LZ, TYPE_BYTES, BYTE_SHUFFLE, 0, NO_META, 0)
"""version, versionlz, typesize, filter codes, codec meta, filter meta, reserved: the same in every frame."""
ORDINARY: Final = 0
ZEROS: Final = 0b0001_0000
"""In blosc2_flags: every pixel is zero, and nothing follows the header."""


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
    header = HEADER.unpack_from(buffer)
    (version, version_lz, flags, type_bytes, decoded, block_bytes, stored, filters, codec, codec_meta, filter_meta,
     reserved, special) = header  # fmt: skip
    if decoded != num_bytes or stored != len(buffer):
        raise DataError(
            f"its Blosc2 header says {decoded} bytes from {stored}; expected {num_bytes} from {len(buffer)}"
        )
    fixed = (version, version_lz, type_bytes, filters, codec_meta, filter_meta, reserved)
    # Words are made for what is wrong only: this runs for every frame that is decoded.
    if fixed != FIXED or flags & ~NOT_SPLIT not in FLAGS or codec not in CODECS or special not in (ORDINARY, ZEROS):
        raise DataError(f"its Blosc2 header has {_wrong_field(header)}")
    if not 0 < block_bytes <= num_bytes:
        raise DataError(f"its Blosc2 header has blocksize {block_bytes}; expected 1 to {num_bytes}")
    if special == ORDINARY and not flags & COPIED:
        _check_blocks(buffer, -(-num_bytes // block_bytes))
        return
    expected = HEADER.size + (num_bytes if flags & COPIED else 0)
    if stored != expected or (special == ZEROS and flags & COPIED):
        raise DataError(f"its Blosc2 header has cbytes {stored}; expected {expected} for copied pixels or zeros")


def _wrong_field(header: tuple[Any, ...]) -> str:
    """Name the first field of a header that is not what packing writes."""
    (version, version_lz, flags, type_bytes, _, _, _, filters, codec, codec_meta, filter_meta, reserved,
     special) = header  # fmt: skip
    if (version, version_lz) != FIXED[:2]:
        return f"version {(version, version_lz)}; expected {FIXED[:2]}"
    if flags & ~NOT_SPLIT not in FLAGS:
        return f"flags {flags:08b}; expected zstd behind an extended header"
    if type_bytes != TYPE_BYTES:
        return f"typesize {type_bytes}; expected {TYPE_BYTES}"
    if filters != BYTE_SHUFFLE:
        return f"filters {list(filters)}; expected byte shuffle alone"
    if codec not in CODECS or (codec_meta, filter_meta, reserved) != FIXED[4:]:
        return f"codec {(codec, codec_meta, list(filter_meta), reserved)}; expected zstd without parameters"
    return f"blosc2_flags {special:08b}; expected no lazy, special or dictionary chunk"


def _check_blocks(buffer: memoryview, num_blocks: int) -> None:
    """Demand that every block begins behind the list of beginnings and before the end."""
    first, last = HEADER.size + 4 * num_blocks, len(buffer) - 4
    if first > last:
        raise DataError(f"its Blosc2 header has cbytes {len(buffer)}; expected above {first + 3}: {num_blocks} blocks")
    starts = struct.unpack_from(f"<{num_blocks}i", buffer, HEADER.size)
    if min(starts) < first or max(starts) > last or len(set(starts)) != num_blocks:
        raise DataError(
            f"its Blosc2 header has block starts {list(starts[:4])}; expected distinct offsets within {first} to {last}"
        )
