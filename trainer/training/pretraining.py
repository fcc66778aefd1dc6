"""Masked pretraining: `accelerate launch trainer/pretrain.py --config configs/x.yaml --data.shards S --run.dir R`."""

import shlex
from pathlib import Path

from ...data.exit_codes import ExitCode
from ...models.spark import SparK
from ...models.weights.transfer import InitReport, init_from
from ..settings.experiment import PretrainConfig
from .pretrain_held_out import PretrainHeldOut
from .pretrain_task import PretrainTask, build_pretrain_task, build_spark
from .run import TrainingRun, run_training


class Pretraining(TrainingRun[PretrainConfig]):
    """One pretraining run, built from its configuration; every rank has one.

    Args:
        config: The run.
        engine: Started processes.
        stop: Returns whether this rank was asked to stop.
    """

    model: SparK
    task: PretrainTask

    def build_model(self) -> SparK:
        """Build SparK."""
        return build_spark(self.config)

    def build_task(self) -> PretrainTask:
        """Build masked modelling."""
        return build_pretrain_task(self.config, self.model, self.windows.index)

    def build_held_out(self) -> PretrainHeldOut:
        """Build the held-out loss and its picture."""
        return PretrainHeldOut(self.config.data, self.engine, self.windows, self.task)

    def start_from(self, source: Path) -> InitReport:
        """Take over what a checkpoint holds under this model's names."""
        return init_from(self.model, source)

    def title(self) -> str:
        """Name the encoder."""
        return self.config.model.encoder

    def more_places(self) -> dict[str, str]:
        """Name the command that exports the encoder."""
        return {"encoder": f"rainspark weights export {shlex.quote(str(self.folder))} --out encoder.safetensors"}


def run(config: PretrainConfig) -> ExitCode:
    """Train as the settings say."""
    return run_training(Pretraining, config)
