"""Projections that radar services use, as their files state them, each with a place inside its country or region."""

from typing import Final

import numpy as np
import numpy.typing as npt
from pyproj import CRS, Transformer

from rainspark.data.frames import Grid
from rainspark.trainer.forecasting.grid import parse_projection

Corners = npt.NDArray[np.float64]
OPERA: Final = "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84"
LV95: Final = (
    "+proj=somerc +lat_0=46.95240555555556 +lon_0=7.439583333333333 +k_0=1 +x_0=2600000 +y_0=1200000 +ellps=bessel "
    "+towgs84=674.374,15.056,405.346,0,0,0,0 +units=m +no_defs"
)
PROJECTIONS: Final[dict[str, tuple[str, float, float]]] = {
    "laea": (OPERA, 10.0, 52.0),
    "lcc_of_belgium": (
        "+proj=lcc +lat_1=49.83333333333334 +lat_2=51.16666666666666 +lat_0=50.797815 +lon_0=4.359215833333333 "
        "+x_0=649328 +y_0=665262 +ellps=GRS80 +towgs84=0,0,0,0,0,0,0 +units=m +no_defs",
        4.4,
        50.8,
    ),
    "lcc_one_parallel": ("+proj=lcc +lat_1=46 +lat_0=46 +lon_0=13 +R=6371229", 13.0, 46.0),
    "lcc_with_scale": ("+proj=lcc +lat_1=46.8 +lat_0=46.8 +lon_0=2.337229 +k_0=0.99987742 +ellps=GRS80", 3.0, 47.0),
    "somerc": (LV95, 8.2, 46.8),
    "tmerc": ("+proj=tmerc +lat_0=0 +lon_0=19 +k=0.9993 +x_0=500000 +y_0=-5300000 +ellps=GRS80 +units=m", 19.0, 52.0),
    "utm": ("+proj=utm +zone=35 +ellps=GRS80 +towgs84=0,0,0,0,0,0,0 +units=m +no_defs", 25.0, 64.0),
    "utm_south": ("+proj=utm +zone=55 +south +datum=WGS84", 147.0, -37.0),
    "stere_knmi": ("+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.14 +b=6356.75 +x_0=0 y_0=0", 5.0, 52.0),
    "stere_north": ("+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +a=6370040 +b=6370040 +units=km", 10.0, 51.0),
    "stere_lon_wrap": ("+proj=stere +lat_0=90 +lat_ts=60 +lon_0=25 +lon_wrap=180 +ellps=WGS84", 25.0, 62.0),
    "stere_south": ("+proj=stere +lat_0=-90 +lat_ts=-71 +lon_0=0 +ellps=WGS84", 40.0, -70.0),
    "stere_oblique": ("+proj=stere +lat_0=52 +lon_0=19 +k_0=0.9999 +ellps=bessel", 19.0, 52.0),
    "sterea": (
        "+proj=sterea +lat_0=52.15616055555555 +lon_0=5.38763888888889 +k=0.9999079 +x_0=155000 +y_0=463000 "
        "+ellps=bessel +towgs84=565.417,50.3319,465.552,-0.398957,0.343988,-1.8774,4.0725",
        5.5,
        52.0,
    ),
    "merc": ("+proj=merc +lon_0=5 +lat_ts=40 +ellps=WGS84", 5.0, 44.0),
    "aeqd": ("+proj=aeqd +lat_0=46.5 +lon_0=11.3 +ellps=WGS84 +units=m", 11.3, 46.5),
    "aea": ("+proj=aea +lat_1=-18 +lat_2=-36 +lat_0=0 +lon_0=132 +ellps=GRS80", 145.0, -35.0),
    "aea_without_earth": ("+proj=aea +lon_0=144.752 +lat_0=-37.852 +lat_1=-18.000 +lat_2=-36.000", 145.0, -37.5),
    "utm_without_earth": ("+proj=utm +zone=33 +units=km", 15.0, 50.0),
    "lat_lon": ("+proj=eqc +lat_ts=0 +lon_0=0 +R=6371000 +units=m", -95.0, 38.0),
    "lat_lon_at_the_edge": ("+proj=eqc +lat_ts=0 +lon_0=0 +R=6371000 +units=m", 175.0, -41.0),
    "wkt_laea_north_first": (CRS.from_epsg(3035).to_wkt(), 10.0, 52.0),
    "wkt_gdal_somerc": (CRS.from_epsg(21781).to_wkt("WKT1_GDAL"), 8.2, 46.8),
    "wkt_esri_utm": (CRS.from_epsg(3067).to_wkt("WKT1_ESRI"), 25.0, 64.0),
    "wkt_feet": (CRS.from_epsg(2263).to_wkt(), -74.0, 40.7),
    "wkt_of_paris": (CRS.from_epsg(27572).to_wkt(), 2.5, 47.0),
}
"""By name: a projection, and a longitude and latitude on its own ellipsoid that its grids lie around."""


def grid_of(name: str, *, rows: int = 60, cols: int = 70, pixel_km: float = 2.0) -> Grid:
    """Make a grid in one of the projections, around its place; its corner lies on a whole kilometre."""
    projection, longitude, latitude = PROJECTIONS[name]
    crs = parse_projection(projection)
    x_m, y_m = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform(longitude, latitude)
    return Grid(
        rows=rows,
        cols=cols,
        pixel_km=pixel_km,
        projection=projection,
        x0_km=float(round(x_m / 1000 - cols * pixel_km / 2)),
        y0_km=float(round(y_m / 1000 + rows * pixel_km / 2)),
    )


def outer_corners_m(grid: Grid) -> tuple[Corners, Corners]:
    """Give the eastings and northings of a grid's four corners in metres, upper left first, lower right last."""
    left_m, right_m = 1000 * grid.x0_km, 1000 * (grid.x0_km + grid.cols * grid.pixel_km)
    upper_m, lower_m = 1000 * grid.y0_km, 1000 * (grid.y0_km - grid.rows * grid.pixel_km)
    return np.array([left_m, right_m, left_m, right_m]), np.array([upper_m, upper_m, lower_m, lower_m])
