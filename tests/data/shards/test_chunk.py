"""Headers of stored frames: what packing writes passes, what else Blosc2 or a stranger can write does not."""

from contextlib import suppress
from typing import Any

import blosc2
import numpy as np
import pytest

from rainspark.data.errors import DataError
from rainspark.data.shards.chunk import HEADER, check_chunk
from rainspark.data.shards.writer import pack_frame

ROWS, COLS = 24, 32
FRAME = (np.arange(ROWS * COLS, dtype=np.uint16) % 97).reshape(ROWS, COLS)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (4, 4), (288, 288), (765, 700), (1400, 1200)])
@pytest.mark.parametrize("kind", ["dry", "missing", "noise", "rain"])
def test_frames_of_every_size_and_kind_pass(shape: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(0)
    counts_hw = {
        "dry": np.zeros(shape, np.uint16),
        "missing": np.full(shape, 65535, np.uint16),
        "noise": rng.integers(0, 65536, shape).astype(np.uint16),
        "rain": (rng.integers(0, 300, shape) * (rng.random(shape) < 0.2)).astype(np.uint16),
    }[kind]
    buffer = memoryview(pack_frame(counts_hw, 0.12).buffer)
    check_chunk(buffer, counts_hw.nbytes)
    for num_bytes in (counts_hw.nbytes - 2, counts_hw.nbytes + 2, 0):
        with pytest.raises(DataError, match=f"expected {num_bytes} from {len(buffer)}"):
            check_chunk(buffer, num_bytes)
    with pytest.raises(DataError, match="expected"):
        check_chunk(buffer[:-1], counts_hw.nbytes)


@pytest.mark.parametrize(
    "options",
    [
        {"codec": blosc2.Codec.LZ4},
        {"codec": blosc2.Codec.LZ4HC},
        {"codec": blosc2.Codec.BLOSCLZ},
        {"codec": blosc2.Codec.ZLIB},
        {"filters": [blosc2.Filter.NOFILTER]},
        {"filters": [blosc2.Filter.BITSHUFFLE]},
        {"filters": [blosc2.Filter.DELTA, blosc2.Filter.SHUFFLE]},
        {"filters": [blosc2.Filter.TRUNC_PREC, blosc2.Filter.SHUFFLE], "filters_meta": [8, 0], "typesize": 4},
        {"filters": [blosc2.Filter.BYTEDELTA], "filters_meta": [2]},
        {"typesize": 1},
        {"typesize": 4},
    ],
)
def test_what_else_blosc2_writes_is_refused(options: dict[str, Any]) -> None:
    ours = {"codec": blosc2.Codec.ZSTD, "clevel": 5, "typesize": 2, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
    buffer = bytes(blosc2.compress2(FRAME, **{**ours, **options}))
    with pytest.raises(DataError, match=r"its Blosc2 header has (flags|filters|typesize|codec) .*; expected"):
        check_chunk(memoryview(buffer), FRAME.nbytes)


def test_every_bit_of_the_header_counts_but_those_of_the_blocks() -> None:
    buffer = bytearray(pack_frame(FRAME, 0.12).buffer)
    passed = set()
    for byte in range(HEADER.size):
        for bit in range(8):
            buffer[byte] ^= 1 << bit
            with suppress(DataError):
                check_chunk(memoryview(buffer), FRAME.nbytes)
                passed.add((byte, bit))
            buffer[byte] ^= 1 << bit
    # Whether blocks are split into streams, are copied, or all zeros, and their size: all that packing writes too.
    assert passed == {(2, 4), (2, 1), (31, 4)} | {(byte, bit) for byte in range(8, 12) for bit in range(8)}


@pytest.mark.parametrize("at", [8, HEADER.size])
@pytest.mark.parametrize("wrong", [0, 35, 2**31 - 1, -1])
def test_blocks_that_lie_are_refused_by_blosc2(at: int, wrong: int) -> None:
    """The size of a block, and where the first one begins."""
    changed = bytearray(pack_frame(FRAME, 0.12).buffer)
    changed[at : at + 4] = wrong.to_bytes(4, "little", signed=True)
    with pytest.raises((RuntimeError, ValueError)):
        blosc2.decompress2(bytes(changed), dst=np.empty_like(FRAME), nthreads=1)


def test_other_buffers_are_refused() -> None:
    array = blosc2.asarray(FRAME).to_cframe()
    for data in (b"", b"\5\1", bytes(31), bytes(32), bytes(500), b"\xff" * 500, array):
        with pytest.raises(DataError, match=r"is no Blosc2 buffer|its Blosc2 header"):
            check_chunk(memoryview(data), FRAME.nbytes)
