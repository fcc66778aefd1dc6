"""Grids in degrees and in CF's words: KNMI's stated corners, Snyder's formulas, and projections that are refused."""

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Proj, Transformer

from rainspark.data.errors import DataError
from rainspark.data.frames import Grid
from rainspark.data.sources.knmi_writer import KNMI_PROJECTION as KNMI
from rainspark.trainer.forecasting.grid import (
    cf_attributes,
    grid_mapping,
    in_metres,
    parse_projection,
    pixel_centres_m,
    same_projection,
    site_pixel,
    to_degrees,
)
from rainspark.trainer.settings.forecast import Site
from tests.data.radar_files import read_header
from tests.trainer.forecasting.projections import PROJECTIONS, grid_of, outer_corners_m

WITHOUT_SIGN = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.14 +b=6356.75 +x_0=0 y_0=0"
LAEA = "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84"
SHIFTED_BY_FILE = (
    'BOUNDCRS[SOURCECRS[PROJCRS["x"]],ABRIDGEDTRANSFORMATION["y",METHOD["NTv2"],PARAMETERFILE["Latitude and longitude '
    'difference file","/etc/passwd"]]]'
)


def test_corners_lie_where_the_files_say(shared_dir: Path) -> None:
    path = shared_dir / "data" / "knmi" / "RAD_NL25_RAP_5min_201008260000.h5"
    grid = read_header(path).grid
    with h5py.File(path) as file:
        stated = file["geographic"].attrs["geo_product_corners"].reshape(4, 2)
    left, right = 1000 * grid.x0_km, 1000 * (grid.x0_km + grid.cols * grid.pixel_km)
    top, foot = 1000 * grid.y0_km, 1000 * (grid.y0_km - grid.rows * grid.pixel_km)
    # Lower left, upper left, upper right, lower right; stated to a thousandth of a degree.
    corners = np.array([[left, foot], [left, top], [right, top], [right, foot]])
    longitude, latitude = to_degrees(grid.projection, corners[:, 0], corners[:, 1])
    np.testing.assert_allclose(np.stack([longitude, latitude], axis=1), stated, atol=6e-4)


@given(
    lon_0=st.floats(-180, 180),
    lat_ts=st.sampled_from([45.0, 60.0, 75.0]),
    x_km=st.floats(-3000, 3000),
    y_km=st.floats(-6000, -100),
)
def test_degrees_are_those_of_the_formulas(lon_0: float, lat_ts: float, x_km: float, y_km: float) -> None:
    """Snyder (1987), Map projections, a working manual, page 162, on a sphere; axes in kilometres, a false origin."""
    projection = f"+proj=stere +lat_0=90 +lon_0={lon_0:.6f} +lat_ts={lat_ts} +a=6371 +b=6371 +x_0=30"
    longitude, latitude = to_degrees(projection, np.array([1000 * x_km]), np.array([1000 * y_km]))

    radius_km = 6371 * (1 + math.sin(math.radians(lat_ts)))
    expected_latitude = 90 - 2 * math.degrees(math.atan(math.hypot(x_km - 30, y_km) / radius_km))
    expected_longitude = lon_0 + math.degrees(math.atan2(x_km - 30, -y_km))
    assert latitude[0] == pytest.approx(expected_latitude, abs=1e-9)
    assert (longitude[0] - expected_longitude + 180) % 360 - 180 == pytest.approx(0, abs=1e-5)


def test_cf_words_name_the_pole_and_any_projection_has_some() -> None:
    north, south = KNMI, KNMI.replace("lat_0=90", "lat_0=-90").replace("lat_ts=60", "lat_ts=-60")
    for projection, pole in ((north, 90.0), (south, -90.0), (north.replace("60.0", "90"), 90.0)):
        attributes = cf_attributes(projection)
        assert attributes["grid_mapping_name"] == "polar_stereographic"
        assert attributes["latitude_of_projection_origin"] == pole
        assert attributes["semi_major_axis"] == 6_378_137.0
    assert cf_attributes(LAEA)["grid_mapping_name"] == "lambert_azimuthal_equal_area"
    # CF has no name for this one: its text alone describes it.
    plate_carree = "+proj=eqc +lat_ts=0 +lon_0=0 +R=6371000 +units=m"
    assert CRS.from_cf(cf_attributes(plate_carree)) == parse_projection(plate_carree)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_every_reader_of_the_mapping_puts_the_corners_where_pyproj_does(name: str) -> None:
    grid = grid_of(name)
    x_m, y_m = outer_corners_m(grid)
    if name.startswith("wkt"):
        # In the text's own unit.
        crs = CRS.from_wkt(grid.projection)
        own_m = crs.axis_info[0].unit_conversion_factor
        own = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
        longitude, latitude = own.transform(x_m / own_m, y_m / own_m)
    else:
        longitude, latitude = Proj(in_metres(grid.projection))(x_m, y_m, inverse=True)

    # By the well-known text, by CF's words alone where there are any, and by our own.
    mapping = grid_mapping(grid)
    assert "crs_wkt" in mapping
    words = {key: value for key, value in mapping.items() if key not in ("crs_wkt", "proj4")}
    assert ("grid_mapping_name" in words) == bool(words)
    answers = [to_degrees(grid.projection, x_m, y_m)]
    for attributes in (mapping, words) if words else (mapping,):
        answers.append(Transformer.from_crs(CRS.from_cf(attributes), "EPSG:4326", always_xy=True).transform(x_m, y_m))
    for answer_lon, answer_lat in answers:
        east_m = 111_320 * np.cos(np.radians(latitude)) * (answer_lon - longitude)
        assert np.hypot(east_m, 111_320 * (answer_lat - latitude)).max() < 1


@pytest.mark.parametrize(
    ("name", "mapping_name"),
    [
        ("laea", "lambert_azimuthal_equal_area"),
        ("lcc_of_belgium", "lambert_conformal_conic"),
        ("lcc_one_parallel", "lambert_conformal_conic"),
        ("utm", "transverse_mercator"),
        ("stere_south", "polar_stereographic"),
        ("stere_oblique", "stereographic"),
        ("merc", "mercator"),
        ("aeqd", "azimuthal_equidistant"),
        # CF has no words for these, or words that lead elsewhere.
        *((name, None) for name in ("somerc", "wkt_gdal_somerc", "lcc_with_scale", "sterea", "lat_lon", "wkt_feet")),
    ],
)
def test_words_of_cf_stand_where_they_lead_back(name: str, mapping_name: str | None) -> None:
    mapping = grid_mapping(grid_of(name))
    assert mapping.get("grid_mapping_name") == mapping_name
    if mapping_name == "lambert_conformal_conic":
        assert {"standard_parallel", "latitude_of_projection_origin"} <= set(mapping)


def test_text_that_states_the_same_projection_is_the_same() -> None:
    grid = grid_of("utm")
    assert same_projection(grid, PROJECTIONS["wkt_esri_utm"][0])
    assert not same_projection(grid, PROJECTIONS["wkt_laea_north_first"][0])


def test_a_missing_sign_and_a_rounded_axis_are_the_same_projection() -> None:
    grid = Grid(rows=765, cols=700, pixel_km=1.0, projection=KNMI, x0_km=0.0, y0_km=-3650.0)
    for same in (WITHOUT_SIGN, in_metres(KNMI), KNMI.replace("+x_0=0 +y_0=0", "")):
        assert same_projection(grid, same)
    for other in (KNMI.replace("lon_0=0.0", "lon_0=1"), KNMI.replace("6378.137", "6371"), LAEA):
        assert not same_projection(grid, other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (KNMI.replace("stere", "nothing"), "cannot be used"),
        (KNMI + " +nadgrids=/etc/passwd", r"the term '\+nadgrids=/etc/passwd' is not known"),
        (KNMI.replace("+a=6378.137 ", ""), "Must specify ellipsoid or sphere"),
        (KNMI.replace("60.0", "north"), "invalid value for lat_ts"),
        (KNMI.replace("6356.752", "7000"), "cannot be used"),
        ("+proj=longlat +datum=WGS84", "gives degrees"),
        ("", "cannot be used"),
        ("+proj=utm +zone=33 +no_defs", "Must specify ellipsoid or sphere"),
        (CRS.from_epsg(4326).to_wkt(), "gives degrees"),
        ("PROJCRS[nothing]", "cannot be used"),
        (SHIFTED_BY_FILE, "names a file of shifts"),
        (CRS.from_epsg(3857).to_wkt("WKT1_GDAL").replace("@null", "/etc/passwd"), "names a file of shifts"),
    ],
)
def test_what_is_no_projection_in_metres_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_projection(text)


def test_web_mercator_as_gdal_writes_it_names_no_file() -> None:
    projection = CRS.from_epsg(3857).to_wkt("WKT1_GDAL")
    assert "@null" in projection
    assert parse_projection(projection) == CRS.from_wkt(projection)


def test_pixel_centres_lie_half_a_pixel_inside_the_edges() -> None:
    grid = Grid(rows=2, cols=3, pixel_km=2.0, projection=KNMI, x0_km=10.0, y0_km=-3650.0)
    x_m, y_m = pixel_centres_m(grid)
    assert x_m.tolist() == [11_000, 13_000, 15_000]
    assert y_m.tolist() == [-3_651_000, -3_653_000]


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_point_in_degrees_is_found_in_its_pixel(name: str) -> None:
    grid = grid_of(name, rows=9, cols=7)
    x_m, y_m = pixel_centres_m(grid)
    for row, col in ((0, 0), (3, 5), (8, 6)):
        longitude, latitude = to_degrees(grid.projection, x_m[[col]], y_m[[row]])
        assert site_pixel(Site(name="", latitude_deg=latitude[0], longitude_deg=longitude[0]), grid) == (row, col)
    # Half a pixel beyond the last one.
    longitude, latitude = to_degrees(grid.projection, x_m[[6]] + 1000 * grid.pixel_km, y_m[[4]])
    beyond = Site(name="There", latitude_deg=latitude[0], longitude_deg=longitude[0])
    with pytest.raises(DataError, match=r"--place There \(.*\) lies outside the forecast's grid, whose corners are"):
        site_pixel(beyond, grid)


def test_a_point_that_the_projection_cannot_show_is_outside() -> None:
    with pytest.raises(DataError, match="lies outside"):
        site_pixel(Site(name="", latitude_deg=-90.0, longitude_deg=0.0), grid_of("stere_knmi"))
