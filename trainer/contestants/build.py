"""Load what the entries name, and build the contestants once the windows are known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...data.command import expand_home
from ...data.errors import ConfigError
from ...data.shards.index import Index
from ...models.baselines.fields import import_pysteps
from ...models.baselines.simple import DampedExtrapolation, TrainingMean
from ...models.nowcasting.forecasts import Forecaster
from ..forecasting.forecaster import RunForecaster, load_forecaster
from ..settings.evaluation import EvaluateConfig
from .contestant import Asked, Contestant, RunMembers
from .entries import Entry
from .external import External, ForecastFolder, scan_forecasts
from .fitted import FRAMES_IN, build_baseline
from .kept import DEFAULT_LIMIT_BYTES, KeptForecasts, default_folder
from .pysteps_models import PystepsModel
from .python_models import PythonModel, load_python_model
from .workers import Workers, usable_cores

DEFAULT_MEMBERS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """What was read before the windows are chosen, by the models' names.

    Attributes:
        runs: Trained runs.
        folders: Forecasts made elsewhere.
        classes: Models of other packages.
    """

    runs: Mapping[str, RunForecaster] = field(default_factory=dict)
    folders: Mapping[str, ForecastFolder] = field(default_factory=dict)
    classes: Mapping[str, PythonModel] = field(default_factory=dict)


def load_entries(entries: Sequence[Entry], config: EvaluateConfig, device: str) -> Loaded:
    """Load runs and classes, and look into the folders of forecasts.

    Raises:
        ConfigError: A class that cannot be used; `members` without a run that is an ensemble.
        DataError: A run or a file that cannot be read.
    """
    folders = {entry.name: entry.folder for entry in entries if entry.kind == "run" and entry.folder is not None}
    runs = {name: load_forecaster(folder, name=name, device=device) for name, folder in folders.items()}
    if config.members is not None and not any(run.is_ensemble for run in runs.values()):
        raise ConfigError(
            f"members is {config.members}, and none of the models is a run that is an ensemble; leave it out (of "
            "pysteps' STEPS: steps:members=16)"
        )
    return Loaded(
        runs=runs,
        folders={entry.name: scan_forecasts(entry) for entry in entries if entry.kind == "netcdf"},
        classes={entry.name: load_python_model(entry) for entry in entries if entry.kind == "python"},
    )


def frames_of(entries: Sequence[Entry], loaded: Loaded, config: EvaluateConfig, cadence_s: int) -> tuple[int, int]:
    """Give the past and the future frames of a window, of the settings or of the models.

    Args:
        entries: All models.
        loaded: Those that were loaded.
        config: The evaluation.
        cadence_s: Of the archive.

    Raises:
        ConfigError: Fewer past frames than a model takes, or more lead times than one gives.
        DataError: Forecasts made elsewhere whose lead times are not the archive's frames.
    """
    # The model that takes most past frames decides, unless the settings ask for more.
    needed = {entry.name: _frames_in(entry, loaded) for entry in entries}
    neediest = max(needed, key=lambda name: needed[name])
    frames_in = config.frames_in or needed[neediest]
    if frames_in < needed[neediest]:
        raise ConfigError(
            f"frames_in is {frames_in}, and {neediest} takes {needed[neediest]} past frames; give as many"
        )

    # The one that gives fewest lead times decides; baselines give any number.
    most = {name: run.frames_out for name, run in loaded.runs.items()}
    most |= {name: folder.num_leads(cadence_s) for name, folder in loaded.folders.items()}
    fewest = min(most.values(), default=config.frames_out or 12)
    frames_out = config.frames_out or fewest
    if frames_out > fewest:
        short = next(name for name, num in most.items() if num == fewest)
        raise ConfigError(f"frames_out is {frames_out}, and {short} forecasts {fewest} frames; ask for fewer")
    return frames_in, frames_out


def _frames_in(entry: Entry, loaded: Loaded) -> int:
    if entry.method is not None:
        return entry.method.frames_in
    match entry.kind:
        case "run":
            return loaded.runs[entry.name].frames_in
        case "python":
            return loaded.classes[entry.name].forecaster.frames_in
        case "netcdf":
            return 1
    return FRAMES_IN[entry.kind]


@dataclass(frozen=True, kw_only=True, eq=False)
class Builder:
    """Builds contestants.

    Attributes:
        config: The evaluation.
        index: The archive.
        frames_out: Lead times to forecast.
        device: Where runs compute.
        workers: That run pysteps.
        kept: Where pysteps' forecasts are kept.
    """

    config: EvaluateConfig
    index: Index
    frames_out: int
    device: torch.device
    workers: Workers
    kept: KeptForecasts

    def build(
        self, entries: Sequence[Entry], loaded: Loaded, fitted: Mapping[str, Forecaster]
    ) -> dict[str, Contestant]:
        """Build all of them in the user's order; raises ConfigError where a package is missing."""
        built: dict[str, Contestant] = {}
        for entry in entries:
            # What other processes compute, or have computed.
            if entry.method is not None:
                built[entry.name] = self._pysteps(entry)
            elif entry.kind == "netcdf":
                folder = loaded.folders[entry.name]
                cadence_s = self.index.cadence_s
                built[entry.name] = External(forecasts=folder, frames_out=self.frames_out, cadence_s=cadence_s)

            # What this process asks, one window at a time.
            elif entry.kind == "python":
                model = loaded.classes[entry.name]
                about = {"kind": entry.kind, "class": model.source, "frames_in": model.forecaster.frames_in}
                built[entry.name] = self._asked(entry.name, model.forecaster, model.gives, about, model.source)
            elif entry.kind == "run":
                built[entry.name] = self._run(entry.name, loaded.runs[entry.name])
            else:
                forecaster = fitted.get(entry.name) or build_baseline(entry.kind, entry.name)
                about = {"kind": entry.kind, **_fitted(forecaster)}
                built[entry.name] = self._asked(entry.name, forecaster, "field", about)
        return built

    def _pysteps(self, entry: Entry) -> PystepsModel:
        method = entry.method
        assert method is not None, "the caller looked"
        try:
            import_pysteps(f"nowcasts.{method.kind}", method.kind)
        except ImportError as error:
            raise ConfigError(str(error)) from error
        return PystepsModel(
            method=method,
            workers=self.workers,
            kept=self.kept,
            frames_out=self.frames_out,
            thresholds_mmh=self.config.thresholds,
            pixel_km=self.index.grid.pixel_km,
            step_min=self.index.cadence_s / 60,
            seed=self.config.seed,
        )

    def _run(self, name: str, run: RunForecaster) -> Asked:
        about = describe_run(run)
        if not run.is_ensemble:
            return self._asked(name, run, "field", about)
        members = self.config.members or DEFAULT_MEMBERS
        ensemble = RunMembers(run=run, members=members, seed=self.config.seed)
        return self._asked(name, ensemble, "members", {**about, "members": members})

    def _asked(self, name: str, forecaster: Any, gives: Any, about: dict[str, Any], source: str | None = None) -> Asked:
        return Asked(
            name=name,
            forecaster=forecaster,
            gives=gives,
            device=self.device,
            frames_out=self.frames_out,
            thresholds_mmh=self.config.thresholds,
            about=about,
            source=source,
        )


def start_workers(config: EvaluateConfig, world_size: int) -> Workers:
    """Make the pool of an evaluation's process: its share of the cores, unless the settings say how many."""
    return Workers(config.workers or max(1, usable_cores() // world_size))


def open_kept(config: EvaluateConfig) -> KeptForecasts:
    """Open the folder of pysteps' forecasts: the one that the settings name, else the user's, which has a limit."""
    if config.cache is None:
        return KeptForecasts(default_folder(), DEFAULT_LIMIT_BYTES)
    return KeptForecasts(None if config.cache == "none" else Path(expand_home(config.cache)))


def describe_run(run: RunForecaster) -> dict[str, Any]:
    """Describe a run as plain JSON."""
    model = run.config.model
    return {
        "kind": "run",
        "model": model.name if model.name == "smaat_unet" else f"{model.name}, {model.encoder}",
        "checkpoint": str(run.path),
        "step": run.step,
        "frames_in": run.frames_in,
        "frames_out": run.frames_out,
        "seed": run.config.seed,
        "source": run.data.get("source"),
        "spans": run.data.get("spans"),
    }


def _fitted(forecaster: Any) -> dict[str, Any]:
    """Give what was fitted of a baseline."""
    about: dict[str, Any] = {}
    if isinstance(forecaster, TrainingMean | DampedExtrapolation):
        about["mean_mmh"] = forecaster.mean_mmh
    if isinstance(forecaster, DampedExtrapolation):
        about["factors"] = list(forecaster.factors)
    return about
