"""Forecast pictures: right colours in right panels, what is no number stands out, and cases that do not fit."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import ImageColor

from rainspark.data.shards.palette import MISSING_COLOUR, RAIN_COLOURS
from rainspark.trainer.pictures.forecasts import (
    UNKNOWN_COLOUR,
    forecast_beside_radar,
    forecast_frames,
    scale_bar,
    shortened,
)
from tests.trainer.cases import COLS, ROWS, field, make_case, read_picture, shares


def test_lines_are_the_radar_and_the_models(tmp_path: Path) -> None:
    forecast_beside_radar(tmp_path / "a.png", make_case(), leads=[1, 3], title="A title\nand a note")
    pixels = read_picture(tmp_path / "a.png")
    drawn = shares(pixels)
    assert drawn["20"] == pytest.approx(drawn["5"], rel=0.05), "radar and a"
    assert drawn["10"] == pytest.approx(drawn["5"], rel=0.05), "b and a"
    assert drawn["5"] > 0.15
    colours = [ImageColor.getrgb(RAIN_COLOURS[number]) for number in (7, 5, 6)]
    top, middle, foot = (np.argwhere((pixels == colour).all(-1))[:, 0].mean() for colour in colours)
    assert top < middle < foot
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_without_what_came_only_the_models_are_drawn(tmp_path: Path) -> None:
    case = make_case(observed_mmh_thw=None, observed_valid_thw=None)
    forecast_beside_radar(tmp_path / "a.png", case, leads=[2], title="")
    assert shares(read_picture(tmp_path / "a.png"))["20"] < 0.01, "only the legend's"


def test_frames_show_one_forecast_each_and_their_time() -> None:
    rain = np.concatenate([field(0.15, 1), field(0.7, 1), field(60, 1)])
    case = make_case(forecasts_mmh={"a": rain})
    pictures = forecast_frames(case, "a", "title")
    assert len({picture.shape for picture in pictures}) == 1
    for picture, expected in zip(pictures, ("0.1", "0.5", "50"), strict=True):
        drawn = shares(picture)
        assert max(drawn, key=drawn.__getitem__) == expected
    assert [case.clock(step)[-9:] for step in (0, 1, 12)] == ["00:00 UTC", "00:05 UTC", "01:00 UTC"]
    assert case.clock(0).startswith("2010-08-26 ")
    assert [case.lead_text(step) for step in (-1, 0, 2)] == ["-5 min", "0 min", "+10 min"]


def test_a_radar_pixel_is_a_whole_number_of_screen_pixels() -> None:
    rain = field(0)
    rain[0, 10, :] = 7
    (picture, _, _) = forecast_frames(make_case(forecasts_mmh={"a": rain}), "a", "")
    colour = (picture == ImageColor.getrgb(RAIN_COLOURS[5])).all(axis=-1)
    # The row of rain, not the legend: at least half of the picture's width.
    lines = np.flatnonzero(colour.sum(axis=1) > 0.5 * picture.shape[1])
    assert len(lines) == round(560 / COLS)


def test_what_is_no_number_stands_out_and_what_no_radar_saw_is_grey() -> None:
    rain = field(7)
    rain[0, :20], rain[0, 20:30] = np.nan, np.inf
    clean, broken = make_case(forecasts_mmh={"a": field(7)}), make_case(forecasts_mmh={"a": rain})
    assert shares(forecast_frames(clean, "a", "")[0])["no number"] == 0
    assert shares(forecast_frames(broken, "a", "")[0])["no number"] > 0.3
    assert broken.num_nonfinite("a", 0) == 30 * COLS
    valid = np.ones((2, ROWS, COLS), dtype=bool)
    valid[:, :30] = False
    unseen = make_case(forecasts_mmh={"a": rain}, radar_valid_thw=valid)
    assert unseen.num_nonfinite("a", 0) == 0, "no radar looked there"
    assert shares(forecast_frames(unseen, "a", "")[0])["no number"] == 0
    assert shares(forecast_frames(unseen, "a", "")[0])["missing"] > 0.3
    assert [patch.get_label() for patch in broken.legend_patches()] == ["not a number"]
    assert [patch.get_label() for patch in unseen.legend_patches()] == ["no data"]


def test_what_a_model_cannot_know_is_striped_and_neither_dry_nor_a_failure() -> None:
    unknown_thw = np.zeros((3, ROWS, COLS), dtype=bool)
    unknown_thw[0, :, :12] = True
    rain = field(7)
    rain[unknown_thw] = 0
    case = make_case(forecasts_mmh={"a": rain, "b": field(7)}, unknown_thw={"a": unknown_thw})
    image = case.forecast_image("a", 0)
    stripes = {tuple(colour) for colour in image[:, :12].reshape(-1, 3).tolist()}
    assert stripes == {ImageColor.getrgb(MISSING_COLOUR), ImageColor.getrgb(UNKNOWN_COLOUR)}
    assert (image[:, 12:] == ImageColor.getrgb(RAIN_COLOURS[5])).all()
    assert (case.forecast_image("a", 1) == ImageColor.getrgb(RAIN_COLOURS[5])).all()
    assert (case.forecast_image("b", 0) == ImageColor.getrgb(RAIN_COLOURS[5])).all()

    rain[unknown_thw] = np.nan
    assert case.num_nonfinite("a", 0) == 0
    assert [patch.get_label() for patch in case.legend_patches()] == ["unknown: flows in"]
    # Where no radar looked it is missing, whatever the model knows.
    valid = np.ones((2, ROWS, COLS), dtype=bool)
    valid[:, :20] = False
    unseen = make_case(forecasts_mmh={"a": rain}, unknown_thw={"a": unknown_thw}, radar_valid_thw=valid)
    assert (unseen.forecast_image("a", 0)[:20] == ImageColor.getrgb(MISSING_COLOUR)).all()
    assert shares(forecast_frames(case, "a", "")[0])["dry"] < 0.02, "only the legend's"


@pytest.mark.parametrize(
    ("cols", "pixel_km", "expected"), [(288, 1.0, "50 km"), (700, 1.0, "200 km"), (32, 1.0, "5 km"), (64, 0.25, "2 km")]
)
def test_the_scale_bar_is_a_round_number(cols: int, pixel_km: float, expected: str) -> None:
    axis = Figure().add_subplot()
    axis.imshow(np.zeros((cols, cols)))
    limits = axis.get_xlim(), axis.get_ylim()
    scale_bar(axis, pixel_km)
    (line,) = axis.lines
    x = np.asarray(line.get_xdata(), dtype=float)
    assert [text.get_text() for text in axis.texts] == [expected]
    assert (x[1] - x[0]) * pixel_km == pytest.approx(float(expected.removesuffix(" km")))
    assert (axis.get_xlim(), axis.get_ylim()) == limits


def test_names_are_no_formulas_and_long_ones_are_cut_in_the_middle(tmp_path: Path) -> None:
    name = "runs/$x_{unclosed$ " + 60 * "long " + "seed 3"
    case = make_case(forecasts_mmh={name: field(7)})
    forecast_beside_radar(tmp_path / "a.png", case, leads=[1], title=name)
    assert len(forecast_frames(case, name, name)) == 3
    assert len(shortened(name)) <= 26
    assert shortened(name).endswith("seed 3")
    assert shortened("short") == "short"
