"""Decoding: the cache against a slow one that sees all that is to come, and buffers whose header lies."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.data.errors import DataError
from rainspark.data.shards.decode import decode_frame
from rainspark.data.shards.index import Index
from rainspark.data.shards.writer import pack_frame
from rainspark.data.stream.blocks import Block
from rainspark.data.stream.frame_cache import FrameCache
from tests.data.archives import index_in_memory, random_runs

MemoryFrames = tuple[Index, list[memoryview], list[npt.NDArray[np.uint16]]]


@pytest.fixture(scope="module")
def frames() -> MemoryFrames:
    """Make three sequences in memory: index, their KEY.frames data, their frames."""
    index = index_in_memory([12, 12, 12], window=3, max_frames=12, num_shards=1)
    counts = random_runs([12, 12, 12], index.rows, index.cols)
    packed = [[pack_frame(hw, 0.12).buffer for hw in run] for run in counts]
    sequences = tuple(
        replace(entry, frame_ends=tuple(np.cumsum([len(b) for b in buffers]).tolist()))
        for entry, buffers in zip(index.sequences, packed, strict=True)
    )
    return replace(index, sequences=sequences), [memoryview(b"".join(b)) for b in packed], counts


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=20, max_size=40),
    st.integers(0, 8),
)
def test_cache_equals_furthest_next_use(frames: MemoryFrames, uses: list[tuple[int, int]], max_frames: int) -> None:
    """The cache decodes exactly as often as a slow one that looks through all that is still to come."""
    window = 3
    index, frames_by_sequence, counts = frames

    # What the cache does.
    block = Block(
        sequence_n=np.array([sequence for sequence, _ in uses]),
        start_n=np.array([start for _, start in uses]),
        row_n=np.arange(len(uses)),
        step_n=np.zeros(len(uses), np.int64),
        micro_step_n=np.zeros(len(uses), np.int64),
        column_n=np.arange(len(uses)),
        missing_n=np.zeros(len(uses), bool),
    )
    cache = FrameCache(index, window, max_frames)
    cache.open_block(block)
    out = np.empty((window, index.rows, index.cols), np.uint16)
    for number, (sequence, start) in enumerate(uses):
        cache.cut(block, number, lambda s: frames_by_sequence[s], out)
        np.testing.assert_array_equal(out, counts[sequence][start : start + window])

    # What the slow one does: of all that could be held, what is needed last goes.
    reads = [(sequence, start + t) for sequence, start in uses for t in range(window)]
    held: set[tuple[int, int]] = set()
    decoded = 0
    for at, frame in enumerate(reads):
        later = {f: reads.index(f, at + 1) for f in {frame, *held} if f in reads[at + 1 :]}
        decoded += frame not in held
        held = {f for f in held if f in later}
        if frame in held or frame not in later:
            continue
        held = set(sorted({frame, *held}, key=lambda f: later[f])[:max_frames])
    assert cache.counts["frames_decoded"] == decoded
    assert cache.counts["decoded_bytes_peak"] <= max_frames * index.rows * index.cols * 2


def test_a_frame_whose_header_lies_is_not_decoded(frames: MemoryFrames) -> None:
    index, payloads, _ = frames
    large = pack_frame(np.zeros((2000, 2000), np.uint16), 0.12).buffer
    entry = replace(index.sequences[0], frame_ends=(len(large),) * 12)
    out = np.zeros((index.rows, index.cols), np.uint16)
    with pytest.raises(DataError, match=r"shard shard-00000.tar, key s000000, frame 0.*8000000 bytes.*expected 2048"):
        decode_frame(index, entry, memoryview(large), 0, out)
    with pytest.raises(DataError, match="is no Blosc2 buffer"):
        decode_frame(index, replace(entry, frame_ends=(5,) * 12), memoryview(large), 0, out)
    damaged = bytearray(payloads[0][: index.sequences[0].frame_ends[0]])
    damaged[40:] = b"\xff" * (len(damaged) - 40)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_frame(index, index.sequences[0], memoryview(bytes(damaged)), 0, out)
