"""Forecasts without anything learned, or with one number learned: what a model has to beat.

All take rain in mm/h, (b, frames, rows, cols), 0 where missing, with a mask that is False there (None: nothing is
missing), and give (b, frames_out, rows, cols) in mm/h, finite and 0 or more.
"""

import importlib
import io
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .forecasts import Forecaster
from .motion import DRIZZLE_MMH, NUM_FRAMES, displacements, estimate_motion, extrapolate, fill_missing

_FieldFunction = Callable[..., npt.NDArray[np.float64]]
WHOLLY: Final = 1 - 1e-6
"""Least weight of measured pixels, which are interpolated between, of a pixel that is known: 1 but for rounding."""

EXTRA_HINT: Final = "pip install 'rainspark[nowcast]'"


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


class Extrapolation:
    """The last frame carried on by pysteps: Lucas-Kanade optical flow, semi-Lagrangian; what flows in is not known.

    The motion is found on 10 log10(max(R, 0.1)) of the last three frames, features are not searched in missing pixels,
    and both parts run with pysteps' defaults: Pulkkinen et al. (2019), Pysteps: an open-source Python library for
    probabilistic precipitation nowcasting, doi:10.5194/gmd-12-4185-2019.

    Args:
        name: For tables.

    Raises:
        ImportError: pysteps or OpenCV is not installed; the text says how to install them.
    """

    frames_in: Final = NUM_FRAMES

    def __init__(self, *, name: str = "extrapolation") -> None:
        self.name = name
        self._follow, self._carry = _import_pysteps()

    def forecast(self, rain_mmh_bthw: Tensor, valid_bthw: Tensor | None, frames_out: int) -> Tensor:
        """Carry the last frames on, a window at a time on the CPU; see `Forecaster`. What flows in counts as dry."""
        return self.forecast_known(rain_mmh_bthw, valid_bthw, frames_out)[0]

    def forecast_known(
        self, rain_mmh_bthw: Tensor, valid_bthw: Tensor | None, frames_out: int
    ) -> tuple[Tensor, Tensor]:
        """Forecast, and mark what is known: what comes from inside the last frame, and was measured there.

        Returns:
            (rain in mm/h, 0 where not known; True where known), both (b, frames_out, rows, cols).
        """
        rain: npt.NDArray[np.float64] = rain_mmh_bthw.detach().cpu().double().numpy()
        valid = np.ones(rain.shape, bool) if valid_bthw is None else valid_bthw.cpu().numpy()
        forecasts = [self._one(window, measured, frames_out) for window, measured in zip(rain, valid, strict=True)]
        rains, knowns = zip(*forecasts, strict=True)
        known_bthw = torch.from_numpy(np.stack(knowns)).to(rain_mmh_bthw.device)
        return torch.from_numpy(np.stack(rains)).to(rain_mmh_bthw), known_bthw

    def _one(
        self, rain_thw: npt.NDArray[np.float64], valid_thw: npt.NDArray[np.bool_], frames_out: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        rain_thw = np.where(valid_thw, rain_thw, 0.0)[-self.frames_in :]
        motion_2hw = self._motion(rain_thw, valid_thw[-self.frames_in :])
        forecast_thw = self._carry(rain_thw[-1], motion_2hw, frames_out)
        # What comes from outside is not known and counts as dry; bilinear weights cannot make rain negative.
        known_thw = np.isfinite(forecast_thw)
        forecast_thw = np.where(known_thw, forecast_thw, 0.0)

        # What was not measured is carried along as dry: nor is it known, not even where it has a part in a pixel.
        if not valid_thw[-1].all():
            measured_thw = self._carry(valid_thw[-1].astype(np.float64), motion_2hw, frames_out)
            known_thw &= measured_thw > WHOLLY
        return forecast_thw, known_thw

    def _motion(self, rain_thw: npt.NDArray[np.float64], valid_thw: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        still_2hw = np.zeros((2, *rain_thw.shape[1:]))
        # Without rain in two frames there is nothing to follow, and OpenCV is not made for images of one colour.
        if (rain_thw > DRIZZLE_MMH).any(axis=(1, 2)).sum() < 2:
            return still_2hw
        signal_thw = 10.0 * np.log10(np.maximum(rain_thw, DRIZZLE_MMH))
        frames = signal_thw if valid_thw.all() else np.ma.array(signal_thw, mask=~valid_thw)
        with warnings.catch_warnings(), np.errstate(all="ignore"), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            motion_2hw = self._follow(frames)
        return motion_2hw if np.isfinite(motion_2hw).all() else still_2hw


def _import_pysteps() -> tuple[_FieldFunction, _FieldFunction]:
    """Import pysteps' optical flow and extrapolation without its banner, and put the warning filters back."""
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            importlib.import_module("cv2")
            from pysteps.extrapolation.semilagrangian import extrapolate
            from pysteps.motion.lucaskanade import dense_lucaskanade
    except ImportError as error:
        raise ImportError(
            f"the baseline `extrapolation` needs pysteps and OpenCV ({error}): {EXTRA_HINT}, or take `advection`, "
            "which needs neither"
        ) from error
    return dense_lucaskanade, extrapolate


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
        extrapolated_bthw = self.extrapolation.forecast(rain_mmh_bthw, valid_bthw, frames_out)
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
            forecast_bthw: Extrapolated rain, mm/h.
            observed_bthw: What came, mm/h.
            valid_bthw: False where it was not measured; None: it was everywhere.
        """
        valid = torch.ones_like(observed_bthw, dtype=torch.bool) if valid_bthw is None else valid_bthw
        forecast, observed = (torch.where(valid, one, 0.0).double() for one in (forecast_bthw, observed_bthw))
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
