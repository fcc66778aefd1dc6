"""Coasts, borders and graticule on grids: well-known places, a plain reference, and projections of all kinds."""

import math

import numpy as np
import pytest
from pyproj import Proj

from rainspark.data.frames import Grid
from rainspark.data.sources.knmi_writer import KNMI_PROJECTION
from rainspark.trainer.forecasting.grid import in_metres
from rainspark.trainer.forecasting.map_lines import FILE_NAME, STEPS_PER_DEGREE, map_lines
from rainspark.trainer.pictures.maps import Line, MapLines
from tests.bench.natural_earth import reduced, simplified, split_at_date_line
from tests.conftest import REPOSITORY
from tests.trainer.forecasting.projections import PROJECTIONS, grid_of

KNMI = Grid(rows=765, cols=700, pixel_km=1.0, x0_km=0.0, y0_km=-3650.0, projection=KNMI_PROJECTION)
DATA = REPOSITORY / "trainer" / "forecasting" / FILE_NAME


def _lines(grid: Grid) -> MapLines:
    lines = map_lines(grid)
    assert lines is not None
    return lines


def _distance_km(line: Line, grid: Grid, longitude: float, latitude: float) -> float:
    """Measure how far a place lies from a line, segment by segment."""
    x_m, y_m = Proj(in_metres(grid.projection))(longitude, latitude)
    col, row = (x_m / 1000 - grid.x0_km) / grid.pixel_km - 0.5, (grid.y0_km - y_m / 1000) / grid.pixel_km - 0.5
    best = math.inf
    for (col0, row0), (col1, row1) in zip(line.T[:-1], line.T[1:], strict=True):
        if math.isnan(col0) or math.isnan(col1):
            continue
        length = math.hypot(col1 - col0, row1 - row0)
        share = 0.0 if length == 0 else ((col - col0) * (col1 - col0) + (row - row0) * (row1 - row0)) / length**2
        share = min(max(share, 0.0), 1.0)
        best = min(best, math.hypot(col0 + share * (col1 - col0) - col, row0 + share * (row1 - row0) - row))
    return best * grid.pixel_km


@pytest.mark.parametrize(
    ("grid", "longitude", "latitude", "kind"),
    [
        (KNMI, 4.265, 52.115, "coast"),  # Scheveningen
        (KNMI, 6.021, 50.754, "borders"),  # Vaals: the Netherlands, Belgium, Germany
        (grid_of("somerc", rows=200, cols=200), 7.589, 47.590, "borders"),  # Basel: Switzerland, France, Germany
        (grid_of("somerc", rows=200, cols=200), 7.045, 45.923, "borders"),  # Mont Dolent
        (grid_of("utm", rows=300, cols=300), 22.07, 65.62, "coast"),  # Lulea's shore
        (grid_of("lat_lon_at_the_edge", rows=400, cols=300), 174.84, -41.35, "coast"),  # Wellington
    ],
)
def test_well_known_places_lie_on_the_lines(grid: Grid, longitude: float, latitude: float, kind: str) -> None:
    assert _distance_km(getattr(_lines(grid), kind), grid, longitude, latitude) < 4
    # And nothing lies there that does not: the middle of Belgium's forest is neither.
    if grid is KNMI:
        assert _distance_km(getattr(_lines(grid), kind), grid, 5.6, 50.3) > 20


@pytest.mark.parametrize("name", [name for name in PROJECTIONS if not name.startswith("wkt")])
def test_lines_are_those_of_the_file_projected_one_by_one(name: str) -> None:
    grid = grid_of(name, rows=90, cols=110, pixel_km=4.0)
    lines = _lines(grid)
    with np.load(DATA) as held:
        steps = held["low"].astype(int) + 256 * held["high"].astype(np.int8).astype(int)
        first, lengths, is_border = held["first"], held["lengths"], held["is_border"]
    place = Proj(in_metres(grid.projection))
    start = 0
    expected: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for at, length in enumerate(lengths.tolist()):
        points = (first[at] + np.cumsum(steps[:, start : start + length], axis=1).T) / STEPS_PER_DEGREE
        start += length
        x_m, y_m = place(points[:, 0], points[:, 1])
        col = (np.array(x_m) / 1000 - grid.x0_km) / 4 - 0.5
        row = (grid.y0_km - np.array(y_m) / 1000) / 4 - 0.5
        inside = (np.abs(col - 54.5) < 55) & (np.abs(row - 44.5) < 45)
        expected[bool(is_border[at])] += list(zip(col[inside], row[inside], strict=True))

    for is_border, line in ((False, lines.coast), (True, lines.borders)):
        inside = (np.abs(line[0] - 54.5) < 55) & (np.abs(line[1] - 44.5) < 45)
        np.testing.assert_allclose(line[:, inside].T, np.array(expected[is_border]).reshape(-1, 2), rtol=0, atol=1e-3)


def test_no_line_jumps_across_a_frame() -> None:
    """At the date line, around a pole, and on a whole continent."""
    frames = (
        grid_of("lat_lon_at_the_edge", rows=500, cols=900, pixel_km=4.0),
        Grid(rows=400, cols=400, pixel_km=20.0, x0_km=-4000.0, y0_km=4000.0, projection=PROJECTIONS["stere_north"][0]),
        Grid(rows=220, cols=190, pixel_km=20.0, x0_km=0.0, y0_km=0.0, projection=PROJECTIONS["laea"][0]),
    )
    for grid in frames:
        lines = _lines(grid)
        for line in (lines.coast, lines.borders):
            steps_km = np.hypot(*np.diff(line, axis=1)) * grid.pixel_km
            assert np.nan_to_num(steps_km).max(initial=0) < 300
        assert np.isfinite(lines.coast).all(axis=0).sum() > 300


def test_open_sea_has_a_graticule_only() -> None:
    sea = Grid(rows=50, cols=60, pixel_km=2.0, x0_km=-4500.0, y0_km=5500.0, projection=PROJECTIONS["lat_lon"][0])
    lines = _lines(sea)
    assert lines.coast.shape == lines.borders.shape == (2, 0)
    assert lines.labels


def test_degrees_stand_where_lines_meet_the_edges() -> None:
    lines = _lines(KNMI)
    assert [label.text for label in lines.labels] == ["2°E", "4°E", "6°E", "8°E", "54°N", "52°N", "50°N"]
    place = Proj(in_metres(KNMI_PROJECTION))
    for label in lines.labels:
        assert label.row == -0.5 if label.on_top else label.col == 699.5
        longitude, latitude = place(1000 * (label.col + 0.5), 1000 * (-3650 - label.row - 0.5), inverse=True)
        value = float(label.text.split("°")[0])
        assert (longitude if label.on_top else latitude) == pytest.approx(value, abs=0.01)


@pytest.mark.parametrize(
    ("name", "words"), [("lat_lon", "WN"), ("lat_lon_at_the_edge", "ES"), ("stere_oblique", "EN"), ("utm_south", "ES")]
)
def test_degrees_name_their_side_of_the_earth(name: str, words: str) -> None:
    labels = _lines(grid_of(name, rows=200, cols=200, pixel_km=2.0)).labels
    assert {label.text[-1] for label in labels if label.on_top} == {words[0]}
    assert {label.text[-1] for label in labels if not label.on_top} == {words[1]}


@pytest.mark.parametrize(("longitude", "turned"), [(10.0, 0.0), (25.0, -15.0), (-5.0, 15.0)])
def test_north_turns_with_the_distance_from_the_central_meridian(longitude: float, turned: float) -> None:
    """On a polar stereographic map north turns by the difference of longitude."""
    projection = PROJECTIONS["stere_north"][0]
    x_m, y_m = Proj(in_metres(projection))(longitude, 51)
    # The arrow stands in the upper left corner.
    grid = Grid(rows=10, cols=10, pixel_km=1.0, x0_km=x_m / 1000 - 1, y0_km=y_m / 1000 + 1, projection=projection)
    assert _lines(grid).north_deg == pytest.approx(turned, abs=0.1)


@pytest.mark.parametrize(
    "projection",
    [
        "+proj=longlat +datum=WGS84",
        "+proj=nothing",
        # Corners of the full disk look past the Earth.
        "+proj=geos +h=35785831 +lon_0=0 +sweep=y +ellps=WGS84",
    ],
)
def test_a_grid_without_degrees_has_no_map(projection: str) -> None:
    grid = Grid(rows=100, cols=100, pixel_km=110.0, x0_km=-5500.0, y0_km=5500.0, projection=projection)
    assert map_lines(grid) is None


def test_the_file_is_small_and_holds_the_world() -> None:
    assert DATA.stat().st_size <= 500_000
    with np.load(DATA) as held:
        assert held["lengths"].sum() > 200_000
        assert 300 < held["is_border"].sum() < 600


def test_simplified_lines_stay_within_the_tolerance_and_lose_points() -> None:
    random = np.random.default_rng(0)
    points = np.cumsum(random.normal(size=(200, 2)), axis=0)
    keep = simplified(points, 1.5)
    assert keep[0]
    assert keep[-1]
    assert keep.sum() < 120
    kept = np.flatnonzero(keep)
    for at in np.flatnonzero(~keep):
        first, last = points[kept[kept < at][-1]], points[kept[kept > at][0]]
        chord = last - first
        normal = np.array([-chord[1], chord[0]]) / np.hypot(*chord)
        assert abs((points[at] - first) @ normal) <= 1.5


def test_what_is_no_coast_is_left_out_and_long_steps_get_points() -> None:
    ring = np.array([[170.0, 60.0], [180.0, 61.0], [180.0, 65.0], [-180.0, 65.0], [-175.0, 66.0]])
    assert [piece.tolist() for piece in split_at_date_line(ring)] == [ring[:2].tolist(), ring[3:].tolist()]
    border = reduced(np.array([[-123.0, 49.0], [-95.0, 49.0]]))
    assert border is not None
    np.testing.assert_allclose(border[:, 0], np.arange(-123, -94))
    np.testing.assert_allclose(border[:, 1], 49)
    assert reduced(np.array([[5.0, 52.0], [5.01, 52.01], [5.0, 52.0]])) is None, "an islet"
    assert reduced(np.array([[5.0, -70.0], [50.0, -75.0]])) is None, "Antarctica"


def test_it_is_read_without_pickle() -> None:
    with np.load(DATA, allow_pickle=False) as held:
        assert {held[name].dtype.kind for name in held.files} <= {"i", "u", "b"}
