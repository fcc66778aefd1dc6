"""Tiny training runs of either kind for the tests: their command lines, how they are started, what they have left."""

import hashlib
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rainspark.data.exit_codes import ExitCode
from rainspark.data.sources.synthetic import main as write_storms
from rainspark.models.weights.manifest import latest_verified, step_folders
from rainspark.trainer.engine.engine import Engine
from rainspark.trainer.evaluation.evaluating import run as run_evaluation
from rainspark.trainer.processes.ending import STOP_SIGNALS
from rainspark.trainer.processes.entry import StopSignal
from rainspark.trainer.settings.evaluation import parse_evaluation
from rainspark.trainer.settings.experiment import FinetuneConfig, PretrainConfig
from rainspark.trainer.settings.parse import parse_config
from rainspark.trainer.training.finetuning import Finetuning
from rainspark.trainer.training.finetuning import run as run_finetuning
from rainspark.trainer.training.pretraining import Pretraining
from rainspark.trainer.training.pretraining import run as run_pretraining

TIMES = ("windows_per_s", "step_time_s", "data_wait_share", "time/", "memory/")


def settings(*lines: str) -> Mapping[str, object]:
    """Read settings that are written as `key=value`, with blanks between them."""
    return dict(word.split("=", 1) for line in lines for word in line.split())


COMMON = settings(
    "run.log_every=1 run.save_every=100 data.lanes=2 data.guard_h=0.5 data.evaluation_windows=6",
    "engine.device=cpu tracking.tensorboard=false",
)
PRETRAINING = settings(
    "run.steps=8 run.evaluate_every=8 data.window=4 data.global_batch=8 data.micro_batch=4",
    "data.validation_share=0.2 model.encoder=resnet18 model.decoder_width=32 optim.warmup_steps=2 optim.lr=0.03",
)
NOWCASTING = settings(
    "run.steps=6 run.evaluate_every=2 data.global_batch=4 data.validation_share=0.25 optim.warmup_steps=1",
    "optim.lr=0.1 model.frames_in=4 model.frames_out=3",
)
NOWCASTER = settings(
    "model.encoder=resnet18 model.decoder_width=32 model.translation=identity model.head=residual",
)
SMALLEST = settings(
    "run.steps=4 run.save_every=1 run.keep_last=2 run.evaluate_every=1000 run.push_deadline_s=55",
    "data.validation_share=0 data.crop=32 model.smaat_width=2 model.frames_in=2 model.frames_out=1",
    "engine.timeout_s=60",
)
Change = Callable[[Any], object]
"""Something done to a run before it trains."""


def make_shards(folder: Path, *, hours: float = 5, size: int = 64) -> Path:
    """Write a few hours of synthetic storms and pack them; return the shards' folder."""
    from rainspark.data.pack.__main__ import main as pack

    write_storms(["--out", str(folder / "radar"), "--hours", str(hours), "--seed", "3", "--size", str(size)])
    pack(["knmi", str(folder / "radar"), "--out", str(folder / "shards")])
    return folder / "shards"


def command_line(*settings: Mapping[str, object]) -> list[str]:
    """Write settings as the words of a command line, later ones before earlier ones; a__b stands for a.b."""
    merged = {key.replace("__", "."): value for each in settings for key, value in each.items()}
    return [word for key, value in merged.items() for word in (f"--{key}", str(value))]


def arguments(shards: Path | str, run: Path, **overrides: object) -> list[str]:
    """Build the command line of the smallest pretraining that has every part."""
    return command_line(COMMON, PRETRAINING, {"data.shards": shards, "run.dir": run}, overrides)


def nowcast_arguments(shards: Path | str, run: Path, **overrides: object) -> list[str]:
    """Build the command line of the smallest fine-tuning that has every part."""
    model: Mapping[str, object] = {} if overrides.get("model__name") == "smaat_unet" else NOWCASTER
    return command_line(COMMON, NOWCASTING, model, {"data.shards": shards, "run.dir": run}, overrides)


def smallest_arguments(shards: Path | str, run: Path, **overrides: object) -> list[str]:
    """Build the command line of the smallest run of all: SmaAt-UNet of width 2, four steps, each of them saved.

    A rank that was killed is missed after some seconds, which go with `engine.timeout_s`.
    """
    return nowcast_arguments(shards, run, model__name="smaat_unet", **{**SMALLEST, **overrides})


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


@contextmanager
def built(argv: list[str], stop: StopSignal | None = None) -> Iterator[Any]:
    """Build the run of a command line, ready to train, and end its engine afterwards."""
    is_nowcast = "--model.frames_in" in argv
    config: Any = parse_config(argv, FinetuneConfig if is_nowcast else PretrainConfig, prog="test")
    engine = Engine(config.engine)
    try:
        make: Any = Finetuning if is_nowcast else Pretraining
        yield make(config, engine, stop or StopSignal())
    finally:
        engine.shutdown(clean=True)


def train(argv: list[str], *, stop_in_step: int | None = None, change: Change | None = None) -> ExitCode:
    """Run a training command's work in this process, as one rank of whatever the environment says.

    Args:
        argv: The command line.
        stop_in_step: Step, from 1, in which this process is asked to stop.
        change: Is given the run before it trains.
    """
    stop = StopAfter(stop_in_step)
    stop.install()
    try:
        with built(argv, stop) as run:
            if change is not None:
                change(run)
            code: ExitCode = run.run()
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
    return code


def evaluate(argv: list[str]) -> ExitCode:
    """Run an evaluation's work in this process."""
    return run_evaluation(parse_evaluation(argv), argv)


def pretrain(argv: list[str]) -> ExitCode:
    """Run what `rainspark pretrain` does, but for its end of the process."""
    return run_pretraining(parse_config(argv, PretrainConfig, prog="rainspark pretrain"))


def finetune(argv: list[str]) -> ExitCode:
    """Run what `rainspark finetune` does, but for its end of the process."""
    return run_finetuning(parse_config(argv, FinetuneConfig, prog="rainspark finetune"))


def train_many(_rank: int, runs: list[tuple[list[str], int | None]]) -> list[int]:
    """Train several runs one after another on the same ranks: (command line, step to stop in)."""
    return [int(train(argv, stop_in_step=stop)) for argv, stop in runs]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Read the weights, buffers and moments of a run's newest checkpoint."""
    newest = latest_verified(run / "checkpoints")
    assert newest is not None
    model = load_file(newest / "model.safetensors")
    moments = load_file(newest / "optimizer.safetensors")
    # Read from the file when they are looked at; a test that damages the file would damage them.
    named = model | {f"moment {name}": value for name, value in moments.items()}
    return {name: value.clone() for name, value in named.items()}


def stored(run: Path, *, best: bool = True, every_step: bool = False) -> dict[str, torch.Tensor]:
    """Read every tensor of a run's newest checkpoint: weights, buffers, moments, averages.

    Args:
        run: Its folder.
        best: The newest best checkpoint's too.
        every_step: All checkpoints', not the newest one's only.
    """
    named: dict[str, torch.Tensor] = {}
    for part in ("checkpoints", *(("best/checkpoints",) if best else ())):
        folders = [folder for _, folder in step_folders(run / part)]
        assert folders
        for folder in folders if every_step else folders[:1]:
            for path in sorted(folder.glob("*.safetensors")):
                named |= {f"{part}/{folder.name}/{path.stem} {name}": value for name, value in load_file(path).items()}
    return named


def equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Compare named tensors bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_close(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], rel: float) -> None:
    """Check that named tensors differ by rounding only."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        difference = float((second[name].double() - value.double()).abs().max())
        assert difference <= rel * (1 + float(value.double().abs().max())), name


def records(run: Path) -> list[dict[str, Any]]:
    """Read all lines of a run's metrics: dictionaries of step and metrics."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "metrics" in line]


def without_times(line: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a line of metrics what differs from run to run."""
    return {key: value for key, value in line.items() if not key.startswith(TIMES)}


def metrics(run: Path) -> list[dict[str, Any]]:
    """Read a run's metrics without their times, without what was read ahead when, and without its saves."""
    lines = [
        {"step": record["step"], **record["metrics"]}
        for record in records(run)
        if not all(key.startswith(("data/", "save/")) for key in record["metrics"])
    ]
    return [without_times(line) for line in lines]


def learned(argv: list[str]) -> tuple[list[dict[str, Any]], str]:
    """Train without evaluations, saves and a folder; return the metrics and the hash of what was learned."""
    lines: list[dict[str, Any]] = []
    with built(argv) as run:
        hooks = run.loop.hooks
        run.loop.hooks = replace(
            hooks, log=lambda _, line: lines.append(line), save=lambda _: None, evaluate=lambda _: {}
        )
        run.loop.fit(0)
        return [without_times(line) for line in lines if "loss" in line], digest(run.engine.bare_model.state_dict())


def digest(named: Mapping[str, torch.Tensor]) -> str:
    """Hash the bytes of named tensors."""
    data = b"".join(name.encode() + value.numpy().tobytes() for name, value in sorted(named.items()))
    return hashlib.sha256(data).hexdigest()
