"""Masked pretraining: `accelerate launch trainer/pretrain.py --config configs/x.yaml --data.shards S --run.dir R`."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from ...data.shards.index import Index
from ...data.units import ModelSpace
from ...models.encoder import build_encoder, depth_rates
from ...models.patches import PATCH
from ...models.spark import SparK
from ...models.weights.transfer import InitReport, init_from
from ..engine.engine import Engine
from ..processes.entry import ExitCode, StopSignal
from ..settings.parse import PretrainConfig
from .command import run_training
from .pretrain_held_out import PretrainHeldOut
from .pretrain_task import PretrainTask
from .run import TrainingRun


class Pretraining(TrainingRun[PretrainConfig]):
    """One pretraining run, built from its configuration; every rank has one.

    Args:
        config: The run.
        engine: Started processes.
        stop: Tells whether this rank was asked to stop.
    """

    model: SparK
    task: PretrainTask

    def __init__(self, config: PretrainConfig, engine: Engine, stop: StopSignal) -> None:
        super().__init__(config, engine, stop, window=config.data.window)

    def build_model(self) -> SparK:
        """Build SparK."""
        return build_model(self.config)

    def build_task(self) -> PretrainTask:
        """Build masked modelling."""
        return build_task(self.config, self.model, self.space, self.windows.index)

    def build_held_out(self) -> PretrainHeldOut:
        """Build the held-out loss and its picture."""
        return PretrainHeldOut(self.config.data, self.engine, self.windows, model=self.model, task=self.task)

    def start_from(self, source: Path) -> InitReport:
        """Take over what a checkpoint holds under this model's names."""
        return init_from(self.model, source)

    def title(self) -> str:
        """Name the encoder."""
        return self.config.model.encoder

    def places(self) -> dict[str, str]:
        """Say how to get the encoder too."""
        export = f"python -m rainspark.models.weights export {shlex.quote(str(self.folder))} --out encoder.safetensors"
        return {**super().places(), "encoder": export}


def build_model(config: PretrainConfig) -> SparK:
    """Build SparK as the settings describe it, with fresh weights from torch's generator."""
    model = SparK(
        build_encoder(config.model.encoder, config.data.window, depth_drop=config.model.depth_drop),
        decoder_width=config.model.decoder_width,
        loss=config.model.loss,
        decoder_activation=config.model.decoder_activation,
    )
    model.set_checkpoint_blocks(config.model.checkpoint_blocks)
    return model


def build_task(config: PretrainConfig, model: SparK, space: ModelSpace, index: Index) -> PretrainTask:
    """Build masked modelling of an archive's frames."""
    return PretrainTask(
        model,
        space,
        mask_ratio=config.model.mask_ratio,
        seed=config.seed,
        grid_hw=(index.rows // PATCH, index.cols // PATCH),
        depth_rates=depth_rates(model.sparse_encoder),
        augment=config.data.augment,
        dtype=torch.float64 if config.engine.precision == "fp64" else torch.float32,
    )


def main(argv: Sequence[str] | None = None) -> ExitCode:
    """Parse, build, run.

    Args:
        argv: Command line without the program's name.
    """
    return run_training(Pretraining, PretrainConfig, argv, prog="trainer/pretrain.py")
