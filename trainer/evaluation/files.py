"""The scores of an evaluation as files: JSON with everything, and a long CSV."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any, Final

import numpy as np

from ..comparison.ensemble_tables import crps_figure
from ..comparison.marks import Figure
from ..comparison.products import EVENT_COUNTS
from ..comparison.score_tables import events
from ..comparison.scored import LISTS, EnsembleModel, ModelScores
from ..verification.contingency import RAIN_EDGES_MMH, SCORE_AXES
from ..verification.crps import POOLS_PX
from ..verification.ensemble_scores import ENSEMBLE_AXES
from ..verification.fss import FloatArray
from ..verification.intervals import Interval, day_text
from ..verification.rows import Rows, Settings
from .result import Evaluation

JSON_NAME: Final = "scores.json"
CSV_NAME: Final = "scores.csv"
MARKDOWN_NAME: Final = "scores.md"
_SCHEMA: Final = 1
_CSV_COLUMNS: Final = (
    *("model", "lead_min", "threshold_mmh", "scale_px", "score", "value", "low", "high"),
    *("pool_px", "item"),
)
"""The last two are those of ensembles: the side of blocks, and the class, rank or band of an entry of a list."""


def scores_json(evaluation: Evaluation, about: Mapping[str, Any]) -> str:
    """Write everything as strict JSON.

    Args:
        evaluation: The scores.
        about: What was evaluated (archive, split, runs), as plain JSON values.
    """
    scored, settings = evaluation.scored, evaluation.scored[0].rows.settings
    # Differences exist for all models but the one that they are compared with.
    differences = {
        model.name: {
            "intervals": _resampling(model.difference),
            "scores": list(score_records(model.rows.settings, SCORE_AXES, model.difference)),
        }
        for model in scored
        if model.difference is not None
    }

    contents = {
        "schema": _SCHEMA,
        "about": dict(about),
        "settings": settings.to_json(),
        "event": "rain > threshold",
        "units": {"mse": "(mm/h)^2", "rmse": "mm/h", "mae": "mm/h", "mean_error": "mm/h, forecast less radar"},
        "base_rates": [
            {"lead_min": lead_min or "all", "threshold_mmh": threshold_mmh, "num_events": num_events, "num_pixels": num}
            for lead_min in (*settings.leads_min, None)
            for threshold_mmh in settings.thresholds_mmh
            for num_events, num in (events(scored[0].rows, threshold_mmh, lead_min),)
        ],
        "models": {model.name: _model_json(model) for model in scored},
        "ensembles": {model.name: _ensemble_json(model) for model in evaluation.ensembles},
        "differences": {"to": evaluation.stated, "models": differences},
        "skill": list(_skill_records(evaluation)),
        "mse_comparison": [asdict(error) for error in evaluation.squared_errors],
    }
    return json.dumps(_strict(contents), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _skill_records(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """List every model's CRPS skill over references, and its CSI less that of single fields, each with its interval."""
    settings = evaluation.scored[0].rows.settings
    leads = [*settings.leads_min, None]
    for reference in evaluation.skill_over if evaluation.ensembles else ():
        for model in evaluation.contestants:
            for lead_min, pool_px in product(leads, POOLS_PX):
                figure = crps_figure(model, lead_min, pool_px).skill(crps_figure(reference, lead_min, pool_px))
                if model.name != reference.name and not math.isnan(figure.value):
                    axes = {"lead_min": lead_min or "all", "pool_px": pool_px}
                    yield _pair(model.name, reference.name, "crps_skill", axes, figure)

    # The differences to what the user named stand whole under "differences".
    by_name = {model.name: model for model in evaluation.scored}
    for name in evaluation.compared_to:
        for model in evaluation.scored:
            for lead_min, threshold_mmh in product(leads, settings.thresholds_mmh):
                if name in (model.name, evaluation.stated) or threshold_mmh not in model.shown_at:
                    continue
                own, other = (
                    each.figure("csi", lead_min=lead_min, threshold_mmh=threshold_mmh)
                    for each in (model, by_name[name])
                )
                axes = {"lead_min": lead_min or "all", "threshold_mmh": threshold_mmh}
                yield _pair(model.name, name, "csi_difference", axes, own.less(other))


def _pair(model: str, reference: str, score: str, axes: Mapping[str, Any], figure: Figure) -> dict[str, Any]:
    low, high, above_zero = figure.interval()
    bounds = {"value": figure.value, "low": low, "high": high, "above_zero": above_zero}
    return {"model": model, "reference": reference, "score": score, **axes, **bounds}


def _model_json(model: ModelScores) -> dict[str, Any]:
    rows, settings, published = model.rows, model.rows.settings, model.published
    # Counts of events are summed over the windows, and kept by lead time and threshold.
    totals = {field: rows.numbers[field].sum(axis=0).tolist() for field in EVENT_COUNTS}
    contingency = [
        {"lead_min": lead_min, "threshold_mmh": threshold_mmh}
        | {field: totals[field][lead][threshold] for field in EVENT_COUNTS}
        for lead, lead_min in enumerate(settings.leads_min)
        for threshold, threshold_mmh in enumerate(settings.thresholds_mmh)
    ]

    protocol = None
    if published is not None:
        protocol = {"label": published.label, "lead_min": published.lead_min, **published.values}
    contents = {
        "num_windows": len(rows),
        "days": [day_text(day) for day in np.unique(rows.day)],
        "ensemble": model.ensemble,
        "published_protocol": protocol,
        "intervals": _resampling(model.interval),
        "scores": _without_share(score_records(settings, SCORE_AXES, model.interval)),
        "contingency": contingency,
    }
    # Events that are forecast by their probability have no rain rates.
    if not isinstance(rows, Rows):
        return contents
    return contents | {
        "num_valid": int(rows.num_valid.sum()),
        "num_nonfinite": int(rows.num_nonfinite.sum()),
        "rain_rates": {
            "edges_mmh": RAIN_EDGES_MMH,
            "forecast": rows.forecast_histogram.sum(axis=(0, 1)).tolist(),
            "radar": rows.observed_histogram.sum(axis=(0, 1)).tolist(),
        },
    }


def _ensemble_json(model: EnsembleModel) -> dict[str, Any]:
    settings = model.rows.settings
    return {
        "members": model.rows.members,
        "num_windows": len(model.rows),
        "num_valid": int(model.rows.sums["num_valid"].sum()),
        "num_nonfinite": int(model.rows.sums["num_nonfinite"].sum()),
        "intervals": _resampling(model.interval),
        "scores": _without_share(score_records(settings, ENSEMBLE_AXES, model.interval)),
        "lists": list(list_records(settings, model.scores.values)),
    }


def _resampling(interval: Interval) -> dict[str, Any]:
    return {
        name: getattr(interval, name) for name in ("num_days", "num_blocks", "block_s", "num_draws", "level", "note")
    }


def scores_csv(scored: Sequence[ModelScores], ensembles: Sequence[EnsembleModel] = ()) -> str:
    """Write one value a line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for model in scored:
        for record in score_records(model.rows.settings, SCORE_AXES, model.interval):
            writer.writerow({"model": model.name, **record})
    for ensemble in ensembles:
        settings = ensemble.rows.settings
        for record in score_records(settings, ENSEMBLE_AXES, ensemble.interval):
            writer.writerow({"model": ensemble.name, **record})
        for record in list_records(settings, ensemble.scores.values):
            shared = {"model": ensemble.name, **record}
            writer.writerows({**shared, "item": item, "value": value} for item, value in enumerate(record["values"]))
    return text.getvalue()


def score_records(settings: Settings, axes: Mapping[str, str], interval: Interval) -> Iterator[dict[str, Any]]:
    """List scores one by one, each with its axes, value, and bounds.

    Keys: score, lead_min (minutes or "all"), threshold_mmh, scale_px, of ensembles pool_px, value, low, high,
    above_zero (share of draws). What a score has not (a threshold, a scale) and what does not exist (NaN) is None.
    """
    # One record for every place in the arrays; a list of lead times ends with all of them pooled.
    figures = {"value": interval.value, "low": interval.low, "high": interval.high, "above_zero": interval.above_zero}
    for score in filter(interval.value.__contains__, axes):
        for at in np.ndindex(interval.value[score].shape):
            bounds = {key: _strict(float(by[score][at])) for key, by in figures.items()}
            yield {"score": score, **_place(settings, axes, score, at), **bounds}


def list_records(settings: Settings, values: Mapping[str, FloatArray]) -> Iterator[dict[str, Any]]:
    """List the scores of an ensemble that are lists, by class of probability, rank or wavelength band."""
    for score, axes in ENSEMBLE_AXES.items():
        if score in values and axes[-1] in LISTS:
            for at in np.ndindex(values[score].shape[:-1]):
                entries = _strict(values[score][at].tolist())
                yield {"score": score, **_place(settings, ENSEMBLE_AXES, score, at), "values": entries}


def _place(settings: Settings, axes: Mapping[str, str], score: str, at: tuple[int, ...]) -> dict[str, Any]:
    """Name a place in the arrays of a score by the values of its axes; None for those that it has not."""
    known = {
        "l": ("lead_min", [*settings.leads_min, "all"]),
        "t": ("threshold_mmh", settings.thresholds_mmh),
        "s": ("scale_px", settings.scales_px),
        "p": ("pool_px", POOLS_PX),
    }
    shown = "ltsp" if axes is ENSEMBLE_AXES else "lts"
    where = dict(zip(axes[score], at, strict=False))
    return {
        name: values[where[axis]] if axis in where else None for axis, (name, values) in known.items() if axis in shown
    }


def _without_share(records: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the share of draws above zero, which describes a difference and not a score."""
    return [{key: value for key, value in record.items() if key != "above_zero"} for record in records]


def _strict(value: Any) -> Any:
    """Replace what strict JSON lacks, NaN and infinity, by null."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
