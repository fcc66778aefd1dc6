"""Training windows from the real S3 server, behind the fault proxy: the folder's, whatever happens on the way."""

from pathlib import Path
from typing import Any

import pytest

from rainspark.data.errors import DataError
from rainspark.data.shards.index import load_index
from rainspark.data.store.cache import CachedStorage
from rainspark.data.store.storage import open_storage
from rainspark.data.units import MISSING_COUNT
from rainspark.data.windows.mixing import BatchLayout
from rainspark.data.windows.plan import plan
from tests.data.archives import PackedArchive, pack_archive, random_runs
from tests.data.stream.streams import WINDOW, check_pixels, content, read_epochs, stream_of, table_of
from tests.s3_server import S3, s3, s3_server, upload  # noqa: F401

ROWS, COLS = 24, 32
LAYOUT = BatchLayout(seed=1, global_batch=12, micro_batch=12, lanes=4, block_bytes=10**6)
# One reply in five, each kind by turns: stated, reset, cut, wrong bytes, silence.
FAULTS: list[dict[str, Any]] = [
    {"do": "503"},
    {"do": "500"},
    {"do": "429"},
    {"do": "reset", "at": 3000},
    {"do": "fin", "at": 2000},
    {"do": "corrupt", "at": 4000},
    {"do": "refuse"},
    {"do": "corrupt", "at": 700},
    {"do": "stall", "at": 1000, "for": 0.5},
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> PackedArchive:
    runs = random_runs([40, 25, 70, 33, 14, 60, 52], ROWS, COLS, missing=True)
    return pack_archive(tmp_path_factory.mktemp("shards"), runs, window=WINDOW, max_frames=15, num_shards=5)


@pytest.mark.parametrize(("prefetch_mb", "readers"), [(512, None), (0.03, 3), (0, 2)])
def test_a_store_delivers_what_the_folder_does(
    archive: PackedArchive,
    s3: S3,  # noqa: F811
    prefetch_mb: float,
    readers: int | None,
) -> None:
    storage = upload(archive.folder, f"{s3.url}/shards")
    assert load_index(storage) == archive.index
    expected = stream_of(archive.storage, archive.index, LAYOUT)
    stream = stream_of(storage, archive.index, LAYOUT, prefetch_mb=prefetch_mb, readers=readers)
    count = 2 * stream.steps_per_epoch
    s3.inject([])
    assert [content(step) for step in stream.steps(0, count)] == [content(step) for step in expected.steps(0, count)]
    stats = stream.stats()
    assert len(s3.log()) == stats["requests"]
    assert stats["retries"] == 0
    assert stats["ahead_bytes_peak"] <= prefetch_mb * 2**20


def faults(share: float, num_requests: int) -> list[dict[str, Any]]:
    """Make rules that spoil a share of the next requests, evenly spread."""
    every = round(1 / share)
    return [
        {"match": "GET", "times": 1, "skip": every - 1, **FAULTS[number % len(FAULTS)]}
        for number in range(num_requests // every)
    ]


@pytest.mark.parametrize("prefetch_mb", [512, 0.03])
def test_one_fault_in_five_requests_changes_nothing(
    archive: PackedArchive,
    s3: S3,  # noqa: F811
    prefetch_mb: float,
) -> None:
    storage = upload(archive.folder, f"{s3.url}/shards")
    expected = stream_of(archive.storage, archive.index, LAYOUT)
    count = 2 * expected.steps_per_epoch
    windows = [content(step) for step in expected.steps(0, count)]
    stream = stream_of(storage, archive.index, LAYOUT, prefetch_mb=prefetch_mb)
    s3.inject(faults(0.2, 400))
    assert [content(step) for step in stream.steps(0, count)] == windows
    stats, log = stream.stats(), s3.log()
    spoiled = sum(bool(done) for _, _, done in log)
    # Exactly each fifth: a share of few requests says less.
    assert spoiled == sum(line.startswith("GET") for line, _, _ in log) // 5
    assert stats["retries"] > 0
    assert len(log) <= 1.5 * stats["requests"] + 2
    assert stats["quarantined"] == 0


@pytest.mark.parametrize("is_cached", [False, True])
def test_what_the_store_holds_damaged_is_lost_and_the_rest_is_not(
    archive: PackedArchive,
    s3: S3,  # noqa: F811
    tmp_path: Path,
    is_cached: bool,
) -> None:
    remote = storage = upload(archive.folder, f"{s3.url}/shards")
    if is_cached:
        files = {shard.name: (shard.num_bytes, shard.sha256) for shard in archive.index.shards}
        storage = CachedStorage(remote, tmp_path, 10**9, files)
    table = table_of(archive.index)
    bad, shards = archive.index.sequences[4], archive.index.shards
    data = bytearray((archive.folder / shards[bad.shard].name).read_bytes())
    data[bad.frames_offset] ^= 1
    remote.write(shards[bad.shard].name, bytes(data))
    gone = next(number for number in range(len(shards)) if number != bad.shard)
    remote.delete(shards[gone].name)
    lost = {number for number, entry in enumerate(archive.index.sequences) if entry.shard == gone or entry is bad}
    rows = plan(archive.index, table, LAYOUT, epoch=0)[:, 0]
    stream = stream_of(storage, archive.index, LAYOUT, quarantine=len(lost))
    for step, batches in enumerate(stream.steps(0, stream.steps_per_epoch)):
        expected = [-1 if table.sequence[row] in lost else row for row in rows[step].tolist()]
        assert batches[0].window_b.tolist() == expected
        check_pixels(archive, table, batches[0], lost=MISSING_COUNT)
    used = {archive.index.sequences[number].key for number in lost if number in table.sequence[rows]}
    assert {sequence.key for sequence in stream.lost()} == used
    with pytest.raises(DataError, match=rf"key ({'|'.join(sorted(used))}): "):
        read_epochs(stream_of(storage, archive.index, LAYOUT))


def test_a_store_that_refuses_or_dies_is_never_quarantined(archive: PackedArchive, s3: S3) -> None:  # noqa: F811
    upload(archive.folder, f"{s3.url}/shards")
    for rule, message in (
        ({"do": "403"}, "refuses access"),
        ({"do": "503"}, "cannot be read"),
        ({"do": "refuse"}, "cannot be read"),
    ):
        s3.inject([])
        storage = open_storage(f"{s3.url}/shards", deadline_s=2)
        stream = stream_of(storage, archive.index, LAYOUT, quarantine=1000)
        steps = stream.steps(0, stream.steps_per_epoch)
        s3.inject([{"match": "GET", "times": -1, **rule}])
        with pytest.raises(DataError, match=rf"shard shard-\d+.tar, keys? s\d+.*{message}"):
            list(steps)
        assert stream.stats()["quarantined"] == 0
