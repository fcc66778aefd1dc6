"""What every training run does around its steps: open the data, take up a checkpoint, train, save, say where it is."""

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import IO, Generic, TypeVar

import torch
from torch import nn

from ...data.errors import DataError
from ...data.exit_codes import ExitCode
from ...data.shards.index import Index
from ...data.stream.stream import Stream
from ...data.units import ModelSpace
from ...models.patches import PATCH
from ...models.weights.manifest import latest_verified
from ...models.weights.transfer import InitReport
from ..checkpoint.folder import Loaded, chosen_weights
from ..checkpoint.saver import Saver
from ..checkpoint.state import TrainState, check_resume, installed_versions
from ..engine.engine import Engine, EngineState
from ..processes.agreement import any_rank, notify_ranks, on_all_ranks, on_main, outcome_of, settle
from ..processes.ending import write_output
from ..processes.entry import StopSignal, set_up_logging, start_other_processes
from ..processes.rendezvous import RankEndedError
from ..record.folder import check_name, evaluation_is_owed, hold, writing
from ..record.summary import summarise, summary_lines, write_summary
from ..record.usage import Usage
from ..settings.experiment import FinetuneConfig, PretrainConfig
from ..settings.parse import as_dict, as_yaml
from ..tracking.services import ways_to_look
from ..tracking.trackers import METRICS_FILE, Trackers, open_trackers
from .held_out import HeldOut
from .loop import Hooks, Loop
from .progress import Progress
from .step_costs import device_name
from .task import Task
from .windows import Windows, introduce, open_stream, open_windows

LOG = logging.getLogger(__name__)
SKIPPED = "skipped_steps"
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
        self.saver = Saver(config.run, engine)
        self._skipped_before = 0
        self.first_step = self._resume()
        self.held_out: HeldOut = self.build_held_out()
        self.trackers: Trackers | None = None
        self.usage: Usage | None = None
        self.loop: Loop | None = None
        self._last_step, self._latest = self.first_step, dict[str, float]()
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
        check_name(self.folder)
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
        every = config.run.evaluate_every
        owed = self.on_main(lambda: evaluation_is_owed(self.folder, self.first_step, every))
        if works := owed or self.first_step < config.run.steps:
            self.on_main(self._make_folder)
        if works and engine.is_main:
            self.trackers = open_trackers(
                self.folder, config.tracking, resume_step=self.first_step, parameters=as_dict(config)
            )
        self._introduce()
        self.loop = self._build_loop()
        engine.heartbeat.at_end = self._say_last_words
        outcome = "crash"
        try:
            with self.progress.showing(self.first_step):
                outcome = "stopped" if works and self._stop_agreed() else self._train(owed)
            self.saver.check_last()
        except Exception as error:
            outcome = outcome_of(error)
            try:
                # The other ranks first: services may take their time to close.
                notify_ranks(engine, error)
            except RankEndedError as end:
                outcome = outcome_of(end)
                raise
            raise
        finally:
            self._close(outcome)
        if outcome == "stopped":
            LOG.info("stopped%s; the same command goes on from there", self._stopped_where())
            return ExitCode.REQUEUE
        if engine.is_main:
            self._say_where()
        return ExitCode.DONE

    def _build_loop(self) -> Loop:
        config = self.config
        hooks = Hooks(
            log=self._log,
            save=self._save,
            evaluate=self._evaluate,
            stop_asked=self.stop,
            windows=self.windows.names,
            fail=self._fail,
            stop_agreed=self._stop_agreed,
        )
        return Loop(
            self.engine,
            self.task,
            self.stream,
            run=config.run,
            optim=config.optim,
            global_batch=config.data.global_batch,
            hooks=hooks,
            skipped_steps=self._skipped_before,
        )

    def _train(self, owed: bool) -> str:
        assert self.loop is not None
        return self.loop.fit(self.first_step, evaluation_is_owed=owed)

    def _stop_agreed(self) -> bool:
        """Tell whether any rank was told to stop; a collective."""
        return any_rank(self.engine, self.stop.received is not None)

    def _close(self, outcome: str) -> None:
        """Write out what is held back, and let go of the folder."""
        if self.usage is not None:
            self.usage.end(outcome, self._last_step if outcome != "done" else self.config.run.steps)
        if self.trackers is not None:
            self.trackers.close()
        if self._lock is not None:
            self._lock.close()

    def _say_last_words(self, code: int) -> None:
        """Write out what can be, from a thread that ends this process in a moment."""
        if self.usage is not None:
            self.usage.end(ExitCode(code).name.lower())
        if self.trackers is not None:
            self.trackers.close()

    def _stopped_where(self) -> str:
        if self.saver.last_saved == 0:
            return " before the first step"
        cost = "" if self.usage is None else f"; {self.usage.told()}"
        return f" with a checkpoint after step {self.saver.last_saved} of {self.config.run.steps}{cost}"

    def _num_parameters(self) -> int:
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())

    def _introduce(self) -> None:
        """Say what is about to run."""
        config, engine, windows = self.config, self.engine, self.windows
        stage = "" if config.engine.zero_stage is None else f", ZeRO {config.engine.zero_stage}"
        LOG.info(
            "%s, %.1f million parameters; %s, %d process(es)%s, %s",
            self.title(), self._num_parameters() / 1e6, engine.device, engine.world_size, stage,
            config.engine.precision,
        )  # fmt: skip
        LOG.info(
            "%d windows of %d frames to train on, %d held out; global batch %d, %d steps an epoch; writing to %s",
            len(windows.train), self.window, len(windows.held_out or ()), config.data.global_batch,
            self.stream.steps_per_epoch, self.folder,
        )  # fmt: skip
        # Warnings of every rank are shown, and these would be the same.
        if engine.is_main:
            introduce(windows, self.stream, config.data)

    def _make_folder(self) -> None:
        """Make the run's folder and hold it; the main rank."""
        self._lock = hold(self.folder)
        with writing(self.folder):
            (self.folder / "config.yaml").write_text(as_yaml(self.config), encoding="utf-8")
            self.discard_after(self.first_step)
        engine = self.engine
        self.usage = Usage(
            self.folder, processes=engine.world_size, device=device_name(engine.device), first_step=self.first_step,
            started_s=engine.started_s,
        )  # fmt: skip

    def _resume(self) -> int:
        """Take over the newest checkpoint that verifies, or the weights to start from; return the finished steps."""
        engine, config, model = self.engine, self.config, self.model
        engine.heartbeat.beat("load checkpoint")
        saved = self.saver.resume()
        if saved is None:
            if config.init_from is not None:
                source = Path(config.init_from)
                # One rank reads the file; `prepare` gives its weights to all.
                for line in on_all_ranks(
                    engine, lambda: self.start_from(chosen_weights(source)).lines() if engine.is_main else ()
                ):
                    LOG.info("init_from: %s", line)
            engine.prepare(model, config.optim, micro_batch=config.data.micro)
            self.resumed(None)
            return 0
        changes = check_resume(
            saved.state, as_dict(config), self.stream.fingerprint(), allow_plan_change=config.run.allow_plan_change
        )
        for line in changes:
            LOG.info("resume: %s", line)
        engine.prepare(model, config.optim, micro_batch=config.data.micro)
        engine.import_state(
            saved.model, saved.optimizer, saved.state.optimizer_steps, saved.state.loss_scale, saved.average,
            loss_scale_good_steps=saved.state.loss_scale_good_steps,
        )  # fmt: skip
        self._skipped_before = int(saved.state.metrics.get(SKIPPED, 0))
        self.resumed(saved)
        LOG.info("resumed from %s: %d of %d steps are done", saved.path, saved.state.step, config.run.steps)
        return saved.state.step

    def state_of(self, finished: int, exported: EngineState | None = None) -> TrainState:
        """Give the state of a checkpoint after so many steps; without what the engine exported, one of weights only."""
        return TrainState(
            step=finished,
            epoch=finished // self.stream.steps_per_epoch,
            seed=self.config.seed,
            config=as_dict(self.config),
            plan=self.stream.fingerprint(),
            loss_scale=None if exported is None else exported.loss_scale,
            loss_scale_good_steps=0 if exported is None else exported.loss_scale_good_steps,
            optimizer_steps={} if exported is None else exported.optimizer_steps,
            versions=installed_versions(),
            data=self.windows.described(),
            metrics={} if self.loop is None else {SKIPPED: float(self.loop.skipped_steps)},
        )

    def _save(self, finished: int) -> None:
        """Gather on all ranks, write on one."""
        start_s = time.perf_counter()
        self.engine.heartbeat.beat("gather state", finished)
        exported = self.engine.export_state()
        state = self.state_of(finished, exported)
        gathered_s = time.perf_counter() - start_s
        self.engine.heartbeat.beat("write checkpoint", finished)
        figures = self.saver.save(state, exported)
        if not figures and self._stop_agreed():
            # There is no later save that could make up for this one.
            figures = self.saver.save(state, exported)
        if figures:
            self._log(finished, {"save/gather_s": gathered_s, **figures})

    def on_main(self, work: Callable[[], _Result]) -> _Result:
        """Do something on the main rank and give its result to all; where it fails, it fails on all of them."""
        return on_main(self.engine, work)

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
        self._last_step = max(self._last_step, finished)
        self._latest |= {key: value for key, value in metrics.items() if "/" not in key}
        if self.usage is not None:
            self.usage.alive(finished)
        self.progress.show(finished, metrics)
        if self.trackers is not None:
            self.trackers.log(finished, metrics)

    def _say_where(self) -> None:
        """Say what the run has come to, and what its folder holds."""
        said: dict[str, str] = {}
        steps = max(self.first_step, self.config.run.steps)
        if self.usage is not None and self.loop is not None:
            summary = summarise(
                self.usage, model=self.title(), parameters=self._num_parameters(), data=self.windows.described(),
                steps=steps, skipped_steps=self.loop.skipped_steps, metrics=self._latest,
                versions=installed_versions(), trackers=() if self.trackers is None else self.trackers.problems,
            )  # fmt: skip
            write_summary(self.folder, summary)
            said = summary_lines(summary, self.usage)
        lines = [f"  {name:<12} {text}\n" for name, text in {**said, **self.places()}.items()]
        write_output(f"done: {steps} steps\n" + "".join(lines))

    def places(self) -> dict[str, str]:
        """Name what the run's folder holds now, for its last lines."""
        pictures = sorted((self.folder / "pictures").glob("*.png"))
        places = {
            "weights": f"{latest_verified(self.folder / 'checkpoints')}/model.safetensors",
            "metrics": str(self.folder / METRICS_FILE),
        }
        if self.saver.newest_copy is not None:
            places["copied to"] = self.saver.newest_copy
        if self.config.tracking.tensorboard:
            places["TensorBoard"] = str(self.folder / "tensorboard")
        places |= ways_to_look(self.folder, self.config.tracking.services)
        if pictures:
            places["picture"] = str(pictures[-1])
        return places


def run_training(build: Callable[[_Config, Engine, StopSignal], TrainingRun[_Config]], config: _Config) -> ExitCode:
    """Start the processes, build a run and train it: all that a training command does with its settings.

    Args:
        build: The class of the run.
        config: Its settings.
    """
    start_other_processes(os.environ)
    stop = StopSignal()
    stop.install()
    engine = Engine(config.engine, lambda: stop.received is not None)
    with engine.heartbeat.watching():
        clean = False
        try:
            set_up_logging(engine.rank)
            code = build(config, engine, stop).run()
            engine.heartbeat.again("end")
            engine.shutdown(clean=True)
            clean = True
        except Exception as error:
            settle(engine, error)
            raise
        finally:
            if not clean:
                engine.shutdown(clean=False)
    return code
