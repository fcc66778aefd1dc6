"""Forecasts without anything learned, or with one number learned: what a model has to beat.

All take rain in mm/h, (b, frames, rows, cols), 0 where missing, with a mask that is False there (None: nothing is
missing), and give (b, frames_out, rows, cols) in mm/h, finite and 0 or more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..nowcasting.forecasts import Forecaster
from ..nowcasting.motion import NUM_FRAMES, displacements, estimate_motion, extrapolate, fill_missing


@dataclass(frozen=True, kw_only=True)
class Persistence:
    """The last frame, unchanged; a pixel that it lacks is forecast dry."""

    name: str = "persistence"
    frames_in: int = field(default=1, init=False)

    def forecast(self, rain_mmh_bthw: Tensor, valid_bthw: Tensor | None, frames_out: int) -> Tensor:
        """Repeat the last frame; see `Forecaster`."""
        last_bthw = rain_mmh_bthw[:, -1:]
        if valid_bthw is not None:
            last_bthw = torch.where(valid_bthw[:, -1:], last_bthw, 0.0)
        return last_bthw.repeat(1, frames_out, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Advection:
    """The last frame carried on with the motion of the last three, by models.motion, which guesses what flows in."""

    name: str = "advection"
    frames_in: int = field(default=NUM_FRAMES, init=False)

    def forecast(self, rain_mmh_bthw: Tensor, valid_bthw: Tensor | None, frames_out: int) -> Tensor:
        """Carry the last frame on; see `Forecaster`.

        Raises:
            ValueError: Frames too small to find a motion in.
        """
        last_b1hw = rain_mmh_bthw[:, -1:]
        if valid_bthw is not None:
            last_b1hw = fill_missing(last_b1hw, valid_bthw[:, -1:])
        steps = displacements(estimate_motion(rain_mmh_bthw, valid_bthw), frames_out)
        return extrapolate(last_b1hw, steps)


@dataclass(frozen=True, kw_only=True)
class TrainingMean:
    """The training part's mean rain, everywhere and always: blur without a forecast.

    Args:
        mean_mmh: Mean rain, mm/h.
        name: For tables.
    """

    mean_mmh: float
    name: str = "training_mean"
    frames_in: int = field(default=1, init=False)

    def forecast(self, rain_mmh_bthw: Tensor, valid_bthw: Tensor | None, frames_out: int) -> Tensor:  # noqa: ARG002
        """Give the mean; see `Forecaster`."""
        batch, _, rows, cols = rain_mmh_bthw.shape
        return rain_mmh_bthw.new_full((batch, frames_out, rows, cols), self.mean_mmh)


@dataclass(frozen=True, kw_only=True)
class DampedExtrapolation:
    """Extrapolation that fades into the training mean: mean + a_k (extrapolation_k - mean), a_k by least squares.

    Args:
        mean_mmh: Mean rain of the training part, mm/h.
        factors: a_1, a_2, ..., 0 to 1.
        extrapolation: What fades.
        name: For tables.
    """

    mean_mmh: float
    factors: tuple[float, ...]
    extrapolation: Forecaster
    name: str = "damped_extrapolation"

    @property
    def frames_in(self) -> int:
        """Count the past frames that it takes."""
        return self.extrapolation.frames_in

    def forecast(self, rain_mmh_bthw: Tensor, valid_bthw: Tensor | None, frames_out: int) -> Tensor:
        """Fade the extrapolation; see `Forecaster`.

        Raises:
            ValueError: More lead times than it was fitted for.
        """
        if frames_out > len(self.factors):
            raise ValueError(f"{self.name}: fitted for {len(self.factors)} lead times, {frames_out} were asked for")
        # What it cannot know counts as dry.
        extrapolated_bthw = self.extrapolation.forecast(rain_mmh_bthw, valid_bthw, frames_out).nan_to_num(nan=0.0)
        factor_t11 = extrapolated_bthw.new_tensor(self.factors[:frames_out]).view(-1, 1, 1)
        return self.mean_mmh + factor_t11 * (extrapolated_bthw - self.mean_mmh)


class DampingFit:
    """Sums over training windows that the mean and the damping factors are made of, float64.

    Args:
        frames_out: Lead times.
    """

    def __init__(self, frames_out: int) -> None:
        # Per lead: pixels, forecast, observed, forecast squared, forecast times observed.
        self._sums_k5: Any = np.zeros((frames_out, 5))

    def update(self, forecast_bthw: Tensor, observed_bthw: Tensor, valid_bthw: Tensor | None) -> Self:
        """Add windows.

        Args:
            forecast_bthw: Extrapolated rain, mm/h; NaN, which is not known, counts as dry.
            observed_bthw: What came, mm/h.
            valid_bthw: False where it was not measured; None: it was everywhere.
        """
        valid = torch.ones_like(observed_bthw, dtype=torch.bool) if valid_bthw is None else valid_bthw
        rains = (forecast_bthw.nan_to_num(nan=0.0), observed_bthw)
        forecast, observed = (torch.where(valid, rain_bthw, 0.0).double() for rain_bthw in rains)
        pieces = (valid.double(), forecast, observed, forecast * forecast, forecast * observed)
        self._sums_k5 += torch.stack([piece.sum((0, 2, 3)) for piece in pieces], dim=1).cpu().numpy()
        return self

    @property
    def mean_mmh(self) -> float:
        """The mean rain that was observed, over all lead times; NaN without a measured pixel."""
        pixels, _, observed, _, _ = self._sums_k5.sum(axis=0)
        return float(observed / pixels) if pixels else math.nan

    def factors(self) -> tuple[float, ...]:
        """Give the damping factors: sum (f - m)(o - m) / sum (f - m)^2 of each lead time, at least 0 and at most 1."""
        mean = self.mean_mmh
        return tuple(_factor(sums.tolist(), mean) for sums in self._sums_k5)


def _factor(sums: Sequence[float], mean: float) -> float:
    pixels, forecast, observed, forecast_squared, product = sums
    variance = forecast_squared - 2 * mean * forecast + pixels * mean**2
    covariance = product - mean * (forecast + observed) + pixels * mean**2
    return min(max(covariance / variance, 0.0), 1.0) if variance > 0 else 0.0
