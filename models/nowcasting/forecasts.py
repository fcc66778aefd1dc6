"""The three kinds of forecast: one field a lead time, members of an ensemble, and probabilities of thresholds alone.

All take rain in mm/h, (b, frames_in, rows, cols), 0 where missing, with a mask that is False there (None: nothing is
missing). A forecaster whose attribute `marks_unknown` is True gives NaN where it cannot know: where there flows in what
lay outside the frame or was not measured. Any other value that is not finite is a failed forecast.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Forecaster(Protocol):
    """What forecasts one field a lead time: a baseline, or a trained run."""

    @property
    def name(self) -> str:
        """Name it for tables and pictures."""

    @property
    def frames_in(self) -> int:
        """Count the past frames that it takes."""

    def forecast(self, rain_mmh_bthw: Tensor, valid_bthw: Tensor | None, frames_out: int) -> Tensor:
        """Forecast rain in mm/h, (b, frames_out, rows, cols), from (b, frames_in, rows, cols), 0 where missing."""


@runtime_checkable
class EnsembleForecaster(Protocol):
    """What forecasts several fields a lead time, which are equally likely and may change places."""

    @property
    def name(self) -> str:
        """Name it for tables and pictures."""

    @property
    def frames_in(self) -> int:
        """Count the past frames that it takes."""

    @property
    def members(self) -> int:
        """Count the members that it gives."""

    def forecast_members(
        self, rain_mmh_bthw: Tensor, valid_bthw: Tensor | None, frames_out: int, *, issue_s_b: Sequence[int]
    ) -> Tensor:
        """Forecast rain in mm/h, (b, members, frames_out, rows, cols), from (b, frames_in, rows, cols).

        Args:
            rain_mmh_bthw: Rain in mm/h, 0 where missing.
            valid_bthw: False where missing; None: none is.
            frames_out: Lead times to give.
            issue_s_b: Ends of the windows' last frames, epoch seconds: what a member draws, it draws from its seed, the
                issue time and its number, so that it is the same in any batch and any order of windows.
        """


@runtime_checkable
class ProbabilityForecaster(Protocol):
    """What forecasts how likely rain above a threshold is, and no rain."""

    @property
    def name(self) -> str:
        """Name it for tables and pictures."""

    @property
    def frames_in(self) -> int:
        """Count the past frames that it takes."""

    def forecast_probabilities(
        self, rain_mmh_bthw: Tensor, valid_bthw: Tensor | None, frames_out: int, thresholds_mmh: Sequence[float]
    ) -> Tensor:
        """Forecast probabilities of rain above each threshold, 0 to 1, (b, thresholds, frames_out, rows, cols)."""
