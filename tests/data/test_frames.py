"""Crops, grids and times."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop, Grid, iso_time, parse_crop

GRID = Grid(rows=765, cols=700, pixel_km=1.0, projection="+proj=stere", x0_km=0.0, y0_km=-3650.0)


@given(st.integers(0, 5000), st.integers(1, 5000), st.integers(0, 5000), st.integers(1, 5000))
def test_a_crop_is_read_as_it_is_written(row0: int, rows: int, col0: int, cols: int) -> None:
    crop = Crop(row0=row0, row1=row0 + rows, col0=col0, col1=col0 + cols)
    assert parse_crop(str(crop)) == crop
    assert (crop.rows, crop.cols) == (rows, cols)


def test_a_crop_keeps_the_place_of_its_pixels() -> None:
    cropped = GRID.cropped(parse_crop("284:572,225:513"))
    assert (cropped.rows, cropped.cols) == (288, 288)
    assert (cropped.x0_km, cropped.y0_km) == (225.0, -3934.0)


@pytest.mark.parametrize("text", ["", "1:2", "1:2,3:4,5:6", "-1:2,3:4", "1:2;3:4", "a:b,c:d", "1.0:2,3:4", " 1:2,3:4"])
def test_crops_that_are_not_understood(text: str) -> None:
    with pytest.raises(DataError, match=r"not understood; expected ROW0:ROW1,COL0:COL1"):
        parse_crop(text)


@pytest.mark.parametrize("text", ["5:5,0:1", "6:5,0:1", "0:1,7:7"])
def test_crops_without_pixels(text: str) -> None:
    with pytest.raises(DataError, match="holds no pixels"):
        parse_crop(text)


@pytest.mark.parametrize("text", ["0:766,0:700", "0:765,0:701", "700:800,0:10"])
def test_crops_outside_the_grid(text: str) -> None:
    with pytest.raises(DataError, match=r"outside the grid of 765 rows and 700 columns.*0:765"):
        GRID.cropped(parse_crop(text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": "765"}, "grid: key rows is 765; expected a valid integer"),
        ({"rows": True}, "key rows is True"),
        ({"rows": 0}, "0 x 700"),
        ({"pixel_km": None}, "key pixel_km is None; expected a valid number"),
        ({"pixel_km": float("nan")}, "key pixel_km is nan; expected a finite number"),
        ({"colour": 1}, "key colour is unknown"),
    ],
)
def test_wrong_grids_are_refused_by_key(change: dict[str, Any], message: str) -> None:
    assert Grid.from_json(GRID.to_json()) == GRID
    with pytest.raises(DataError, match=message):
        Grid.from_json(GRID.to_json() | change)


def test_times_are_utc_whatever_the_machine_thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    assert iso_time(1_282_780_800 + 300) == "2010-08-26T00:05:00Z"
    assert iso_time(1_269_738_000) == "2010-03-28T01:00:00Z"
