"""Damaged shards: each stops the stream, at the step that needs it, with an error that names shard and key."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rainspark.data.errors import DataError
from rainspark.data.shards.decode import check_sequence
from rainspark.data.shards.index import Index, dump_index, load_index, signed
from rainspark.data.stream.stream import Stream, evaluation_batches
from rainspark.data.windows.mixing import BatchLayout
from rainspark.data.windows.plan import plan
from tests.data.archives import PackedArchive
from tests.data.stream.streams import flip, pack, stream_of, table_of

LAYOUT = BatchLayout(seed=0, global_batch=8, micro_batch=8, lanes=4, block_bytes=30_000)


def read_until_error(stream: Stream, message: str, stop_step: int) -> list[int]:
    """Read steps from 0 until the error that must come; give those before it."""
    good: list[int] = []
    with pytest.raises(DataError, match=message):
        good.extend(batches[0].step for batches in stream.steps(0, stop_step))
    return good


def swap(archive: PackedArchive) -> Index:
    """Let two entries of the index change places, bytes and digests together: only the JSON members differ."""
    first, second = archive.index.sequences[3], archive.index.sequences[5]
    places = ("shard", "offset", "num_bytes", "sha256", "json_offset", "json_bytes", "frames_offset", "frames_bytes")
    ends = ("frame_ends", "rain_fraction", "missing", "num_frames", "num_starts")
    sequences = list(archive.index.sequences)
    for number, here, there in ((3, first, second), (5, second, first)):
        sequences[number] = replace(here, **{name: getattr(there, name) for name in (*places, *ends)})
    return signed(replace(archive.index, sequences=tuple(sequences)))


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "swap", "stale"])
@pytest.mark.parametrize("threads", [1, 3])
def test_damaged_shards_are_named(tmp_path: Path, damage: str, threads: int) -> None:
    archive = pack(tmp_path, [40, 40, 40], num_shards=3, missing=False)
    index, entry = archive.index, archive.index.sequences[3]
    shard = tmp_path / index.shards[entry.shard].name
    if damage == "flip":
        flip(archive, 3)
        message = rf"{shard.name}, key {entry.key}: SHA-256 .* is [0-9a-f]{{64}}, expected {entry.sha256}"
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[: entry.offset + 100])
        message = rf"shard {shard.name}, key s\d+: cannot be read.*it was cut"
    elif damage == "missing":
        shard.unlink()
        message = rf"shard {shard.name}, key s\d+: cannot be read"
    elif damage == "swap":
        index = swap(archive)
        message = r"key (s0003|s0005): s000\d.json says (key|start_s)"
    else:
        pack(tmp_path, [40, 40, 40], num_shards=3, missing=False, seed=1)
        message = r"shard-\d+.tar, key s\d+: SHA-256|bytes, expected"
        assert load_index(archive.storage).fingerprint != index.fingerprint

    stream = stream_of(archive.storage, index, LAYOUT, threads=threads)
    good = read_until_error(stream, message, stream.steps_per_epoch)
    assert good == list(range(len(good)))
    with pytest.raises(DataError, match=message):
        list(evaluation_batches(archive.storage, index, table_of(index), micro_batch=4))


def test_an_error_comes_at_the_step_that_needs_the_sequence(tmp_path: Path) -> None:
    archive = pack(tmp_path, [40, 40, 40], num_shards=3, missing=False)
    table = table_of(archive.index)
    rows = plan(archive.index, table, LAYOUT, epoch=0)
    bad = int(table.sequence[rows[4, 0, 0]])
    flip(archive, bad)
    first_use = int(np.flatnonzero((table.sequence[rows] == bad).any(axis=(1, 2)))[0])
    for threads in (1, 4):
        stream = stream_of(archive.storage, archive.index, LAYOUT, threads=threads)
        assert read_until_error(stream, archive.index.sequences[bad].key, 9) == list(range(first_use))


def with_origin(index: Index, **changes: Any) -> Index:
    """Change what an index says of its one origin."""
    return replace(index, origins=(replace(index.origins[0], **changes),))


def test_every_field_of_the_json_member_is_compared(tmp_path: Path) -> None:
    archive = pack(tmp_path, [20], num_shards=1, missing=False)
    index, entry = archive.index, archive.index.sequences[0]
    data = archive.storage.read(index.shards[0].name, entry.offset, entry.offset + entry.num_bytes)
    begin = entry.json_offset - entry.offset
    member = json.loads(data[begin : begin + entry.json_bytes])
    # The words on the encoding are no value to compare.
    for name in member.keys() - {"codec"}:
        text = json.dumps(member | {name: "other"}, separators=(",", ":")).encode()
        changed = data[:begin] + text + data[begin + entry.json_bytes :]
        digest = hashlib.sha256(changed).hexdigest()
        vouched = replace(entry, num_bytes=len(changed), json_bytes=len(text), sha256=digest)
        with pytest.raises(DataError, match=f"s0000.json(: key {name} is other| says {name} = 'other')"):
            check_sequence(index, vouched, changed)


def test_an_archive_signed_again_with_another_scale_stops_the_stream(tmp_path: Path) -> None:
    archive = pack(tmp_path, [20], num_shards=1, missing=False)
    archive.storage.write("index.json", dump_index(signed(with_origin(archive.index, scale_mmh=1.2))))
    index = load_index(archive.storage)
    with pytest.raises(DataError, match=r"says scale_mmh = 0.12, the index says 1.2"):
        list(evaluation_batches(archive.storage, index, table_of(index), micro_batch=4))
