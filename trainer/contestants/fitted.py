"""Baselines that learn nothing or are fitted on the training part."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ...data.errors import ConfigError, DataError
from ...data.shards.index import Index
from ...data.store.storage import Storage
from ...data.stream.stream import evaluation_batches
from ...data.windows.selection import WindowTable
from ...models.baselines.extrapolation import Extrapolation
from ...models.baselines.simple import Advection, DampedExtrapolation, DampingFit, Persistence, TrainingMean
from ...models.nowcasting.forecasts import Forecaster
from ..settings.evaluation import EvaluateConfig
from .entries import Entry
from .windows import windows_of

PLAIN: Final[Mapping[str, type[Persistence | Advection | Extrapolation]]] = {
    "persistence": Persistence,
    "advection": Advection,
    "extrapolation": Extrapolation,
}
"""Baselines that learn nothing."""

FRAMES_IN: Final[Mapping[str, int]] = {
    "training_mean": 1,
    "damped_extrapolation": Extrapolation.frames_in,
    **{kind: baseline.frames_in for kind, baseline in PLAIN.items()},
}
"""Past frames that each takes."""


def build_baseline(kind: str, name: str) -> Forecaster:
    """Build a baseline that learns nothing.

    Raises:
        ConfigError: It needs a package that is not installed.
    """
    try:
        return PLAIN[kind](name=name)
    except ImportError as error:
        raise ConfigError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class TrainingPart:
    """The windows that baselines are fitted on.

    Attributes:
        storage: Where the shards lie.
        index: What they hold.
        table: The windows.
        whose: For the report.
    """

    storage: Storage
    index: Index
    table: WindowTable
    whose: str


def fit_baselines(
    entries: Sequence[Entry], part: TrainingPart, frames: tuple[int, int], config: EvaluateConfig
) -> dict[str, Forecaster]:
    """Fit the baselines that learn from the training part, by name.

    Args:
        entries: All models.
        part: The training part.
        frames: Past and future frames of a window.
        config: The evaluation.

    Raises:
        DataError: The training part has no measured pixel.
        ConfigError: pysteps is not installed.
    """
    # The mean alone needs no extrapolation, and is the same with any.
    is_damped = any(entry.kind == "damped_extrapolation" for entry in entries)
    base = build_baseline("extrapolation" if is_damped else "persistence", "extrapolation")
    frames_in, frames_out = frames
    fit = DampingFit(frames_out)
    batches = evaluation_batches(
        part.storage,
        part.index,
        part.table,
        micro_batch=1,
        limit=config.fit_windows,
        options=config.data.one_pass,
    )
    for window in windows_of(batches, frames_in):
        past, past_valid = window.past_mmh_bthw, window.past_valid_bthw
        fit.update(base.forecast(past, past_valid, frames_out), window.future_mmh_bthw, window.future_valid_bthw)

    # One pass gives the mean and, for each lead time, how far extrapolation has to be damped.
    mean = fit.mean_mmh
    if math.isnan(mean):
        raise DataError(
            f"{part.storage.url}: no pixel of the training part ({part.whose}) was measured; nothing to fit"
        )
    fitted: dict[str, Forecaster] = {}
    for entry in entries:
        name = entry.name
        if entry.kind == "training_mean":
            fitted[name] = TrainingMean(mean_mmh=mean, name=name)
        elif entry.kind == "damped_extrapolation":
            factors = fit.factors()
            fitted[name] = DampedExtrapolation(mean_mmh=mean, factors=factors, extrapolation=base, name=name)
    return fitted
