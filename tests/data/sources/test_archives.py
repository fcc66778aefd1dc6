"""Tars and zips: frames read where they lie, equal to those of a folder; hostile archives refused by name, unread."""

import io
import os
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rainspark.data.errors import DataError
from rainspark.data.pack.archive import pack
from rainspark.data.sources import archives
from rainspark.data.sources.files import find
from rainspark.data.sources.knmi import read, scan
from tests.data.radar_files import NUMBERS, OPTIONS, digests, random_counts, write_archive, write_series

NAME = "RAD_NL25_RAP_5min_202001010000.h5"


@pytest.mark.parametrize("kind", ["tar", "zip", "stored.zip", "gnu.tar", "pax.tar"])
def test_an_archive_packs_to_the_same_bytes_as_its_files(radar: Path, tmp_path: Path, kind: str) -> None:
    files = sorted(radar.iterdir())
    path = tmp_path / f"day.{kind}"
    if kind in ("gnu.tar", "pax.tar"):
        layout = tarfile.GNU_FORMAT if kind == "gnu.tar" else tarfile.PAX_FORMAT
        with tarfile.open(path, "w", format=layout) as tar:
            for number, file in enumerate(reversed(files)):
                # Long names and times to the nanosecond: extended headers of both kinds.
                tar.add(file, arcname=f"{'x' * 60}/{'ü' * 60}/{number}/{file.name}")
    else:
        write_archive(path, reversed(files), stored=kind.startswith("stored"))
    pack([path], tmp_path / "out", OPTIONS)
    pack([radar], tmp_path / "reference", OPTIONS)
    assert digests(tmp_path / "out") == digests(tmp_path / "reference")
    assert sorted(tmp_path.iterdir()) == sorted([path, tmp_path / "out", tmp_path / "reference"])


def test_days_in_a_folder_of_archives_are_one_series(radar: Path, tmp_path: Path) -> None:
    files = sorted(radar.iterdir())
    (tmp_path / "in" / "deep").mkdir(parents=True)
    write_archive(tmp_path / "in" / "deep" / "a.tar", files[20:])
    write_archive(tmp_path / "in" / "b.zip", files[:12])
    for file in files[12:20]:
        (tmp_path / "in" / file.name).write_bytes(file.read_bytes())
    pack([tmp_path / "in"], tmp_path / "out", OPTIONS)
    pack([radar], tmp_path / "reference", OPTIONS)
    assert digests(tmp_path / "out") == digests(tmp_path / "reference")
    # An archive that is named twice, or through a link, holds each frame once.
    (tmp_path / "link.zip").symlink_to(tmp_path / "in" / "b.zip")
    assert len(scan([tmp_path / "in", tmp_path / "in" / "b.zip", tmp_path / "link.zip"])) == len(NUMBERS)


def test_one_time_in_a_folder_and_an_archive_names_both(tmp_path: Path) -> None:
    files = write_series(tmp_path / "radar", range(3))
    day = write_archive(tmp_path / "day.tar", files[1:2])
    with pytest.raises(DataError, match=f"two files of one time: {day}, member 2020/{files[1].name} and {files[1]}"):
        scan([tmp_path / "radar", day])
    twice = tmp_path / "twice.tar"
    with tarfile.open(twice, "w") as tar:
        tar.add(files[0], arcname=files[0].name)
        tar.add(files[0], arcname=files[0].name)
    with pytest.raises(DataError, match=f"{twice}, member {files[0].name} is there twice; expected one"):
        scan([twice])


def test_threads_read_members_in_any_order(tmp_path: Path) -> None:
    files = write_series(tmp_path / "radar", range(40))
    refs = scan([write_archive(tmp_path / "a.tar", files[:20]), write_archive(tmp_path / "b.zip", files[20:])])
    order = list(np.random.default_rng(0).permutation(np.repeat(np.arange(40), 5)))
    with ThreadPoolExecutor(8) as threads:
        for number, frame in zip(order, threads.map(lambda n: read(refs[n].place), order), strict=True):
            np.testing.assert_array_equal(frame.counts, random_counts(int(number), 12, 10))


def test_other_members_are_passed_over(tmp_path: Path) -> None:
    files = write_series(tmp_path / "radar", range(2))
    (tmp_path / "radar" / "README.txt").write_text("not radar")
    for name in ("a.tar", "b.zip"):
        path = write_archive(tmp_path / name, sorted((tmp_path / "radar").iterdir()))
        assert [ref.place.name for ref in scan([path])] == [file.name for file in files]
    with tarfile.open(tmp_path / "folders.tar", "w") as tar:
        tar.add(tmp_path / "radar", arcname="radar")
    assert len(scan([tmp_path / "folders.tar"])) == 2


def test_companions_of_macos_are_passed_over(tmp_path: Path) -> None:
    files = write_series(tmp_path / "radar", range(2))
    for file in list(files):
        file.with_name(f"._{file.name}").write_bytes(b"Mac OS X")
    (tmp_path / "radar" / ".DS_Store").write_bytes(b"Bud1")
    for name in ("a.tar", "b.zip"):
        path = write_archive(tmp_path / name, sorted((tmp_path / "radar").iterdir()))
        assert [ref.place.name for ref in scan([path])] == [file.name for file in files]
    assert [ref.path for ref in scan([tmp_path / "radar"])] == files


def test_what_lies_behind_the_end_mark_is_never_dropped(tmp_path: Path) -> None:
    files = write_series(tmp_path / "radar", range(4))
    first, second = (
        write_archive(tmp_path / name, part) for name, part in (("a.tar", files[:2]), ("b.tar", files[2:]))
    )
    whole = first.read_bytes()
    joined = tmp_path / "joined.tar"
    joined.write_bytes(whole + second.read_bytes())
    with pytest.raises(DataError, match=f"{joined}: byte {len(whole)} lies behind the tar's end mark .*joined"):
        scan([joined])
    header = list(archives.tar_members(first))[1].offset - 512
    first.write_bytes(whole[:header] + bytes(512) + whole[header + 512 :])
    with pytest.raises(DataError, match=f"byte {header + 512} lies behind the tar's end mark and is not zero"):
        scan([first])
    first.write_bytes(whole + bytes(3 * 2**20))
    assert len(scan([first])) == 2


def hostile_tar(name: str = NAME, **fields: object) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        info = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(info, key, value)
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo("fine.txt"), io.BytesIO())
            tar.addfile(info, io.BytesIO(b"\0" * info.size))

    return make


def hostile_zip(name: str = NAME, *, mode: int = 0, method: int = 0, flags: int = 0) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        info = zipfile.ZipInfo(name)
        info.filename = name
        info.external_attr = mode << 16
        info.compress_type = method
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(info, b"/etc/passwd")
        data = bytearray(path.read_bytes())
        at = data.rfind(b"PK\x01\x02")
        data[at + 8] |= flags
        path.write_bytes(data)

    return make


def written(data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


HOSTILE: list[tuple[str, Callable[[Path], None], str]] = [
    ("a.tar", hostile_tar(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a symbolic link; expected plain files"),
    ("a.tar", hostile_tar(type=tarfile.LNKTYPE, linkname="../../x"), "is a hard link"),
    ("a.tar", hostile_tar("other", type=tarfile.SYMTYPE, linkname="x"), "member 'other' is a symbolic link"),
    ("a.tar", hostile_tar(type=tarfile.CHRTYPE), "is a device"),
    ("a.tar", hostile_tar(type=tarfile.BLKTYPE), "is a device"),
    ("a.tar", hostile_tar(type=tarfile.FIFOTYPE), "is a pipe"),
    ("a.tar", hostile_tar(type=tarfile.GNUTYPE_SPARSE), "is a sparse file"),
    ("a.tar", hostile_tar(type=b"Z"), "is of kind b'Z'"),
    ("a.tar", hostile_tar(pax_headers={"GNU.sparse.major": "1"}), "is a sparse file"),
    ("a.tar", hostile_tar(pax_headers={"comment": "x" * 70_000}), "extended header at byte .* at most 65536"),
    ("a.tar", hostile_tar(pax_headers={"path": "../x.h5"}), r"a member named '\.\./x\.h5'"),
    ("a.tar", hostile_tar(f"../{NAME}"), r"a member named '\.\./RAD.*stay inside"),
    ("a.tar", hostile_tar(f"/tmp/{NAME}"), "a member named '/tmp/RAD"),
    ("a.tar", hostile_tar(f"a/../../{NAME}"), "a member named 'a/../../RAD"),
    ("a.tar", hostile_tar(f"C:\\{NAME}"), "a member named 'C:"),
    ("a.tar", hostile_tar("x" * 120 + "\x1b[2J" + NAME), "a member named 'xxx"),
    ("a.tar", hostile_tar("inner.tar"), "inner.tar is an archive inside an archive"),
    ("a.tar", hostile_tar("inner.tar.gz"), "is an archive inside an archive"),
    ("a.zip", hostile_zip("inner.zip"), "is an archive inside an archive"),
    ("a.zip", hostile_zip(mode=0o120777), "is a symbolic link"),
    ("a.zip", hostile_zip(mode=0o020666), "is no plain file"),
    ("a.zip", hostile_zip(f"../{NAME}"), r"a member named '\.\./RAD"),
    ("a.zip", hostile_zip(f"/{NAME}"), "a member named '/RAD"),
    ("a.zip", hostile_zip(f"C:/{NAME}"), "a member named 'C:/RAD"),
    ("a.zip", hostile_zip(f"a\\..\\{NAME}"), "a member named 'a"),
    ("a.zip", hostile_zip(flags=1), "is encrypted"),
    ("a.zip", hostile_zip(method=zipfile.ZIP_LZMA), "is compressed by method 14"),
    ("a.tar.gz", written(b"\x1f\x8b"), "is compressed as a whole"),
    ("a.tgz", written(b"\x1f\x8b"), r"take the compression off \(gunzip"),
    (f"{NAME}.gz", written(b"\x1f\x8b"), "is a compressed radar file, which is not read; .*gunzip"),
    ("a.tar", hostile_tar(f"{NAME}.BZ2"), f"member {NAME}.BZ2 is a compressed radar file"),
    ("a.tar", written(b"\x1f\x8b" * 512), "byte 0 begins no tar header"),
    ("a.tar", written(b""), "was cut: its end mark is missing"),
    ("a.zip", written(b"PK\x03\x04" * 99), "has no zip directory at its end"),
    ("a.zip", written(b""), "has no zip directory at its end"),
]


@pytest.mark.parametrize(("name", "make", "message"), HOSTILE)
def test_hostile_archives_are_refused_by_name(
    tmp_path: Path, name: str, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        scan([tmp_path])
    assert str(tmp_path / name) in str(caught.value)


def read_all(path: Path) -> None:
    for ref in scan([path]):
        read(ref.place)


def test_cut_archives_are_refused(tmp_path: Path) -> None:
    files = write_series(tmp_path / "radar", range(3))
    for name in ("a.tar", "b.zip"):
        path = write_archive(tmp_path / name, files)
        whole = path.read_bytes()
        if name == "a.tar":
            whole = whole.rstrip(b"\0") + bytes(1024)
        for length in (100, 512, 1000, len(whole) // 2, len(whole) - 2048, len(whole) - 1024):
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match=f"{path}.*(was cut|no zip directory|cannot be read as a zip|damaged)"):
                read_all(path)


def test_a_member_that_grew_or_shrank_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(NAME, bytes(100_000))
    whole = path.read_bytes()
    at = whole.rfind(b"PK\x01\x02") + 24
    for declared, message in (
        (99_999, "holds more than 99999 bytes"),
        (100_001, "holds 100000 bytes; expected 100001"),
        (2**27, "declares 134,217,728 bytes .*; expected one frame of at most 67,108,864"),
    ):
        path.write_bytes(whole[:at] + struct.pack("<L", declared) + whole[at + 4 :])
        with pytest.raises(DataError, match=f"{path}, member {NAME} {message}"):
            read(scan([path])[0].place)
    damaged = bytearray(whole)
    damaged[whole.rfind(b"PK\x01\x02") + 16] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="CRC-32 differs"):
        read(scan([path])[0].place)


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(NAME, bytes(2**28))
    whole = path.read_bytes()
    at = whole.rfind(b"PK\x01\x02") + 24
    # 256 MiB in 256 kB, which the directory calls 1 kB.
    path.write_bytes(whole[:at] + struct.pack("<L", 1000) + whole[at + 4 :])
    (ref,) = scan([path])
    tracemalloc.start()
    with pytest.raises(DataError, match="holds more than 1000 bytes"):
        ref.place.read(2**26)
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()


def test_a_declared_directory_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write_archive(path, write_series(tmp_path / "radar", [0]))
    whole = path.read_bytes()
    at = whole.rfind(b"PK\x05\x06")
    end = whole[at : at + 12] + struct.pack("<LL", 2**31, 0) + whole[at + 20 :]
    with path.open("wb") as file:
        # A sparse file that really has as many bytes.
        file.truncate(2**31)
        file.seek(2**31)
        file.write(end)
    with pytest.raises(DataError, match="its directory declares 2,147,483,648 bytes; expected at most"):
        find([path], (".h5",))
    os.truncate(path, 0)


def test_a_directory_of_gigabytes_that_only_zip64_declares_is_not_read(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.zip", write_series(tmp_path / "radar", [0]))
    whole = path.read_bytes()
    at = whole.rfind(b"PK\x05\x06")
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 2**31, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    path.write_bytes(whole[:at] + record + locator + whole[at:])
    with pytest.raises(DataError, match="its directory declares 2,147,483,648 bytes; expected at most"):
        find([path], (".h5",))


def test_a_tar_of_a_terabyte_is_walked_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("large.bin")
    info.size = 2**40
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**40 + 512)
        file.seek(2**40 + 512)
        file.write(tarfile.TarInfo(NAME).tobuf() + bytes(1024))
    assert [member.name for member in archives.tar_members(path)] == ["large.bin", NAME]


def test_a_file_longer_than_any_frame_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(DataError, match=f"{path} has 1,099,511,627,776 bytes; expected one frame of at most"):
        read(path)
