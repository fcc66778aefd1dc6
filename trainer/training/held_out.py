"""What every training run computes and draws of windows that it does not train on, and how they are read."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...data.errors import DataError
from ...data.shards.origins import Origin
from ...data.stream.options import ONE_PASS
from ...data.stream.stream import Batch, evaluation_batches
from ...data.windows.selection import WindowTable
from ..engine.engine import Engine
from ..processes.agreement import on_all_ranks
from ..settings.data import WindowsConfig
from .windows import Windows, wettest

LOG = logging.getLogger(__name__)
LOST = "held_out_windows_lost"


class HeldOut(ABC):
    """Evaluates the model on the held-out windows, and draws one of them.

    Args:
        data: The section of the run that says how windows are read.
        engine: The prepared engine.
        windows: The archive, split in time.
    """

    picture: str
    """What the picture's file is called by."""

    def __init__(self, data: WindowsConfig, engine: Engine, windows: Windows) -> None:
        self.data, self.engine, self.windows = data, engine, windows
        self.table = windows.held_out
        shown = self.table if self.table is not None else windows.train
        self.shown = wettest(windows.index, shown)
        self._options = replace(
            ONE_PASS,
            threads=data.threads,
            readers=data.readers,
            prefetch_mb=data.prefetch_mb,
            quarantine=data.quarantine,
        )
        self._num_read = 0
        self._failure: DataError | None = None

    @abstractmethod
    def scores(self, table: WindowTable) -> dict[str, float]:
        """Compute the held-out figures on all ranks: the same for any world size."""

    @abstractmethod
    def drawing(self, batch: Batch, step: int) -> Callable[[Path], None]:
        """Run one window through the model on every rank, as sharded weights need; give what draws it into a file."""

    def evaluate(self, picture: Path, *, step: int) -> dict[str, float]:
        """Compute the held-out figures on all ranks and draw on the main one; the model is in evaluation mode."""
        with torch.no_grad():
            metrics = {} if self.table is None else {**self.scores(self.table), **self._lost(self.table)}
            batch = on_all_ranks(self.engine, self._read_shown)
            draw = self.drawing(batch, step)
            if self.engine.is_main:
                self.engine.heartbeat.rename("draw a picture")
                _draw_or_warn(draw, picture, step)
        return metrics

    def batches(self, table: WindowTable) -> Iterator[Batch]:
        """Read this rank's part of an evaluation; what is lost comes as padding, and is told beside the figures.

        A rank that cannot read gives padding to the end, and fails together with those that wait for it.
        """
        self._num_read, self._failure = 0, None
        num_batches = -(-min(len(table), self.data.evaluation_windows) // self.data.micro)
        reading = evaluation_batches(
            self.windows.storage,
            self.windows.index,
            table,
            micro_batch=self.data.micro,
            rank=self.engine.rank,
            world_size=self.engine.world_size,
            limit=self.data.evaluation_windows,
            options=self._options,
        )
        with closing(reading):
            for step in range(num_batches):
                try:
                    batch = next(reading) if self._failure is None else self._padding(table, step)
                except DataError as error:
                    if self.engine.world_size == 1:
                        raise
                    self._failure, batch = error, self._padding(table, step)
                self._num_read += int((batch.window_b >= 0).sum())
                self.engine.heartbeat.again()
                yield batch

    def _padding(self, table: WindowTable, step: int) -> Batch:
        count, index = self.data.micro // self.engine.world_size, self.windows.index
        return Batch(
            counts_bthw=torch.zeros((count, table.window, index.rows, index.cols), dtype=torch.uint16),
            scale_mmh_b=torch.ones(count, dtype=torch.float64),
            has_missing=False,
            window_b=np.full(count, -1, np.int64),
            index_b=self.engine.rank * count + np.arange(count),
            step=step,
            micro_step=0,
            epoch=0,
        )

    def _read_shown(self) -> Batch:
        """Read the window that is drawn; raises what kept this rank from reading the evaluation's."""
        if self._failure is not None:
            raise self._failure
        storage, index = self.windows.storage, self.windows.index
        (batch,) = evaluation_batches(storage, index, self.shown, micro_batch=1, options=self._options)
        return batch

    def _lost(self, table: WindowTable) -> dict[str, float]:
        """Count the windows that all ranks together could not read, where some may be lost."""
        if not self.data.quarantine:
            return {}
        read = torch.full((), float(self._num_read), dtype=torch.float64, device=self.engine.device)
        expected = min(len(table), self.data.evaluation_windows)
        return {LOST: expected - float(self.engine.sum_over_ranks(read))}

    def mean_loss(self, loss_sum: float, num_terms: float) -> float:
        """Give the held-out loss from the sums of all ranks: NaN, with a warning, where it has no term at all."""
        if num_terms:
            return loss_sum / num_terms
        if self.engine.is_main:
            expected = min(len(self.table or ()), self.data.evaluation_windows)
            LOG.warning(
                "no valid pixel in any of the %d held-out windows (missing, or lost to data.quarantine): there is no "
                "held-out loss", expected,
            )  # fmt: skip
        return math.nan

    def headline(self, step: int) -> str:
        """Say in a picture's title what is shown, and of which weights."""
        part = "held out" if self.table is not None else "a training window: nothing is held out"
        return f"{self.origin.source}, {part}, after {step} steps"

    @property
    def origin(self) -> Origin:
        """Give where the window that is shown comes from."""
        index = self.windows.index
        return index.origins[index.sequences[int(self.shown.sequence[0])].origin]

    @property
    def first_s(self) -> int:
        """Give the end time of the first frame that is shown, seconds since 1970."""
        index = self.windows.index
        return index.sequences[int(self.shown.sequence[0])].start_s + int(self.shown.start[0]) * index.cadence_s


def _draw_or_warn(draw: Callable[[Path], None], path: Path, step: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(path)
    except Exception as error:
        # A picture tells about a run; it cannot end one.
        LOG.warning("step %d: the picture %s was not drawn: %s: %s", step, path, type(error).__name__, error)
