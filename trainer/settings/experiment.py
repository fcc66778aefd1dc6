"""What a run is: its sections of settings, and what concerns several of them."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ...data.errors import ConfigError
from .data import DataConfig, NowcastDataConfig, WindowsConfig
from .engine import EngineConfig
from .model import ModelConfig, NowcastConfig
from .optim import OptimConfig
from .run import NowcastRunConfig, RunConfig
from .tracking import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class SharedConfig:
    """A training run of either kind: the sections that both have, and what concerns several of them.

    Args:
        run: Where and how long.
        data: Windows and batches.
        model: The model and its loss.
        optim: Optimizer and schedules.
        engine: Processes, precision, DeepSpeed.
        tracking: Where metrics go.
        seed: Seed of everything that is random.
        init_from: Weights to start from.
    """

    run: RunConfig
    data: WindowsConfig
    model: ModelConfig | NowcastConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0
    init_from: str | None = None

    def __post_init__(self) -> None:
        """Check what concerns several sections, and that every number is one."""
        _check_together(self)
        if self.init_from is not None:
            # Evaluations follow it from other folders, to see which frames the weights have learned from.
            object.__setattr__(self, "init_from", str(Path(self.init_from).absolute()))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(SharedConfig):
    """A masked pretraining run.

    Args:
        init_from: Weights to start from: a run, a checkpoint, a .safetensors or a published .pth. Of a run or a
            checkpoint the averaged weights are taken where it has them.
    """

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)

    @property
    def window(self) -> int:
        """Count the frames of a window."""
        return self.data.window


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(SharedConfig):
    """The training of a nowcaster.

    Args:
        run: Where and how long, and which checkpoint is the best.
        model: The nowcaster and its loss.
        init_from: Weights to start from: a pretrained or fine-tuned run, a checkpoint, a .safetensors or a published
            .pth. Of a run the best checkpoint is taken where one was chosen, else the newest, its averaged weights
            where it has them. Null: from nothing.
    """

    run: NowcastRunConfig
    data: NowcastDataConfig
    model: NowcastConfig = field(default_factory=NowcastConfig)

    def __post_init__(self) -> None:
        """Check what concerns several sections, and that the model's windows can be selected."""
        super().__post_init__()
        self.data.selection(self.window)
        model = self.model
        if self.optim.layer_decay != 1 and (model.name == "smaat_unet" or model.freeze in ("encoder", "both")):
            why = "model.name is smaat_unet" if model.name == "smaat_unet" else f"model.freeze is {model.freeze}"
            raise ConfigError(
                f"optim.layer_decay is {self.optim.layer_decay}: no effect, as {why} and no encoder is trained; "
                "leave it out"
            )

    @property
    def window(self) -> int:
        """Count the frames of a window: the past and the forecast."""
        return self.model.frames_in + self.model.frames_out


TrainingConfig = PretrainConfig | FinetuneConfig
TRAININGS: Final[dict[str, type[TrainingConfig]]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
"""The settings of each command that trains."""


def _check_together(config: SharedConfig) -> None:
    """Check what concerns several sections."""
    for key, value in flatten(dataclasses.asdict(config)).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ConfigError(f"{key} is {value}; it must be a finite number")

    data = config.data
    # Every micro-batch is whole: its windows share their batch statistics.
    if data.global_batch % data.micro:
        sizes = [size for size in range(1, data.global_batch + 1) if data.global_batch % size == 0]
        raise ConfigError(
            f"data.global_batch {data.global_batch} is not a multiple of data.micro_batch {data.micro}; "
            f"micro-batches that work: {', '.join(map(str, sizes))}"
        )

    if config.optim.warmup_steps >= config.run.steps:
        raise ConfigError(
            f"optim.warmup_steps {config.optim.warmup_steps} leaves nothing of run.steps {config.run.steps}; "
            "warm up for fewer steps or run longer"
        )

    # A rank that waits for a store or a service looks like one that hangs.
    waits = {
        "data.deadline_s": data.deadline_s if "://" in data.shards else 0.0,
        "run.push_deadline_s": 0.0 if config.run.checkpoint_url is None else config.run.push_deadline_s,
        "tracking.close_s": config.tracking.close_s if config.tracking.services else 0.0,
    }
    for key, seconds in waits.items():
        if seconds >= config.engine.timeout_s:
            raise ConfigError(
                f"{key} is {seconds:g} and engine.timeout_s {config.engine.timeout_s:g}: who waits so long counts as "
                "standing still and is ended; make engine.timeout_s longer"
            )


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write a table of tables as one table, its keys joined by dots; an empty table stays as it is."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
