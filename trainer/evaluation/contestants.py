"""Who takes part in an evaluation: trained runs and baselines, each under a name."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ...data.errors import ConfigError, DataError
from ...data.shards.index import Index
from ...data.store.storage import Storage
from ...data.stream.stream import Batch, evaluation_batches
from ...data.units import MISSING_COUNT
from ...data.windows.selection import WindowTable
from ...models.baselines.extrapolation import Extrapolation
from ...models.baselines.simple import Advection, DampedExtrapolation, DampingFit, Persistence, TrainingMean
from ...models.nowcasting.forecasts import Forecaster
from ..forecasting.forecaster import RunForecaster
from ..settings.evaluation import EvaluateConfig
from ..training.nowcast_task import Frames

UNFITTED: Final[Mapping[str, type[Persistence | Advection | Extrapolation]]] = {
    "persistence": Persistence,
    "advection": Advection,
    "extrapolation": Extrapolation,
}
"""Baselines that learn nothing."""

FITTED: Final = ("training_mean", "damped_extrapolation")
"""Baselines that learn from the training part."""

BASELINES: Final = (*UNFITTED, *FITTED)
_FILE_NAME: Final = re.compile(r"[^./\\][^/\\]*")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One of the models that the user named.

    Attributes:
        name: For tables, pictures and files.
        kind: A baseline's own name, or "run".
        folder: Of a run.
    """

    name: str
    kind: str
    folder: Path | None = None

    @property
    def model(self) -> str:
        """Name what the user pointed to: a run's folder, or a baseline."""
        return str(self.folder or self.kind)


def read_entries(words: Sequence[str]) -> list[Entry]:
    """Read RUN, NAME=RUN, BASELINE and NAME=BASELINE.

    Raises:
        ConfigError: Two models of one name, a name that cannot be a file's, or a word that is neither run nor baseline.
    """
    entries: dict[str, Entry] = {}
    for word in words:
        entry = _entry(word)

        # Files are called by the name: file systems take 255 bytes at most.
        if not _FILE_NAME.fullmatch(entry.name) or not entry.name.isprintable() or len(entry.name.encode()) > 100:
            raise ConfigError(
                f"models: the name {entry.name!r} cannot be a file's (1 to 100 bytes, no slash, no dot in front); give "
                f"another, as NAME={word}"
            )

        # A baseline's name stands for that baseline in tables and references.
        if entry.name in BASELINES and entry.kind != entry.name:
            raise ConfigError(
                f"models: {entry.name!r} is the name of a baseline, and {entry.model} is not that one; give "
                f"another, as NAME={entry.model}"
            )
        if other := entries.get(entry.name):
            both = f"{other.model} and {entry.model}"
            raise ConfigError(f"models: two of them are called {entry.name!r} ({both}); name one, as NAME={word}")
        entries[entry.name] = entry
    return list(entries.values())


def _entry(word: str) -> Entry:
    name, equals, model = word.partition("=")
    # A folder's own name may hold an equals sign.
    if not equals or "/" in name or (model not in BASELINES and not Path(model).is_dir() and Path(word).is_dir()):
        name = ""
        model = word
    if model in BASELINES:
        return Entry(name=name or model, kind=model)

    # What is no baseline has to be a run's folder, or else a mistyped baseline.
    folder = Path(model)
    if not folder.is_dir():
        message = f"models: {model!r} is neither the folder of a run nor a baseline ({', '.join(BASELINES)})"
        near = difflib.get_close_matches(model, BASELINES, n=1, cutoff=0.6)
        raise ConfigError(f"{message}; the nearest baseline is {near[0]}" if near else message)
    return Entry(name=name or folder.resolve().name, kind="run", folder=folder)


def frames_of(entries: Sequence[Entry], runs: Mapping[str, RunForecaster], config: EvaluateConfig) -> tuple[int, int]:
    """Give the past and the future frames of a window, of the settings or of the models.

    Raises:
        ConfigError: Fewer past frames than a model takes, or more lead times than a run gives.
    """
    # The model that takes most past frames decides, unless the settings ask for more.
    by_kind = {"training_mean": 1, "damped_extrapolation": Extrapolation.frames_in}
    by_kind |= {kind: baseline.frames_in for kind, baseline in UNFITTED.items()}
    needed = {entry.name: by_kind.get(entry.kind) or runs[entry.name].frames_in for entry in entries}
    neediest = max(needed, key=lambda name: needed[name])
    frames_in = config.frames_in or needed[neediest]
    if frames_in < needed[neediest]:
        raise ConfigError(
            f"frames_in is {frames_in}, and {neediest} takes {needed[neediest]} past frames; give as many"
        )

    # The run that gives fewest lead times decides; baselines give any number.
    fewest = min((run.frames_out for run in runs.values()), default=config.frames_out or 12)
    frames_out = config.frames_out or fewest
    if frames_out > fewest:
        short = next(name for name, run in runs.items() if run.frames_out == fewest)
        raise ConfigError(f"frames_out is {frames_out}, and {short} forecasts {fewest} frames; ask for fewer")
    return frames_in, frames_out


def build_baseline(kind: str, name: str) -> Forecaster:
    """Build a baseline that learns nothing.

    Raises:
        ConfigError: It needs a package that is not installed.
    """
    try:
        return UNFITTED[kind](name=name)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowRain(Frames):
    """One window, float32 on the CPU.

    Attributes:
        row: Of the window table.
    """

    row: int


def windows_of(batches: Iterator[Batch], frames_in: int) -> Iterator[WindowRain]:
    """Take the windows of batches one by one, without padding: nothing that is made of one depends on its batch."""
    for batch in batches:
        for position, row in enumerate(batch.window_b.tolist()):
            if row < 0:
                continue
            counts = batch.counts_bthw[position : position + 1].to(torch.float32)
            valid = counts != MISSING_COUNT
            # Rounded once, to what models see: forecast and radar lie on the same side of a threshold.
            rain = torch.where(valid, counts * batch.scale_mmh_b[position], 0.0)
            yield WindowRain(
                row=row,
                past_mmh_bthw=rain[:, :frames_in],
                past_valid_bthw=_mask(valid[:, :frames_in]),
                future_mmh_bthw=rain[:, frames_in:],
                future_valid_bthw=_mask(valid[:, frames_in:]),
            )


def _mask(valid_bthw: Tensor) -> Tensor | None:
    return None if bool(valid_bthw.all()) else valid_bthw


def describe(kind: str, forecaster: Forecaster) -> dict[str, Any]:
    """Describe a forecaster as plain JSON."""
    if isinstance(forecaster, RunForecaster):
        model = forecaster.config.model
        return {
            "kind": kind,
            "model": model.name if model.name == "smaat_unet" else f"{model.name}, {model.encoder}",
            "checkpoint": str(forecaster.path),
            "step": forecaster.step,
            "frames_in": forecaster.frames_in,
            "frames_out": forecaster.frames_out,
            "seed": forecaster.config.seed,
            "source": forecaster.data.get("source"),
            "spans": forecaster.data.get("spans"),
        }

    # Of baselines what was fitted is worth a line.
    about: dict[str, Any] = {"kind": kind}
    if isinstance(forecaster, TrainingMean | DampedExtrapolation):
        about["mean_mmh"] = forecaster.mean_mmh
    if isinstance(forecaster, DampedExtrapolation):
        about["factors"] = list(forecaster.factors)
    return about
