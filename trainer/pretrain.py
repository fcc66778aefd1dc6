"""Masked pretraining: `accelerate launch trainer/pretrain.py --config configs/x.yaml --data.shards S --run.dir R`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from models.encoder import build_encoder, depth_rates
from models.patches import PATCH
from models.spark import SparK
from models.weights import InitReport, init_from
from trainer.config import PretrainConfig
from trainer.engine import Engine
from trainer.entry import ExitCode, StopSignal, run_entry
from trainer.evaluation import PretrainHeldOut
from trainer.lifecycle import TrainingRun, run_training
from trainer.tasks import PretrainTask


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
        config = self.config.model
        encoder = build_encoder(config.encoder, self.config.data.window, depth_drop=config.depth_drop)
        model = SparK(
            encoder,
            decoder_width=config.decoder_width,
            loss=config.loss,
            decoder_activation=config.decoder_activation,
        )
        model.set_checkpoint_blocks(config.checkpoint_blocks)
        return model

    def build_task(self) -> PretrainTask:
        """Build masked modelling."""
        index = self.windows.index
        return PretrainTask(
            self.model,
            self.space,
            mask_ratio=self.config.model.mask_ratio,
            seed=self.config.seed,
            grid_hw=(index.rows // PATCH, index.cols // PATCH),
            depth_rates=depth_rates(self.model.sparse_encoder),
            augment=self.config.data.augment,
            dtype=self.dtype,
        )

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
        export = f"python -m models.weights export {self.folder} --out encoder.safetensors"
        return {**super().places(), "encoder": export}


def main(argv: Sequence[str] | None = None) -> ExitCode:
    """Parse, build, run.

    Args:
        argv: Command line without the program's name.
    """
    return run_training(Pretraining, PretrainConfig, argv, prog="trainer/pretrain.py")


if __name__ == "__main__":
    sys.exit(run_entry(main))
