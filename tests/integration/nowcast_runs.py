"""Tiny fine-tuning runs for the integration tests, started the way the entry point starts them."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from rainspark.data.exit_codes import ExitCode
from rainspark.models.weights.manifest import latest_verified
from rainspark.trainer.settings.experiment import FinetuneConfig
from rainspark.trainer.training.finetuning import Finetuning
from tests.integration import runs

Change = Callable[[Finetuning], None]


def arguments(shards: Path, run: Path, **overrides: object) -> list[str]:
    """Build the command line of the smallest run that has every part; keys of overrides are written a__b for a.b."""
    settings: dict[str, object] = {
        "data.shards": shards, "run.dir": run, "run.steps": 6, "run.log_every": 1, "run.evaluate_every": 2,
        "run.save_every": 100, "data.global_batch": 4, "data.lanes": 2, "data.guard_h": 0.5,
        "data.validation_share": 0.25, "data.evaluation_windows": 6, "model.frames_in": 4, "model.frames_out": 3,
        "model.encoder": "resnet18", "model.decoder_width": 32, "model.translation": "identity",
        "model.head": "residual", "optim.warmup_steps": 1, "optim.lr": 0.1, "engine.device": "cpu",
        "tracking.tensorboard": "false",
    }  # fmt: skip
    settings |= runs.dotted(overrides)
    if settings.get("model.name") == "smaat_unet":
        for key in ("encoder", "decoder_width", "translation", "head"):
            del settings[f"model.{key}"]
    return runs.command_line(settings)


def train(argv: list[str], *, stop_in_step: int | None = None, change: Change | None = None) -> ExitCode:
    """Run the entry point's work in this process, as one rank of whatever the environment says."""
    return runs.train_as(Finetuning, FinetuneConfig, argv, stop_in_step=stop_in_step, change=change)


def train_many(rank: int, some: list[tuple[list[str], int | None]]) -> list[int]:
    """Train several runs one after another on the same ranks."""
    return runs.train_many(rank, some, train)


def stored(run: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a run's newest checkpoint and of its best one: weights, buffers, moments, averages."""
    found: dict[str, torch.Tensor] = {}
    for part in ("checkpoints", "best/checkpoints"):
        newest = latest_verified(run / part)
        assert newest is not None
        for path in sorted(newest.glob("*.safetensors")):
            tensors = load_file(path)
            found |= {f"{part}/{newest.name}/{path.stem} {name}": value for name, value in tensors.items()}
    return found
