"""Models that are scored on made-up rain, and what an evaluation makes of them."""

import math
from typing import Any

import numpy as np

from rainspark.trainer.comparison.scored import score_models
from rainspark.trainer.evaluation.plan import Plan
from rainspark.trainer.evaluation.result import Evaluation
from rainspark.trainer.settings.evaluation import parse_evaluation
from rainspark.trainer.verification.rows import Rows, Settings, WindowId, merge, score_window

SETTINGS = Settings(leads_min=(15, 30, 60), thresholds_mmh=(0.5, 2.0, 50.0), scales_px=(1, 5))
MIDNIGHT_S = 1_600_041_600  # 2020-09-14 00:00 UTC


def rows_of(factor: float, *, noise: float = 0.3, bad: bool = False, num_days: int = 3) -> Rows:
    """Score a model that forecasts the radar times a factor, and some noise."""
    windows = []
    for day in range(num_days):
        observed = np.random.default_rng(day).gamma(0.7, 2.0, (3, 10, 10))
        forecast = factor * observed + noise * np.random.default_rng([day, 1]).random(observed.shape)
        if bad and day == 0:
            forecast[0, 0, :4] = math.nan
        windows.append(score_window(SETTINGS, WindowId(MIDNIGHT_S + 86400 * day, "a:0"), forecast, observed, None))
    return merge(*windows)


FACTORS = {"good | one": 0.95, "persistence": 0.2, "training_mean": 0.0, "blur": 0.1}
MODELS = {name: rows_of(factor) for name, factor in FACTORS.items()}
KINDS = {"persistence": "damped_extrapolation", "training_mean": "training_mean"}


def evaluation_of(
    models: dict[str, Rows], *, kinds: dict[str, str] | None = None, plan: Plan | None = None, **changes: Any
) -> Evaluation:
    """Make an evaluation of models that are runs unless `kinds` says otherwise; only pages and files need a plan."""
    compare_to = changes.pop("compare_to", None)
    stated = [] if compare_to is None else ["--compare_to", compare_to]
    config = parse_evaluation(["--data.shards", "S", "--out", "O", "--models", *models, *stated])
    unplanned: Any = None
    arguments: dict[str, Any] = {
        "config": config,
        "plan": plan or unplanned,
        "scored": score_models(models, compare_to=compare_to, num_draws=50),
        "kinds": dict.fromkeys(models, "run") | (kinds or {}),
        "about": {},
        "cases": [],
        "command": "",
    }
    return Evaluation(**arguments | changes)
