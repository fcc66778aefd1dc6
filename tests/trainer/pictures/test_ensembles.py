"""Pictures of ensembles: probabilities in their classes and places, every member once, plumes of the right numbers."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from rainspark.data.shards.palette import MISSING_COLOUR, RAIN_COLOURS
from rainspark.trainer.pictures.ensembles import (
    MOST_STAMPS,
    PROBABILITY_COLOURS,
    PROBABILITY_LEVELS,
    Plume,
    member_stamps,
    plume_picture,
    probability_maps,
    probability_rgb,
)
from rainspark.trainer.pictures.forecasts import Case
from rainspark.trainer.pictures.panels import png_bytes
from tests.trainer.cases import COLS, ROWS, field, make_case

# Linear RGB as the colour-blind see it: Machado, Oliveira and Fernandes (2009), doi:10.1109/TVCG.2009.113, severity 1.
VISION = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def _pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(png_bytes(figure))) as picture:
        return np.asarray(picture.convert("RGB"))


def _where(pixels: npt.NDArray[np.uint8], colour: str) -> npt.NDArray[np.int64]:
    return np.argwhere((pixels == ImageColor.getrgb(colour)).all(axis=-1))


def _case(**changes: Any) -> Case:
    return make_case(**({"forecasts_mmh": {"mean": field(7)}} | changes))


def test_probabilities_take_the_colour_of_their_class() -> None:
    shares = np.array([0, 1 / 20, 3 / 20, 4 / 20, 0.5, 19 / 20, 1, np.nan], np.float32)
    colours = [tuple(colour) for colour in probability_rgb(shares).tolist()]
    classes = [PROBABILITY_COLOURS[number] for number in (0, 1, 1, 2, 3, 6, 6)]
    assert colours == [ImageColor.getrgb(colour) for colour in (*classes, MISSING_COLOUR)]
    assert len(PROBABILITY_COLOURS) == len(PROBABILITY_LEVELS) + 1
    assert probability_rgb(np.zeros((2, 3))).shape == (2, 3, 3)


@pytest.mark.parametrize("vision", VISION)
def test_the_colours_darken_step_by_step_for_every_eye(vision: str) -> None:
    """CIE 1976 lightness, of which one unit is about what can be told apart side by side."""
    coded = np.array([ImageColor.getrgb(colour) for colour in PROBABILITY_COLOURS]) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    luminance = np.clip(linear @ VISION[vision].T, 0, 1) @ np.array([0.2126, 0.7152, 0.0722])
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    assert (np.diff(lightness) < -7).all(), lightness


def test_maps_show_rain_and_then_probabilities_a_line_a_lead() -> None:
    low, high = np.full((2, ROWS, COLS), 0.3, np.float32), np.full((2, ROWS, COLS), 0.99, np.float32)
    low[1] = 0.7
    figure = probability_maps(_case(), {"above 1": low, "above 5": high}, leads=[1, 3], title="A title")
    pixels = _pixels(figure)
    rain, first, later, certain = (
        _where(pixels, colour) for colour in (RAIN_COLOURS[5], *(PROBABILITY_COLOURS[number] for number in (2, 4, 6)))
    )
    # Columns from left to right, and lines from the top down.
    assert rain[:, 1].mean() < first[:, 1].mean() < certain[:, 1].mean()
    assert np.median(first[:, 0]) < np.median(later[:, 0])
    assert len(certain) == pytest.approx(len(rain), rel=0.1)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["mean", "above 1", "above 5"]
    assert figure.axes[3].get_ylabel() == "+15 min   00:15 UTC"


def test_maps_are_cut_to_what_a_radar_saw() -> None:
    valid = np.zeros((2, ROWS, COLS), dtype=bool)
    valid[:, 10:30, 4:24] = True
    rain = field(7)
    rain[:, ~valid[0]] = np.nan
    case = _case(radar_valid_thw=valid, forecasts_mmh={"mean": rain})
    share = np.where(valid[:1], np.float32(0.5), np.float32(np.nan))
    for figure in (
        probability_maps(case, {"above 1": share}, leads=[1], title=""),
        member_stamps(case, np.where(valid, 7.0, np.nan), lead=1, title=""),
    ):
        assert figure.axes[0].get_xlim() == (2.5, 24.5)
        assert figure.axes[0].get_ylim() == (30.5, 8.5)
    nowhere = _case(radar_valid_thw=np.zeros_like(valid))
    figure = probability_maps(nowhere, {"above 1": share}, leads=[1], title="")
    assert figure.axes[0].get_xlim() == (-0.5, COLS - 0.5)


@pytest.mark.parametrize(("num_members", "words"), [(2, "every member"), (7, "every member"), (33, "30 of 33 members")])
def test_stamps_show_every_member_once(num_members: int, words: str) -> None:
    members = np.full((num_members, ROWS, COLS), 0.7)
    members[0], members[min(num_members, MOST_STAMPS) - 1] = 7, 30
    figure = member_stamps(_case(), members, lead=2, title="A title")
    drawn = min(num_members, MOST_STAMPS)
    numbers = [axis.texts[0].get_text() for axis in figure.axes if axis.images]
    assert numbers == [str(number) for number in range(drawn)]
    assert f"{words} at +10 min, 2010-08-26 00:10 UTC" in [text.get_text() for text in figure.texts]
    pixels = _pixels(figure)
    first, last = _where(pixels, RAIN_COLOURS[5]), _where(pixels, RAIN_COLOURS[7])
    assert tuple(np.median(first, axis=0)) < tuple(np.median(last, axis=0))


def _plume(quantiles: tuple[float, ...]) -> Plume:
    members = np.random.default_rng(0).gamma(1, 2, (9, 3))
    return Plume(
        radar_mmh_t=np.array([0.5, np.nan]),
        members_mmh_mt=members,
        quantiles=quantiles,
        quantiles_mmh_qt=np.quantile(members, quantiles, axis=0),
        summary="a summary",
    )


@pytest.mark.parametrize("quantiles", [(0.1, 0.25, 0.5, 0.75, 0.9), (0.1, 0.9), (0.4,), (0.1, 0.3, 0.5, 0.6, 0.7, 0.8)])
def test_a_plume_draws_members_quantiles_and_radar(quantiles: tuple[float, ...]) -> None:
    plume = _plume(quantiles)
    figure = plume_picture(make_case(), plume, title="Here")
    (axis,) = figure.axes
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    bands = [shape for shape in axis.collections if isinstance(shape, PolyCollection)]
    assert len(bands) == len(quantiles) // 2
    for number, band in enumerate(bands):
        corners = np.asarray(band.get_paths()[0].vertices)
        low, high = plume.quantiles_mmh_qt[number], plume.quantiles_mmh_qt[-1 - number]
        assert corners[:, 1].min() == pytest.approx(low.min())
        assert corners[:, 1].max() == pytest.approx(high.max())
        assert f"{100 * quantiles[number]:g} to {100 * quantiles[-1 - number]:g}%" in labels
    lines = [np.asarray(line.get_ydata()) for line in axis.lines]
    for expected in (*plume.members_mmh_mt, plume.radar_mmh_t):
        assert any(line.shape == expected.shape and np.array_equal(line, expected, equal_nan=True) for line in lines)
    assert ("median" in labels) == (len(quantiles) == 5)
    assert ("40%" in labels) == (quantiles == (0.4,))
    assert axis.get_ylim()[0] == 0
    assert axis.get_xlim() == (-5, 15)
    assert [tick.get_text() for tick in axis.get_xticklabels()] == [
        "-5 min\n23:55", "0 min\n00:00", "+5 min\n00:05", "+10 min\n00:10", "+15 min\n00:15"
    ]  # fmt: skip
    assert "a summary" in [text.get_text() for text in figure.texts]
