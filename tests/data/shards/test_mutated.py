"""Mutated archives, hundreds of them: every one is refused, and whatever was delivered before is the truth."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rainspark.data.errors import DataError
from rainspark.data.randomness import generator
from rainspark.data.shards.index import Index, load_index
from rainspark.data.store.storage import open_storage
from rainspark.data.stream.options import ReadOptions
from rainspark.data.stream.stream import Batch, Stream, evaluation_batches
from rainspark.data.verify import verify
from rainspark.data.windows.mixing import BatchLayout
from rainspark.data.windows.selection import Selection, select_windows
from tests.data.archives import whole_origin
from tests.data.sound_archives import Windows, pack_frames, rewrite, some_frames, windows_of, with_entry

WINDOW = 4
NUM_FAST, NUM_ALL = 66, 500


@dataclass(frozen=True)
class Original:
    """The archive that is mutated.

    Attributes:
        folder: Where it lies.
        index: Its index.
        truth: Its windows.
        other: Another archive, with the same names and times and other pixels.
    """

    folder: Path
    index: Index
    truth: Windows
    other: Path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """Pack two origins into three shards."""
    root = tmp_path_factory.mktemp("mutated")
    first, second = whole_origin(6, 8, "one"), whole_origin(6, 8, "two", scale_mmh=0.01)
    pieces = [(0, 9, 6), (6, 9, 6), (12, 8, 8), (25, 3, 3), (30, 9, 9)]
    numbers = [first + i for first, count in ((0, 20), (25, 3), (30, 9)) for i in range(count)]
    for name, seed in (("good", 0), ("other", 5)):
        frames = {first: some_frames(numbers, seed=seed), second: some_frames(numbers, seed=seed + 1)}
        index = pack_frames(
            root / name, frames, {first: pieces, second: pieces}, window=WINDOW, max_frames=9, num_shards=3
        )
    storage = open_storage(root / "good")
    index = load_index(storage)
    return Original(root / "good", index, windows_of(storage, index, WINDOW), root / "other")


Mutation = Callable[[Path, Original, np.random.Generator], None]


def a_shard(folder: Path, rng: np.random.Generator) -> Path:
    """Choose a shard."""
    shards = sorted(folder.glob("*.tar"))
    return shards[int(rng.integers(len(shards)))]


def edit_shard(change: Callable[[bytearray, np.random.Generator], bytes | bytearray]) -> Mutation:
    """Make a mutation of one shard's bytes."""

    def mutate(folder: Path, _: Original, rng: np.random.Generator) -> None:
        path = a_shard(folder, rng)
        path.write_bytes(change(bytearray(path.read_bytes()), rng))

    return mutate


def flip(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Turn one bit over."""
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return data


def overwrite(data: bytearray, rng: np.random.Generator, *, noise: bool) -> bytearray:
    """Put zeros or noise over a block that is not all zeros."""
    while True:
        begin, count = int(rng.integers(len(data))), int(rng.integers(1, 700))
        block = data[begin : begin + count]
        if block.strip(b"\0"):
            data[begin : begin + count] = rng.bytes(len(block)) if noise else bytes(len(block))
            return data


def swap_blocks(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Let two tar blocks change places."""
    while True:
        first, second = (512 * int(i) for i in rng.integers(len(data) // 512, size=2))
        if data[first : first + 512] != data[second : second + 512]:
            block = data[first : first + 512]
            data[first : first + 512] = data[second : second + 512]
            data[second : second + 512] = block
            return data


def remove_bytes(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Take bytes out of the middle, whole tar blocks half of the time."""
    unit = 512 if rng.random() < 0.5 else 1
    begin = unit * int(rng.integers(len(data) // unit))
    del data[begin : begin + unit * int(rng.integers(1, 4))]
    return data


def members(folder: Path, original: Original, rng: np.random.Generator) -> None:
    """Reorder, drop or double the sequences of a shard: a valid tar, but not this index's."""
    path = a_shard(folder, rng)
    data = path.read_bytes()
    own = [entry for entry in original.index.sequences if original.index.shards[entry.shard].name == path.name]
    parts = [data[entry.offset : entry.offset + entry.num_bytes] for entry in own]
    kind = int(rng.integers(4))
    if kind == 0:
        parts = [*parts[1:], parts[0]]
    elif kind == 1:
        del parts[int(rng.integers(len(parts)))]
    elif kind == 2:
        parts.insert(0, parts[int(rng.integers(len(parts)))])
    else:
        entry = own[0]
        cut = entry.frames_offset - entry.offset - 512
        parts[0] = parts[0][:cut] if rng.random() < 0.5 else parts[0][cut:]
    path.write_bytes(b"".join(parts) + bytes(1024))


def swap_shards(folder: Path, _: Original, rng: np.random.Generator) -> None:
    """Let two shards change names."""
    first, second = sorted(folder.glob("*.tar"))[: int(rng.integers(2, 4))][-2:]
    first.rename(folder / "moved")
    second.rename(first)
    (folder / "moved").rename(second)


def remove_shard(folder: Path, _: Original, rng: np.random.Generator) -> None:
    """Remove a shard, or leave nothing of it but its name."""
    path = a_shard(folder, rng)
    path.unlink()
    if rng.random() < 0.5:
        path.write_bytes(b"")


def other_files(folder: Path, original: Original, rng: np.random.Generator) -> None:
    """Put the index or a shard of another archive in the place of this one's."""
    name = "index.json" if rng.random() < 0.5 else a_shard(folder, rng).name
    shutil.copy(original.other / name, folder / name)


def edit_index(folder: Path, _: Original, rng: np.random.Generator) -> None:
    """Damage index.json: a bit, a cut, a block, another number."""
    path = folder / "index.json"
    data = bytearray(path.read_bytes())
    kind = int(rng.integers(4))
    if kind == 0:
        flip(data, rng)
    elif kind == 1:
        data = data[: int(rng.integers(len(data) - 1))]
    elif kind == 2:
        overwrite(data, rng, noise=True)
    else:
        digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
        at = digits[int(rng.integers(len(digits)))]
        data[at] = ord(str((int(chr(data[at])) + int(rng.integers(1, 10))) % 10))
    path.write_bytes(data)


def sign_another(folder: Path, original: Original, rng: np.random.Generator) -> None:
    """Change an entry of the index and sign it again: only what lies in the shards can tell."""
    entries = original.index.sequences
    number = int(rng.integers(len(entries)))
    entry = entries[number]
    other = entries[(number + 1) % len(entries)]
    location = ("shard", "offset", "num_bytes", "sha256", "json_offset", "json_bytes", "frames_offset", "frames_bytes")
    changes: list[dict[str, Any]] = [
        {name: getattr(other, name) for name in location},
        {"start_s": entry.start_s + 300},
        {"origin": 1 - entry.origin},
        {"sha256": hashlib.sha256(b"").hexdigest()},
        {"frame_ends": (entry.frame_ends[0] + 1, *entry.frame_ends[1:])},
        {"rain_fraction": tuple(1.0 - share for share in entry.rain_fraction)},
        {"missing": tuple(1 + count for count in entry.missing)},
        {"num_starts": entry.num_starts - 1},
        {"rain_after": 0.123},
        {"key": "another"},
    ]

    change = changes[int(rng.integers(len(changes)))]
    with_entry(folder, original.index, number, **change)


def sign_another_archive(folder: Path, original: Original, rng: np.random.Generator) -> None:
    """Change what the index says of all frames and sign it again."""
    index = original.index
    first, second = index.origins
    one = index.statistics["one"]
    changes: list[dict[str, Any]] = [
        {"cadence_s": 600},
        {"origins": (dataclasses.replace(first, scale_mmh=1.0), second)},
        {"origins": (second, first)},
        {"window": WINDOW - 1},
        {"statistics": {**index.statistics, "one": dataclasses.replace(one, wet=one.wet - 1)}},
        {"sequences": index.sequences[:-1]},
    ]
    rewrite(folder, index, **changes[int(rng.integers(len(changes)))])


MUTATIONS: dict[str, Mutation] = {
    "bit": edit_shard(flip),
    "cut": edit_shard(lambda data, rng: data[: int(rng.integers(len(data)))]),
    "lengthened": edit_shard(lambda data, rng: data + rng.bytes(int(rng.integers(1, 2000)))),
    "zeros behind": edit_shard(lambda data, rng: data + bytes(512 * int(rng.integers(1, 4)))),
    "zeroed block": edit_shard(lambda data, rng: overwrite(data, rng, noise=False)),
    "noise": edit_shard(lambda data, rng: overwrite(data, rng, noise=True)),
    "blocks swapped": edit_shard(swap_blocks),
    "bytes removed": edit_shard(remove_bytes),
    "members": members,
    "shards swapped": swap_shards,
    "shard removed": remove_shard,
    "files of another": other_files,
    "index damaged": edit_index,
    "index signed again": sign_another,
    "archive signed again": sign_another_archive,
}


def named(index: Index, batch: Batch, sequence: Any, start: Any) -> Windows:
    """Give the windows of a batch, by what the index that was read calls them."""
    windows: Windows = {}
    for number, row in enumerate(batch.window_b.tolist()):
        if row >= 0:
            entry = index.sequences[int(sequence[row])]
            key = (index.origins[entry.origin], entry.start_s + int(start[row]) * index.cadence_s)
            windows[key] = batch.counts_bthw[number].numpy().tobytes()
    return windows


def read(folder: Path, training: bool) -> tuple[Windows, bool]:
    """Read an archive until its end or an error; gives what was delivered, and whether there was an error."""
    delivered: Windows = {}
    try:
        storage = open_storage(folder)
        index = load_index(storage)
        table = select_windows(index, Selection(window=WINDOW))
        options = ReadOptions(threads=1, decoded_mb=1)
        if training:
            layout = BatchLayout(seed=0, global_batch=4, micro_batch=4, lanes=2, block_bytes=3000)
            stream = Stream(storage, index, table, layout, options=options)
            for batches in stream.steps(0, stream.steps_per_epoch):
                delivered |= named(index, batches[0], table.sequence, table.start)
        else:
            for batch in evaluation_batches(storage, index, table, micro_batch=4, options=options):
                delivered |= named(index, batch, table.sequence, table.start)
    except DataError:
        return delivered, True
    return delivered, False


def is_refused(folder: Path, original: Original, number: int) -> tuple[str, bool, bool]:
    """Mutate a copy of the archive and read it; gives the mutation, and whether stream and verify refused it."""
    rng = generator(0, "mutated shards", number)
    name = list(MUTATIONS)[number % len(MUTATIONS)]
    shutil.copytree(original.folder, folder)
    while True:
        MUTATIONS[name](folder, original, rng)
        changed = [
            path.name
            for path in original.folder.iterdir()
            if not (folder / path.name).exists() or (folder / path.name).read_bytes() != path.read_bytes()
        ]
        if changed:
            break

    # None silent: what came before the error, or beside the damage, is what was packed.
    delivered, stopped = read(folder, training=number % 2 == 0)
    wrong = [key for key, pixels in delivered.items() if original.truth.get(key) != pixels]
    assert wrong == [], f"mutation {number}, {name}: {len(wrong)} windows are not what was packed"
    report = verify(str(folder), threads=1)
    refused = bool(report.problems)
    if not refused:
        # An exponent's e written E says the same number: then nothing was mutated.
        assert changed == ["index.json"], f"mutation {number}, {name}"
        assert load_index(open_storage(folder)) == original.index
        assert not stopped
    shutil.rmtree(folder)
    return name, stopped, refused


def test_the_original_is_read_whole(original: Original) -> None:
    for training in (False, True):
        delivered, stopped = read(original.folder, training)
        assert not stopped
        assert delivered.items() <= original.truth.items()
    assert len(read(original.folder, training=False)[0]) == len(original.truth) == 2 * (17 + 6)
    assert verify(str(original.folder)).problems == []


@pytest.mark.parametrize("first", range(0, NUM_FAST, 22))
def test_mutated_archives_are_refused(tmp_path: Path, original: Original, first: int) -> None:
    for number in range(first, first + 22):
        _, _, refused = is_refused(tmp_path / "copy", original, number)
        assert refused or list(MUTATIONS)[number % len(MUTATIONS)] == "index damaged"


@pytest.mark.slow
def test_five_hundred_mutated_archives_are_refused(tmp_path: Path, original: Original) -> None:
    counts: dict[str, list[int]] = {name: [0, 0, 0] for name in MUTATIONS}
    for number in range(NUM_ALL):
        name, stopped, refused = is_refused(tmp_path / "copy", original, number)
        counts[name] = [a + int(b) for a, b in zip(counts[name], (1, stopped, refused), strict=True)]
    assert sum(count for count, _, _ in counts.values()) == NUM_ALL
    for name, (count, num_stopped, num_refused) in counts.items():
        assert num_refused == count or name == "index damaged", f"{name}: {num_refused} of {count} refused"
        assert num_stopped <= num_refused
