"""Masked pretraining: `accelerate launch trainer/pretrain.py --config configs/x.yaml --data.shards S --run.dir R`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from models.encoder import build_encoder, depth_rates
from models.spark import SparK
from models.weights import InitReport, init_from
from trainer.config import PretrainConfig, parse_config
from trainer.engine import Engine
from trainer.entry import ExitCode, StopSignal, run_entry, set_up_logging, start_other_processes
from trainer.evaluation import HeldOut
from trainer.lifecycle import PATCH, TrainingRun
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

    def build_held_out(self) -> HeldOut:
        """Build the held-out loss and its picture."""
        return HeldOut(self.config, self.engine, self.model, self.task, self.windows)

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
    config = parse_config(sys.argv[1:] if argv is None else argv, PretrainConfig, prog="trainer/pretrain.py")
    start_other_processes(os.environ)
    stop = StopSignal()
    stop.install()
    engine = Engine(config.engine)
    clean = False
    try:
        set_up_logging(engine.rank)
        code = Pretraining(config, engine, stop).run()
        clean = True
        return code
    finally:
        engine.shutdown(clean=clean)


if __name__ == "__main__":
    sys.exit(run_entry(main))
