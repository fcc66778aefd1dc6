"""A training run around its steps: open the data, take up a checkpoint, train, evaluate, save, end."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from ...data.exit_codes import ExitCode
from ...data.stream.stream import Stream
from ...models.weights.manifest import CHECKPOINTS_FOLDER, chosen_weights, latest_verified
from ...models.weights.transfer import InitReport
from ..checkpoint.folder import Loaded
from ..checkpoint.saver import Saver
from ..checkpoint.share import as_engine_state
from ..checkpoint.state import TrainState, check_resume, installed_versions
from ..engine.engine import Engine, EngineState
from ..processes.agreement import any_rank, notify_ranks, on_all_ranks, on_main, outcome_of, settle
from ..processes.entry import StopSignal, set_up_logging
from ..record.announcements import PICTURES_FOLDER, RunFacts, announce_run, announce_sources, places_to_look
from ..record.folder import check_name, evaluation_is_owed, writing
from ..record.run_record import RunRecord
from ..settings.experiment import FinetuneConfig, PretrainConfig
from ..settings.parse import as_dict
from .held_out import HeldOut
from .loop import Hooks, Loop
from .step_costs import device_name
from .task import Task
from .windows import Windows, absent_sources, check_frames, open_stream, open_windows

LOG = logging.getLogger(__name__)
SKIPPED = "skipped_steps"
_Config = TypeVar("_Config", PretrainConfig, FinetuneConfig)


class TrainingRun(ABC, Generic[_Config]):
    """One training run, built from its configuration; every rank has one.

    Args:
        config: The run.
        engine: Started processes.
        stop: Returns whether this rank was asked to stop.
    """

    def __init__(self, config: _Config, engine: Engine, stop: StopSignal) -> None:
        self.config: _Config = config
        self.engine = engine
        self.stop = stop
        self.folder = Path(config.run.dir)
        self.windows, self.stream = on_all_ranks(engine, self._open_data)

        # The seed alone decides the first weights, and torch's global generator is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model: nn.Module = on_all_ranks(engine, self.build_model)
        self.task: Task = self.build_task()

        # Weights and optimizer: from a checkpoint, from other weights, or as they were drawn.
        self.saver = Saver(config.run, engine)
        self._skipped_before = 0
        self.first_step = self._resume()
        self.held_out: HeldOut = self.build_held_out()
        self.record = RunRecord(config, self._facts(), self.first_step, is_main=engine.is_main)
        hooks = Hooks(log=self.record.log, save=self._save, evaluate=self._evaluate, name_windows=self.windows.names)
        self.loop = Loop(
            engine, self.task, self.stream, stop, config=config, hooks=hooks, skipped_steps=self._skipped_before
        )

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

    def resumed(self, saved: Loaded | None) -> None:
        """Take up what a subclass keeps besides, None for a fresh start; called on all ranks."""

    def discard_after(self, step: int) -> None:
        """Remove what was kept of steps after the one that is gone on from; the main rank, which holds the folder."""

    def evaluated(self, finished: int, metrics: dict[str, float]) -> None:
        """Use an evaluation's metrics; called on all ranks, with the evaluated weights in place."""

    def more_places(self) -> dict[str, str]:
        """Name what else there is to look at or to do next, for the last lines of a run."""
        return {}

    def _open_data(self) -> tuple[Windows, Stream]:
        config, engine = self.config, self.engine
        check_name(self.folder)
        windows = open_windows(config.data, config.window)
        check_frames(config, windows.index)
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
        """Train to the end or to a stop, and leave the rest in the run's folder."""
        config, engine, record = self.config, self.engine, self.record
        every = config.run.evaluate_every
        owed = on_main(engine, lambda: evaluation_is_owed(self.folder, self.first_step, every))
        has_work = owed or self.first_step < config.run.steps

        # Nothing is written before the folder is held: another run may be at work in it.
        if has_work:
            on_main(engine, self._hold_folder)
            if engine.is_main:
                record.open_trackers()
        announce_run(config, record.facts)
        # The warnings of all ranks are shown, and these would be the same.
        if engine.is_main:
            announce_sources(self.stream.shares, absent_sources(self.windows))

        # A run that is ended from its watching thread still writes out its figures.
        engine.heartbeat.at_end = record.close_stalled
        outcome = "crash"
        try:
            outcome = "stopped" if has_work and self._stop_agreed() else self._train(owed)
        except Exception as error:
            outcome = outcome_of(error)
            raise
        finally:
            record.close(outcome)

        if outcome == "stopped":
            LOG.info("stopped%s; the same command goes on from there", self._stopped_where())
            return ExitCode.REQUEUE
        if engine.is_main:
            record.announce_end(
                skipped_steps=self.loop.skipped.total, versions=installed_versions(), places=self._places()
            )
        return ExitCode.DONE

    def _train(self, evaluation_is_owed: bool) -> str:
        """Train, and notify the other ranks of an error before services are closed, which may take their time."""
        try:
            with self.record.progress.showing(self.first_step):
                outcome = self.loop.fit(self.first_step, evaluation_is_owed=evaluation_is_owed)
            self.saver.check_last()
        except Exception as error:
            notify_ranks(self.engine, error)
            raise
        return outcome

    def _hold_folder(self) -> None:
        self.record.hold_folder()
        with writing(self.folder):
            self.discard_after(self.first_step)

    def _facts(self) -> RunFacts:
        windows = self.windows
        return RunFacts(
            model=self.title(),
            num_parameters=sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters()),
            device=device_name(self.engine.device),
            processes=self.engine.world_size,
            started_s=self.engine.started_s,
            num_windows=len(windows.train),
            num_held_out=len(windows.held_out or ()),
            steps_per_epoch=self.stream.steps_per_epoch,
            data=windows.described(),
        )

    def _stop_agreed(self) -> bool:
        return any_rank(self.engine, self.stop.received is not None)

    def _stopped_where(self) -> str:
        if self.saver.last_saved == 0:
            return " before the first step"
        cost = "" if self.record.usage is None else f"; {self.record.usage.describe()}"
        return f" with a checkpoint after step {self.saver.last_saved} of {self.config.run.steps}{cost}"

    def _places(self) -> dict[str, str]:
        newest = latest_verified(self.folder / CHECKPOINTS_FOLDER)
        places = places_to_look(self.config, newest, self.saver.newest_copy)
        return {**places, **self.more_places()}

    def _resume(self) -> int:
        """Take over the newest checkpoint that verifies, or the weights to start from; return the finished steps."""
        engine, config = self.engine, self.config
        engine.heartbeat.beat("load checkpoint")
        saved = self.saver.resume()
        if saved is None:
            if config.init_from is not None:
                self._start_from(Path(config.init_from))
            engine.prepare(self.model, config.optim, micro_batch=config.data.micro)
            self.resumed(None)
            return 0

        # Strict: what would change the result is refused before the engine is prepared.
        state = saved.state
        changes = check_resume(
            state, as_dict(config), self.stream.fingerprint(), allow_plan_change=config.run.allow_plan_change
        )
        for line in changes:
            LOG.info("resume: %s", line)
        engine.prepare(self.model, config.optim, micro_batch=config.data.micro)
        engine.import_state(as_engine_state(saved))
        self._skipped_before = int(state.metrics.get(SKIPPED, 0))
        self.resumed(saved)
        LOG.info("resumed from %s: %d of %d steps are done", saved.path, state.step, config.run.steps)
        return state.step

    def _start_from(self, source: Path) -> None:
        """Read weights on one rank; `Engine.prepare` gives them to all."""

        def read() -> tuple[str, ...]:
            return tuple(self.start_from(chosen_weights(source)).lines()) if self.engine.is_main else ()

        for line in on_all_ranks(self.engine, read):
            LOG.info("init_from: %s", line)

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
            metrics={SKIPPED: float(self.loop.skipped.total)},
        )

    def _save(self, finished: int) -> None:
        """Gather on all ranks, write on one."""
        # Gather: under ZeRO every rank holds a part of the state.
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
            self.record.log(finished, {"save/gather_s": gathered_s, **figures})

    def _evaluate(self, finished: int) -> dict[str, float]:
        # The averaged weights stand in the model here, see `Loop`.
        name = self.held_out.picture
        picture = self.folder / PICTURES_FOLDER / f"{name}-{finished:08d}.png"
        metrics = self.held_out.evaluate(picture, step=finished)
        self.evaluated(finished, metrics)
        self.record.add_picture(finished, name, picture)
        return metrics


def run_training(build: Callable[[_Config, Engine, StopSignal], TrainingRun[_Config]], config: _Config) -> ExitCode:
    """Start the processes, build a run and train it: all that a training command does with its settings.

    Args:
        build: The class of the run.
        config: Its settings.
    """
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
