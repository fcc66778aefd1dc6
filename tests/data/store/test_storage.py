"""What every storage promises, a folder and a store; and a folder's links, full disks, rights."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rainspark.data.errors import DataError
from rainspark.data.store.storage import Storage, open_storage
from tests.data.radar_files import closed_folder, without_rights
from tests.disks import limited_files
from tests.s3_server import s3, s3_server  # noqa: F401


@pytest.fixture(params=["folder", "store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """Open a folder that is not there yet, and an empty one of the S3 server."""
    url = tmp_path / "new" if request.param == "folder" else request.getfixturevalue("s3").url
    opened = open_storage(url, deadline_s=60)
    yield opened
    opened.close()


def test_files_are_written_listed_read_and_deleted(storage: Storage) -> None:
    names = ["b.tar", "sub/a-1.json", "sub/a-2 ä%41.json", "sub/b.json", "subway/x"]
    for name in names:
        storage.write(name, b"0123456789")
    assert storage.names() == names
    assert storage.names("sub/") == names[1:4]
    assert storage.names("sub/a") == names[1:3]
    assert storage.names("s") == names[1:]
    assert storage.exists("b.tar")
    assert not storage.exists("c.tar")
    assert storage.size(names[2]) == 10

    storage.write("empty", b"")
    assert storage.read("empty") == b""
    for start, stop in ((0, None), (3, 7), (8, None), (10, 10), (10, None)):
        assert storage.read(names[2], start, stop) == b"0123456789"[start:stop]
    assert (storage.stats()["bytes_written"], storage.stats()["bytes_read"]) == (50, 16)

    inside = open_storage(f"{storage.url}/sub/")
    assert inside.url == f"{storage.url}/sub"
    assert inside.names() == [name.removeprefix("sub/") for name in names[1:4]]
    inside.delete("b.json")
    inside.delete("b.json")
    inside.delete_partial()
    assert not storage.exists("sub/b.json")


@pytest.mark.parametrize(("start", "stop"), [(0, 11), (11, None), (11, 12), (11, 11), (9, 10**15), (-1, 3), (5, 4)])
def test_ranges_beyond_the_end_are_refused(storage: Storage, start: int, stop: int | None) -> None:
    storage.write("a", b"0123456789")
    message = r"a: bytes .* were asked for(, but the file has 10|; expected 0 <= start <= stop)"
    with pytest.raises(DataError, match=message):
        storage.read("a", start, stop)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(storage: Storage) -> None:
    storage.write("a", b"old")

    def stop_half_way() -> None:
        with storage.writer("a") as file:
            file.write(b"new")
            assert storage.names() == ["a"]
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stop_half_way()
    assert storage.read("a") == b"old"
    assert storage.names() == ["a"]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "../a", "a/../../b", "a//b", "./a", "a\\b", "a\0b", "a\x7f"])
def test_names_that_lead_out_are_refused(storage: Storage, name: str) -> None:
    asked: list[Callable[[], object]] = [
        lambda: storage.read(name),
        lambda: storage.size(name),
        lambda: storage.write(name, b""),
        lambda: storage.delete(name),
    ]
    for ask in asked:
        with pytest.raises(DataError, match="not allowed; expected one relative path"):
            ask()
    assert storage.stats()["requests"] == 0


def test_missing_files_are_named(storage: Storage) -> None:
    storage.write("a", b"")
    for ask in (storage.read, storage.size):
        with pytest.raises(DataError, match=r"shard-1\.tar: could not read: (No such file|no such object)"):
            ask("shard-1.tar")


def test_a_new_file_does_not_replace_one_that_is_there(storage: Storage) -> None:
    storage.write("sub/a", b"first", if_absent=True)
    for data in (b"second", b"first"):
        with pytest.raises(DataError, match=r"sub/a: is already there and was left as it is; .*choose another"):
            storage.write("sub/a", data, if_absent=True)
    assert storage.read("sub/a") == b"first"
    assert storage.names() == ["sub/a"]


def test_of_many_who_write_one_new_file_one_succeeds(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)

    def write(number: int) -> bool:
        try:
            storage.write("a", bytes([number]) * 1000, if_absent=True)
        except DataError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        written = list(threads.map(write, range(32)))
    assert written.count(True) == 1
    assert storage.read("a") == bytes([written.index(True)]) * 1000


def test_a_folder_is_on_this_machine(tmp_path: Path) -> None:
    storage = open_storage(f"file://{tmp_path}")
    assert storage.url == str(tmp_path)
    assert storage.folder == tmp_path
    storage.write("file", b"")
    with pytest.raises(DataError, match="could not write"):
        storage.write("file/b", b"", if_absent=True)


def test_what_killed_writers_left_is_not_listed_and_can_be_removed(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write("sub/a", b"1")
    (tmp_path / "sub" / ".b.123-0.partial").write_bytes(b"half")
    assert storage.names() == ["sub/a"]
    storage.delete_partial()
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a"]


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    storage = open_storage(root)
    for name in ("link", "folder/secret"):
        with pytest.raises(DataError, match="leads out of the folder"):
            storage.read(name)
        with pytest.raises(DataError, match="leads out of the folder"):
            storage.write(name, b"y")
    assert (tmp_path / "secret").read_bytes() == b"x"


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    open_storage(tmp_path / "link").write("a", b"1")
    assert (tmp_path / "real" / "a").read_bytes() == b"1"


def test_bytes_are_judged_and_a_folder_is_not_asked_twice(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write("a", b"0123456789")
    judged: list[bytes] = []
    assert storage.read_checked("a", 2, 5, judged.append) == b"234"

    def refuse(data: bytes) -> None:
        judged.append(data)
        raise DataError(f"a: {data!r} is damaged")

    with pytest.raises(DataError, match="b'56' is damaged"):
        storage.read_checked("a", 5, 7, refuse)
    assert judged == [b"234", b"56"]


@pytest.mark.parametrize("url", [" https://u:CANARY@h/x", "s3:/u:CANARY@h/x", "'gs://CANARY'", "HTTPS :/CANARY"])
def test_a_mistyped_address_is_no_path(url: str) -> None:
    with pytest.raises(DataError, match=r"an address is mistyped near its .*; expected it to begin with s3:") as caught:
        open_storage(url)
    assert "CANARY" not in str(caught.value)
    assert open_storage(f"./{url.strip()}").url.endswith(url.strip().replace("//", "/"))


@pytest.mark.parametrize("url", ["ftp://x.example/a", "hdfs://x/a", "s3a://bucket/x"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(DataError, match=r"expected a path, file://, s3://, gs://, az:// or https://"):
        open_storage(url)


@pytest.mark.parametrize("url", ["https://u:CANARY@host/x?sig=CANARY", "http://127.0.0.1:9/x", "HTTPS://host/x"])
def test_a_web_server_is_not_opened_to_be_written_to(url: str) -> None:
    with pytest.raises(
        DataError, match=r"a web server is only read; expected a folder, s3://, gs:// or az://"
    ) as caught:
        open_storage(url, to_write=True)
    assert "CANARY" not in str(caught.value)


def test_a_write_that_the_disk_refuses_leaves_nothing(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    with limited_files(50_000), pytest.raises(DataError, match="a: could not write: File too large"):
        storage.write("a", b"x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_listed_is_not_empty() -> None:
    with closed_folder(0o000) as (folder, closed):
        for root in (closed, folder):
            with without_rights(), pytest.raises(DataError, match=f"{closed}: could not list: Permission denied"):
                open_storage(root).names()
        with without_rights(), pytest.raises(DataError, match=f"{closed}/a: could not read: Permission denied"):
            open_storage(closed).exists("a")


def test_links_in_a_circle_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match=f"{tmp_path}/a: its links lead in a circle"):
        open_storage(tmp_path).exists("a")
    assert not open_storage(tmp_path / "file" / "none").exists("c")
