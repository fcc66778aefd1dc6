"""Small KNMI-format files for tests, and ways to break them."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from data.frames import Crop
from data.sources.synthetic import file_name, write_knmi_file
from data.survey import PackOptions

FIRST_S = 1_577_836_800 - 600
"""31 December 2019, 23:50 UTC: series of three frames and more cross the new year."""


CROP = Crop(row0=2, row1=10, col0=1, col1=9)
OPTIONS = PackOptions(crop=CROP, window=4, max_frames=9)
# Three runs: 30, 2 (shorter than the window) and 8 frames.
NUMBERS = [*range(30), *range(35, 37), *range(40, 48)]


def random_counts(number: int, rows: int, cols: int) -> npt.NDArray[np.uint16]:
    """Make a frame that differs from every other, about half of it dry, with a missing pixel now and then."""
    random = np.random.default_rng(number)
    counts = random.integers(0, 400, (rows, cols)) * (random.random((rows, cols)) < 0.1 * (number % 11))
    counts[random.random((rows, cols)) < 0.01] = 65535
    return counts.astype(np.uint16)


def write_series(
    folder: Path, numbers: Iterable[int], *, size: tuple[int, int] = (12, 10), cadence_s: int = 300
) -> list[Path]:
    """Write frames `numbers` of a series; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in numbers:
        end_time_s = FIRST_S + number * cadence_s
        paths.append(folder / file_name(end_time_s))
        write_knmi_file(paths[-1], random_counts(number, *size), end_time_s)
    return paths


def change(path: Path, edit: Callable[[Any], None]) -> None:
    """Edit a file in place with h5py."""
    with h5py.File(path, "r+") as file:
        edit(file)


def set_attribute(member: str, name: str, value: Any) -> Callable[[Any], None]:
    """Make an edit that sets an attribute."""

    def edit(file: Any) -> None:
        file[member].attrs[name] = value

    return edit


def drop_attribute(member: str, name: str) -> Callable[[Any], None]:
    """Make an edit that removes an attribute."""

    def edit(file: Any) -> None:
        del file[member].attrs[name]

    return edit


def replace_image(**arguments: Any) -> Callable[[Any], None]:
    """Make an edit that puts another dataset in the image's place."""

    def edit(file: Any) -> None:
        del file["image1/image_data"]
        file.create_dataset("image1/image_data", **arguments)

    return edit


def digests(folder: Path) -> dict[str, str]:
    """Give the SHA-256 of every file of a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def without_rights() -> Iterator[None]:
    """Work as a user whom closed folders stop: tests may be run by root, whom nothing stops."""
    if os.geteuid():
        yield
        return
    # Python's first use of strptime imports a module, which nobody may be allowed to read.
    assert datetime.strptime("2020", "%Y").year == 2020
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def closed_folder(mode: int) -> Iterator[tuple[Path, Path]]:
    """Make a folder that any user reaches, and inside it one with a radar file and this mode."""
    folder = Path(tempfile.mkdtemp(prefix="rainspark-"))
    try:
        folder.chmod(0o755)
        closed = folder / "closed"
        write_series(closed, [1])
        closed.chmod(mode)
        yield folder, closed
    finally:
        closed.chmod(0o755)
        shutil.rmtree(folder)
