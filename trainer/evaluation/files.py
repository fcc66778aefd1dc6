"""The scores of an evaluation as files: JSON with everything, a long CSV, and Markdown tables."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...data.errors import ConfigError
from ...data.store.storage import open_storage
from ..verification.contingency import RAIN_EDGES_MMH, SCORE_AXES
from ..verification.intervals import NUM_DRAWS, Interval, check_comparable, day_text
from ..verification.rows import Rows, Settings
from .tables import ModelScores, References, markdown, mse_comparison

JSON_NAME: Final = "scores.json"
CSV_NAME: Final = "scores.csv"
MARKDOWN_NAME: Final = "scores.md"
_SCHEMA: Final = 1
_CSV_COLUMNS: Final = ("model", "lead_min", "threshold_mmh", "scale_px", "score", "value", "low", "high")
_COUNTS: Final = ("hits", "misses", "false_alarms", "correct_negatives")


def write_scores(
    folder: Path,
    models: Mapping[str, Rows],
    *,
    about: Mapping[str, Any] | None = None,
    compare_to: str | None = None,
    references: References | None = None,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
) -> None:
    """Write scores.json, scores.csv and scores.md; each appears whole or not at all.

    Args:
        folder: Where to; made if need be.
        models: Rows by the models' names, in the order of the tables; all of the same windows and radar.
        about: What was evaluated (archive, split, runs), as plain JSON values, for scores.json.
        compare_to: A model that all others are compared with in pairs; None: no comparison.
        references: What a mean squared error has to beat.
        seed: Of the bootstrap.
        num_draws: Resamples of the days.

    Raises:
        ConfigError: No model, settings that differ, or `compare_to` that is no model.
        DataError: Models that were scored on different windows or radar, or a folder that cannot be written.
    """
    if not models:
        raise ConfigError("there is no model to write the scores of; give one or more")
    if compare_to is not None and compare_to not in models:
        raise ConfigError(f"compare_to is {compare_to!r}; the models are {', '.join(models)}")
    first = next(iter(models.values()))
    for rows in models.values():
        check_comparable(first, rows)
    references = references or References()
    made = []
    for name, rows in models.items():
        other = models[compare_to] if compare_to not in (None, name) else None
        made.append(ModelScores.of(name, rows, other, seed=seed, num_draws=num_draws))
    contents = {
        "schema": _SCHEMA,
        "about": dict(about or {}),
        "settings": first.settings.to_json(),
        "event": "rain > threshold",
        "units": {"mse": "(mm/h)^2", "rmse": "mm/h", "mae": "mm/h", "mean_error": "mm/h, forecast less radar"},
        "models": {model.name: _model_json(model) for model in made},
        "differences": {"to": compare_to, "models": _differences_json(made)},
        "mse_comparison": mse_comparison({model.name: model.scores for model in made}, references),
    }
    text = json.dumps(_strict(contents), indent=1, allow_nan=False, ensure_ascii=False)
    storage = open_storage(folder)
    files = {JSON_NAME: f"{text}\n", CSV_NAME: _csv(made), MARKDOWN_NAME: markdown(made, compare_to, references)}
    for name, contents_text in files.items():
        # A path may hold bytes that are no text: they are shown as question marks.
        storage.write(name, contents_text.encode("utf-8", errors="replace"))


def score_records(settings: Settings, interval: Interval) -> Iterator[dict[str, Any]]:
    """List scores one by one, each with its place, value, and bounds.

    Keys: score, lead_min (minutes or "all"), threshold_mmh, scale_px, value, low, high, above_zero (share of draws).
    What a score has not (a threshold, a scale, an interval) and what does not exist (NaN) is None.
    """
    parts = {"value": interval.value, "low": interval.low, "high": interval.high, "above_zero": interval.above_zero}
    for score, axes in SCORE_AXES.items():
        for place in np.ndindex(interval.value[score].shape):
            yield {
                "score": score,
                "lead_min": [*settings.leads_min, "all"][place[0]],
                "threshold_mmh": settings.thresholds_mmh[place[1]] if "t" in axes else None,
                "scale_px": settings.scales_px[place[2]] if "s" in axes else None,
                **{key: None if part is None else _strict(float(part[score][place])) for key, part in parts.items()},
            }


def _model_json(model: ModelScores) -> dict[str, Any]:
    rows, settings, published = model.rows, model.rows.settings, model.published
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
    records = score_records(settings, model.interval)
    return {
        "num_windows": len(rows),
        "days": [day_text(day) for day in np.unique(rows.day).tolist()],
        "num_valid": int(rows.num_valid.sum()),
        "num_nonfinite": int(rows.num_nonfinite.sum()),
        "published_protocol": protocol,
        "intervals": _resampling(model.interval),
        # The share of draws above zero says something of a difference, nothing of a score.
        "scores": [{key: value for key, value in record.items() if key != "above_zero"} for record in records],
        "contingency": contingency,
        "rain_rates": {
            "edges_mmh": RAIN_EDGES_MMH,
            "forecast": rows.forecast_histogram.sum(axis=(0, 1)).tolist(),
            "radar": rows.observed_histogram.sum(axis=(0, 1)).tolist(),
        },
    }


def _differences_json(made: Sequence[ModelScores]) -> dict[str, Any]:
    return {
        model.name: {
            "intervals": _resampling(model.difference),
            "scores": list(score_records(model.rows.settings, model.difference)),
        }
        for model in made
        if model.difference is not None
    }


def _resampling(interval: Interval) -> dict[str, Any]:
    return {name: getattr(interval, name) for name in ("num_days", "num_draws", "level", "note")}


def _csv(made: Sequence[ModelScores]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for model in made:
        for record in score_records(model.rows.settings, model.interval):
            writer.writerow({"model": model.name, **record})
    return text.getvalue()


def _strict(value: Any) -> Any:
    """Replace what strict JSON cannot say, NaN and infinity, by null."""
    if isinstance(value, Mapping):
        return {key: _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
