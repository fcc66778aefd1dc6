"""The scores of an evaluation as files: JSON with everything, and a long CSV."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from ..verification.contingency import RAIN_EDGES_MMH, SCORE_AXES
from ..verification.intervals import Interval, day_text
from ..verification.rows import Settings
from .result import Evaluation, ModelScores

JSON_NAME: Final = "scores.json"
CSV_NAME: Final = "scores.csv"
MARKDOWN_NAME: Final = "scores.md"
_SCHEMA: Final = 1
_CSV_COLUMNS: Final = ("model", "lead_min", "threshold_mmh", "scale_px", "score", "value", "low", "high")
_COUNTS: Final = ("hits", "misses", "false_alarms", "correct_negatives")


def scores_json(evaluation: Evaluation, about: Mapping[str, Any]) -> str:
    """Write everything as strict JSON.

    Args:
        evaluation: The scores.
        about: What was evaluated (archive, split, runs), as plain JSON values.
    """
    scored = evaluation.scored
    # Differences exist for all models but the one that they are compared with.
    differences = {
        model.name: {
            "intervals": _resampling(model.difference),
            "scores": list(score_records(model.rows.settings, model.difference)),
        }
        for model in scored
        if model.difference is not None
    }

    contents = {
        "schema": _SCHEMA,
        "about": dict(about),
        "settings": scored[0].rows.settings.to_json(),
        "event": "rain > threshold",
        "units": {"mse": "(mm/h)^2", "rmse": "mm/h", "mae": "mm/h", "mean_error": "mm/h, forecast less radar"},
        "models": {model.name: _model_json(model) for model in scored},
        "differences": {"to": evaluation.config.compare_to, "models": differences},
        "mse_comparison": [asdict(error) for error in evaluation.squared_errors],
    }
    return json.dumps(_strict(contents), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _model_json(model: ModelScores) -> dict[str, Any]:
    rows, settings, published = model.rows, model.rows.settings, model.published
    # Counts of events are summed over the windows, and kept by lead time and threshold.
    totals = {field: getattr(rows, field).sum(axis=0).tolist() for field in _COUNTS}
    contingency = [
        {"lead_min": lead_min, "threshold_mmh": threshold_mmh}
        | {field: totals[field][lead][threshold] for field in _COUNTS}
        for lead, lead_min in enumerate(settings.leads_min)
        for threshold, threshold_mmh in enumerate(settings.thresholds_mmh)
    ]

    protocol = None
    if published is not None:
        protocol = {"label": published.label, "lead_min": published.lead_min, **published.values}
    # The share of draws above zero describes a difference, not a score.
    records = [
        {key: value for key, value in record.items() if key != "above_zero"}
        for record in score_records(settings, model.interval)
    ]

    return {
        "num_windows": len(rows),
        "days": [day_text(day) for day in np.unique(rows.day)],
        "num_valid": int(rows.num_valid.sum()),
        "num_nonfinite": int(rows.num_nonfinite.sum()),
        "published_protocol": protocol,
        "intervals": _resampling(model.interval),
        "scores": records,
        "contingency": contingency,
        "rain_rates": {
            "edges_mmh": RAIN_EDGES_MMH,
            "forecast": rows.forecast_histogram.sum(axis=(0, 1)).tolist(),
            "radar": rows.observed_histogram.sum(axis=(0, 1)).tolist(),
        },
    }


def _resampling(interval: Interval) -> dict[str, Any]:
    return {name: getattr(interval, name) for name in ("num_days", "num_draws", "level", "note")}


def scores_csv(scored: Sequence[ModelScores]) -> str:
    """Write one value a line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for model in scored:
        for record in score_records(model.rows.settings, model.interval):
            writer.writerow({"model": model.name, **record})
    return text.getvalue()


def score_records(settings: Settings, interval: Interval) -> Iterator[dict[str, Any]]:
    """List scores one by one, each with its axes, value, and bounds.

    Keys: score, lead_min (minutes or "all"), threshold_mmh, scale_px, value, low, high, above_zero (share of draws).
    What a score has not (a threshold, a scale) and what does not exist (NaN) is None.
    """
    # One record for every place in the arrays; a list of lead times ends with all of them pooled.
    figures = {"value": interval.value, "low": interval.low, "high": interval.high, "above_zero": interval.above_zero}
    for score, axes in SCORE_AXES.items():
        for at in np.ndindex(interval.value[score].shape):
            yield {
                "score": score,
                "lead_min": [*settings.leads_min, "all"][at[0]],
                "threshold_mmh": settings.thresholds_mmh[at[1]] if "t" in axes else None,
                "scale_px": settings.scales_px[at[2]] if "s" in axes else None,
                **{key: _strict(float(by[score][at])) for key, by in figures.items()},
            }


def _strict(value: Any) -> Any:
    """Replace what strict JSON lacks, NaN and infinity, by null."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
