"""Write files whole or not at all, and make them last through a power cut: the one way that all of Rainspark does."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

PARTIAL_SUFFIX: Final = ".partial"
"""Files under this ending are being written, or were when their writer was killed."""


@contextmanager
def writing_whole(path: Path, *, if_absent: bool = False, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file that takes its name when the block ends without an error; until then, what had the name stays.

    Args:
        path: The file; its folder exists.
        if_absent: Whether a file that has this name already is an error, and stays.
        durable: Whether the file outlasts a power cut from then on; without, only a kill.

    Raises:
        FileExistsError: There is such a file, and `if_absent` is given.
        OSError: The disk fails; nothing is left.
    """
    # Random, not the process id: those repeat between hosts and containers, and a killed one's file may lie there.
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}{PARTIAL_SUFFIX}")
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())

        if if_absent:
            # A link, unlike a rename, refuses a name that is taken, by whoever was first.
            path.hardlink_to(temporary)
        else:
            temporary.replace(path)
        if durable:
            make_durable(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_whole(path: Path, data: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a file in one piece: it has all of the bytes, or is as it was before.

    Raises:
        OSError: The disk fails; nothing is left.
    """
    with writing_whole(path, durable=durable) as file:
        file.write(data)


def make_durable(path: Path) -> None:
    """Make a file's content, or the names in a folder, last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
