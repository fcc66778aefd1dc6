"""Who takes part in an evaluation: trained runs and baselines, each under a name."""

import difflib
import math
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
from ...models.nowcasting.baselines import (
    Advection,
    DampedExtrapolation,
    DampingFit,
    Extrapolation,
    Forecaster,
    Persistence,
    TrainingMean,
)
from ..forecasting.forecaster import RunForecaster, load_forecaster
from ..settings.evaluation import EvaluateConfig

BASELINES: Final = ("persistence", "advection", "extrapolation", "training_mean", "damped_extrapolation")
FITTED: Final = ("training_mean", "damped_extrapolation")
"""Baselines that learn from the training part."""

_FRAMES_IN: Final = {"persistence": 1, "training_mean": 1}
_MOST_BYTES: Final = 100
"""Of a name: files are called by it, and file systems take 255 bytes at most."""


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


def read_entries(words: Sequence[str]) -> list[Entry]:
    """Read RUN, NAME=RUN, BASELINE and NAME=BASELINE.

    Raises:
        ConfigError: Two models of one name, a name that cannot be a file's, or a word that is neither run nor baseline.
    """
    entries: dict[str, Entry] = {}
    for word in words:
        entry = _entry(word)
        if not entry.name.isprintable() or {"/", "\\"} & set(entry.name) or entry.name.startswith("."):
            raise ConfigError(f"models: the name {entry.name!r} cannot be a file's; give another, as NAME={word}")
        if not entry.name or len(entry.name.encode()) > _MOST_BYTES:
            raise ConfigError(f"models: {word!r} has no name of 1 to {_MOST_BYTES} bytes; give one, as NAME=RUN")
        if entry.name in BASELINES and entry.kind != entry.name:
            raise ConfigError(
                f"models: {entry.name!r} is the name of a baseline, and {entry.folder or entry.kind} is not that one; "
                f"give another, as NAME={entry.folder or entry.kind}"
            )
        if entry.name in entries:
            other = entries[entry.name]
            places = " and ".join(str(one.folder or one.kind) for one in (other, entry))
            raise ConfigError(f"models: two of them are called {entry.name!r} ({places}); name one, as NAME={word}")
        entries[entry.name] = entry
    return list(entries.values())


def _entry(word: str) -> Entry:
    name, equals, place = word.partition("=")
    if not equals or "/" in name or (place not in BASELINES and not Path(place).is_dir() and Path(word).is_dir()):
        name, place = "", word
    if place in BASELINES:
        return Entry(name=name or place, kind=place)
    folder = Path(place)
    if not folder.is_dir():
        message = f"models: {place!r} is neither the folder of a run nor a baseline ({', '.join(BASELINES)})"
        near = difflib.get_close_matches(place, BASELINES, n=1, cutoff=0.6)
        raise ConfigError(f"{message}; the nearest baseline is {near[0]}" if near else message)
    return Entry(name=name or folder.resolve().name, kind="run", folder=folder)


def load_runs(entries: Sequence[Entry], device: str) -> dict[str, RunForecaster]:
    """Load the runs among the entries, by name.

    Raises:
        CheckpointError: One is no fine-tuning run, or does not verify.
    """
    return {
        entry.name: load_forecaster(entry.folder, name=entry.name, device=device)
        for entry in entries
        if entry.folder is not None
    }


def frames_of(entries: Sequence[Entry], runs: Mapping[str, RunForecaster], config: EvaluateConfig) -> tuple[int, int]:
    """Give the past and the future frames of a window, of the settings or of the models.

    Raises:
        ConfigError: Fewer past frames than a model takes, or more lead times than a run gives.
    """
    taken = {entry.name: runs[entry.name].frames_in if entry.name in runs else _baseline_frames(entry.kind)
             for entry in entries}  # fmt: skip
    neediest = max(taken, key=lambda name: taken[name])
    frames_in = config.frames_in or taken[neediest]
    if frames_in < taken[neediest]:
        raise ConfigError(f"frames_in is {frames_in}, and {neediest} takes {taken[neediest]} past frames; give as many")
    fewest = min((run.frames_out for run in runs.values()), default=config.frames_out or 12)
    frames_out = config.frames_out or fewest
    if frames_out > fewest:
        short = next(name for name, run in runs.items() if run.frames_out == fewest)
        raise ConfigError(f"frames_out is {frames_out}, and {short} forecasts {fewest} frames; ask for fewer")
    return frames_in, frames_out


def _baseline_frames(kind: str) -> int:
    return _FRAMES_IN.get(kind, Extrapolation.frames_in)


def build_baseline(entry: Entry) -> Forecaster:
    """Build a baseline that learns nothing.

    Raises:
        ConfigError: It needs a package that is not installed.
    """
    try:
        match entry.kind:
            case "persistence":
                return Persistence(name=entry.name)
            case "advection":
                return Advection(name=entry.name)
            case _:
                return Extrapolation(name=entry.name)
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
    entries: Sequence[Entry], part: TrainingPart, *, frames_in: int, frames_out: int, config: EvaluateConfig
) -> dict[str, Forecaster]:
    """Fit the baselines that learn from the training part, by name.

    Raises:
        DataError: The training part has no measured pixel.
        ConfigError: pysteps is not installed.
    """
    damped = any(entry.kind == "damped_extrapolation" for entry in entries)
    # The mean alone needs no extrapolation, and is the same with any.
    base = build_baseline(Entry(name="extrapolation", kind="extrapolation" if damped else "persistence"))
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
    mean = fit.mean_mmh
    if math.isnan(mean):
        raise DataError(
            f"{part.storage.url}: no pixel of the training part ({part.whose}) was measured; nothing to fit"
        )
    fitted: dict[str, Forecaster] = {}
    for entry in entries:
        if entry.kind == "training_mean":
            fitted[entry.name] = TrainingMean(mean_mmh=mean, name=entry.name)
        elif entry.kind == "damped_extrapolation":
            factors = fit.factors()
            fitted[entry.name] = DampedExtrapolation(
                mean_mmh=mean, factors=factors, extrapolation=base, name=entry.name
            )
    return fitted


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowRain:
    """One window as rain, mm/h, 0 where missing; masks are None where nothing is.

    Attributes:
        row: Of the window table.
        past_mmh_bthw: float32 (1, frames in, rows, cols).
        past_valid_bthw: The same shape.
        future_mmh_bthw: float32 (1, frames out, rows, cols).
        future_valid_bthw: The same shape.
    """

    row: int
    past_mmh_bthw: Tensor
    past_valid_bthw: Tensor | None
    future_mmh_bthw: Tensor
    future_valid_bthw: Tensor | None


def windows_of(batches: Iterator[Batch], frames_in: int) -> Iterator[WindowRain]:
    """Take the windows of batches one by one, without padding: nothing that is made of one depends on its batch."""
    for batch in batches:
        for place, row in enumerate(batch.window_b.tolist()):
            if row < 0:
                continue
            counts = batch.counts_bthw[place : place + 1].to(torch.float32)
            valid = counts != MISSING_COUNT
            # Rounded once, to what models see: forecast and radar lie on the same side of a threshold.
            rain = torch.where(valid, counts * batch.scale_mmh_b[place], 0.0)
            past, future = slice(None, frames_in), slice(frames_in, None)
            yield WindowRain(
                row=row,
                past_mmh_bthw=rain[:, past],
                past_valid_bthw=_mask(valid[:, past]),
                future_mmh_bthw=rain[:, future],
                future_valid_bthw=_mask(valid[:, future]),
            )


def _mask(valid_bthw: Tensor) -> Tensor | None:
    return None if bool(valid_bthw.all()) else valid_bthw


def described(forecaster: Forecaster) -> dict[str, Any]:
    """Say as plain JSON what a forecaster is."""
    match forecaster:
        case RunForecaster():
            model = forecaster.config.model
            return {
                "kind": "run",
                "model": model.name if model.name == "smaat_unet" else f"{model.name}, {model.encoder}",
                "checkpoint": str(forecaster.path),
                "step": forecaster.step,
                "frames_in": forecaster.frames_in,
                "frames_out": forecaster.frames_out,
                "seed": forecaster.config.seed,
                "source": forecaster.data.get("source"),
                "spans": forecaster.data.get("spans"),
            }
        case TrainingMean():
            return {"kind": "training_mean", "mean_mmh": forecaster.mean_mmh}
        case DampedExtrapolation():
            return {
                "kind": "damped_extrapolation",
                "mean_mmh": forecaster.mean_mmh,
                "factors": list(forecaster.factors),
            }
        case Persistence():
            return {"kind": "persistence"}
        case Advection():
            return {"kind": "advection"}
        case _:
            return {"kind": "extrapolation"}
