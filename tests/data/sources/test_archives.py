"""Tars and zips: frames read where they lie, equal to those of a folder; hostile archives refused by name, unread."""

import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rainspark.data.errors import DataError
from rainspark.data.pack.archive import pack
from rainspark.data.sources.archives import list_members
from rainspark.data.sources.knmi import KnmiSource
from rainspark.data.sources.knmi_writer import write_knmi_file
from tests.data.knmi_frames import read, scan
from tests.data.radar_files import FIRST_S, NUMBERS, OPTIONS, digests, random_counts, write_archive, write_series

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
    # The same bytes are one file, wherever they lie.
    assert len(KnmiSource().scan([tmp_path]).refs) == 3
    assert "1 file is a copy of another" in KnmiSource().scan([tmp_path]).notes[0]
    write_knmi_file(files[1], random_counts(9, 12, 10), FIRST_S + 300)
    with pytest.raises(DataError, match=f"two frames of one time: {day}, member 2020/{files[1].name} and {files[1]}"):
        scan([tmp_path / "radar", day])
    twice = tmp_path / "twice.tar"
    with tarfile.open(twice, "w") as tar:
        tar.add(files[0], arcname=files[0].name)
        tar.add(files[2], arcname=files[0].name)
    with pytest.raises(DataError, match=f"two frames of one time: ({twice}, member {files[0].name})( and \\1)"):
        scan([twice])


def test_threads_read_members_in_any_order(tmp_path: Path) -> None:
    files = write_series(tmp_path / "radar", range(40))
    refs = scan([write_archive(tmp_path / "a.tar", files[:20]), write_archive(tmp_path / "b.zip", files[20:])])
    order = list(np.random.default_rng(0).permutation(np.repeat(np.arange(40), 5)))
    with ThreadPoolExecutor(8) as threads:
        for number, frame in zip(order, threads.map(lambda n: read(refs[n].file), order), strict=True):
            np.testing.assert_array_equal(frame.counts, random_counts(int(number), 12, 10))


def test_other_members_and_companions_of_macos_are_passed_over(tmp_path: Path) -> None:
    files = write_series(tmp_path / "radar", range(2))
    for file in files:
        file.with_name(f"._{file.name}").write_bytes(b"Mac OS X")
    (tmp_path / "radar" / ".DS_Store").write_bytes(b"Bud1")
    (tmp_path / "radar" / "README.txt").write_text("not radar")
    for name in ("a.tar", "b.zip"):
        path = write_archive(tmp_path / name, sorted((tmp_path / "radar").iterdir()))
        assert [ref.file.name for ref in scan([path])] == [file.name for file in files]
    assert [ref.path for ref in scan([tmp_path / "radar"])] == files
    with tarfile.open(tmp_path / "folders.tar", "w") as tar:
        tar.add(tmp_path / "radar", arcname="radar")
    assert len(scan([tmp_path / "folders.tar"])) == 2


def test_what_lies_behind_the_end_mark_is_never_dropped(tmp_path: Path) -> None:
    files = write_series(tmp_path / "radar", range(4))
    first = write_archive(tmp_path / "a.tar", files[:2])
    second = write_archive(tmp_path / "b.tar", files[2:])
    whole = first.read_bytes()
    joined = tmp_path / "joined.tar"
    joined.write_bytes(whole + second.read_bytes())
    with pytest.raises(DataError, match=f"{joined}: what follows byte .* several tars were joined"):
        scan([joined])

    header = list(list_members(first))[1].offset - 3 * 512
    first.write_bytes(whole[:header] + bytes(512) + whole[header + 512 :])
    with pytest.raises(DataError, match=f"what follows byte {header} is neither a member nor the end"):
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


PLAIN = "expected plain files only: nothing of this archive is read"
OUTSIDE = "expected relative names that stay inside: nothing of this archive is read"
NESTED = "is compressed as a whole or lies in an archive inside another"
UNREADABLE = "could not be read"
HOSTILE: list[tuple[str, Callable[[Path], None], str]] = [
    ("a.tar", hostile_tar(type=tarfile.SYMTYPE, linkname="/etc/passwd"), PLAIN),
    ("a.tar", hostile_tar(type=tarfile.LNKTYPE, linkname="../../x"), PLAIN),
    ("a.tar", hostile_tar("other", type=tarfile.SYMTYPE, linkname="x"), f"member 'other' is .*{PLAIN}"),
    ("a.tar", hostile_tar(type=tarfile.CHRTYPE), PLAIN),
    ("a.tar", hostile_tar(type=tarfile.BLKTYPE), PLAIN),
    ("a.tar", hostile_tar(type=tarfile.FIFOTYPE), PLAIN),
    ("a.tar", hostile_tar(type=tarfile.GNUTYPE_SPARSE), PLAIN),
    ("a.tar", hostile_tar(type=b"Z"), PLAIN),
    ("a.tar", hostile_tar(pax_headers={"path": "../x.h5"}), rf"a member named '\.\./x\.h5'; {OUTSIDE}"),
    ("a.tar", hostile_tar(f"../{NAME}"), OUTSIDE),
    ("a.tar", hostile_tar(f"/tmp/{NAME}"), OUTSIDE),
    ("a.tar", hostile_tar(f"a/../../{NAME}"), OUTSIDE),
    ("a.tar", hostile_tar(f"C:\\{NAME}"), OUTSIDE),
    ("a.tar", hostile_tar("x" * 120 + "\x1b[2J" + NAME), "a member named 'xxx"),
    ("a.tar", hostile_tar("inner.tar"), f"member inner.tar {NESTED}"),
    ("a.tar", hostile_tar("inner.tar.gz"), NESTED),
    ("a.tar", hostile_tar(f"{NAME}.BZ2"), f"member {NAME}.BZ2 {NESTED}"),
    ("a.zip", hostile_zip("inner.zip"), NESTED),
    ("a.zip", hostile_zip(mode=0o120777), PLAIN),
    ("a.zip", hostile_zip(mode=0o020666), PLAIN),
    ("a.zip", hostile_zip(f"../{NAME}"), OUTSIDE),
    ("a.zip", hostile_zip(f"/{NAME}"), OUTSIDE),
    ("a.zip", hostile_zip(f"C:/{NAME}"), OUTSIDE),
    ("a.zip", hostile_zip(f"a\\..\\{NAME}"), OUTSIDE),
    ("a.zip", hostile_zip(flags=1), f"encrypted.*{PLAIN}"),
    ("a.zip", hostile_zip(method=zipfile.ZIP_LZMA), PLAIN),
    ("a.tar.gz", written(b"\x1f\x8b"), NESTED),
    ("a.tgz", written(b"\x1f\x8b"), r"take the compression off \(gunzip"),
    (f"{NAME}.gz", written(b"\x1f\x8b"), NESTED),
    ("a.tar", written(b"\x1f\x8b" * 512), UNREADABLE),
    ("a.tar", written(b""), UNREADABLE),
    ("a.zip", written(b"PK\x03\x04" * 99), UNREADABLE),
    ("a.zip", written(b""), UNREADABLE),
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
        read(ref.file)


@pytest.mark.parametrize("name", ["a.tar", "b.zip"])
def test_cut_archives_are_refused(tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / name, write_series(tmp_path / "radar", range(3)))
    whole = path.read_bytes()
    if name == "a.tar":
        whole = whole.rstrip(b"\0") + bytes(1024)
    # A tar is cut inside a member, inside a header, and right behind one member.
    second = list(list_members(path))[1].offset
    for length in (100, 512, 1000, second - 512, second - 100, len(whole) // 2, len(whole) - 2048, len(whole) - 1024):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=f"{path}.*(was cut|neither a member nor|could not be read)"):
            read_all(path)


def test_a_flipped_header_ends_no_tar_early(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.tar", write_series(tmp_path / "radar", range(3)))
    whole = path.read_bytes()
    data = list(list_members(path))[1].offset
    # In the member's own header, and in the extended one before it, behind which tarfile would stop without a word.
    for header, message in (
        (data - 512, "could not be read"),
        (data - 3 * 512, "is neither a member nor the end"),
    ):
        for place in range(header, header + 260, 10):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(DataError, match=message):
                read_all(path)


def test_a_member_that_grew_or_shrank_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(NAME, bytes(100_000))
    whole = path.read_bytes()
    at = whole.rfind(b"PK\x01\x02") + 24
    for declared, message in (
        (99_999, "could not be read .Bad CRC-32"),
        (100_001, "(holds 100000 bytes; expected 100001|could not be read .Bad CRC-32)"),
        (2**27, "declares 134,217,728 bytes; expected one frame of at most 67,108,864"),
    ):
        path.write_bytes(whole[:at] + struct.pack("<L", declared) + whole[at + 4 :])
        with pytest.raises(DataError, match=f"{path}, member {NAME} {message}"):
            read_all(path)
    damaged = bytearray(whole)
    damaged[whole.rfind(b"PK\x01\x02") + 16] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="Bad CRC-32"):
        read_all(path)


def test_a_zip_that_is_replaced_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    for number in range(3):
        (file,) = write_series(tmp_path / str(number), [0])
        write_knmi_file(file, random_counts(number, 12, 10), FIRST_S)
        (ref,) = scan([write_archive(path, [file])])
        np.testing.assert_array_equal(read(ref.file).counts, random_counts(number, 12, 10))


def test_a_tar_of_a_terabyte_is_walked_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("large.bin")
    info.size = 2**40
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**40 + 512)
        file.seek(2**40 + 512)
        file.write(tarfile.TarInfo(NAME).tobuf() + bytes(1024))
    assert [member.name for member in list_members(path)] == ["large.bin", NAME]


def test_a_file_longer_than_any_frame_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(DataError, match=f"{path} has 1,099,511,627,776 bytes; expected one frame of at most"):
        read(path)
