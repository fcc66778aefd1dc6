"""Input that packing refuses: each with its error, and nothing half-written."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop
from rainspark.data.pack.archive import pack, write_job
from rainspark.data.pack.survey import PackOptions, survey
from rainspark.data.shards.summary import runs_of
from rainspark.data.store.storage import open_storage
from tests.data.radar_files import OPTIONS, change, random_counts, replace_image, set_attribute, write_series


@pytest.fixture
def few(tmp_path: Path) -> list[Path]:
    """Make eight files that a test may break."""
    return write_series(tmp_path / "radar", range(8))


def refused(tmp_path: Path, message: str, options: PackOptions = OPTIONS) -> None:
    """Demand that packing fails with a message and leaves no trace."""
    with pytest.raises(DataError, match=message):
        pack([tmp_path / "radar"], tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_a_crop_outside_the_grid_is_refused(tmp_path: Path, few: list[Path]) -> None:
    assert len(few) == 8
    refused(tmp_path, "outside the grid of 12 rows and 10", PackOptions(crop=Crop(row0=0, row1=13, col0=0, col1=4)))


def test_another_cadence_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "radar", range(5), cadence_s=600)
    refused(tmp_path, "cadence of 5 min was asked for, but the closest frames are 10 min apart")
    # These files say that they are sums over 5 minutes.
    ten_minutes = PackOptions(window=2, cadence_s=600)
    refused(tmp_path, "are sums or means over 5 min, but its frames come every 10 min.*--allow-period", ten_minutes)
    index = pack([tmp_path / "radar"], tmp_path / "ten", replace(ten_minutes, allow_period=True))
    assert (index.cadence_s, index.origins[0].period_s) == (600, 300)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_attribute("geographic", "geo_row_offset", 3000.0), r": grid is Grid.* but Grid.*pack them apart"),
        (set_attribute("image1/calibration", "calibration_formulas", "GEO=0.1*PV"), ": scale_mmh is 1.2, but 0.12 in"),
        (
            set_attribute("image1/calibration", "calibration_out_of_image", 60000),
            r": missing_codes is \(60000, .*, but",
        ),
        (set_attribute("overview", "product_group_name", "RAD_NL25_RAU_5mi"), ": licence is CC BY 4.0, KNMI, but CC0"),
        (replace_image(data=np.zeros((12, 11), np.uint16)), "12 x 11 pixels; expected 12 x 10"),
        (set_attribute("image1/calibration", "calibration_formulas", "GEO=PV**2"), "expected a linear scale"),
    ],
)
def test_files_that_do_not_agree_are_refused(
    tmp_path: Path, few: list[Path], edit: Callable[[Any], None], message: str
) -> None:
    change(few[5], edit)
    refused(tmp_path, f"{few[5]}.*{message}|{few[5]}{message}")


def test_two_products_of_one_source_are_refused(tmp_path: Path, few: list[Path]) -> None:
    for path in few:
        change(path, set_attribute("overview", "product_group_name", np.bytes_("RAD_NL25_RAP_5min")))
    change(few[5], set_attribute("overview", "product_group_name", np.bytes_("RAD_NL25_RAU_5mi")))
    message = f"{few[5]}: source is KNMI RAD_NL25_RAU_5mi, but KNMI RAD_NL25_RAP_5min in {few[0]}; .*pack them apart"
    refused(tmp_path, message)


def test_a_file_that_changes_between_survey_and_packing_is_noticed(tmp_path: Path, few: list[Path]) -> None:
    for path in few:
        change(path, replace_image(data=random_counts(1, 12, 10)))
    job = survey([tmp_path / "radar"], OPTIONS)
    assert write_job(open_storage(tmp_path / "good"), job).sequences
    before = few[3].stat()
    # Pixels alone, in place, with the file's old time: neither length nor header tell.
    change(few[3], lambda file: file["image1/image_data"].write_direct(random_counts(2, 12, 10)))
    os.utime(few[3], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert few[3].stat().st_size == before.st_size
    with pytest.raises(DataError, match=f"{few[3]} changed while it was packed"):
        write_job(open_storage(tmp_path / "out"), job)
    assert not (tmp_path / "out" / "index.json").exists()


def test_pixels_that_cannot_be_decoded_leave_no_index(tmp_path: Path, few: list[Path]) -> None:
    with h5py.File(few[6]) as file:
        chunk = file["image1/image_data"].id.get_chunk_info(0)
    with few[6].open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * 16)
    with pytest.raises(DataError, match=f"{few[6]} cannot be read as a KNMI HDF5 composite.*--max-bad N leaves out"):
        pack([tmp_path / "radar"], tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "index.json").exists()
    assert not list((tmp_path / "out").rglob("*.partial"))
    few[6].unlink()
    series = runs_of(pack([tmp_path / "radar"], tmp_path / "out", OPTIONS))
    assert [run.num_frames for run in series.runs] == [6, 1]


def test_an_archive_without_any_measurement_is_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "radar", range(3))
    for path in paths:
        change(path, replace_image(data=np.full((12, 10), 65535, np.uint16)))
    with pytest.raises(DataError, match=r"no pixel of any frame holds a measurement; .*--restart"):
        pack([tmp_path / "radar"], tmp_path / "out", PackOptions(window=2))
    assert not (tmp_path / "out" / "index.json").exists()
    # One pixel is enough.
    counts = np.full((12, 10), 65535, np.uint16)
    counts[3, 4] = 0
    change(paths[1], replace_image(data=counts))
    pack([tmp_path / "radar"], tmp_path / "out", PackOptions(window=2), restart=True)
