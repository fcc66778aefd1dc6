"""Score pictures: the lines are the numbers, axes are shared and labelled, and odd input is drawn or named."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rainspark.trainer.pictures.panels import png_bytes
from rainspark.trainer.pictures.scores import (
    USEFUL_BIAS,
    bias_against_lead,
    csi_against_lead,
    fss_against_scale,
    rain_rate_distribution,
    squared_error_against_lead,
)
from rainspark.trainer.pictures.scores_panels import Cast, Lines

LEAD_MIN = [5.0 * lead for lead in range(1, 13)]
THRESHOLDS_MMH = [0.1, 0.5, 1.0, 2.0, 5.0]
MODELS = ("persistence", "run $a_{b$", "another run")


def _curves(rows: int = 12, seed: int = 0) -> dict[str, npt.NDArray[np.float64]]:
    random = np.random.default_rng(seed)
    return {name: random.random((rows, len(THRESHOLDS_MMH))) for name in MODELS}


def _skill(curves: dict[str, npt.NDArray[np.float64]], **more: Any) -> Figure:
    return csi_against_lead(Lines(curves=curves, **more), lead_min=LEAD_MIN, thresholds_mmh=THRESHOLDS_MMH)


def _error(curves: dict[str, npt.NDArray[np.float64]], **more: Any) -> Figure:
    return squared_error_against_lead(Lines(curves=curves, **more), lead_min=LEAD_MIN)


def _draw(figure: Figure) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(png_bytes(figure))) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def test_each_panel_is_a_threshold_and_each_line_a_model() -> None:
    curves = _curves()
    figure = _skill(curves, cast=Cast(names=MODELS, baselines=["persistence"]))
    assert [axis.get_title("left") for axis in figure.axes] == [f"rain > {value:g} mm/h" for value in THRESHOLDS_MMH]
    for number, axis in enumerate(figure.axes):
        assert axis.get_ylim() == (0, 1)
        assert [line.get_linestyle() for line in axis.lines] == ["--", "-", "-"]
        assert len({str(line.get_color()) for line in axis.lines}) == 3
        assert len({str(line.get_marker()) for line in axis.lines}) == 3
        for line, values in zip(axis.lines, curves.values(), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), LEAD_MIN)
            np.testing.assert_array_equal(line.get_ydata(), values[:, number])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(MODELS)
    assert _draw(figure).shape[1] == 960


def test_bands_are_drawn_for_the_models_that_have_them() -> None:
    curves = _curves()
    name = MODELS[1]
    figure = _skill(curves, bands={name: (curves[name] - 0.1, curves[name] + 0.1)})
    assert [len(axis.collections) for axis in figure.axes] == [1] * len(THRESHOLDS_MMH)
    assert _draw(figure).any()


def test_a_threshold_without_rain_says_so() -> None:
    curves = _curves()
    for values in curves.values():
        values[:, -1] = np.nan
    figure = _skill(curves)
    assert [len(axis.texts) for axis in figure.axes] == [0, 0, 0, 0, 1]
    assert "no such rain" in figure.axes[-1].texts[0].get_text()
    _draw(figure)


def test_bias_is_logarithmic_with_its_band_and_never_leaves_the_panel() -> None:
    curves = _curves()
    curves[MODELS[1]][:, 0], curves[MODELS[2]][:, 0] = 0.0, 1e6
    figure = bias_against_lead(Lines(curves=curves), lead_min=LEAD_MIN, thresholds_mmh=THRESHOLDS_MMH)
    axis = figure.axes[0]
    assert axis.get_yscale() == "log"
    low, high = axis.get_ylim()
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axis.lines[1:]])
    assert ((low < drawn) & (drawn < high)).all()
    assert low < USEFUL_BIAS[0] < USEFUL_BIAS[1] < high
    assert len(axis.patches) == 1
    _draw(figure)


def test_fss_has_one_tick_a_scale() -> None:
    scales_km = [1.0, 5.0, 21.0]
    lines = Lines(curves=_curves(3))
    figure = fss_against_scale(lines, scales_km=scales_km, thresholds_mmh=THRESHOLDS_MMH)
    assert list(figure.axes[-1].get_xticks()) == scales_km
    _draw(figure)


def test_error_starts_at_zero_and_holds_every_line() -> None:
    curves = {"a": np.linspace(0.1, 1.4, 12), "b": np.full(12, np.nan)}
    figure = _error(curves)
    assert figure.axes[0].get_ylim()[0] == 0
    assert figure.axes[0].get_ylim()[1] > 1.4
    _draw(figure)
    _draw(_error({"b": np.zeros(12)}))


def test_distribution_leaves_out_what_never_occurs() -> None:
    levels = np.geomspace(0.1, 100, 10)
    radar = np.exp(-levels)
    model = np.where(levels < 3, np.exp(-levels), 0)
    figure = rain_rate_distribution(radar, Lines(curves={"a": model}), levels_mmh=list(levels))
    axis = figure.axes[0]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    np.testing.assert_array_equal(np.isnan(np.asarray(axis.lines[1].get_ydata(), dtype=float)), levels >= 3)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Radar", "a"]
    _draw(figure)
    _draw(rain_rate_distribution(np.zeros(10), Lines(curves={"a": np.zeros(10)}), levels_mmh=list(levels)))


@pytest.mark.parametrize(("num_baselines", "num_models"), [(5, 3), (25, 36)])
def test_no_two_lines_look_alike(num_baselines: int, num_models: int) -> None:
    baselines = [f"b{number}" for number in range(num_baselines)]
    names = [*baselines, *(f"m{number}" for number in range(num_models))]
    cast = Cast(names=names, baselines=baselines)
    lines = _error({name: np.ones(12) for name in names}, cast=cast).axes[0].lines
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker(), line._dash_pattern) for line in lines]  # type: ignore[attr-defined]
    assert len(set(map(str, looks))) == len(names)


def test_a_name_that_begins_with_an_underscore_stands_in_the_legend() -> None:
    figure = _error({"_hidden": np.ones(12), "_": np.ones(12)})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_hidden", "_"]
    _draw(figure)


@pytest.mark.parametrize("num_models", [1, 7, 14])
@pytest.mark.parametrize("num_leads", [1, 36])
def test_any_number_of_models_and_leads(num_models: int, num_leads: int) -> None:
    curves = {f"run number {number} " * 4: np.full((num_leads, 1), 0.5) for number in range(num_models)}
    figure = csi_against_lead(
        Lines(curves=curves), lead_min=[5.0 * lead for lead in range(1, num_leads + 1)], thresholds_mmh=[0.5]
    )
    assert _draw(figure).shape[1] == 960
