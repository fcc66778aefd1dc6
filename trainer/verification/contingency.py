"""What is counted where a forecast lies beside the radar, and the scores of a contingency table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .fss import BoolArray, FloatArray, fss_sums

RAIN_EDGES_MMH: Final = (0.1, 0.178, 0.316, 0.562, 1.0, 1.78, 3.16, 5.62, 10.0, 17.8, 31.6, 56.2, 100.0)
"""Bounds of the classes of rain rates, four a decade: narrower ones would be empty or doubled by KNMI's 0.12 mm/h."""

SCORE_AXES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("mse", "rmse", "mae", "mean_error", "mean_forecast", "mean_observed"), "l"),
    **dict.fromkeys(("accuracy", "precision", "recall", "f1", "csi", "far", "hss", "bias", "pod"), "lt"),
    "fss": "lts",
}
"""The scores and their axes: l(ead times) and one more place for all of them pooled, t(hresholds), s(cales)."""


def count_lead(
    forecast_hw: FloatArray,
    observed_hw: FloatArray,
    valid_hw: BoolArray | None,
    thresholds_mmh: Sequence[float],
    scales_px: Sequence[int],
) -> dict[str, Any]:
    """Count and sum up one lead time, through one joint table of forecast and observed classes for all thresholds.

    Args:
        forecast_hw: Rain in mm/h, (rows, cols); where it is not finite the forecast has failed.
        observed_hw: Rain in mm/h, finite where valid.
        valid_hw: True where the radar measured; None: everywhere.
        thresholds_mmh: Thresholds in mm/h, rising.
        scales_px: Sides of the FSS' neighbourhoods in pixels.

    Returns:
        The numbers that trainer.verification.Rows lists, for this window and lead time.
    """
    # One set of classes serves the thresholds and the histograms: each pixel is sorted once.
    edges = np.unique([*thresholds_mmh, *RAIN_EDGES_MMH])
    finite_hw = np.isfinite(forecast_hw)
    measured_hw = np.ones_like(finite_hw) if valid_hw is None else valid_hw
    forecast_class_hw = _classes(forecast_hw, edges, finite_hw & measured_hw)
    observed_class_hw = _classes(observed_hw, edges, measured_hw)

    # Entry [i, j]: pixels in forecast class i or above and in observed class j or above.
    size = len(edges) + 1
    both_hw = forecast_class_hw.astype(np.intp) * size + observed_class_hw
    joint = np.bincount(both_hw[finite_hw & measured_hw], minlength=size**2).reshape(size, size)
    joint = joint[::-1, ::-1].cumsum(axis=0).cumsum(axis=1)[::-1, ::-1]
    failed = np.bincount(observed_class_hw[measured_hw & ~finite_hw], minlength=size)[::-1].cumsum()[::-1]
    num_failed = int(failed[0])
    num_valid = int(joint[0, 0]) + num_failed

    # A failed pixel is a miss where it rained, and a false alarm where it did not.
    event = np.searchsorted(edges, thresholds_mmh) + 1
    hits = joint[event, event]
    misses = joint[0, event] - hits + failed[event]
    false_alarms = joint[event, 0] - hits + num_failed - failed[event]
    # Above each bound less above the next one is what lies between them.
    rain = np.searchsorted(edges, RAIN_EDGES_MMH) + 1
    counts = {
        "num_valid": num_valid,
        "num_nonfinite": num_failed,
        "hits": hits,
        "misses": misses,
        "false_alarms": false_alarms,
        "correct_negatives": num_valid - hits - misses - false_alarms,
        "forecast_histogram": -np.diff([joint[0, 0], *joint[rain, 0], 0]),
        "observed_histogram": -np.diff([num_valid, *(joint[0] + failed)[rain], 0]),
    }

    # A failed pixel has no error that could be summed: of its lead time there are no errors and no FSS.
    observed = observed_hw if valid_hw is None else observed_hw[valid_hw]
    sums: dict[str, Any] = {"sum_observed": observed.sum()}
    if num_failed:
        failing = ("sum_error", "sum_squared_error", "sum_absolute_error", "sum_forecast")
        fss = np.full((len(thresholds_mmh), len(scales_px)), math.nan)
        return counts | sums | dict.fromkeys(failing, math.nan) | {"fss_numerator": fss, "fss_denominator": fss}

    forecast = forecast_hw if valid_hw is None else forecast_hw[valid_hw]
    error = forecast - observed
    sums |= {"sum_error": error.sum(), "sum_squared_error": np.square(error).sum()}
    sums |= {"sum_absolute_error": np.abs(error).sum(), "sum_forecast": forecast.sum()}

    events_khw = [classes_hw >= event[:, None, None] for classes_hw in (forecast_class_hw, observed_class_hw)]
    numerator, denominator = fss_sums(events_khw[0], events_khw[1], valid_hw, scales_px)
    return counts | sums | {"fss_numerator": numerator, "fss_denominator": denominator}


def _classes(rain_hw: FloatArray, edges: FloatArray, counted_hw: BoolArray) -> npt.NDArray[np.uint8]:
    """Count the edges below each pixel's rain; 0 where it does not count."""
    classes_hw = np.zeros(rain_hw.shape, np.uint8)
    for edge in edges:
        classes_hw += rain_hw > edge
    classes_hw[~counted_hw] = 0
    return classes_hw


def scores_of_sums(sums: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Compute scores of sums over windows.

    Args:
        sums: By the names of trainer.verification.FIELDS, with one more axis in front: (n, lead times, ...).

    Returns:
        By the names of SCORE_AXES, (n, lead times + 1, ...).
    """
    # All lead times pooled are one more lead time.
    pooled = {field: np.concatenate([each, each.sum(axis=1, keepdims=True)], axis=1) for field, each in sums.items()}
    mse = ratio(pooled["sum_squared_error"], pooled["num_valid"])
    return {
        "mse": mse,
        "rmse": np.sqrt(mse),
        "mae": ratio(pooled["sum_absolute_error"], pooled["num_valid"]),
        "mean_error": ratio(pooled["sum_error"], pooled["num_valid"]),
        "mean_forecast": ratio(pooled["sum_forecast"], pooled["num_valid"]),
        "mean_observed": ratio(pooled["sum_observed"], pooled["num_valid"]),
        **table_scores(pooled["hits"], pooled["misses"], pooled["false_alarms"], pooled["correct_negatives"]),
        "fss": 1 - ratio(pooled["fss_numerator"], pooled["fss_denominator"]),
    }


def table_scores(
    hits: FloatArray, misses: FloatArray, false_alarms: FloatArray, none: FloatArray
) -> dict[str, FloatArray]:
    """Compute the scores of 2 x 2 tables; 0/0 is NaN.

    Formulas as in Jolliffe and Stephenson (2012), Forecast Verification, second edition, chapter 3,
    doi:10.1002/9781119960003; HSS in its standard form, Heidke (1926).

    Args:
        hits: Event forecast and observed, any shape.
        misses: Event observed, not forecast.
        false_alarms: Event forecast, not observed.
        none: Correct negatives: neither.
    """
    total = hits + misses + false_alarms + none
    by_chance = (hits + misses) * (misses + none) + (hits + false_alarms) * (false_alarms + none)
    return {
        "accuracy": ratio(hits + none, total),
        "precision": ratio(hits, hits + false_alarms),
        "recall": ratio(hits, hits + misses),
        "f1": ratio(2 * hits, 2 * hits + misses + false_alarms),
        "csi": ratio(hits, hits + misses + false_alarms),
        "far": ratio(false_alarms, hits + false_alarms),
        "hss": ratio(2 * (hits * none - false_alarms * misses), by_chance),
        "bias": ratio(hits + false_alarms, hits + misses),
        "pod": ratio(hits, hits + misses),
    }


def ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    """Divide; by 0 is NaN, without a warning."""
    return np.divide(part, whole, out=np.full(np.shape(whole), math.nan), where=whole != 0)
