"""What every training run does around its steps: open the data, take up a checkpoint, train, save, say where it is."""

import fcntl
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Generic, TypeVar, cast

import torch
from torch import nn

from data.frames import DataError
from data.shards import Index
from data.stream import Stream
from data.units import ModelSpace
from models.manifest import CheckpointError, latest_verified
from models.patches import PATCH
from models.weights import InitReport
from trainer.checkpoint import Loaded, TrainState, check_resume, chosen_weights, installed_versions, load, save
from trainer.checkpoint_store import CheckpointStore
from trainer.config import ConfigError, FinetuneConfig, PretrainConfig, as_dict, as_yaml, parse_config
from trainer.engine import Engine
from trainer.entry import ExitCode, StopSignal, on_all_ranks, set_up_logging, start_other_processes
from trainer.held_out import EVALUATED, HeldOut
from trainer.loop import Hooks, Loop
from trainer.progress import Progress
from trainer.tasks import Task
from trainer.tracking import METRICS_FILE, Trackers, open_trackers
from trainer.windows import Windows, introduce, open_stream, open_windows

LOG = logging.getLogger(__name__)
LOCK_FILE = ".lock"
_Result = TypeVar("_Result")
_Config = TypeVar("_Config", PretrainConfig, FinetuneConfig)


class TrainingRun(ABC, Generic[_Config]):
    """One training run, built from its configuration; every rank has one.

    Args:
        config: The run.
        engine: Started processes.
        stop: Tells whether this rank was asked to stop.
        window: Frames a window.
    """

    def __init__(self, config: _Config, engine: Engine, stop: StopSignal, *, window: int) -> None:
        self.config: _Config = config
        self.engine, self.stop, self.window = engine, stop, window
        self.folder = Path(config.run.dir)
        self.windows, self.stream = on_all_ranks(engine, self._open_data)
        space = config.model.space
        self.space = ModelSpace(kind=space.kind, scale_mmh=space.scale_mmh, clip_mmh=space.clip_mmh)
        self.dtype = torch.float64 if config.engine.precision == "fp64" else torch.float32
        with torch.random.fork_rng(devices=[]):
            # The seed alone decides the first weights, and torch's global generator is left as it was.
            torch.manual_seed(config.seed)
            self.model: nn.Module = on_all_ranks(engine, self.build_model)
        self.task: Task = self.build_task()
        self._checkpoint_store: CheckpointStore | None = None
        self.first_step = self.last_saved = self._resume()
        self.held_out: HeldOut = self.build_held_out()
        self.trackers: Trackers | None = None
        self._lock: IO[str] | None = None
        self.progress = Progress(config.run, enabled=engine.is_main)

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Build the model with first weights from torch's generator, which is seeded."""

    @abstractmethod
    def build_task(self) -> Task:
        """Build what a step computes."""

    @abstractmethod
    def build_held_out(self) -> HeldOut:
        """Build what an evaluation computes; the model is prepared."""

    @abstractmethod
    def start_from(self, source: Path) -> InitReport:
        """Take over weights."""

    @abstractmethod
    def title(self) -> str:
        """Name the model for the log."""

    def check_frames(self, index: Index) -> None:
        """Refuse frames that the model cannot take, before it is built.

        Raises:
            DataError: Frames that are no whole number of patches.
        """
        if index.rows % PATCH or index.cols % PATCH:
            raise DataError(
                f"{self.config.data.shards}: frames of {index.rows} x {index.cols} pixels; the model masks patches of "
                f"{PATCH} x {PATCH}: pack with a crop whose sides are multiples of {PATCH}"
            )

    def resumed(self, saved: Loaded | None) -> None:
        """Be told what was taken up, None for a fresh start; called on all ranks."""

    def discard_after(self, step: int) -> None:
        """Remove what was kept of steps after the one that is gone on from; the main rank, which holds the folder."""

    def evaluated(self, finished: int, metrics: dict[str, float]) -> None:
        """Be told an evaluation's metrics; called on all ranks, with the evaluated weights in place."""

    def _open_data(self) -> tuple[Windows, Stream]:
        config, engine = self.config, self.engine
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"run.dir {self.folder} is a file; it is the folder of the run: choose another name")
        windows = open_windows(config.data, self.window)
        self.check_frames(windows.index)
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
        owed = self.on_main(self._evaluation_is_owed)
        if owed or self.first_step < config.run.steps:
            self.on_main(self._make_folder)
        if engine.is_main:
            self.trackers = open_trackers(self.folder, config.tracking, resume_step=self.first_step)
        self._introduce()
        hooks = Hooks(
            log=self._log,
            save=self._save,
            evaluate=self._evaluate,
            stop_asked=self.stop,
            windows=self.windows.names,
            fail=self._fail,
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
            self.title(), parameters / 1e6, engine.device, engine.world_size, stage, config.engine.precision,
        )  # fmt: skip
        LOG.info(
            "%d windows of %d frames to train on, %d held out; global batch %d, %d steps an epoch; writing to %s",
            len(windows.train), self.window, len(windows.held_out or ()), config.data.global_batch,
            self.stream.steps_per_epoch, self.folder,
        )  # fmt: skip
        # Warnings of every rank are shown, and these would be the same.
        if engine.is_main:
            introduce(windows, self.stream, config.data)

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
        self.discard_after(self.first_step)

    def _resume(self) -> int:
        """Take over the newest checkpoint that verifies, or the weights to start from; return the finished steps."""
        engine, config, model = self.engine, self.config, self.model
        newest = self.on_main(self._newest_checkpoint)
        if newest is None:
            if config.init_from is not None:
                source = Path(config.init_from)
                for line in on_all_ranks(engine, lambda: self.start_from(chosen_weights(source))).lines():
                    LOG.info("init_from: %s", line)
            engine.prepare(model, config.optim, micro_batch=config.data.micro)
            self.resumed(None)
            return 0
        saved = on_all_ranks(engine, lambda: load(newest))
        changes = check_resume(
            saved.state, as_dict(config), self.stream.fingerprint(), allow_plan_change=config.run.allow_plan_change
        )
        for line in changes:
            LOG.info("resume: %s", line)
        engine.prepare(model, config.optim, micro_batch=config.data.micro)
        engine.import_state(
            saved.model, saved.optimizer, saved.state.optimizer_steps, saved.state.loss_scale, saved.average
        )
        self.resumed(saved)
        LOG.info("resumed from %s: %d of %d steps are done", newest, saved.state.step, config.run.steps)
        return saved.state.step

    def _newest_checkpoint(self) -> Path | None:
        """Find what to go on from; the main rank, which keeps the second place of the checkpoints open."""
        if self.config.run.checkpoint_url is None:
            return latest_verified(self.folder / "checkpoints")
        self._checkpoint_store = CheckpointStore(self.config.run.checkpoint_url)
        return self._checkpoint_store.newest(self.folder)

    def state_of(self, finished: int, *, loss_scale: float | None, optimizer_steps: dict[str, float]) -> TrainState:
        """Give the state of a checkpoint after so many steps."""
        return TrainState(
            step=finished,
            epoch=finished // self.stream.steps_per_epoch,
            seed=self.config.seed,
            config=as_dict(self.config),
            plan=self.stream.fingerprint(),
            loss_scale=loss_scale,
            optimizer_steps=optimizer_steps,
            versions=installed_versions(),
            data=self.windows.described(),
        )

    def _save(self, finished: int) -> None:
        """Gather on all ranks, write on one."""
        exported = self.engine.export_state()
        state = self.state_of(finished, loss_scale=exported.loss_scale, optimizer_steps=exported.optimizer_steps)
        keep_last = self.config.run.keep_last

        def write() -> Path:
            path = save(
                self.folder,
                state,
                exported.model,
                exported.optimizer,
                keep_last=keep_last,
                average=exported.average,
            )
            if self._checkpoint_store is not None:
                self._checkpoint_store.push(path, keep_last=keep_last)
            return path

        path = self.on_main(write)
        self.last_saved = finished
        LOG.info("step %d: saved %s", finished, path)

    def on_main(self, work: Callable[[], _Result]) -> _Result:
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

    def _fail(self, failure: DataError | None) -> None:
        """End the run on all ranks for what a rank could not read."""

        def tell() -> None:
            if failure is not None:
                raise failure

        on_all_ranks(self.engine, tell)

    def _evaluate(self, finished: int) -> dict[str, float]:
        name = self.held_out.picture
        picture = self.folder / "pictures" / f"{name}-{finished:08d}.png"
        metrics = self.held_out.evaluate(picture, step=finished)
        self.evaluated(finished, metrics)
        if self.trackers is not None and picture.exists():
            self.trackers.image(finished, name, picture)
        return metrics

    def _log(self, finished: int, metrics: dict[str, float]) -> None:
        self.progress.show(finished, metrics)
        if self.trackers is not None:
            self.trackers.log(finished, metrics)

    def _say_where(self) -> None:
        lines = [f"  {name:<12} {place}\n" for name, place in self.places().items()]
        sys.stdout.write(f"done: {max(self.first_step, self.config.run.steps)} steps\n" + "".join(lines))

    def places(self) -> dict[str, str]:
        """Name what the run's folder holds now, for its last lines."""
        pictures = sorted((self.folder / "pictures").glob("*.png"))
        places = {
            "weights": f"{latest_verified(self.folder / 'checkpoints')}/model.safetensors",
            "metrics": str(self.folder / METRICS_FILE),
        }
        if self._checkpoint_store is not None and self._checkpoint_store.newest_copy is not None:
            places["copied to"] = self._checkpoint_store.newest_copy
        if self.config.tracking.tensorboard:
            places["TensorBoard"] = str(self.folder / "tensorboard")
        if pictures:
            places["picture"] = str(pictures[-1])
        return places


def run_training(
    build: Callable[[_Config, Engine, StopSignal], TrainingRun[_Config]],
    kind: type[_Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
) -> ExitCode:
    """Parse the settings, start the processes, build a run and train it: all that an entry point does.

    Args:
        build: The class of the run.
        kind: The class of its settings.
        argv: Command line without the program's name; None: this process'.
        prog: Name of the program, for messages.
    """
    config = parse_config(sys.argv[1:] if argv is None else argv, kind, prog=prog)
    start_other_processes(os.environ)
    stop = StopSignal()
    stop.install()
    engine = Engine(config.engine)
    clean = False
    try:
        set_up_logging(engine.rank)
        code = build(config, engine, stop).run()
        clean = True
        return code
    finally:
        engine.shutdown(clean=clean)
