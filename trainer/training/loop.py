"""One training loop for every task: steps are the clock."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
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
from ..processes.agreement import NonFiniteError
from ..settings.optim import OptimConfig
from ..settings.run import RunConfig
from .step_costs import Clock, Speed, StepTimes, memory_line, memory_table
from .task import Task

LOG = logging.getLogger(__name__)

# The host reads the figures of step s when step s + LAG starts: all ranks act at the same boundary, and none waits.
LAG = 2
# What a rank without data adds to the flag that asks to stop: more than there are ranks.
FAILED: Final = 2.0**20

EPOCH_COUNTS: Final = (
    "bytes_read", "requests", "store_bytes_read", "store_requests", "retries", "wait_s", "stall_s", "cache_hits",
    "cache_misses", "cache_evictions", "quarantined", "windows_lost",
)  # fmt: skip
"""What `Stream.stats` counts and the metrics tell of every epoch, as data/epoch_*."""
PEAKS: Final = ("held_bytes_peak", "decoded_bytes_peak")
"""What the metrics tell besides: the most that was held at once since the process started, as data/*."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls at its boundaries; each call happens on every rank, at the same step.

    Attributes:
        log: Metrics of one finished step (number of finished steps, metrics).
        save: Save a checkpoint after so many finished steps.
        evaluate: Held-out metrics and picture after so many finished steps; None to do without.
        stop_asked: Whether this rank was told to stop.
        windows: Names of windows by their rows in the table, for messages.
        fail: End the run because a rank could not read; gets this rank's reason, None where it is another's.
        stop_agreed: Whether any rank was told to stop, agreed on by all; asked after a save only.
    """

    log: Callable[[int, dict[str, float]], None]
    save: Callable[[int], None]
    evaluate: Callable[[int], dict[str, float]] | None
    stop_asked: Callable[[], bool]
    windows: Callable[[np.ndarray], list[str]]
    fail: Callable[[DataError | None], None]
    stop_agreed: Callable[[], bool] = lambda: False


@dataclass
class _Pending:
    """A step whose figures are on their way to the host.

    It holds its batches: their pinned memory is used again once they are gone, and copies from it may be under way.
    """

    step: int
    figures: Tensor
    arrived: torch.cuda.Event | None
    names: list[str]
    data_names: list[str]
    host: dict[str, float]
    batches: list[Batch]
    clock: Clock
    times: StepTimes


class Loop:
    """Trains a prepared model on a stream, step by step.

    Args:
        engine: The prepared engine.
        task: What a step computes.
        stream: This rank's part of the plan.
        run: Lengths and cadences.
        optim: Schedules.
        global_batch: Windows an update.
        hooks: What happens at the boundaries.
        skipped_steps: Updates that were left out before, by the runs that this one goes on from.

    Attributes:
        skipped_steps: Updates that were left out so far, for what was not finite or not there, by those runs too.
    """

    def __init__(
        self,
        engine: Engine,
        task: Task,
        stream: Stream,
        *,
        run: RunConfig,
        optim: OptimConfig,
        global_batch: int,
        hooks: Hooks,
        skipped_steps: int = 0,
    ) -> None:
        self.engine = engine
        self.task = task
        self.stream = stream
        self.run = run
        self.optim = optim
        self.global_batch = global_batch
        self.hooks = hooks
        self._pending: deque[_Pending] = deque()
        self._nonfinite_in_a_row = 0
        self._empty_in_a_row = 0
        self._stop_agreed = False
        self._saved = 0
        self.skipped_steps = skipped_steps
        self._beat = engine.heartbeat.beat
        self._waited_s = 0.0
        self._boundary_s = 0.0
        self._speed = Speed(global_batch)
        self._told_data: dict[str, float] = {}
        self._failure: DataError | None = None

    def fit(self, first_step: int, *, evaluation_is_owed: bool = False) -> Literal["done", "stopped"]:
        """Train from `first_step` finished steps to `run.steps`; "stopped" when any rank was told to stop.

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
        self._speed.start(first_step, self._clock())
        self._told_data = self.stream.stats()
        with closing(self.stream.steps(first_step, self.run.steps)) as steps:
            for step in range(first_step, self.run.steps):
                if self._drain(LAG):
                    self._drain(0)
                    self._save(step)
                    return "stopped"
                self._pending.append(self._train_step(step, self._next(steps, step)))
                self._boundary(step + 1)
        self._drain(0)
        self._save(self.run.steps)
        return "done"

    def _boundary(self, finished: int) -> None:
        """Evaluate and save where the cadence says so; a stop that is agreed on comes first and is taken next."""
        last = finished == self.run.steps
        evaluates = self.hooks.evaluate is not None and (finished % self.run.evaluate_every == 0 or last)
        saves = finished % self.run.save_every == 0 and not last
        if not (evaluates or saves):
            return
        stops = self._drain(0) and not last
        start_s = time.perf_counter()
        if evaluates and not stops:
            self._evaluate(finished)
        if saves or stops:
            self._save(finished)
            # A stop that came meanwhile finds all that there is to save saved.
            self._stop_agreed |= self.hooks.stop_agreed()
        self._boundary_s += time.perf_counter() - start_s

    def _evaluate(self, finished: int) -> None:
        if self.hooks.evaluate is None:
            return
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
        """One update from one global batch; nothing in it waits for the device."""
        engine, times = self.engine, StepTimes(self.engine.device, self._waited_s)
        self._beat("count the terms of all ranks", step + 1)
        prepared = [self.task.prepare(batch) for batch in batches]
        terms = engine.sum_over_ranks(self._full(sum(batch.num_valid for batch in prepared)))
        empty = (terms == 0).double()
        times.mark()
        engine.start_step()
        loss_sum = self._full(0.0)
        sums: dict[str, Tensor] = {}
        for micro_step, batch in enumerate(prepared):
            self._beat("forward", step + 1)
            with engine.accumulate(last=micro_step == len(prepared) - 1):
                output = self.task.step(engine.model, batch.to(engine.device))
            self._beat("backward", step + 1)
            engine.backward(output.loss / terms.clamp(min=1).to(output.loss.dtype))
            loss_sum = loss_sum + output.loss.detach().double()
            for name, sum_and_count in output.metrics.items():
                sums[name] = sums.get(name, 0.0) + sum_and_count.detach().double()
        times.mark()
        self._beat("sum the figures of all ranks", step + 1)
        stop = self._full(float(self.hooks.stop_asked()) + (FAILED if self._failure is not None else 0))
        names = sorted(sums)
        flags = torch.stack([loss_sum, (~loss_sum.isfinite()).double(), stop])
        data = self._data_figures(step + 1)
        memory = [self._memory()] if self._is_logged(step + 1) else []
        agreed = engine.sum_over_ranks(torch.cat([flags, *(sums[name] for name in names), *data.values(), *memory]))
        times.mark()
        self._beat("update", step + 1)
        rate = rate_at(self.optim, step, self.run.steps, self.global_batch)
        decay = decay_at(self.optim, step, self.run.steps)
        average_decay = average_decay_at(self.optim, step)
        update = engine.update(rate=rate, decay=decay, nonfinite=agreed[1], empty=empty, average_decay=average_decay)
        times.mark()
        # A step without a term has no mean loss: NaN, where 0 would read as perfect.
        head = torch.stack([agreed[0] / terms, update.grad_norm.double(), update.skipped.double(), empty, agreed[2]])
        means = agreed[3 : 3 + 2 * len(names)].view(-1, 2)
        figures, arrived = self._copy_to_host(torch.cat([head, means[:, 0] / means[:, 1], agreed[3 + means.numel() :]]))
        return _Pending(
            step=step, figures=figures, arrived=arrived, names=names, data_names=list(data),
            host={"learning_rate": rate, "weight_decay": decay}, batches=batches, clock=self._clock(), times=times,
        )  # fmt: skip

    def _is_logged(self, finished: int) -> bool:
        return finished % self.run.log_every == 0 or finished == self.run.steps

    def _memory(self) -> Tensor:
        return memory_table(self.engine.rank, self.engine.world_size, self.engine.device)

    def _data_figures(self, finished: int) -> dict[str, Tensor]:
        """What this rank read since it last told, where an epoch or the run ends: names of metrics, (1,) each.

        Reading runs ahead: what the next epoch's first steps need may count as this one's.
        """
        if finished % self.stream.steps_per_epoch and finished != self.run.steps:
            return {}
        before, now = self._told_data, self.stream.stats()
        self._told_data = now
        figures = {f"data/epoch_{name}": now[name] - before.get(name, 0) for name in EPOCH_COUNTS if name in now}
        figures |= {f"data/{name}": now[name] for name in PEAKS if name in now}
        return {name: self._full(value).view(1) for name, value in figures.items()}

    def _full(self, value: float) -> Tensor:
        # A fill carries its value in the launch; a copy from pageable memory would wait for the device.
        return torch.full((), value, dtype=torch.float64, device=self.engine.device)

    @staticmethod
    def _copy_to_host(figures: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        if figures.device.type == "cpu":
            return figures.clone(), None
        pinned = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
        pinned.copy_(figures, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return pinned, arrived

    def _drain(self, leave: int) -> bool:
        """Read the figures of all but the newest steps; True when a rank was told to stop."""
        while self._pending and len(self._pending) >= max(leave, 1):
            pending = self._pending.popleft()
            if pending.arrived is not None:
                self._beat("wait for the figures", self._pending[-1].step + 1 if self._pending else pending.step + 1)
                pending.arrived.synchronize()
            self._speed.add(pending.times)
            loss, grad_norm, skipped, empty, stop, *rest = pending.figures.tolist()
            if stop >= FAILED:
                self.hooks.fail(self._failure)
            self._stop_agreed |= stop > 0
            self.skipped_steps += int(empty > 0 or skipped > 0)
            if empty:
                self._note_empty(pending)
            else:
                self._empty_in_a_row = 0
                self._note_nonfinite(pending, loss, grad_norm, skipped > 0)
            self._log(pending, {"loss": loss, "grad_norm": grad_norm, "skipped": skipped}, rest)
        return self._stop_agreed

    def _log(self, pending: _Pending, metrics: dict[str, float], rest: list[float]) -> None:
        """Tell of a step: its metrics where they are due, and what was read where an epoch ends."""
        finished, num_means, num_data = pending.step + 1, len(pending.names), len(pending.data_names)
        means, data, memory = rest[:num_means], rest[num_means : num_means + num_data], rest[num_means + num_data :]
        if self._is_logged(finished):
            metrics |= {**pending.host, "skipped_steps": self.skipped_steps}
            metrics["epoch"] = pending.step // self.stream.steps_per_epoch
            metrics["windows"] = finished * self.global_batch
            metrics.update(zip(pending.names, means, strict=True))
            metrics |= memory_line(memory, self.engine.world_size)
            self.hooks.log(finished, {**metrics, **self._speed.line(finished, pending.clock)})
        if data:
            self.hooks.log(finished, dict(zip(pending.data_names, data, strict=True)))

    def _note_nonfinite(self, pending: _Pending, loss: float, grad_norm: float, skipped: bool) -> None:
        if not skipped:
            self._nonfinite_in_a_row = 0
            return
        self._nonfinite_in_a_row += 1
        LOG.warning(
            "step %d skipped on all ranks: loss %s, gradient norm %s; windows of this rank: %s",
            pending.step + 1, loss, grad_norm, self._windows_of(pending),
        )  # fmt: skip
        if self._nonfinite_in_a_row >= self.run.max_nonfinite:
            raise NonFiniteError(
                f"the loss or its gradient was not finite for {self._nonfinite_in_a_row} steps in a row, up to step "
                f"{pending.step + 1} (loss {loss}, gradient norm {grad_norm}); none of them has changed the weights, "
                "here or in a checkpoint. Lower optim.lr, lengthen optim.warmup_steps, or look at the windows that the "
                "log names"
            )

    def _note_empty(self, pending: _Pending) -> None:
        """Tell of a step without any term on any rank; it was skipped, and too many of them end the run."""
        self._empty_in_a_row += 1
        LOG.warning(
            "step %d skipped on all ranks: no window of it holds a valid pixel to learn from; windows of this rank: %s",
            pending.step + 1, self._windows_of(pending),
        )  # fmt: skip
        # A run that is shorter than max_nonfinite has learned nothing after its last step.
        if self._empty_in_a_row < min(self.run.max_nonfinite, self.run.steps):
            return
        stats = self.stream.stats()
        remedy = "look at the windows that the log names, and choose others or pack the archive again"
        if num_lost := int(stats.get("windows_lost", 0)):
            remedy = (
                f"this rank has lost {num_lost} windows of {int(stats['quarantined'])} damaged sequences to "
                "data.quarantine, which the log names: repair the archive (rainspark verify names all damage)"
            )
        raise DataError(
            f"no window of {self._empty_in_a_row} steps in a row, up to step {pending.step + 1}, held a valid pixel to "
            f"learn from: {remedy}"
        )

    def _windows_of(self, pending: _Pending) -> str:
        """Name the windows of a step that this rank has read, and count those that it lost."""
        rows = np.concatenate([batch.window_b for batch in pending.batches])
        names, num_lost = self.hooks.windows(rows[rows >= 0]), int((rows < 0).sum())
        shown = [*names[:8], *([f"{len(names) - 8} more"] if len(names) > 8 else [])]
        return ", ".join([*shown, *([f"{num_lost} lost to data.quarantine"] if num_lost else [])])

    def _clock(self) -> Clock:
        return Clock(now_s=time.perf_counter(), boundary_s=self._boundary_s)
