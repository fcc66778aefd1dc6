"""The polar stereographic projection: KNMI's stated corners, PROJ's own figures, and what is refused."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Transformer

from rainspark.data.errors import DataError
from rainspark.data.frames import Grid
from rainspark.data.sources import knmi
from rainspark.trainer.forecasting.grid import PolarStereographic, pixel_centres_m

KNMI = "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"
WITHOUT_SIGN = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.14 +b=6356.75 +x_0=0 y_0=0"


def test_corners_lie_where_the_files_say(shared_dir: Path) -> None:
    path = shared_dir / "data" / "knmi" / "RAD_NL25_RAP_5min_201008260000.h5"
    grid = knmi.read_header(path).grid
    with h5py.File(path) as file:
        stated = file["geographic"].attrs["geo_product_corners"].reshape(4, 2)
    left, right = 1000 * grid.x0_km, 1000 * (grid.x0_km + grid.cols * grid.pixel_km)
    top, foot = 1000 * grid.y0_km, 1000 * (grid.y0_km - grid.rows * grid.pixel_km)
    # Lower left, upper left, upper right, lower right; stated to a thousandth of a degree.
    corners = np.array([[left, foot], [left, top], [right, top], [right, foot]])
    longitude, latitude = PolarStereographic.parse(grid.projection).degrees(corners[:, 0], corners[:, 1])
    np.testing.assert_allclose(np.stack([longitude, latitude], axis=1), stated, atol=6e-4)


@given(
    lon_0=st.floats(-180, 180),
    lat_ts=st.sampled_from([45.0, 60.0, 75.0, 90.0]),
    x_km=st.floats(-3000, 3000),
    y_km=st.floats(-6000, -100),
    sphere=st.booleans(),
)
def test_degrees_are_those_of_proj(lon_0: float, lat_ts: float, x_km: float, y_km: float, sphere: bool) -> None:
    b_km = 6378.137 if sphere else 6356.752
    ours = PolarStereographic.parse(
        f"+proj=stere +lat_0=90 +lon_0={lon_0!r} +lat_ts={lat_ts} +a=6378.137 +b={b_km} +x_0=30"
    )
    longitude, latitude = ours.degrees(np.array([1000 * x_km]), np.array([1000 * y_km]))
    for crs in (CRS.from_proj4(ours.proj()), CRS.from_wkt(ours.wkt()), CRS.from_cf(ours.cf_attributes())):
        theirs = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(1000 * x_km, 1000 * y_km)
        turn = (longitude[0] - theirs[0] + 180) % 360 - 180
        assert abs(turn) < 1e-8
        assert latitude[0] == pytest.approx(theirs[1], abs=1e-9)


def test_a_missing_sign_and_a_rounded_axis_are_the_same_projection() -> None:
    one, other = PolarStereographic.parse(KNMI), PolarStereographic.parse(WITHOUT_SIGN)
    assert one.equals(other)
    assert one.a_m == 6_378_137.0
    assert PolarStereographic.parse(one.proj()) == one, "metres are read as metres"
    assert not one.equals(PolarStereographic.parse(KNMI.replace("lon_0=0.0", "lon_0=1")))
    assert not one.equals(PolarStereographic.parse(KNMI.replace("6378.137", "6371")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (KNMI.replace("stere", "merc"), "another projection"),
        (KNMI.replace("lat_0=90", "lat_0=-90"), "another projection"),
        (KNMI + " +towgs84=1,2,3", "unknown: towgs84"),
        (KNMI.replace("+a=6378.137 ", ""), "a is None; expected a number"),
        (KNMI.replace("60.0", "north"), "lat_ts is 'north'; expected a number"),
        (KNMI.replace("6356.752", "7000"), "expected a >= b > 0"),
        ("", "another projection"),
    ],
)
def test_other_projections_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PolarStereographic.parse(text)


def test_pixel_centres_lie_half_a_pixel_inside_the_edges() -> None:
    grid = Grid(rows=2, cols=3, pixel_km=2.0, projection=KNMI, x0_km=10.0, y0_km=-3650.0)
    x_m, y_m = pixel_centres_m(grid)
    assert x_m.tolist() == [11_000, 13_000, 15_000]
    assert y_m.tolist() == [-3_651_000, -3_653_000]
