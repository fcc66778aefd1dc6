"""Masked pretraining: `accelerate launch trainer/pretrain.py --config configs/x.yaml --data.shards S --run.dir R`."""

import fcntl
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar, cast

import torch

from data.frames import DataError
from data.stream import Stream
from data.units import ModelSpace
from models.encoder import build_encoder, depth_rates
from models.manifest import CheckpointError, latest_verified
from models.spark import SparK
from models.weights import init_from
from trainer.checkpoint import TrainState, check_resume, installed_versions, load, save
from trainer.config import ConfigError, PretrainConfig, as_dict, as_yaml, parse_config
from trainer.engine import Engine
from trainer.entry import ExitCode, StopSignal, on_all_ranks, run_entry, set_up_logging, start_other_processes
from trainer.evaluation import EVALUATED, HeldOut
from trainer.loop import Hooks, Loop
from trainer.progress import Progress
from trainer.tasks import PretrainTask
from trainer.tracking import METRICS_FILE, Trackers, open_trackers
from trainer.windows import Windows, open_stream, open_windows

LOG = logging.getLogger(__name__)
PATCH = 32
LOCK_FILE = ".lock"
_Result = TypeVar("_Result")


class Pretraining:
    """One pretraining run, built from its configuration; every rank has one.

    Args:
        config: The run.
        engine: Started processes.
        stop: Tells whether this rank was asked to stop.
    """

    def __init__(self, config: PretrainConfig, engine: Engine, stop: StopSignal) -> None:
        self.config, self.engine, self.stop = config, engine, stop
        self.folder = Path(config.run.dir)
        self.windows, self.stream = on_all_ranks(engine, self._open_data)
        index = self.windows.index
        self.space = ModelSpace(
            kind=config.model.space.kind,
            scale_mmh=config.model.space.scale_mmh,
            clip_mmh=config.model.space.clip_mmh,
        )
        self.model = model = self._build_model()
        self.task = PretrainTask(
            model,
            self.space,
            mask_ratio=config.model.mask_ratio,
            seed=config.seed,
            grid_hw=(index.rows // PATCH, index.cols // PATCH),
            depth_rates=depth_rates(model.sparse_encoder),
            augment=config.data.augment,
            dtype=torch.float64 if config.engine.precision == "fp64" else torch.float32,
        )
        self.first_step = self._resume(model)
        self.held_out = HeldOut(config, engine, model, self.task, self.windows)
        self.trackers: Trackers | None = None
        self._lock: IO[str] | None = None
        self.progress = Progress(config.run, enabled=engine.is_main)

    def _open_data(self) -> tuple[Windows, Stream]:
        config, engine = self.config, self.engine
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"run.dir {self.folder} is a file; it is the folder of the run: choose another name")
        windows = open_windows(config.data)
        index = windows.index
        if index.rows % PATCH or index.cols % PATCH:
            raise DataError(
                f"{config.data.shards}: frames of {index.rows} x {index.cols} pixels; the model masks patches of "
                f"{PATCH} x {PATCH}: pack with a crop whose sides are multiples of {PATCH}"
            )
        stream = open_stream(
            windows,
            config.data,
            seed=config.seed,
            rank=engine.rank,
            world_size=engine.world_size,
            pin=engine.device.type == "cuda",
        )
        return windows, stream

    def run(self) -> ExitCode:
        """Train to the end or to a stop; the run's folder says the rest."""
        config, engine = self.config, self.engine
        if self.first_step < config.run.steps:
            self._on_main(self._make_folder)
        owed = self._on_main(self._evaluation_is_owed)
        if engine.is_main:
            self.trackers = open_trackers(self.folder, config.tracking, resume_step=self.first_step)
        self._introduce()
        hooks = Hooks(
            log=self._log,
            save=self._save,
            evaluate=self._evaluate,
            stop_asked=self.stop,
            windows=self.windows.names,
        )
        loop = Loop(
            engine,
            self.task,
            self.stream,
            run=config.run,
            optim=config.optim,
            global_batch=config.data.global_batch,
            hooks=hooks,
        )
        try:
            with self.progress.showing(self.first_step):
                outcome = loop.fit(self.first_step, evaluation_is_owed=owed)
        finally:
            if self.trackers is not None:
                self.trackers.close()
            if self._lock is not None:
                self._lock.close()
        if outcome == "stopped":
            LOG.info("stopped with a checkpoint; the same command goes on from there")
            return ExitCode.REQUEUE
        if engine.is_main:
            self._say_where()
        return ExitCode.DONE

    def _introduce(self) -> None:
        """Say what is about to run."""
        config, engine, windows = self.config, self.engine, self.windows
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())
        stage = "" if config.engine.zero_stage is None else f", ZeRO {config.engine.zero_stage}"
        LOG.info(
            "%s, %.1f million parameters; %s, %d process(es)%s, %s",
            config.model.encoder, parameters / 1e6, engine.device, engine.world_size, stage, config.engine.precision,
        )  # fmt: skip
        LOG.info(
            "%d windows of %d frames to train on, %d held out; global batch %d, %d steps an epoch; writing to %s",
            len(windows.train), config.data.window, len(windows.held_out or ()), config.data.global_batch,
            self.stream.steps_per_epoch, self.folder,
        )  # fmt: skip

    def _evaluation_is_owed(self) -> bool:
        """Tell whether a stop came between the last finished step and its evaluation."""
        path, done = self.folder / METRICS_FILE, self.first_step
        if done == 0 or done % self.config.run.evaluate_every or not path.exists():
            return False
        # Matched as text: a kill may have torn the last line, and the tracker mends that when it opens.
        mark = f'"step": {done},'
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if mark in line]
        return not any(EVALUATED in line or '"image"' in line for line in lines)

    def _make_folder(self) -> None:
        """Make the run's folder and hold it: two runs in one would overwrite each other without a word."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / LOCK_FILE).open("w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{self.folder}: another run is at work there; wait until it has ended, or choose another run.dir"
            ) from None
        (self.folder / "config.yaml").write_text(as_yaml(self.config), encoding="utf-8")

    def _build_model(self) -> SparK:
        """Build the model with weights that the seed alone decides; torch's global generator is left as it was."""
        config = self.config.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            encoder = build_encoder(config.encoder, self.config.data.window, depth_drop=config.depth_drop)
            model = SparK(
                encoder,
                decoder_width=config.decoder_width,
                loss=config.loss,
                decoder_activation=config.decoder_activation,
            )
        model.set_checkpoint_blocks(config.checkpoint_blocks)
        return model

    def _resume(self, model: SparK) -> int:
        """Take over the newest checkpoint that verifies, or the weights to start from; return the finished steps."""
        engine, config = self.engine, self.config
        newest = self._on_main(lambda: latest_verified(self.folder / "checkpoints"))
        if newest is None:
            if config.init_from is not None:
                source = Path(config.init_from)
                for line in on_all_ranks(engine, lambda: init_from(model, source)).lines():
                    LOG.info("init_from: %s", line)
            engine.prepare(model, config.optim, micro_batch=config.data.micro)
            return 0
        saved = on_all_ranks(engine, lambda: load(newest))
        changes = check_resume(
            saved.state, as_dict(config), self.stream.fingerprint(), allow_plan_change=config.run.allow_plan_change
        )
        for line in changes:
            LOG.info("resume: %s", line)
        engine.prepare(model, config.optim, micro_batch=config.data.micro)
        engine.import_state(saved.model, saved.optimizer, saved.state.optimizer_steps, saved.state.loss_scale)
        LOG.info("resumed from %s: %d of %d steps are done", newest, saved.state.step, config.run.steps)
        return saved.state.step

    def _save(self, finished: int) -> None:
        """Gather on all ranks, write on one."""
        exported = self.engine.export_state()
        state = TrainState(
            step=finished,
            epoch=finished // self.stream.steps_per_epoch,
            seed=self.config.seed,
            config=as_dict(self.config),
            plan=self.stream.fingerprint(),
            loss_scale=exported.loss_scale,
            optimizer_steps=exported.optimizer_steps,
            versions=installed_versions(),
        )
        keep_last = self.config.run.keep_last
        path = self._on_main(lambda: save(self.folder, state, exported.model, exported.optimizer, keep_last=keep_last))
        LOG.info("step %d: saved %s", finished, path)

    def _on_main(self, work: Callable[[], _Result]) -> _Result:
        """Do something on the main rank and give its result to all; where it fails, it fails on all of them."""
        result: _Result | None = None
        failure: str | None = None
        if self.engine.is_main:
            try:
                result = work()
            except (CheckpointError, OSError) as error:
                failure = str(error)
            except Exception as error:
                LOG.exception("rank 0 failed where the others wait for it")
                failure = f"{type(error).__name__}: {error}"
        result, failure = self.engine.broadcast_object((result, failure))
        if failure is not None:
            raise CheckpointError(failure)
        return cast(_Result, result)

    def _evaluate(self, finished: int) -> dict[str, float]:
        picture = self.folder / "pictures" / f"reconstruction-{finished:08d}.png"
        metrics = self.held_out.evaluate(picture, step=finished)
        if self.trackers is not None and picture.exists():
            self.trackers.image(finished, "reconstruction", picture)
        return metrics

    def _log(self, finished: int, metrics: dict[str, float]) -> None:
        self.progress.show(finished, metrics)
        if self.trackers is not None:
            self.trackers.log(finished, metrics)

    def _say_where(self) -> None:
        folder = self.folder
        pictures = sorted((folder / "pictures").glob("*.png"))
        places = {
            "weights": f"{latest_verified(folder / 'checkpoints')}/model.safetensors",
            "encoder": f"python -m models.weights export {folder} --out encoder.safetensors",
            "metrics": folder / "metrics.jsonl",
            "TensorBoard": folder / "tensorboard" if self.config.tracking.tensorboard else None,
            "picture": pictures[-1] if pictures else None,
        }
        lines = [f"  {name:<12} {place}\n" for name, place in places.items() if place is not None]
        sys.stdout.write(f"done: {max(self.first_step, self.config.run.steps)} steps\n" + "".join(lines))


def main(argv: Sequence[str] | None = None) -> ExitCode:
    """Parse, build, run.

    Args:
        argv: Command line without the program's name.
    """
    config = parse_config(sys.argv[1:] if argv is None else argv, prog="trainer/pretrain.py")
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
