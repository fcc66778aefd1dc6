"""Steps that all ranks left out: counted, logged with their windows, and an error where too many follow one another."""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...data.errors import DataError
from ...data.stream.stream import Batch
from ..processes.agreement import NonFiniteError
from ..processes.table import list_few
from ..settings.run import RunConfig

LOG = logging.getLogger(__name__)


class SkippedSteps:
    """Watches for steps without a finite gradient and for steps without a valid pixel.

    Args:
        run: How many in a row end the run.
        total: Those that the run's earlier attempts left out.
        name_windows: Names windows by their rows in the table.

    Attributes:
        total: Steps that were left out so far.
    """

    def __init__(self, run: RunConfig, *, total: int, name_windows: Callable[[np.ndarray], list[str]]) -> None:
        self.total = total
        self._run = run
        self._name_windows = name_windows
        self._nonfinite_in_a_row = 0
        self._empty_in_a_row = 0

    def note(self, finished: int, figures: Mapping[str, float], batches: Sequence[Batch]) -> None:
        """Take a step's figures.

        Args:
            finished: Number of the step, from 1.
            figures: `loss`, `grad_norm`, and above 0 where it is so: `skipped`, `empty`.
            batches: What this rank read for it.

        Raises:
            NonFiniteError: Too many steps in a row were not finite.
            DataError: Too many steps in a row had no valid pixel.
        """
        self.total += int(figures["empty"] > 0 or figures["skipped"] > 0)
        if figures["empty"]:
            self._empty_in_a_row += 1
            self._warn(finished, "no window of it holds a valid pixel to learn from", batches)
            # A run that is shorter than max_nonfinite has learned nothing after its last step.
            if self._empty_in_a_row >= min(self._run.max_nonfinite, self._run.steps):
                raise DataError(
                    f"no window of {self._empty_in_a_row} steps in a row, up to step {finished}, held a valid pixel to "
                    "learn from: look at the windows that the log names, and choose others, pack the archive again, or "
                    "repair it where sequences are damaged (rainspark verify names all damage)"
                )
            return

        self._empty_in_a_row = 0
        if not figures["skipped"]:
            self._nonfinite_in_a_row = 0
            return
        self._nonfinite_in_a_row += 1
        values = f"loss {figures['loss']}, gradient norm {figures['grad_norm']}"
        self._warn(finished, values, batches)
        if self._nonfinite_in_a_row >= self._run.max_nonfinite:
            raise NonFiniteError(
                f"the loss or its gradient was not finite for {self._nonfinite_in_a_row} steps in a row, up to step "
                f"{finished} ({values}); none of them has changed the weights, here or in a checkpoint. Lower "
                "optim.lr, lengthen optim.warmup_steps, or look at the windows that the log names"
            )

    def _warn(self, finished: int, reason: str, batches: Sequence[Batch]) -> None:
        # Rows below 0 are windows that were lost, and have no name.
        rows = np.concatenate([batch.window_b for batch in batches])
        num_lost = int((rows < 0).sum())
        lost = [f"{num_lost} lost to data.quarantine"] if num_lost else []
        names = self._name_windows(rows[rows >= 0])
        windows = ", ".join([*([list_few(names)] if names else []), *lost])
        LOG.warning("step %d skipped on all ranks: %s; windows of this rank: %s", finished, reason, windows)
