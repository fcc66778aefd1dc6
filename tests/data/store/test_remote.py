"""Object storage against a real S3 server behind a real fault proxy: what arrives, what it costs, what is refused."""

import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rainspark.data.errors import DataError
from rainspark.data.pack.archive import pack
from rainspark.data.pack.survey import PackOptions
from rainspark.data.randomness import generator
from rainspark.data.shards.index import load_index
from rainspark.data.store.object_store import PART_BYTES, ObjectStorage, open_store
from rainspark.data.store.storage import open_storage
from tests.data.radar_files import write_series
from tests.s3_server import S3, fault_rules, s3, s3_server  # noqa: F401

RANGE_BYTES = 10_000
SEQUENCES_A_SHARD = 50


def noise(num_bytes: int, *keys: int) -> bytes:
    return generator(0, "objects", num_bytes, *keys).bytes(num_bytes)


@pytest.fixture
def store(s3: S3) -> Iterator[ObjectStorage]:  # noqa: F811
    opened = open_store(s3.url, deadline_s=60, connections=8, read_timeout_s=0.3)
    yield opened
    opened.close()


def read_all(storage: ObjectStorage, num_ranges: int, shards: dict[str, bytes]) -> list[tuple[str, str]]:
    """Read every range of the shards, verified; gives (sequence id, SHA-256) in order."""
    sequences = [(name, number) for name in shards for number in range(SEQUENCES_A_SHARD)][:num_ranges]

    def work(sequence: tuple[str, int]) -> tuple[str, str]:
        name, number = sequence
        start, stop = number * RANGE_BYTES, (number + 1) * RANGE_BYTES
        expected = hashlib.sha256(shards[name][start:stop]).hexdigest()

        def check(data: bytes) -> None:
            if hashlib.sha256(data).hexdigest() != expected:
                raise DataError(f"{name}: sequence {number} is damaged")

        data = storage.read_checked(name, start, stop, check)
        return f"{name}:{number}", hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(work, sequences))


def check_faulty_reads(s3: S3, rate: float, num_ranges: int) -> float:  # noqa: F811
    """Read ranges while a share of the requests fails; returns the requests per range."""
    num_shards = -(-num_ranges // SEQUENCES_A_SHARD)
    shards = {f"{i:03d}.tar": noise(RANGE_BYTES * SEQUENCES_A_SHARD, i) for i in range(num_shards)}
    storage = open_store(s3.url, deadline_s=300, connections=8, read_timeout_s=0.3)
    for name, data in shards.items():
        storage.write(name, data)
    s3.inject(fault_rules(rate, num_ranges * 4, RANGE_BYTES))
    delivered = read_all(storage, num_ranges, shards)
    log = s3.log()
    s3.inject([])
    manifest = [
        (f"{name}:{number}", hashlib.sha256(data[number * RANGE_BYTES : (number + 1) * RANGE_BYTES]).hexdigest())
        for name, data in shards.items()
        for number in range(SEQUENCES_A_SHARD)
    ][:num_ranges]
    assert delivered == manifest
    stats = storage.stats()
    storage.close()
    assert sum(bool(done) for _, _, done in log) > 0
    # What the storage says it sent is what the proxy saw; each shard took a request to write and one to look.
    assert stats["requests"] == len(log) + 2 * num_shards
    assert stats["retries"] == len(log) - num_ranges
    assert stats["wait_s"] > 0
    return len(log) / num_ranges


def test_reads_through_faults_deliver_the_manifest(s3: S3) -> None:  # noqa: F811
    assert check_faulty_reads(s3, 0.2, 150) <= 1.5


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "most"), [(0.05, 1.15), (0.5, 2.6)])
def test_two_thousand_reads_at_every_rate_deliver_the_manifest(s3: S3, rate: float, most: float) -> None:  # noqa: F811
    assert check_faulty_reads(s3, rate, 2000) <= most


@pytest.mark.parametrize(
    "fault",
    [
        {"do": "503"},
        {"do": "500"},
        {"do": "429"},
        {"do": "400", "code": "RequestTimeout"},
        {"do": "refuse"},
        {"do": "reset", "at": 3_500_000},
        {"do": "fin", "at": 3_500_000},
        {"do": "stall", "at": 3_500_000, "for": 2},
    ],
    ids=lambda fault: "-".join(str(value) for value in fault.values()),
)
def test_every_fault_costs_one_request_each_time(store: ObjectStorage, s3: S3, fault: dict[str, object]) -> None:  # noqa: F811
    data = noise(5_000_000)
    store.write("a", data)
    s3.inject([{"match": "GET", "times": 2, **fault}])
    assert store.read("a", 1000, 4_900_000) == data[1000:4_900_000]
    spans = [span for line, span, _ in s3.log() if line.startswith("GET")]
    assert len(spans) == 3
    assert spans[:2] == ["bytes=1000-4899999"] * 2
    if fault["do"] in ("reset", "fin", "stall"):
        # Where it is cut again, what had come is kept, and only the rest is asked for.
        assert int(spans[2].removeprefix("bytes=").partition("-")[0]) > 1_000_000
    assert store.stats()["retries"] == 2


def test_an_object_replaced_while_it_is_read_is_read_anew(store: ObjectStorage, s3: S3) -> None:  # noqa: F811
    first, second = noise(5_000_000, 1), noise(5_000_000, 2)
    store.write("a", first)
    s3.inject([{"match": "GET", "times": 1, "do": "stall", "at": 3_500_000, "for": 20}])
    patient = open_store(s3.url, deadline_s=60, connections=1, read_timeout_s=2)
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(patient.read, "a", 0, 5_000_000)
        while not s3.log():
            assert not reading.done()
        store.write("a", second)
        assert reading.result() == second


def test_large_objects_are_written_and_read_in_parts(store: ObjectStorage, s3: S3) -> None:  # noqa: F811
    data = noise(2 * PART_BYTES + 12_345)
    with store.writer("sub/large") as file:
        for start in range(0, len(data), 1_000_000):
            file.write(data[start : start + 1_000_000])
        assert not store.exists("sub/large")
    assert store.size("sub/large") == len(data)
    s3.inject([{"match": "GET", "times": 1, "do": "503", "skip": 1}])
    assert store.read("sub/large") == data
    assert store.read("sub/large", 5) == data[5:]
    assert store.read("sub/large", PART_BYTES - 5, 2 * PART_BYTES + 5) == data[PART_BYTES - 5 : 2 * PART_BYTES + 5]
    assert store.names() == ["sub/large"]


@pytest.mark.parametrize("fault", [{"do": "503"}, {"do": "refuse"}, {"do": "500"}])
def test_writes_get_over_faults(store: ObjectStorage, s3: S3, fault: dict[str, object]) -> None:  # noqa: F811
    s3.inject([{"match": "PUT", "times": 1, **fault}, {"match": "PUT .*partNumber=2", "times": 2, **fault}])
    store.write("small", b"x" * 1000)
    data = noise(PART_BYTES + 5)
    store.write("large", data)
    assert (store.read("small"), store.read("large")) == (b"x" * 1000, data)


def test_a_lost_answer_does_not_make_an_object_of_ours_somebody_elses(store: ObjectStorage, s3: S3) -> None:  # noqa: F811
    # The write succeeds and its answer is lost: the second try meets its own object.
    s3.inject([{"match": "PUT", "times": 1, "do": "fin", "at": 0}, {"match": "PUT", "times": 1, "do": "503"}])
    store.write("b", b"mine", if_absent=True)
    assert store.read("b") == b"mine"


def test_a_lost_answer_does_not_hide_somebody_elses_object(store: ObjectStorage, s3: S3) -> None:  # noqa: F811
    store.write("a", b"theirs")
    s3.inject([{"match": "PUT", "times": 1, "do": "503"}])
    with pytest.raises(DataError, match="is already there"):
        store.write("a", b"mine", if_absent=True)
    assert store.read("a") == b"theirs"


def test_damage_that_lies_in_the_store_is_reported_after_three_reads(store: ObjectStorage, s3: S3) -> None:  # noqa: F811
    store.write("a", b"0123456789")
    s3.inject([])

    def check(data: bytes) -> None:
        raise DataError(f"a: {data!r} is damaged")

    with pytest.raises(DataError, match=r"^a: b'234' is damaged$"):
        store.read_checked("a", 2, 5, check)
    assert len(s3.log()) == 3


def test_wrong_and_missing_credentials_are_named(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    open_storage(s3.url).write("a", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "WRONG-SECRET")
    with pytest.raises(DataError, match=r"refuses access: status 403, SignatureDoesNotMatch.*AWS_SECRET_ACCESS_KEY"):
        open_storage(s3.url).read("a")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=r"no credentials in the environment; set .*AWS_SKIP_SIGNATURE"):
        open_storage(s3.url)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    s3.inject([])
    with pytest.raises(DataError, match="refuses access: status 403, AccessDenied"):
        open_storage(s3.url).read("a")
    assert len(s3.log()) == 1


def test_secrets_do_not_leave_by_the_errors(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    canary = "CANARY0123456789"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", canary)
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{canary}/+=")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"AKIA{canary}")
    storage = open_store(s3.url, deadline_s=2, connections=1)
    s3.inject([{"match": "PUT", "times": -1, "do": "500", "code": f"AKIA{canary}"}])

    asked: list[Callable[[], object]] = [
        lambda: storage.read("a"),
        storage.names,
        lambda: storage.write("a", b"1"),
        lambda: open_storage(f"s3://user:{canary}@bucket/x"),
        lambda: open_storage(f"https://host/x?X-Amz-Signature={canary}"),
        lambda: open_storage(f"ftp://user:{canary}@host/x"),
    ]
    for ask in asked:
        with pytest.raises(DataError) as caught:
            ask()
        shown: BaseException | None = caught.value
        while shown is not None:
            assert canary not in f"{shown}{shown!r}"
            shown = shown.__cause__
    assert canary not in f"{storage!r}{storage.url}{vars(storage)}"


def test_a_bucket_that_is_not_there_is_named(s3: S3, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(
        DataError, match=r"s3://nobucket/k/index.json: .*no such bucket \(NoSuchBucket\); create it, or"
    ):
        load_index(open_storage("s3://nobucket/k"))
    with pytest.raises(DataError, match=rf"{s3.url}/k/index.json is missing: no packed archive lies there"):
        load_index(open_storage(f"{s3.url}/k"))
    with pytest.raises(DataError, match=r"s3://nobucket/.*no such bucket \(NoSuchBucket\); create it, or check the"):
        pack(write_series(tmp_path / "in", range(3)), "s3://nobucket/k", PackOptions(window=2))


@pytest.mark.parametrize("listens", [False, True])
def test_an_endpoint_that_does_not_answer_is_an_error_within_the_deadline(
    s3: S3,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    listens: bool,
) -> None:
    message = r"no bytes came in time .*" if listens else r"the connection was refused \(endpoint http://127.*\)"
    with socket.socket() as endpoint:
        endpoint.bind(("127.0.0.1", 0))
        if listens:
            endpoint.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{endpoint.getsockname()[1]}")
        storage = open_store(s3.url, deadline_s=2, connections=2)
        started = time.monotonic()
        with pytest.raises(DataError, match=rf"/a: could not read: {message}; tried \d+ times"):
            storage.read("a")
    # The deadline is a promise, not a measurement.
    assert time.monotonic() - started < 2 + 1
