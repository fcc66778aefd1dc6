"""Pictures of ensembles: the lines and bars are the numbers, what is perfect is drawn, and odd input is named."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rainspark.trainer.pictures.panels import png_bytes
from rainspark.trainer.pictures.scores_ensembles import (
    FACTOR,
    Spectrum,
    crps_against_lead,
    power_spectra,
    rank_histograms,
    reliability_diagram,
    roc_curves,
    spread_and_error,
)
from rainspark.trainer.pictures.scores_panels import Array, Cast, Lines

RANDOM = np.random.default_rng(0)
LEAD_MIN = [5.0 * lead for lead in range(1, 13)]
NAMES = ("ours $a_{b$", "steps", "_stated")
CAST = Cast(names=NAMES, baselines=["steps"], alike={"ours mean": NAMES[0]}, thin={"ours best p": NAMES[0]})


def size_of(figure: Figure) -> tuple[int, int]:
    with Image.open(io.BytesIO(png_bytes(figure))) as picture:
        assert picture.format == "PNG"
        return picture.size


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def data_of(figure: Figure, panel: int) -> list[tuple[Array, Array]]:
    """Give the points of all lines of a panel."""
    return [
        (np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)) for line in figure.axes[panel].lines
    ]


def test_reliability_stands_beside_the_counts_with_the_diagonal_and_the_base_rate() -> None:
    sizes = dict(zip(NAMES, (5, 17, 20), strict=True))
    probability = {name: np.linspace(0, 1, size)[:, None].repeat(3, axis=1) for name, size in sizes.items()}
    observed = {name: values**2 for name, values in probability.items()}
    pixels = {name: RANDOM.integers(0, 10**6, values.shape) for name, values in probability.items()}
    pixels[NAMES[0]][0] = 0
    figure = reliability_diagram(
        Lines(curves=observed, cast=CAST),
        probability,
        pixels,
        thresholds_mmh=[0.5, 2.0, 5.0],
        base_rates=[0.3, 0.1, 0.01],
    )
    assert legend_of(figure) == [*NAMES, "perfect", "share of pixels with rain"]
    assert [axis.get_title("left") for axis in figure.axes[::2]] == [f"rain > {t} mm/h" for t in ("0.5", "2", "5")]
    diagonal, base_rate, *drawn = data_of(figure, 2)
    np.testing.assert_array_equal(diagonal[0], diagonal[1])
    assert set(base_rate[1]) == {0.1}
    for name, (x, y) in zip(NAMES, drawn, strict=True):
        np.testing.assert_array_equal(x, probability[name][:, 1])
        np.testing.assert_array_equal(y, observed[name][:, 1])
    assert figure.axes[3].get_yscale() == "log"
    for name, (_, y) in zip(NAMES, data_of(figure, 3), strict=True):
        np.testing.assert_array_equal(y, np.where(pixels[name][:, 1] > 0, pixels[name][:, 1], np.nan))
    assert size_of(figure)[0] == 960


def test_roc_draws_hits_against_false_alarms() -> None:
    false_alarms = {name: np.sort(RANDOM.random((9, 2)), axis=0)[::-1] for name in NAMES}
    hits = {name: np.sqrt(values) for name, values in false_alarms.items()}
    figure = roc_curves(Lines(curves=hits, cast=CAST), false_alarms, thresholds_mmh=[0.5, 2.0])
    _, *lines = data_of(figure, 1)
    for name, (x, y) in zip(NAMES, lines, strict=True):
        np.testing.assert_array_equal(x, false_alarms[name][:, 1])
        np.testing.assert_array_equal(y, hits[name][:, 1])
    assert size_of(figure)[0] == 960


def test_ranks_of_ensembles_of_any_size_are_flat_at_one() -> None:
    flat, steep = np.full(17, 1 / 17), np.arange(5.0) / 10
    figure = rank_histograms({"ours": (flat, steep), "steps": (np.full(4, np.nan), flat)})
    assert [axis.get_title("left") for axis in figure.axes] == ["ours: all", "ours: wet", "steps: all", "steps: wet"]
    for axis, share in ((figure.axes[0], flat), (figure.axes[1], steep)):
        heights = [bar.get_height() for bar in axis.patches]  # type: ignore[attr-defined]
        np.testing.assert_allclose(heights, share * len(share))
        assert sum(bar.get_width() for bar in axis.patches) == pytest.approx(0.9)  # type: ignore[attr-defined]
    assert not figure.axes[2].patches
    assert "no pixel" in figure.axes[2].texts[0].get_text()
    size_of(figure)


def test_crps_has_a_panel_a_pooling_and_bands_and_fields_have_single_pixels_only() -> None:
    curves = {name: RANDOM.random((12, 3)) for name in NAMES[:2]}
    curves["field"] = np.concatenate([np.full((12, 1), 0.5), np.full((12, 2), np.nan)], axis=1)
    bands = {NAMES[0]: (curves[NAMES[0]] - 0.1, curves[NAMES[0]] + 0.1)}
    figure = crps_against_lead(Lines(curves=curves, bands=bands), lead_min=LEAD_MIN, heads=["1", "4", "16"])
    for number, axis in enumerate(figure.axes):
        assert len(axis.collections) == 1
        assert axis.get_ylim()[0] == 0
        for name, (_, y) in zip(curves, data_of(figure, number), strict=True):
            np.testing.assert_array_equal(y, curves[name][:, number])
    size_of(figure)


def test_spread_stands_beside_the_error_of_every_ensemble() -> None:
    models = {name: (RANDOM.random(12), RANDOM.random(12) + 1) for name in NAMES[:2]}
    figure = spread_and_error(models, lead_min=LEAD_MIN)
    assert legend_of(figure) == ["error of the mean", "spread of the members"]
    for number, (spread, error) in enumerate(models.values()):
        drawn = [y for _, y in data_of(figure, number)]
        np.testing.assert_array_equal(drawn, [error, spread])
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert figure.axes[0].get_ylim()[1] > 1.9
    size_of(figure)


def test_spectra_lie_over_the_band_of_a_factor_of_two_and_nothing_is_drawn_for_no_power() -> None:
    wavelengths = np.geomspace(128, 2, 9)
    radar = wavelengths**2
    radar[-1] = 0
    spectrum = Spectrum(radar=radar, members=radar * 1.5, mean=radar / 8)
    figure = power_spectra({"ours, 30 min": spectrum, "ours, 60 min": spectrum}, wavelengths_km=wavelengths)
    axis = figure.axes[0]
    (band,) = [np.asarray(path.vertices) for path in axis.collections[0].get_paths()]
    at = np.isclose(band[:, 0], wavelengths[2])
    assert sorted(set(np.round(band[at, 1], 6))) == pytest.approx([radar[2] / FACTOR, radar[2] * FACTOR])
    drawn = [y for _, y in data_of(figure, 0)]
    for y, values in zip(drawn, (radar, radar * 1.5, radar / 8), strict=True):
        np.testing.assert_allclose(y[:-1], values[:-1])
        assert np.isnan(y[-1])
    # Long waves at the left.
    assert axis.get_xlim() == (wavelengths[0], wavelengths[-1])
    size_of(figure)


def test_what_is_made_of_an_ensemble_has_its_colour_and_among_many_lines_not_all_have_bands() -> None:
    styles = CAST.styles()
    assert styles["ours mean"] == styles[NAMES[0]]
    assert styles["ours best p"]["color"] == styles[NAMES[0]]["color"]
    assert styles["ours best p"]["marker"] != styles[NAMES[0]]["marker"]
    curves = {name: RANDOM.random(12) for name in ("ours mean", "ours best p", "steps", "_stated")}
    bands = {name: (values - 0.1, values + 0.1) for name, values in curves.items()}
    many = Lines(curves=curves, bands=bands, cast=CAST)
    assert [name for name in curves if many.has_band(name)] == ["ours mean", "_stated"]
    few = Lines(curves={"steps": curves["steps"]}, bands=bands, cast=CAST)
    assert few.has_band("steps")
