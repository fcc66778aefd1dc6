"""One training loop for every task: steps are the clock."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from ...data.errors import DataError
from ...data.stream.stream import Batch, Stream
from ..engine.engine import Engine
from ..engine.optimizers import average_decay_at, decay_at, rate_at
from ..processes.agreement import any_rank, on_all_ranks
from ..processes.entry import StopSignal
from ..settings.experiment import TrainingConfig
from .figures import HostCopy, sum_figures
from .skipped import SkippedSteps
from .step_costs import Speed, StepTimes, memory_tables, read_since
from .task import PreparedBatch, Task

LOG = logging.getLogger(__name__)

LAG: Final = 2
"""The host reads the figures of step s when step s + LAG begins: all ranks act at the same boundary, and none waits."""
_FLAGS: Final = frozenset({"nonfinite", "empty", "stop", "failed"})
"""Figures of a step that steer the loop and are no metrics."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls at its boundaries; each call happens on every rank, at the same step.

    Attributes:
        log: Metrics of one finished step (number of finished steps, metrics).
        save: Save a checkpoint after so many finished steps.
        evaluate: Held-out metrics and picture after so many finished steps.
        name_windows: Names of windows by their rows in the table, for messages.
    """

    log: Callable[[int, dict[str, float]], None]
    save: Callable[[int], None]
    evaluate: Callable[[int], dict[str, float]]
    name_windows: Callable[[np.ndarray], list[str]]


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A step whose figures are on their way to the host.

    It holds its batches: their pinned memory is used again once they are gone, and copies from it may be under way.
    """

    step: int
    figures: HostCopy
    schedule: dict[str, float]
    batches: list[Batch]
    trained_s: float
    times: StepTimes


class Loop:
    """Trains a prepared model on a stream, step by step.

    Args:
        engine: The prepared engine.
        task: What a step computes.
        stream: This rank's part of the plan.
        stop: Returns whether this process was asked to stop.
        config: Lengths, cadences, schedules and the global batch.
        hooks: What happens at the boundaries.
        skipped_steps: Updates that were left out before, by the runs that this one goes on from.

    Attributes:
        skipped: Updates that were left out so far, for what was not finite or not there, by those runs too.
    """

    def __init__(
        self,
        engine: Engine,
        task: Task,
        stream: Stream,
        stop: StopSignal,
        *,
        config: TrainingConfig,
        hooks: Hooks,
        skipped_steps: int = 0,
    ) -> None:
        self.engine = engine
        self.task = task
        self.stream = stream
        self.stop = stop
        self.run = config.run
        self.optim = config.optim
        self.global_batch = config.data.global_batch
        self.hooks = hooks
        self.skipped = SkippedSteps(self.run, total=skipped_steps, name_windows=hooks.name_windows)
        self._beat = engine.heartbeat.beat

        # What is on its way, agreed on, and done.
        self._pending: deque[_Pending] = deque()
        self._stop_agreed = False
        self._failure: DataError | None = None
        self._saved = 0
        self._speed = Speed(self.global_batch)
        self._waited_s = 0.0
        self._boundary_s = 0.0
        self._stats: dict[str, float] = {}

    def fit(self, first_step: int, *, evaluation_is_owed: bool = False) -> Literal["done", "stopped"]:
        """Train from `first_step` finished steps to `run.steps`; "stopped" when any rank was asked to stop.

        Either way the last finished step has a checkpoint.

        Args:
            first_step: Steps that are done.
            evaluation_is_owed: A stop came between that step and its evaluation.

        Raises:
            NonFiniteError: Too many non-finite steps in a row; none of them has changed the weights.
            DataError: A rank could not read what a step needs, or too many steps in a row had no valid pixel; on all
                ranks, at the same step, without a save.
        """
        self.engine.model.train()
        if evaluation_is_owed:
            self._evaluate(first_step)
        if first_step >= self.run.steps:
            LOG.info("%d steps are done and run.steps is %d: nothing to do", first_step, self.run.steps)
            return "done"

        self._saved = first_step
        self._stats = self.stream.stats()
        self._speed.start(first_step, self._trained_s())
        with closing(self.stream.steps(first_step, self.run.steps)) as steps:
            for step in range(first_step, self.run.steps):
                # A stop shows in the figures, at the same step on all ranks.
                if self._read_figures(keep=LAG - 1):
                    self._read_figures(keep=0)
                    self._save(step)
                    return "stopped"
                batches = self._next(steps, step)
                self._pending.append(self._train_step(step, batches))
                self._boundary(step + 1)

        self._read_figures(keep=0)
        self._save(self.run.steps)
        return "done"

    def _next(self, steps: Iterator[list[Batch]], step: int) -> list[Batch]:
        """Wait for a step's batches; a rank that cannot read goes on with nothing until all ranks know."""
        self._beat("read data", step + 1)
        start_s = time.perf_counter()
        try:
            if self._failure is None:
                return next(steps)
        except DataError as error:
            if self.engine.world_size == 1:
                raise
            self._failure = error
        finally:
            self._waited_s = time.perf_counter() - start_s
        return self.stream.missing(step)

    def _train_step(self, step: int, batches: list[Batch]) -> _Pending:
        """Make one update from one global batch; nothing in it waits for the device."""
        engine = self.engine
        finished = step + 1
        times = StepTimes(engine.device, self._waited_s)

        # Draw what is random, and count the loss' terms in the whole global batch before the first forward pass.
        self._beat("count the terms of all ranks", finished)
        prepared = [self.task.prepare(batch) for batch in batches]
        terms = engine.sum_over_ranks(self._full(sum(batch.num_valid for batch in prepared)))
        empty = (terms == 0).double()

        # Forward and backward, one micro-batch after the other.
        times.mark()
        engine.start_step()
        sums = self._forward_backward(finished, prepared, terms)
        times.mark()

        # All ranks agree on the figures, on a stop, and on whether the loss is finite.
        self._beat("sum the figures of all ranks", finished)
        totals = self._sum_figures(finished, sums)
        times.mark()

        # Update the weights, or leave the step out on all ranks.
        self._beat("update", finished)
        rate = rate_at(self.optim, step, self.run.steps, self.global_batch)
        decay = decay_at(self.optim, step, self.run.steps)
        update = engine.update(
            rate=rate,
            decay=decay,
            skip=totals["nonfinite"] + empty,
            average_decay=average_decay_at(self.optim, step),
        )
        times.mark()

        # Send the figures to the host. A step without a term has no mean loss: NaN, where 0 would read as perfect.
        figures = {name: _reduce(name, total) for name, total in totals.items()}
        figures |= {"loss": totals["loss"] / terms, "empty": empty}
        figures |= {"grad_norm": update.grad_norm.double(), "skipped": update.skipped.double()}
        return _Pending(
            step=step,
            figures=HostCopy(figures),
            schedule={"learning_rate": rate, "weight_decay": decay},
            batches=batches,
            trained_s=self._trained_s(),
            times=times,
        )

    def _forward_backward(self, finished: int, prepared: Sequence[PreparedBatch], terms: Tensor) -> dict[str, Tensor]:
        """Add up the gradients of a step's micro-batches.

        Args:
            finished: Number of the step, from 1.
            prepared: This rank's part of each micro-batch.
            terms: Terms of the loss in the whole global batch, float64 scalar.

        Returns:
            This rank's sums in float64: `loss`, a scalar, and a (sum, count) pair for each metric of the task, (2,).
        """
        engine = self.engine
        sums = {"loss": self._full(0.0)}
        for micro_step, batch in enumerate(prepared):
            self._beat("forward", finished)
            with engine.accumulate(last=micro_step == len(prepared) - 1):
                output = self.task.step(engine.model, batch.to(engine.device))
            self._beat("backward", finished)
            # Gradients are summed, over micro-batches and ranks: each adds its terms over the count of all.
            engine.backward(output.loss / terms.clamp(min=1).to(output.loss.dtype))
            for name, value in {"loss": output.loss, **output.metrics}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().double()
        return sums

    def _sum_figures(self, finished: int, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum over ranks what a step's forward passes gave, what steers the loop, and costs where they are due."""
        engine = self.engine
        figures = {
            "loss": sums["loss"],
            "nonfinite": (~sums["loss"].isfinite()).double(),
            "stop": self._full(float(self.stop())),
            **{name: sums[name] for name in sorted(sums)},
        }
        if finished % self.stream.steps_per_epoch == 0 or finished == self.run.steps:
            before = self._stats
            self._stats = self.stream.stats()
            figures |= {name: self._full(value) for name, value in read_since(before, self._stats).items()}
        if self._is_logged(finished):
            figures |= memory_tables(engine.rank, engine.world_size, engine.device)
        return sum_figures(engine, figures | {"failed": self._full(float(self._failure is not None))})

    def _boundary(self, finished: int) -> None:
        """Evaluate and save where the cadence asks for it; a stop that is agreed on comes first and is taken next."""
        last = finished == self.run.steps
        evaluates = finished % self.run.evaluate_every == 0 or last
        saves = finished % self.run.save_every == 0 and not last
        if not (evaluates or saves):
            return

        stops = self._read_figures(keep=0) and not last
        start_s = time.perf_counter()
        if evaluates and not stops:
            self._evaluate(finished)
        if saves or stops:
            self._save(finished)
            # A stop that came meanwhile finds all that there is to save saved.
            self._stop_agreed |= any_rank(self.engine, self.stop.received is not None)
        self._boundary_s += time.perf_counter() - start_s

    def _evaluate(self, finished: int) -> None:
        self._beat("evaluate", finished)
        self.engine.model.eval()
        with self.engine.averaged():
            metrics = self.hooks.evaluate(finished)
        self.engine.model.train()
        if metrics:
            self.hooks.log(finished, metrics)

    def _save(self, finished: int) -> None:
        """Save after `finished` steps, unless that was done."""
        if finished != self._saved:
            self.hooks.save(finished)
            self._saved = finished

    def _read_figures(self, *, keep: int) -> bool:
        """Read and log the figures of all but the newest steps; return whether a rank was asked to stop."""
        while len(self._pending) > keep:
            pending = self._pending.popleft()
            if pending.figures.arrived is not None:
                newest = self._pending[-1] if self._pending else pending
                self._beat("wait for the figures", newest.step + 1)
            figures = pending.figures.read()
            self._speed.add(pending.times)
            if figures["failed"]:
                on_all_ranks(self.engine, self._raise_failure)
            self._stop_agreed |= figures["stop"] > 0
            self.skipped.note(pending.step + 1, figures, pending.batches)
            self._log(pending, figures)
        return self._stop_agreed

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _log(self, pending: _Pending, figures: dict[str, float]) -> None:
        """Log a step's metrics where they are due, and what was read where an epoch ends."""
        finished = pending.step + 1
        read = {name: value for name, value in figures.items() if name.startswith("data/")}
        if self._is_logged(finished):
            metrics = {name: figures[name] for name in ("loss", "grad_norm", "skipped")} | pending.schedule
            metrics["skipped_steps"] = self.skipped.total
            metrics["epoch"] = pending.step // self.stream.steps_per_epoch
            metrics["windows"] = finished * self.global_batch
            metrics |= {name: figures[name] for name in figures if name not in _FLAGS | read.keys()}
            metrics |= self._speed.line(finished, pending.trained_s)
            self.hooks.log(finished, metrics)
        if read:
            self.hooks.log(finished, read)

    def _is_logged(self, finished: int) -> bool:
        return finished % self.run.log_every == 0 or finished == self.run.steps

    def _full(self, value: float) -> Tensor:
        # A fill carries its value in the launch; a copy from pageable memory would wait for the device.
        return torch.full((), value, dtype=torch.float64, device=self.engine.device)

    def _trained_s(self) -> float:
        """Read the host's clock, which stands still in evaluations and saves."""
        return time.perf_counter() - self._boundary_s


def _reduce(name: str, total: Tensor) -> Tensor:
    """Make a scalar of a figure's sum over ranks: the largest of a table by rank, the mean of a (sum, count) pair."""
    if name.startswith("memory/"):
        return total.max()
    return total[0] / total[1] if total.ndim else total
