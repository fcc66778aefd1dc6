"""Score all models on one window: fields, means of ensembles, ensembles, probabilities; and settle what is unknown."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...models.baselines.methods import Gives
from ..comparison.products import MEAN, product_name
from ..contestants.contestant import Contestant, FloatArray
from ..contestants.windows import WindowRain
from ..verification.ensemble import EnsembleRows, score_members, score_probabilities
from ..verification.rows import Rows, Settings, WindowId, score_window
from .unknown import BoolArray, Unknown, UnknownRule, count_unknown, unknown_by_any


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast:
    """What a model forecasts of a window.

    Attributes:
        gives: What `values` are.
        values: Rain in mm/h, (lead times, rows, cols), behind members where there are such; or probabilities,
            (thresholds, lead times, rows, cols). 0 where unknown; what is not finite has failed.
        unknown_thw: Pixels that it cannot know; of an ensemble, that a member cannot know. None: it knows all.
    """

    gives: Gives
    values: FloatArray
    unknown_thw: BoolArray | None

    @property
    def field_mmh_thw(self) -> npt.NDArray[np.floating] | None:
        """Give one field in mm/h: of an ensemble its mean; None of probabilities."""
        if self.gives == "probabilities":
            return None
        # In float64, so that the order of members moves no mean across a threshold.
        return self.values if self.gives == "field" else self.values.mean(axis=0, dtype=np.float64)


def settle(contestant: Contestant, values: FloatArray) -> Forecast:
    """Tell what a model cannot know from what it failed to forecast."""
    if not contestant.marks_unknown:
        return Forecast(gives=contestant.gives, values=values, unknown_thw=None)
    is_unknown = np.isnan(values)
    unknown_thw = is_unknown if contestant.gives == "field" else np.any(is_unknown, axis=0)
    filled: FloatArray = np.where(is_unknown, np.float32(0), values)
    return Forecast(gives=contestant.gives, values=filled, unknown_thw=unknown_thw)


def field_names(contestants: Mapping[str, Contestant]) -> list[str]:
    """Name the single fields that are scored: those of models, and of each ensemble its mean."""
    return [
        name if contestant.gives == "field" else product_name(name, MEAN)
        for name, contestant in contestants.items()
        if contestant.gives != "probabilities"
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowScores:
    """The scores of one window.

    Attributes:
        rows: Of fields, by the models' names; of an ensemble's mean, by its product's name.
        ensembles: Of ensembles and probabilities, by name.
        unknown: Pixels that models cannot know.
    """

    rows: Mapping[str, Rows]
    ensembles: Mapping[str, EnsembleRows]
    unknown: Unknown


def score_forecasts(
    settings: Settings, window_id: WindowId, window: WindowRain, forecasts: Mapping[str, Forecast], rule: UnknownRule
) -> WindowScores:
    """Score what all models forecast of a window.

    Args:
        settings: What is scored.
        window_id: The window.
        window: What came.
        forecasts: By model.
        rule: How pixels count that a model cannot know.
    """
    observed_thw = window.future_mmh_bthw[0].numpy()
    valid = window.future_valid_bthw
    valid_thw = None if valid is None else valid[0].numpy()

    # What one model cannot know is left out for all, or dry for that one.
    masks_thw = {name: each.unknown_thw for name, each in forecasts.items() if each.unknown_thw is not None}
    unknown = count_unknown(masks_thw, valid_thw, observed_thw.size)
    any_thw = unknown_by_any(masks_thw) if rule == "leave_out" else None
    if any_thw is not None:
        valid_thw = ~any_thw if valid_thw is None else valid_thw & ~any_thw

    rows: dict[str, Rows] = {}
    ensembles: dict[str, EnsembleRows] = {}
    for name, forecast in forecasts.items():
        if forecast.gives == "members":
            ensembles[name] = score_members(settings, window_id, forecast.values, observed_thw, valid_thw)
        elif forecast.gives == "probabilities":
            ensembles[name] = score_probabilities(settings, window_id, forecast.values, observed_thw, valid_thw)
        field_thw = forecast.field_mmh_thw
        if field_thw is not None:
            field_name = name if forecast.gives == "field" else product_name(name, MEAN)
            rows[field_name] = score_window(settings, window_id, field_thw, observed_thw, valid_thw)
    return WindowScores(rows=rows, ensembles=ensembles, unknown=unknown)
