"""Damaged KNMI, ODIM and collected files: the same data as before the damage, or an error that names the file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop
from rainspark.data.pack.survey import PackOptions, survey
from rainspark.data.sources.knmi import KnmiSource
from rainspark.data.sources.knmi_writer import file_name, write_knmi_file
from rainspark.data.sources.odim import OdimSource
from rainspark.data.sources.smaat import SmaatSource
from rainspark.data.sources.source import Header, Source
from tests.data.radar_files import (
    FIRST_S,
    odim_name,
    random_counts,
    rates,
    write_collected,
    write_odim_file,
)

ROWS, COLS = 37, 29
CROP = Crop(row0=0, row1=ROWS, col0=0, col1=COLS)
CHECKED: dict[str, Any] = {"chunks": (ROWS, COLS), "compression": "gzip", "fletcher32": True}
Damage = Callable[[bytearray, np.random.Generator], bytes]


def make_knmi(folder: Path) -> tuple[Path, Source]:
    path = folder / file_name(FIRST_S)
    counts = random_counts(5, ROWS, COLS)
    write_knmi_file(path, counts, FIRST_S)
    with h5py.File(path, "r+") as file:
        del file["image1/image_data"]
        file.create_dataset("image1/image_data", data=counts, **CHECKED)
    write_knmi_file(folder / file_name(FIRST_S + 300), random_counts(6, ROWS, COLS), FIRST_S + 300)
    return path, KnmiSource()


def make_odim(folder: Path) -> tuple[Path, Source]:
    path = folder / odim_name(FIRST_S)
    write_odim_file(path, rates(5, ROWS, COLS), FIRST_S, **CHECKED)
    write_odim_file(folder / odim_name(FIRST_S + 300), rates(6, ROWS, COLS), FIRST_S + 300)
    return path, OdimSource()


def make_collected(folder: Path) -> tuple[Path, Source]:
    path = folder / "collected.h5"
    counts = random_counts(5, ROWS, COLS)[None]
    write_collected(path, {"train": (counts, np.array([FIRST_S]))}, **CHECKED | {"chunks": (1, ROWS, COLS)})
    return path, SmaatSource(group="train")


MAKERS = {"knmi": make_knmi, "odim": make_odim, "collected": make_collected}


def read_all(path: Path, source: Source) -> tuple[Header, npt.NDArray[np.uint16]]:
    """Read a file as packing does, beside a sound one: what it says and its pixels."""
    part = survey([path.parent], PackOptions(window=1), source).supplies[0]
    reading = source.read(part.refs[0], CROP)
    assert part.sha256s[0] == reading.sha256
    return replace(part.header, end_time_s=part.refs[0].end_time_s), reading.counts


def cut(data: bytearray, random: np.random.Generator) -> bytes:
    return bytes(data[: int(random.integers(len(data)))])


def flip(data: bytearray, random: np.random.Generator) -> bytes:
    data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    return bytes(data)


def flip_many(data: bytearray, random: np.random.Generator) -> bytes:
    for _ in range(30):
        flip(data, random)
    return bytes(data)


def zero_block(data: bytearray, random: np.random.Generator) -> bytes:
    start = int(random.integers(len(data)))
    data[start : start + 256] = bytes(len(data[start : start + 256]))
    return bytes(data)


def noise_block(data: bytearray, random: np.random.Generator) -> bytes:
    start = int(random.integers(len(data)))
    data[start : start + 64] = random.bytes(len(data[start : start + 64]))
    return bytes(data)


def move_block(data: bytearray, random: np.random.Generator) -> bytes:
    source, target = (int(at) for at in random.integers(0, max(1, len(data) - 512), 2))
    data[target : target + 512] = data[source : source + 512]
    return bytes(data)


DAMAGES: tuple[Damage, ...] = (cut, flip, flip_many, zero_block, noise_block, move_block)


def check_damage(path: Path, source: Source, whole: bytes, reference: Any, seed: int) -> bool:
    """Damage a file, read it, and return whether it was refused; silence about other pixels is a failure."""
    random = np.random.default_rng(seed)
    damage = DAMAGES[seed % len(DAMAGES)]
    path.write_bytes(damage(bytearray(whole), random))
    message = ""
    try:
        header, counts = read_all(path, source)
    except DataError as error:
        message = str(error)
    assert not message or str(path) in message
    if message:
        return True
    np.testing.assert_array_equal(counts, reference[1], err_msg=f"{damage.__name__}, seed {seed}")
    # HDF5's metadata carry no checksum: what a flipped bit makes of a name or number is found beside other files.
    assert header == reference[0] or path.name == "collected.h5", f"{damage.__name__}, seed {seed}"
    return False


def run(tmp_path: Path, kind: str, seeds: range) -> int:
    path, source = MAKERS[kind](tmp_path)
    whole, reference = path.read_bytes(), read_all(path, source)
    return sum(check_damage(path, source, whole, reference, seed) for seed in seeds)


@pytest.mark.parametrize("kind", MAKERS)
def test_damaged_files_are_read_the_same_or_refused(tmp_path: Path, kind: str) -> None:
    assert run(tmp_path, kind, range(60)) > 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_hundreds_of_damaged_files_are_read_the_same_or_refused(tmp_path: Path, kind: str) -> None:
    assert run(tmp_path, kind, range(1000, 1600)) > 200
