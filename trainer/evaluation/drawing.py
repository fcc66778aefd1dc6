"""The scores of an evaluation as pictures."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..comparison.products import MEAN, product_name
from ..comparison.scored import BEST_PRODUCT, ModelScores, rain_rows, shown_lines
from ..pictures.panels import png_bytes
from ..pictures.scores import (
    bias_against_lead,
    csi_against_lead,
    fss_against_scale,
    rain_rate_distribution,
    squared_error_against_lead,
)
from ..pictures.scores_panels import Cast, Lines
from ..verification.contingency import RAIN_EDGES_MMH
from .result import Evaluation


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of scores.

    Attributes:
        name: Of its file, without an ending.
        alt: What it shows, for whoever cannot see it.
        caption: How it is read.
        png: Draws it.
    """

    name: str
    alt: str
    caption: str
    png: Callable[[], bytes]


def cast_of(evaluation: Evaluation) -> Cast:
    """Give every model and ensemble its look; of an ensemble the mean looks alike, and its best product is thin."""
    ensembles = dict.fromkeys(model.ensemble for model in evaluation.scored if model.ensemble is not None)
    return Cast(
        names=list(evaluation.kinds),
        baselines=evaluation.grey,
        alike={product_name(name, MEAN): name for name in ensembles},
        thin={product_name(name, BEST_PRODUCT): name for name in ensembles},
    )


def field_pictures(evaluation: Evaluation) -> list[Picture]:
    """List the pictures of single fields in the order in which they are read."""
    settings, cast = evaluation.plan.settings, cast_of(evaluation)
    leads, thresholds = settings.leads_min, settings.thresholds_mmh
    by_line = shown_lines(evaluation.scored)
    # What is chosen by its CSI has hits and misses, and neither errors nor rain rates.
    rain = rain_rows(evaluation.scored)
    fields = {model.name: model for model in evaluation.scored if model.name in rain}

    # Curves over lead time have bands; over window size and rain rate all lead times are pooled.
    csi, bias = (_by_threshold(by_line, score, cast) for score in ("csi", "bias"))
    mse = _against_lead(fields, "mse", cast)
    pooled = Lines(curves={name: model.scores.values["fss"][-1].T for name, model in fields.items()}, cast=cast)
    rates = Lines(curves={name: _exceeded(rows.forecast_histogram) for name, rows in rain.items()}, cast=cast)
    radar = _exceeded(next(iter(rain.values())).observed_histogram)
    scales_km = [scale * evaluation.plan.index.grid.pixel_km for scale in settings.scales_px]
    return [
        Picture(
            name="csi",
            alt="Critical success index against lead time",
            caption="CSI against lead time, a panel for each rain threshold.",
            png=lambda: png_bytes(csi_against_lead(csi, lead_min=leads, thresholds_mmh=thresholds)),
        ),
        Picture(
            name="bias",
            alt="Frequency bias against lead time",
            caption="Frequency bias; between the shaded limits it is of use.",
            png=lambda: png_bytes(bias_against_lead(bias, lead_min=leads, thresholds_mmh=thresholds)),
        ),
        Picture(
            name="mse",
            alt="Mean squared error against lead time",
            caption="Mean squared error: blur alone lowers it.",
            png=lambda: png_bytes(squared_error_against_lead(mse, lead_min=leads)),
        ),
        Picture(
            name="rain_rates",
            alt="Share of pixels with at least a rain rate",
            caption="How often each rain rate is reached.",
            png=lambda: png_bytes(rain_rate_distribution(radar, rates, levels_mmh=RAIN_EDGES_MMH)),
        ),
        Picture(
            name="fss",
            alt="Fractions skill score against window size",
            caption="FSS: how large a neighbourhood has to be for skill.",
            png=lambda: png_bytes(fss_against_scale(pooled, scales_km=scales_km, thresholds_mmh=thresholds)),
        ),
    ]


def _by_threshold(by_line: Mapping[str, Mapping[float, ModelScores]], score: str, cast: Cast) -> Lines:
    """Take a score by lead time and threshold, at each threshold of the model that is shown there."""

    def stacked(of: Mapping[float, ModelScores], what: str) -> npt.NDArray[np.float64]:
        columns = [getattr(model.interval, what)[score][:-1, number] for number, model in enumerate(of.values())]
        return np.stack(columns, axis=1)

    curves = {name: stacked(of, "value") for name, of in by_line.items()}
    has_bands = any(model.interval.num_draws for of in by_line.values() for model in of.values())
    bands = {name: (stacked(of, "low"), stacked(of, "high")) for name, of in by_line.items() if has_bands}
    return Lines(curves=curves, bands=bands, cast=cast)


def _against_lead(models: Mapping[str, ModelScores], score: str, cast: Cast) -> Lines:
    """Take a score by lead time."""
    curves = {name: model.scores.values[score][:-1] for name, model in models.items()}
    bands = {
        name: (model.interval.low[score][:-1], model.interval.high[score][:-1])
        for name, model in models.items()
        if model.interval.num_draws
    }
    return Lines(curves=curves, bands=bands, cast=cast)


def _exceeded(histogram: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Compute the share of pixels above each of RAIN_EDGES_MMH, over all windows and lead times."""
    counts = histogram.sum(axis=(0, 1))
    # Summed from the top: what lies in a class or in a higher one.
    above = counts[::-1].cumsum()[::-1][1:]
    return above / counts.sum() if counts.sum() else np.full(len(above), math.nan)
