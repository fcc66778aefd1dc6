"""Find radar files in folders, tars and zips by their endings, and read them where they lie in bounded memory."""

import glob
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, NoReturn

from ..credentials import redact
from ..errors import DataError
from .archives import TAR_ENDING, Member, list_members, list_tar, read_member, read_stored_member
from .places.buckets import Bucket, StoredObject

ARCHIVE_ENDINGS: Final = (".tar", ".zip")
COMPRESSED_ENDINGS: Final = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
"""Archives without random access: a frame in the middle could be read only by decoding all before it."""
COMPRESSIONS: Final = (".gz", ".bz2", ".xz", ".zst", ".z")
COMPANION_PREFIX: Final = "._"
"""Beginning of the names of macOS' companions of files (AppleDouble, RFC 1740), which hold no radar data."""


Place = Path | Bucket
"""Where radar files lie: a file, a folder, an archive, a path with wildcards; or objects of a store."""


@dataclass(frozen=True, kw_only=True)
class RadarFile:
    """A radar file's bytes: a file of its own, a member of an archive, or an object of a store.

    Attributes:
        path: The file or archive; of an object, its key.
        member: Where it lies in the archive.
        stored: The object.
    """

    path: Path
    member: Member | None = None
    stored: StoredObject | None = None

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return self.path.name if self.member is None else PurePosixPath(self.member.name).name

    def __str__(self) -> str:
        """Name the file as messages do."""
        where = str(self.stored or self.path)
        return where if self.member is None else f"{where}, member {self.member.name}"

    @property
    def key(self) -> tuple[Path | str, int]:
        """What is equal for the same bytes, however they are reached."""
        where = str(self.stored) if self.stored is not None else self.path.resolve()
        return where, -1 if self.member is None else self.member.offset

    def content(self, limit_bytes: int) -> Path | bytes:
        """Give what h5py opens to read a header: the file where it lies, or all bytes where it is no file."""
        return self.path if self.member is None and self.stored is None else self.read(limit_bytes)

    @contextmanager
    def on_disk(self, limit_bytes: int) -> Iterator[Path]:
        """Give a file for libraries that read files only: itself, or a temporary one that goes with the block."""
        if self.member is None and self.stored is None:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="rainspark-") as folder:
            path = Path(folder) / self.name
            path.write_bytes(self.read(limit_bytes))
            yield path

    def read(self, limit_bytes: int) -> bytes:
        """Read all of it; raises DataError for what cannot be read or is longer than the limit, before it is held."""
        if self.stored is not None and self.member is not None:
            return read_stored_member(self.stored, self.member, limit_bytes)
        if self.stored is not None:
            return self.stored.read(limit_bytes)
        if self.member is not None:
            return read_member(self.path, self.member, limit_bytes)

        try:
            with self.path.open("rb") as file:
                num_bytes = os.fstat(file.fileno()).st_size
                if num_bytes > limit_bytes:
                    raise DataError(
                        f"{self.path} has {num_bytes:,} bytes; expected one frame of at most {limit_bytes:,}: remove it"
                    )
                return file.read(limit_bytes)
        except OSError as error:
            raise DataError(f"{self.path}: could not read: {error.strerror or error}") from error


def find(paths: Iterable[Place], endings: Sequence[str]) -> list[RadarFile]:
    """Find files by their endings among files, folders (searched to the bottom, through links), tars, zips and buckets.

    A file that is named stands for itself, whatever its ending. Each file is found once. macOS' companions of files
    ("._NAME") are passed over.

    Raises:
        DataError: A path that is not there, a folder or link that cannot be followed, an archive that cannot be read
            in place or holds what is no plain file, a radar file that is compressed.
    """
    # Radar files that are compressed one by one are refused as well: their bytes cannot be read in place.
    compressed = tuple(ending + compression for ending in endings for compression in COMPRESSIONS)
    unreadable = (*COMPRESSED_ENDINGS, *compressed)
    radar_files: dict[tuple[Path | str, int], RadarFile] = {}
    for path in paths:
        if isinstance(path, Bucket):
            for radar_file in _objects_of(path, tuple(endings), (*ARCHIVE_ENDINGS, *unreadable)):
                radar_files.setdefault(radar_file.key, radar_file)
            continue
        for file in files_of(path, (*endings, *ARCHIVE_ENDINGS, *unreadable)):
            name = file.name.lower()
            if name.endswith(unreadable):
                _refuse_compressed(str(file))
            inside: Iterable[RadarFile] = [RadarFile(path=file)]
            if name.endswith(ARCHIVE_ENDINGS):
                inside = _members_of(file, tuple(endings), (*ARCHIVE_ENDINGS, *unreadable))
            for radar_file in inside:
                radar_files.setdefault(radar_file.key, radar_file)
    return list(radar_files.values())


def find_all(paths: Iterable[Place]) -> list[RadarFile]:
    """Find the files of folders and buckets, whatever their endings; as `find`, without looking into archives."""
    radar_files: dict[tuple[Path | str, int], RadarFile] = {}
    for path in paths:
        if isinstance(path, Bucket):
            inside = [RadarFile(path=Path(stored.name), stored=stored) for stored in path.objects()]
        else:
            inside = [RadarFile(path=file) for file in files_of(path, ("",))]
        for radar_file in inside:
            radar_files.setdefault(radar_file.key, radar_file)
    return list(radar_files.values())


def digest_of(path: Path) -> str:
    """Compute the SHA-256 of a file of any length; raises DataError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: could not read: {error.strerror or error}") from error


def files_of(path: Place, endings: Sequence[str]) -> Iterator[Path]:
    """List a file, or those of a folder with these endings; behind links too, each folder once.

    A path with wildcards (*, ?, [...], ** for folders of any depth) that is no file itself stands for all that it
    matches: a shell leaves one in quotation marks as it is.
    """
    if isinstance(path, Bucket):
        raise DataError(
            f"{path} lies in a store, and files of this kind are read from disks only; expected files or folders: copy "
            "the objects first"
        )
    if glob.has_magic(str(path)) and not os.path.lexists(path):
        matches = sorted(glob.iglob(str(path), recursive=True))  # noqa: PTH207
        if not matches:
            raise DataError(f"{path} matches nothing; expected radar files, archives, or folders of them")
        for match in matches:
            yield from files_of(Path(match), endings)
        return

    status = _stat(path)
    if not stat.S_ISDIR(status.st_mode):
        yield path
        return

    seen = {(status.st_dev, status.st_ino)}
    for name, folders, files in os.walk(path, onerror=_refuse_unreadable, followlinks=True):
        folder = Path(name)
        # Links may lead in circles: each folder is entered once.
        unseen = []
        for inner in sorted(folders):
            status = _stat(folder / inner)
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                unseen.append(inner)
        folders[:] = unseen

        for file in (folder / inner for inner in sorted(files)):
            # Wanted or not, a link has to lead somewhere: frames may lie behind it.
            # Hidden files are a system's companions of others, or not written to their end yet.
            is_companion = file.name.startswith("." if any(endings) else COMPANION_PREFIX)
            is_wanted = file.name.lower().endswith(tuple(endings)) and not is_companion
            # os.walk lists a link among the files when its folder is closed or not mounted.
            if is_wanted or file.is_symlink():
                _stat(file)
            if is_wanted:
                yield file


def _objects_of(bucket: Bucket, endings: tuple[str, ...], unreadable: tuple[str, ...]) -> Iterator[RadarFile]:
    """List a bucket's radar files, of tars too; one that the pattern names to its last character stands for itself."""
    for stored in bucket.objects():
        radar_file = RadarFile(path=Path(stored.name), stored=stored)
        name = radar_file.name.lower()
        if name.endswith(TAR_ENDING):
            with stored.open() as file:
                inside = (replace(radar_file, member=member) for member in list_tar(str(stored), file))
                yield from _wanted(inside, endings, unreadable)
        elif name.endswith(unreadable):
            raise DataError(
                f"{radar_file} is an archive or compressed, and is not read where it lies in a store; expected single "
                "files or tars: copy it into a folder first, or name the other objects by a pattern"
            )
        elif stored.name == bucket.pattern or (name.endswith(endings) and not name.startswith(COMPANION_PREFIX)):
            yield radar_file


def _members_of(path: Path, endings: tuple[str, ...], unreadable: tuple[str, ...]) -> Iterator[RadarFile]:
    inside = (RadarFile(path=path, member=member) for member in list_members(path))
    yield from _wanted(inside, endings, unreadable)


def _wanted(members: Iterable[RadarFile], endings: tuple[str, ...], unreadable: tuple[str, ...]) -> Iterator[RadarFile]:
    """Choose the radar files among an archive's members."""
    for radar_file in members:
        name = radar_file.name.lower()
        if name.startswith(COMPANION_PREFIX):
            continue
        if name.endswith(unreadable):
            _refuse_compressed(str(radar_file))
        if name.endswith(endings):
            yield radar_file


def _refuse_compressed(name: str) -> NoReturn:
    raise DataError(
        f"{name} is compressed as a whole or lies in an archive inside another, and cannot be read in place; expected "
        "files, folders, .tar or .zip: take the compression off (gunzip, bunzip2, unxz) or the inner archive out"
    )


def _stat(path: Path) -> os.stat_result:
    """Look at a file or folder through links; raises DataError when it is not there, closed, or neither."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        kind = "leads nowhere (a broken link)" if path.is_symlink() else "is not there"
        # An address is no path, and may hold a password.
        shown = redact(str(path))
        raise DataError(f"{shown} {kind}; expected a radar file, an archive, or a folder of them") from error
    except OSError as error:
        _refuse_unreadable(error)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path} is neither a file nor a folder; expected a radar file, an archive, or a folder")
    return status


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise DataError(
        f"{error.filename}: could not be read: {error.strerror or error}; "
        "frames may lie there: make it readable, or name the files and folders without it"
    ) from error
