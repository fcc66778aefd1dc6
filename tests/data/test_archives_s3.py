"""Fetching into a bucket, verifying and resharding from bucket to bucket: on the real S3 server behind the proxy."""

from pathlib import Path
from typing import Any

from rainspark.data.fetch.knmi_api import times_of_name
from rainspark.data.pack.recut import ReshardOptions
from rainspark.data.reshard import reshard
from rainspark.data.store.storage import open_storage
from rainspark.data.verify import verify
from tests.data.fetch.knmi_server import Knmi, running
from tests.data.fetch.test_fetch import DAYS, WANTED, day_name, day_tar, fetch
from tests.data.radar_files import digests
from tests.data.sound_archives import small_archive
from tests.s3_server import S3, s3, s3_server, upload  # noqa: F401

FAULTS: list[dict[str, Any]] = [
    {"match": "GET", "skip": 2, "times": 1, "do": "503"},
    {"match": "GET", "skip": 3, "times": 1, "do": "corrupt", "at": 300},
    {"match": "GET", "skip": 4, "times": 1, "do": "reset", "at": 200},
    {"match": "GET", "skip": 5, "times": 1, "do": "fin", "at": 100},
]


def test_files_are_fetched_into_a_bucket(s3: S3) -> None:  # noqa: F811
    with running(Knmi({day_name(day): day_tar(i) for i, day in enumerate(DAYS)})) as knmi:
        knmi.script["data"] = ["cut:700", "", "500"]
        assert fetch(knmi, f"{s3.url}/knmi")[0] == 4
        storage = open_storage(f"{s3.url}/knmi")
        assert storage.names() == WANTED
        assert all(storage.read(name) == knmi.files[name] for name in WANTED)
        assert fetch(knmi, f"{s3.url}/knmi") == (0, 0)
    assert all(times_of_name(name) for name in WANTED)


def test_an_archive_is_verified_where_it_lies(tmp_path: Path, s3: S3) -> None:  # noqa: F811
    index = small_archive(tmp_path / "old")
    storage = upload(tmp_path / "old", f"{s3.url}/shards")
    s3.inject(FAULTS)
    report = verify(f"{s3.url}/shards", threads=2)
    # What was damaged on the way was read again.
    assert [str(problem) for problem in report.problems] == []
    assert report.frames == sum(entry.num_frames for entry in index.sequences)
    s3.inject([])
    entry = index.sequences[1]
    name = index.shards[entry.shard].name
    data = bytearray(storage.read(name))
    data[entry.frames_offset] ^= 1
    storage.write(name, bytes(data))
    report = verify(f"{s3.url}/shards", threads=2)
    assert {(problem.shard, problem.key) for problem in report.problems} == {(name, entry.key), (name, "")}


def test_an_archive_is_resharded_from_bucket_to_bucket(tmp_path: Path, s3: S3) -> None:  # noqa: F811
    small_archive(tmp_path / "old")
    upload(tmp_path / "old", f"{s3.url}/old")
    options = ReshardOptions(max_frames=6)
    s3.inject(FAULTS)
    reshard([f"{s3.url}/old"], f"{s3.url}/new", options)
    s3.inject([])
    reshard([str(tmp_path / "old")], str(tmp_path / "new"), options)
    storage = open_storage(f"{s3.url}/new")
    (tmp_path / "copy").mkdir()
    for name in storage.names():
        (tmp_path / "copy" / name).write_bytes(storage.read(name))
    assert digests(tmp_path / "copy") == digests(tmp_path / "new")
    assert verify(f"{s3.url}/new").problems == []
