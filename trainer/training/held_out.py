"""The evaluation of a run in training: held-out windows are read, scored on all ranks, and one of them is drawn."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...data.errors import DataError
from ...data.shards.origins import Origin
from ...data.stream.options import ONE_PASS
from ...data.stream.stream import Batch, evaluation_batches
from ...data.windows.selection import WindowTable
from ..engine.engine import Engine
from ..processes.agreement import on_all_ranks
from ..record.folder import EVALUATED
from ..settings.data import WindowsConfig
from .figures import HostCopy, sum_figures
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
    """What the picture shows, in the name of its file."""

    def __init__(self, data: WindowsConfig, engine: Engine, windows: Windows) -> None:
        self.data = data
        self.engine = engine
        self.windows = windows
        self.table = windows.held_out
        self.shown = wettest(windows.index, windows.train if self.table is None else self.table)
        # Few frames are held: the stream of training has its own beside these.
        self._options = replace(data.one_pass, decoded_mb=ONE_PASS.decoded_mb, quarantine=data.quarantine)
        self._failure: DataError | None = None

    @abstractmethod
    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """Add up a batch, float64 scalars by name: `loss`, the sum of its terms, `terms`, their count, and others."""

    def more_metrics(self, totals: dict[str, float]) -> dict[str, float]:
        """Compute what there is besides the loss from the sums over all windows and ranks."""
        del totals
        return {}

    @abstractmethod
    def drawing(self, batch: Batch, step: int) -> Callable[[Path], None]:
        """Run one window through the model on every rank, as sharded weights need; give what draws it into a file."""

    def evaluate(self, picture: Path, *, step: int) -> dict[str, float]:
        """Compute the held-out figures on all ranks and draw on the main one; the model is in evaluation mode."""
        with torch.no_grad():
            # All ranks compute, as sharded weights need; one of them draws.
            metrics = {} if self.table is None else self._score(self.table)
            batch = on_all_ranks(self.engine, self._read_shown)
            draw = self.drawing(batch, step)
            if self.engine.is_main:
                self.engine.heartbeat.rename("draw a picture")
                _draw_or_warn(draw, picture, step)
        return metrics

    def _score(self, table: WindowTable) -> dict[str, float]:
        """Compute the held-out figures on all ranks: the same for any world size."""
        # Sums stay on the device until all batches are through: one copy to the host an evaluation.
        sums: dict[str, Tensor] = {}
        for batch in self._batches(table):
            num_read = float((batch.window_b >= 0).sum())
            read = torch.full((), num_read, dtype=torch.float64, device=self.engine.device)
            for name, value in {**self.sums(batch), "read": read}.items():
                sums[name] = sums.get(name, 0.0) + value

        totals = HostCopy(sum_figures(self.engine, sums)).read()
        expected = min(len(table), self.data.evaluation_windows)
        metrics = {EVALUATED: totals["loss"] / totals["terms"] if totals["terms"] else math.nan}
        if not totals["terms"] and self.engine.is_main:
            LOG.warning(
                f"no valid pixel in any of the {expected} held-out windows (missing, or lost to data.quarantine): "
                "there is no held-out loss"
            )
        lost = {LOST: expected - totals["read"]} if self.data.quarantine else {}
        return metrics | self.more_metrics(totals) | lost

    def _batches(self, table: WindowTable) -> Iterator[Batch]:
        """Read this rank's part of an evaluation; what is lost comes as padding.

        A rank that cannot read gives padding to the end, and fails together with those that wait for it.
        """
        self._failure = None
        # Every rank goes through the same number of batches, so that their collectives meet.
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
                batch = self._padding(table, step)
                try:
                    if self._failure is None:
                        batch = next(reading)
                except DataError as error:
                    if self.engine.world_size == 1:
                        raise
                    self._failure = error
                self.engine.heartbeat.again()
                yield batch

    def _padding(self, table: WindowTable, step: int) -> Batch:
        count = self.data.micro // self.engine.world_size
        index = self.windows.index
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

    def headline(self, step: int) -> str:
        """Write the first line of a picture's title: what is shown, and after how many steps."""
        kind = "held out" if self.table is not None else "a training window: nothing is held out"
        return f"{self.origin.source}, {kind}, after {step} steps"

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
        # A picture shows a run; it cannot end one.
        LOG.warning("step %d: the picture %s was not drawn: %s: %s", step, path, type(error).__name__, error)
