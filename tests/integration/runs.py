"""Tiny pretraining runs for the integration tests, and what runs of either kind share."""

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file

from rainspark.data.exit_codes import ExitCode
from rainspark.data.sources.synthetic import main as write_storms
from rainspark.models.weights.manifest import latest_verified
from rainspark.trainer.engine.engine import Engine
from rainspark.trainer.processes.entry import STOP_SIGNALS, StopSignal
from rainspark.trainer.settings.experiment import FinetuneConfig, PretrainConfig
from rainspark.trainer.settings.parse import parse_config
from rainspark.trainer.training.finetuning import Finetuning
from rainspark.trainer.training.pretraining import Pretraining

TIMES = ("windows_per_s", "step_time_s", "data_wait_share", "time/", "memory/")

Overrides = Mapping[str, object]
Change = Callable[[Pretraining], None]
_Run = TypeVar("_Run", Pretraining, Finetuning)
_Config = TypeVar("_Config", PretrainConfig, FinetuneConfig)


def make_shards(folder: Path, *, hours: float = 5, size: int = 64) -> Path:
    """Write a few hours of synthetic storms and pack them; return the shards' folder."""
    from rainspark.data.pack.__main__ import main as pack

    write_storms(["--out", str(folder / "radar"), "--hours", str(hours), "--seed", "3", "--size", str(size)])
    pack(["knmi", str(folder / "radar"), "--out", str(folder / "shards")])
    return folder / "shards"


def arguments(shards: Path, run: Path, **overrides: object) -> list[str]:
    """Build the command line of the smallest run that has every part; keys of overrides are written a__b for a.b."""
    settings: dict[str, object] = {
        "data.shards": shards, "run.dir": run, "run.steps": 8, "run.log_every": 1, "run.evaluate_every": 8,
        "run.save_every": 100, "data.window": 4, "data.global_batch": 8, "data.micro_batch": 4, "data.lanes": 2,
        "data.guard_h": 0.5, "data.validation_share": 0.2, "data.evaluation_windows": 6, "model.encoder": "resnet18",
        "model.decoder_width": 32, "optim.warmup_steps": 2, "optim.lr": 0.03, "engine.device": "cpu",
        "tracking.tensorboard": "false",
    }  # fmt: skip
    return command_line(settings | dotted(overrides))


def dotted(overrides: Overrides) -> dict[str, object]:
    """Give keys that are written a__b as a.b."""
    return {key.replace("__", "."): value for key, value in overrides.items()}


def command_line(settings: Overrides) -> list[str]:
    """Write settings as the words of a command line."""
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


class StopAfter(StopSignal):
    """Sends this process a real SIGTERM while the given step runs."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.left = step

    def __call__(self) -> bool:
        """Count the steps that ask."""
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGTERM)
        return super().__call__()


def train(argv: list[str], *, stop_in_step: int | None = None, change: Change | None = None) -> ExitCode:
    """Run the entry point's work in this process, as one rank of whatever the environment says."""
    return train_as(Pretraining, PretrainConfig, argv, stop_in_step=stop_in_step, change=change)


def train_as(
    build: Callable[[_Config, Engine, StopSignal], _Run],
    kind: type[_Config],
    argv: list[str],
    *,
    stop_in_step: int | None,
    change: Callable[[_Run], None] | None,
) -> ExitCode:
    """Run the work of either entry point, which may be changed before and stopped while it trains."""
    stop = StopAfter(stop_in_step)
    config = parse_config(argv, kind, prog="test")
    stop.install()
    engine = Engine(config.engine)
    try:
        run = build(config, engine, stop)
        if change is not None:
            change(run)
        code = run.run()
    finally:
        engine.shutdown(clean=True)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
    return code


def train_many(_rank: int, runs: list[tuple[list[str], int | None]], one: Callable[..., ExitCode] = train) -> list[int]:
    """Train several runs one after another on the same ranks."""
    return [int(one(argv, stop_in_step=stop)) for argv, stop in runs]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Read the weights, buffers and moments of a run's newest checkpoint."""
    newest = latest_verified(run / "checkpoints")
    assert newest is not None
    model = load_file(newest / "model.safetensors")
    moments = load_file(newest / "optimizer.safetensors")
    found = model | {f"moment {name}": value for name, value in moments.items()}
    # Read from the file when they are looked at; a test that damages the file would damage them.
    return {name: value.clone() for name, value in found.items()}


def metrics(run: Path) -> list[dict[str, Any]]:
    """Read a run's metrics without their times, without what was read ahead when, and without its saves."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {"step": line["step"], **line["metrics"]}
        for line in lines
        if "metrics" in line and not all(key.startswith(("data/", "save/")) for key in line["metrics"])
    ]
    return [{key: value for key, value in line.items() if not key.startswith(TIMES)} for line in kept]
