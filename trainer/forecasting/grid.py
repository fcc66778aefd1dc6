"""The map projection of radar composites: polar stereographic, from its PROJ string to degrees and to CF and WKT words.

Formulas: Snyder (1987), Map projections, a working manual, USGS Professional Paper 1395, doi:10.3133/pp1395. No package
of projections is needed for the one that is met, so a forecast's file is the same wherever it is made.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from ...data.errors import DataError
from ...data.frames import Grid

KNOWN_KEYS: Final = frozenset({"proj", "lat_0", "lon_0", "lat_ts", "a", "b", "x_0", "y_0", "units", "no_defs", "type"})
METRES_FROM: Final = 1e5
"""An axis of the Earth above this is stated in metres, below it in km (KNMI: +a=6378.137)."""

AXIS_TOLERANCE: Final = 1e-6
"""KNMI writes the axis as 6378.137 and as 6378.14 km: on its grid that is 2 m, a five-hundredth of a pixel."""

ITERATIONS: Final = 6
"""Of equation 7-9: each gains a factor of e**2 = 0.0067, so that six reach rounding."""

_DEGREE: Final = 'ANGLEUNIT["degree",0.0174532925199433]'
_METRE: Final = 'LENGTHUNIT["metre",1]'


@dataclass(frozen=True, kw_only=True)
class PolarStereographic:
    """A polar stereographic projection of the north.

    Attributes:
        lon_0_deg: Longitude that runs straight down from the pole.
        lat_ts_deg: Latitude at which the scale is true.
        a_m: Semi-major axis of the ellipsoid.
        b_m: Semi-minor axis.
        x_0_m: False easting.
        y_0_m: False northing.
    """

    lon_0_deg: float
    lat_ts_deg: float
    a_m: float
    b_m: float
    x_0_m: float
    y_0_m: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a PROJ string; a "+" that is left out, as in some of KNMI's files, does not matter.

        Raises:
            DataError: It is of another projection, or a number is missing or none.
        """
        values: dict[str, str] = {}
        for word in text.split():
            key, _, value = word.removeprefix("+").partition("=")
            values[key] = value
        unknown = sorted(values.keys() - KNOWN_KEYS)
        if values.get("proj") != "stere" or _number(values, "lat_0", text) != 90 or unknown:
            found = f"unknown: {', '.join(unknown)}" if unknown else "another projection"
            raise DataError(
                f"projection {text!r} ({found}); expected a polar stereographic one such as "
                "'+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.137 +b=6356.752'"
            )
        a, b = _number(values, "a", text), _number(values, "b", text)
        lat_ts_deg = _number(values, "lat_ts", text)
        if not (0 < b <= a < 1e8 and 0 < lat_ts_deg <= 90):
            raise DataError(
                f"projection {text!r}: a={a}, b={b}, lat_ts={lat_ts_deg}; expected a >= b > 0, 0 < lat_ts <= 90"
            )
        to_m = 1.0 if a > METRES_FROM else 1000.0
        return cls(
            lon_0_deg=_number(values, "lon_0", text, default="0"),
            lat_ts_deg=lat_ts_deg,
            a_m=_exact(a * to_m),
            b_m=_exact(b * to_m),
            x_0_m=_exact(_number(values, "x_0", text, default="0") * to_m),
            y_0_m=_exact(_number(values, "y_0", text, default="0") * to_m),
        )

    def degrees(
        self, x_m: npt.NDArray[np.float64], y_m: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Give (longitude, latitude) in degrees of points in metres; Snyder, page 162, and equations 15-9 and 7-9.

        Args:
            x_m: Eastings, any shape.
            y_m: Northings, of a shape that broadcasts with it.
        """
        e = math.sqrt(1 - (self.b_m / self.a_m) ** 2)
        east_m, north_m = x_m - self.x_0_m, y_m - self.y_0_m
        # The pole itself has no t_c / m_c; its limit is equation 21-33's.
        if self.lat_ts_deg == 90:
            radius_a_t_m = 2 * self.a_m / math.sqrt((1 + e) ** (1 + e) * (1 - e) ** (1 - e))
        else:
            sin_c = math.sin(math.radians(self.lat_ts_deg))
            m_c = math.cos(math.radians(self.lat_ts_deg)) / math.sqrt(1 - (e * sin_c) ** 2)
            t_c = math.tan(math.radians(90 - self.lat_ts_deg) / 2) / ((1 - e * sin_c) / (1 + e * sin_c)) ** (e / 2)
            radius_a_t_m = self.a_m * m_c / t_c
        t = np.hypot(east_m, north_m) / radius_a_t_m
        latitude = np.pi / 2 - 2 * np.arctan(t)
        for _ in range(ITERATIONS):
            sine = e * np.sin(latitude)
            latitude = np.pi / 2 - 2 * np.arctan(t * ((1 - sine) / (1 + sine)) ** (e / 2))
        longitude_deg = self.lon_0_deg + np.degrees(np.arctan2(east_m, -north_m))
        return (longitude_deg + 180) % 360 - 180, np.degrees(latitude)

    def proj(self) -> str:
        """Write the PROJ string in metres."""
        return (
            f"+proj=stere +lat_0=90 +lon_0={self.lon_0_deg:.12g} +lat_ts={self.lat_ts_deg:.12g} +a={self.a_m:.12g} "
            f"+b={self.b_m:.12g} +x_0={self.x_0_m:.12g} +y_0={self.y_0_m:.12g} +units=m +no_defs"
        )

    def cf_attributes(self) -> dict[str, Any]:
        """Give the attributes of a grid mapping variable: CF conventions, appendix F, Polar stereographic."""
        return {
            "grid_mapping_name": "polar_stereographic",
            "straight_vertical_longitude_from_pole": self.lon_0_deg,
            "latitude_of_projection_origin": 90.0,
            "standard_parallel": self.lat_ts_deg,
            "false_easting": self.x_0_m,
            "false_northing": self.y_0_m,
            "semi_major_axis": self.a_m,
            "semi_minor_axis": self.b_m,
            "longitude_of_prime_meridian": 0.0,
            "crs_wkt": self.wkt(),
            "proj4": self.proj(),
        }

    def wkt(self) -> str:
        """Write it as well-known text (ISO 19162): method EPSG:9829, Polar Stereographic (variant B)."""
        flattening = 0.0 if self.a_m == self.b_m else self.a_m / (self.a_m - self.b_m)
        parameters = (
            ("Latitude of standard parallel", self.lat_ts_deg, _DEGREE, 8832),
            ("Longitude of origin", self.lon_0_deg, _DEGREE, 8833),
            ("False easting", self.x_0_m, _METRE, 8806),
            ("False northing", self.y_0_m, _METRE, 8807),
        )
        stated = ",".join(
            f'PARAMETER["{name}",{value:.12g},{unit},ID["EPSG",{code}]]' for name, value, unit, code in parameters
        )
        # From the pole every way is south: an axis is told by the meridian that it follows.
        axes = ",".join(
            f'AXIS["({letter})",south,MERIDIAN[{_within_180(self.lon_0_deg + turn):.12g},{_DEGREE}],'
            f"ORDER[{order}],{_METRE}]"
            for letter, turn, order in (("E", 90, 1), ("N", 180, 2))
        )
        return (
            f'PROJCRS["Radar composite",BASEGEOGCRS["unknown",DATUM["unknown",ELLIPSOID["unknown",{self.a_m:.12g},'
            f'{flattening:.15g},{_METRE}]],PRIMEM["Greenwich",0,{_DEGREE}]],CONVERSION["unknown",'
            f'METHOD["Polar Stereographic (variant B)",ID["EPSG",9829]],{stated}],CS[Cartesian,2],{axes}]'
        )

    def equals(self, other: Self) -> bool:
        """Tell whether two projections put a point at the same place, to a small part of a pixel."""
        return (
            math.isclose(self.a_m, other.a_m, rel_tol=AXIS_TOLERANCE)
            and math.isclose(self.b_m, other.b_m, rel_tol=AXIS_TOLERANCE)
            and (self.lon_0_deg, self.lat_ts_deg) == (other.lon_0_deg, other.lat_ts_deg)
            and (self.x_0_m, self.y_0_m) == (other.x_0_m, other.y_0_m)
        )


def pixel_centres_m(grid: Grid) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Give the eastings (cols,) and northings (rows,) of a grid's pixel centres, in metres; row 0 lies in the north."""
    x_m = 1000 * (grid.x0_km + (np.arange(grid.cols, dtype=np.float64) + 0.5) * grid.pixel_km)
    y_m = 1000 * (grid.y0_km - (np.arange(grid.rows, dtype=np.float64) + 0.5) * grid.pixel_km)
    return x_m, y_m


def _within_180(longitude_deg: float) -> float:
    return (longitude_deg + 180) % 360 - 180


def _exact(value_m: float) -> float:
    """Take off what a factor of 1000 adds in rounding: 6378.137 km are 6378137 m."""
    return round(value_m, 6)


def _number(values: dict[str, str], key: str, text: str, default: str | None = None) -> float:
    found = values.get(key, default)
    try:
        value = float(found) if found is not None else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"projection {text!r}: {key} is {found!r}; expected a number")
    return value
