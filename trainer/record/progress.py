"""The progress of a run, for whoever started it: a bar in a terminal, lines in a log file."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..settings.run import RunConfig

LOG = logging.getLogger(__name__)


class Progress:
    """Shows how far a run is: loss, learning rate, windows a second, time left.

    Args:
        run: Length and form.
        enabled: On one rank only.
    """

    def __init__(self, run: RunConfig, *, enabled: bool) -> None:
        self.run = run
        self.enabled = enabled
        self._bar: tqdm[Any] | None = None
        self._start_s = 0.0
        self._first_step = 0

    @contextmanager
    def showing(self, first_step: int) -> Iterator[None]:
        """Show progress while the run lasts."""
        self._start_s = time.perf_counter()
        self._first_step = first_step
        wants_bar = self.run.progress == "bar" or (self.run.progress == "auto" and sys.stderr.isatty())
        if not (self.enabled and wants_bar):
            yield
            return
        # Log lines go above the bar while it stands.
        self._bar = tqdm(total=self.run.steps, initial=first_step, unit="step", dynamic_ncols=True, smoothing=0.05)
        try:
            with logging_redirect_tqdm():
                yield
        finally:
            self._bar.close()
            self._bar = None

    def show(self, finished: int, metrics: dict[str, float]) -> None:
        """Show the metrics of a finished step; a terminal that is gone does not stop a run."""
        if self.enabled:
            with suppress(OSError):
                self._show(finished, metrics)

    def _show(self, finished: int, metrics: dict[str, float]) -> None:
        if "held_out_loss" in metrics:
            LOG.info("step %d: held-out loss %.4f", finished, metrics["held_out_loss"])
        if "loss" not in metrics:
            return
        figures = {"loss": f"{metrics['loss']:.4f}", "learning rate": f"{metrics['learning_rate']:.2e}"}
        if "windows_per_s" in metrics:
            figures["windows/s"] = f"{metrics['windows_per_s']:.1f}"
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(finished - self._bar.n)
            return
        # Without a bar: a line, with the time left at the speed of this attempt.
        spent_s = time.perf_counter() - self._start_s
        left_s = spent_s / max(finished - self._first_step, 1) * (self.run.steps - finished)
        text = "  ".join(f"{name} {value}" for name, value in figures.items())
        LOG.info("step %d of %d  %s  time left %s", finished, self.run.steps, text, timedelta(seconds=round(left_s)))
