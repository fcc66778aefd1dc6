"""Models that are scored on made-up rain, and what an evaluation makes of them."""

import math
from typing import Any

import numpy as np

from rainspark.trainer.comparison.products import MEAN, product_name
from rainspark.trainer.comparison.scored import score_ensembles, score_models
from rainspark.trainer.evaluation.plan import Plan
from rainspark.trainer.evaluation.result import Evaluation
from rainspark.trainer.settings.evaluation import parse_evaluation
from rainspark.trainer.verification.ensemble import EnsembleRows, score_members, score_probabilities
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


def members_of(spread: float, *, members: int = 4, num_days: int) -> EnsembleRows:
    """Score an ensemble whose members are the radar times random factors."""
    windows = []
    for day in range(num_days):
        observed = np.random.default_rng(day).gamma(0.7, 2.0, (3, 10, 10))
        random = np.random.default_rng([day, members])
        factors = np.exp(spread * random.standard_normal((members, *observed.shape)))
        window = WindowId(MIDNIGHT_S + 86400 * day, "a:0")
        windows.append(score_members(SETTINGS, window, observed * factors, observed, None))
    return merge(*windows)


def probabilities_of(num_days: int) -> EnsembleRows:
    """Score probabilities that are half right."""
    windows = []
    for day in range(num_days):
        observed = np.random.default_rng(day).gamma(0.7, 2.0, (3, 10, 10))
        random = np.random.default_rng([day, 7])
        events = np.stack([observed > threshold for threshold in SETTINGS.thresholds_mmh])
        probabilities = (events + random.random(events.shape)) / 2
        window = WindowId(MIDNIGHT_S + 86400 * day, "a:0")
        windows.append(score_probabilities(SETTINGS, window, probabilities, observed, None))
    return merge(*windows)


FACTORS = {"good | one": 0.95, "persistence": 0.2, "training_mean": 0.0, "blur": 0.1}
MODELS = {name: rows_of(factor) for name, factor in FACTORS.items()}
KINDS = {"persistence": "damped_extrapolation", "training_mean": "training_mean"}


def evaluation_of(
    models: dict[str, Rows],
    *,
    ensembles: dict[str, EnsembleRows] | None = None,
    kinds: dict[str, str] | None = None,
    plan: Plan | None = None,
    **changes: Any,
) -> Evaluation:
    """Make an evaluation of models that are runs unless `kinds` says otherwise; only pages and files need a plan."""
    compare_to = changes.pop("compare_to", None)
    stated = [] if compare_to is None else ["--compare_to", compare_to]
    counted = ensembles or {}
    means = [product_name(name, MEAN) for name in counted]
    names = [*(name for name in models if name not in means), *counted]
    config = parse_evaluation(["--data.shards", "S", "--out", "O", "--models", *names, *stated])
    unplanned: Any = None
    arguments: dict[str, Any] = {
        "config": config,
        "plan": plan or unplanned,
        "scored": score_models(models, counted, compare_to=compare_to, num_draws=50),
        "ensembles": score_ensembles(counted, num_draws=50),
        "kinds": dict.fromkeys(names, "run") | (kinds or {}),
        "about": {},
        "cases": [],
        "command": "",
    }
    return Evaluation(**arguments | changes)


NUM_DAYS = 6
"""As many as it takes until something may be called the best."""

ENSEMBLES = {
    "ours": members_of(0.4, num_days=NUM_DAYS),
    "steps": members_of(0.9, members=5, num_days=NUM_DAYS),
    "stated": probabilities_of(NUM_DAYS),
}
FIELDS = {
    name: rows_of(factor, num_days=NUM_DAYS)
    for name, factor in {"ours mean": 0.9, "steps mean": 0.5, "sprog": 0.8, "persistence": 0.2}.items()
}
ENSEMBLE_KINDS = {"ours": "run", "steps": "steps", "stated": "lagrangian_probability", "sprog": "sprog"}


def ensemble_evaluation(**changes: Any) -> Evaluation:
    """Make an evaluation of an ensemble of ours, STEPS, probabilities alone, and single fields."""
    return evaluation_of(FIELDS, ensembles=ENSEMBLES, kinds={**ENSEMBLE_KINDS, "persistence": "persistence"}, **changes)
