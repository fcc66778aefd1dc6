"""Maps over rain: lines where they should be, legible on every colour, and rain untouched beside them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.figure import Figure
from PIL import ImageColor

from rainspark.data.shards.palette import DRY_COLOUR, RAIN_COLOURS
from rainspark.trainer.pictures.animation import animation_frames
from rainspark.trainer.pictures.forecasts import forecast_beside_radar, forecast_frames, radar_credit
from rainspark.trainer.pictures.maps import Label, MapLines, Overlay, draw_map, write_credit
from tests.trainer.cases import COLS, ROWS, field, make_case, read_picture

NOTHING = np.empty((2, 0))
LINES = MapLines(
    coast=np.array([[4.0, 4.0, np.nan, 20.0, 20.0], [0.0, 39.0, np.nan, 10.0, 30.0]]),
    borders=np.array([[-9.0, 60.0], [25.0, 25.0]]),
    graticule=np.array([[-9.0, 60.0], [5.0, 5.0]]),
    labels=(Label(col=16, row=-0.5, text="5°E", on_top=True), Label(col=31.5, row=5, text="52°N", on_top=False)),
    north_deg=10.0,
)


def _over(colour: str) -> npt.NDArray[np.int64]:
    image = np.full((ROWS, COLS, 3), ImageColor.getrgb(colour), dtype=np.uint8)
    return Overlay(LINES, (ROWS, COLS), 15, labelled=True).over(image).astype(np.int64)


@pytest.mark.parametrize("colour", [DRY_COLOUR, *RAIN_COLOURS, "#b4b4b4"])
def test_a_coast_is_legible_on_every_colour(colour: str) -> None:
    picture = _over(colour)
    assert picture.shape == (15 * ROWS, 15 * COLS, 3)
    # Row 20 crosses the coast at column 4: a dark core between pale edges, of which one at least stands out.
    brightness = picture[15 * 20 + 7, 15 * 3 : 15 * 6].mean(axis=-1)
    assert brightness.min() < 60
    plain = np.mean(ImageColor.getrgb(colour))
    assert max(brightness.max() - brightness.min(), abs(plain - brightness.min())) > 100
    assert abs(15 * 3 + brightness.argmin() - (4.5 * 15)) <= 1.5, "at the middle of its pixel"


def test_pixels_beside_the_lines_keep_their_colour() -> None:
    picture = _over(RAIN_COLOURS[3])
    same = (picture == ImageColor.getrgb(RAIN_COLOURS[3])).all(axis=-1)
    assert same.mean() > 0.8
    assert same[15 * 35 : 15 * 39, 15 * 8 : 15 * 16].all()
    # A gap in the coast stays one.
    assert same[15 * 35 :, 15 * 20].all()


def test_limits_of_a_panel_stay_and_lines_end_at_its_frame() -> None:
    axis = Figure().add_subplot()
    axis.imshow(np.zeros((ROWS, COLS)))
    limits = axis.get_xlim(), axis.get_ylim()
    draw_map(axis, LINES, labelled=True)
    assert (axis.get_xlim(), axis.get_ylim()) == limits
    assert [text.get_text() for text in axis.texts] == ["5°E", "52°N", "", "N"]
    plain = Figure().add_subplot()
    plain.imshow(np.zeros((ROWS, COLS)))
    draw_map(plain, LINES, labelled=False)
    assert list(plain.texts) == []


@pytest.mark.parametrize("empty", ["coast", "borders", "graticule"])
def test_maps_without_some_lines_are_drawn(empty: str) -> None:
    changes: dict[str, Any] = {empty: NOTHING, "labels": ()}
    Overlay(replace(LINES, **changes), (ROWS, COLS), 2, labelled=True)


def test_every_picture_of_a_case_has_its_map_and_credit(tmp_path: Path) -> None:
    plain = make_case(credit=radar_credit("KNMI", "CC BY 4.0"))
    mapped = replace(plain, map=LINES)
    assert plain.credit_line == "Radar: KNMI. Licence: CC BY 4.0."
    assert mapped.credit_line == "Radar: KNMI. Licence: CC BY 4.0. Map: Natural Earth."
    assert make_case().credit_line == ""

    for name, case in (("plain", plain), ("mapped", mapped)):
        forecast_beside_radar(tmp_path / f"{name}.png", case, leads=[1], title="")
    pairs = [(read_picture(tmp_path / "plain.png"), read_picture(tmp_path / "mapped.png"))]
    pairs += zip(forecast_frames(plain, "a", ""), forecast_frames(mapped, "a", ""), strict=True)
    pairs += zip(animation_frames(plain, "")[0], animation_frames(mapped, "")[0], strict=True)
    for without, with_map in pairs:
        assert without.shape == with_map.shape
        share = (without != with_map).any(axis=-1).mean()
        assert 0.005 < share < 0.3


def test_rain_stays_under_the_map() -> None:
    case = make_case(forecasts_mmh={"a": field(7)}, map=LINES)
    picture = forecast_frames(case, "a", "")[0]
    assert (picture == ImageColor.getrgb(RAIN_COLOURS[5])).all(axis=-1).mean() > 0.3


def test_a_long_credit_fits_into_the_picture() -> None:
    figure = Figure(figsize=(4.4, 3), dpi=100)
    write_credit(figure, "Radar: $" + "a very long name of a product, " * 8)
    (text,) = figure.texts
    assert text.get_window_extent().x1 <= 440
