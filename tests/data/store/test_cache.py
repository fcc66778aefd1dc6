"""The cache of shards: right bytes always, within its limit, whatever was damaged, killed or done by others."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rainspark.data.errors import DataError
from rainspark.data.randomness import generator
from rainspark.data.store.cache import CachedStorage
from rainspark.data.store.storage import LocalStorage
from tests.data.radar_files import without_rights
from tests.disks import limited_files

SHARD_BYTES = 100_000


def accept(_: bytes) -> None:
    """Find any bytes right."""


def refuse(_: bytes) -> None:
    """Find any bytes wrong."""
    raise DataError("never right")


class Archive:
    """Six shards in a folder that stands for a store, and a cache of them."""

    def __init__(self, folder: Path) -> None:
        self.remote = LocalStorage(folder / "remote")
        self.folder = folder / "cache"
        self.shards = {f"{i}.tar": generator(i, "shards").bytes(SHARD_BYTES) for i in range(6)}
        for name, data in self.shards.items():
            self.remote.write(name, data)
        self.files = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in self.shards.items()}

    def cache(self, num_shards: int = 6) -> CachedStorage:
        return CachedStorage(self.remote, self.folder, num_shards * SHARD_BYTES, self.files)

    def copy_of(self, name: str) -> Path:
        return self.folder / self.files[name][1]

    def held(self) -> set[str]:
        return {name for name in self.shards if self.copy_of(name).exists()}


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def test_a_shard_is_fetched_once_and_read_from_disk(archive: Archive) -> None:
    cache = archive.cache()
    data = archive.shards["1.tar"]
    assert cache.read("1.tar", 5, 500) == data[5:500]
    fetched = archive.remote.stats()["requests"]
    assert cache.read("1.tar") == data
    assert cache.read("1.tar", 99_999) == data[99_999:]
    assert cache.read_checked("1.tar", 7, 9, accept) == data[7:9]
    assert archive.cache().read("1.tar", 0, 10) == data[:10]
    assert archive.remote.stats()["requests"] == fetched
    stats = cache.stats()
    assert (stats["cache_misses"], stats["cache_hits"], stats["cache_bytes"]) == (1, 3, SHARD_BYTES)
    assert cache.size("2.tar") == SHARD_BYTES
    assert cache.exists("2.tar")
    assert archive.held() == {"1.tar"}


def test_what_the_index_does_not_list_comes_from_the_store(archive: Archive) -> None:
    cache = archive.cache()
    cache.write("index.json", b"{}")
    assert archive.remote.read("index.json") == b"{}"
    assert cache.read("index.json") == b"{}"
    assert cache.read_checked("index.json", 0, 2, accept) == b"{}"
    with cache.writer("new") as file:
        file.write(b"1")
    assert cache.names() == [*archive.shards, "index.json", "new"]
    cache.delete("new")
    assert not cache.exists("new")
    assert (cache.url, cache.folder) == (archive.remote.url, None)


def test_ranges_beyond_the_end_are_refused(archive: Archive) -> None:
    with pytest.raises(DataError, match=r"1\.tar: bytes 0 to 100001 were asked for, but the file has 100000"):
        archive.cache().read("1.tar", 0, SHARD_BYTES + 1)
    with pytest.raises(DataError, match="expected 0 <= start <= stop"):
        archive.cache().read("1.tar", 3, 2)
    assert archive.held() == set()


def test_the_least_recently_used_copy_makes_room(archive: Archive) -> None:
    cache = archive.cache(num_shards=3)
    for name in ("0.tar", "1.tar", "2.tar", "0.tar", "3.tar"):
        assert cache.read(name) == archive.shards[name]
    assert archive.held() == {"0.tar", "2.tar", "3.tar"}
    assert cache.stats()["cache_evictions"] == 1


def test_an_open_copy_outlives_its_removal(archive: Archive) -> None:
    cache = archive.cache(num_shards=2)

    def work(number: int) -> bool:
        name = f"{number * 7 % 6}.tar"
        return cache.read(name, number, number + 1000) == archive.shards[name][number : number + 1000]

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(work, range(100)))
    assert len(archive.held()) <= 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
def test_a_damaged_copy_is_fetched_again(archive: Archive, damage: str) -> None:
    archive.cache().read("1.tar", 0, 1)
    copy, data = archive.copy_of("1.tar"), archive.shards["1.tar"]
    before = copy.stat()
    if damage == "flipped":
        copy.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
        os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        copy.write_bytes(data[:50_000] if damage == "cut" else b"")
    cache = archive.cache()
    assert cache.read("1.tar") == data
    assert cache.stats()["cache_misses"] == 1


def test_a_copy_that_changes_while_it_is_in_use_is_seen(archive: Archive) -> None:
    cache, data = archive.cache(), archive.shards["1.tar"]
    cache.read("1.tar", 0, 1)
    archive.copy_of("1.tar").write_bytes(b"x" * SHARD_BYTES)
    assert cache.read("1.tar") == data
    # Changed with nothing to show for it: what judges the bytes finds it.
    copy = archive.copy_of("1.tar")
    before = copy.stat()
    with copy.open("r+b") as file:
        file.write(b"x" * 10)
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))

    def check(found: bytes) -> None:
        if found != data[:10]:
            raise DataError("damaged")

    assert cache.read_checked("1.tar", 0, 10, check) == data[:10]
    with pytest.raises(DataError, match="never right"):
        cache.read_checked("1.tar", 0, 10, refuse)


def test_a_shard_that_is_another_in_the_store_is_read_there(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    cache = archive.cache()
    archive.remote.write("1.tar", b"x" * SHARD_BYTES)
    for _ in range(3):
        assert cache.read("1.tar", 0, 3) == b"xxx"
        assert cache.read_checked("1.tar", 0, 3, accept) == b"xxx"
    with pytest.raises(DataError, match="never right"):
        cache.read_checked("1.tar", 0, 1, refuse)
    assert len(caplog.messages) == 1
    assert "1.tar: its SHA-256 is not what the index says; fetched 3 times" in caplog.text

    archive.remote.write("2.tar", b"short")
    with pytest.raises(DataError, match=r"2\.tar: bytes .* were asked for, but the file has 5"):
        cache.read("2.tar", 0, 1)
    assert archive.held() == set()
    assert list(archive.folder.glob("*.partial")) == []


def test_what_a_killed_process_was_fetching_is_removed_and_never_trusted(archive: Archive) -> None:
    archive.cache()
    digest = archive.files["1.tar"][1]
    for name in (f".{digest}.partial", f".{digest}.999-0.partial"):
        (archive.folder / name).write_bytes(b"half")
    cache = archive.cache()
    assert list(archive.folder.glob("*.partial")) == []
    assert cache.read("1.tar") == archive.shards["1.tar"]


def test_what_else_lies_in_the_folder_is_left_alone(archive: Archive) -> None:
    archive.folder.mkdir()
    others = {"notes.txt": 300_000, ".shard.tar.1-0.partial": 10, "a" * 63: 10, f".{'a' * 64}.x.partial": 10}
    for name, num_bytes in others.items():
        (archive.folder / name).write_bytes(b"1" * num_bytes)
    (archive.folder / ("b" * 64)).mkdir()
    cache = archive.cache(num_shards=2)
    for name, data in archive.shards.items():
        assert cache.read(name) == data
    assert len(archive.held()) == 2
    assert {name: (archive.folder / name).stat().st_size for name in others} == others


def test_where_others_fetch_into_all_the_room_files_are_read_from_the_store(archive: Archive) -> None:
    cache = archive.cache(num_shards=1)
    fetched = archive.folder / f".{'a' * 64}.partial"
    fetched.write_bytes(bytes(SHARD_BYTES))
    with (archive.folder / f".{'a' * 64}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cache.read("1.tar", 5, 500) == archive.shards["1.tar"][5:500]
        assert archive.held() == set()
        assert fetched.exists()
    assert cache.read("1.tar", 5, 500) == archive.shards["1.tar"][5:500]
    assert archive.held() == {"1.tar"}
    assert not fetched.exists()


def test_a_limit_below_a_shard_is_refused(archive: Archive) -> None:
    with pytest.raises(DataError, match=r"may take 99,999 bytes and a shard of .* has 100,000; raise data\.cache_gb"):
        CachedStorage(archive.remote, archive.folder, SHARD_BYTES - 1, archive.files)


def test_a_folder_that_cannot_be_written_is_named(archive: Archive, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    archive.folder.write_bytes(b"")
    with pytest.raises(DataError, match=r"cache: could not make the cache: File exists; .*another data\.cache_dir"):
        archive.cache()
    archive.folder.unlink()
    archive.folder.mkdir(mode=0o555)
    with (
        without_rights(),
        pytest.raises(DataError, match=r"could not make the cache: .*denied; expected a folder that can be written"),
    ):
        archive.cache()


PROGRAM = """
    # Reads all shards in an order of its own; prints what it counted.
    import hashlib, json, sys
    from pathlib import Path
    from rainspark.data.store.cache import CachedStorage
    from rainspark.data.store.storage import LocalStorage
    root, limit, order, files = Path(sys.argv[1]), *(json.loads(text) for text in sys.argv[2:])
    cache = CachedStorage(LocalStorage(root / "remote"), root / "cache", limit, files)
    for name in order:
        assert hashlib.sha256(cache.read(name)).hexdigest() == files[name][1]
    print(json.dumps(cache.stats()))
"""


def run_three(archive: Archive, num_shards: int, repeats: int) -> list[dict[str, float]]:
    """Read all shards in three processes at once, each in its own order; returns what each counted."""
    names = list(archive.shards)
    running = []
    for i in range(3):
        order = (names[i:] + names[:i]) * repeats
        settings = [json.dumps(value) for value in (num_shards * SHARD_BYTES, order, archive.files)]
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(archive.folder.parent), *settings]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    return [json.loads(output) for output in outputs]


def test_processes_share_what_one_of_them_fetches(archive: Archive) -> None:
    counts = run_three(archive, 6, repeats=1)
    assert sum(count["cache_misses"] for count in counts) == 6
    assert archive.held() == set(archive.shards)


def test_processes_that_evict_each_others_copies_read_what_is_right(archive: Archive) -> None:
    run_three(archive, 4, repeats=5)
    assert len(archive.held()) <= 4


def test_a_disk_that_refuses_is_named_and_holds_nothing(archive: Archive) -> None:
    cache = archive.cache()
    message = r"could not read the cache: File too large; .*with room for data\.cache_gb"
    with limited_files(SHARD_BYTES // 2), pytest.raises(DataError, match=message):
        cache.read("1.tar")
    assert archive.held() == set()
    assert list(archive.folder.glob("*.partial")) == []
