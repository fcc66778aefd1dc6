"""The evaluation of a nowcaster in training on windows that it does not train on: loss, a few scores, a picture."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...data.frames import Grid
from ...data.stream.stream import Batch
from ..engine.engine import Engine
from ..forecasting.forecaster import forecast_whole, rain_of
from ..settings.experiment import FinetuneConfig
from .held_out import HeldOut
from .nowcast_task import Frames, NowcastBatch, NowcastTask
from .windows import Windows

if TYPE_CHECKING:
    from ..pictures.forecasts import Case

THRESHOLDS_MMH = (0.5, 1.0, 2.0)
"""Events of the scores while training; trainer/evaluate.py has all of them."""
NONFINITE = "held_out_nonfinite"
"""Forecast values that are no number, at measured pixels."""
NUM_SHOWN_LEADS = 4
EVENTS = ("hits", "forecast", "observed")


class NowcastHeldOut(HeldOut):
    """Scores the model on the validation windows, and draws one of them.

    Args:
        config: The run.
        engine: The prepared engine.
        windows: The archive, split in time.
        task: The task.
    """

    picture = "forecast"

    def __init__(self, config: FinetuneConfig, engine: Engine, windows: Windows, task: NowcastTask) -> None:
        super().__init__(config.data, engine, windows)
        self.match = config.model.match
        self.task = task

    def _forecast(self, batch: Batch) -> tuple[Tensor, Tensor, Frames, NowcastBatch]:
        """Forecast a batch: (forecast_bthw in model space, rain_mmh_bthw, its frames, the batch on the device)."""
        space = self.task.space
        prepared = self.task.prepare_held_out(batch).to(self.engine.device)
        frames = self.task.frames(prepared)
        past_mmh_bthw, past_valid_bthw = frames.past_mmh_bthw, frames.past_valid_bthw
        with self.engine.accumulate(last=True):
            forecast_bthw = forecast_whole(self.engine.model, past_mmh_bthw, past_valid_bthw, space)
        rain_mmh_bthw = rain_of(forecast_bthw, past_mmh_bthw, past_valid_bthw, space=space, match=self.match)
        return forecast_bthw, rain_mmh_bthw, frames, prepared

    def _losses(self, batch: NowcastBatch, forecast_bthw: Tensor, frames: Frames) -> Tensor:
        """Give each window's loss: of an ensemble that of two members, of the others that of the forecast."""
        if batch.noise is None or batch.leads is None:
            return self.task.losses(forecast_bthw, frames)
        with self.engine.accumulate(last=True):
            members_bmlhw = forecast_whole(
                partial(self.engine.model, noise=batch.noise, leads=batch.leads),
                frames.past_mmh_bthw,
                frames.past_valid_bthw,
                self.task.space,
            )
        return self.task.ensemble_losses(members_bmlhw, frames, batch.leads)

    def more_metrics(self, totals: dict[str, float]) -> dict[str, float]:
        """Compute squared error, CSI and frequency bias over all windows, pixels and lead times."""
        metrics = {"held_out_mse": _ratio(totals["squares"], totals["pixels"]), NONFINITE: totals["nonfinite"]}
        skills = []
        for threshold in THRESHOLDS_MMH:
            hits, forecast, observed = (totals[f"{kind} {threshold:g}"] for kind in EVENTS)
            skills.append(_ratio(hits, forecast + observed - hits))
            metrics[f"held_out_csi_{threshold:g}"] = skills[-1]
            metrics[f"held_out_bias_{threshold:g}"] = _ratio(forecast, observed)
        # A threshold that no window reaches has no score; the mean is over those that have one.
        defined = [skill for skill in skills if not math.isnan(skill)]
        metrics["held_out_csi"] = sum(defined) / len(defined) if defined else math.nan
        return metrics

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """Add up a batch: loss, errors and, at each threshold, events of each kind."""
        forecast_bthw, rain_mmh_bthw, frames, prepared = self._forecast(batch)
        future_mmh_bthw = frames.future_mmh_bthw
        valid_bthw = frames.future_valid_bthw
        if valid_bthw is None:
            valid_bthw = torch.ones_like(future_mmh_bthw, dtype=torch.bool)

        # Missing pixels are neither an error nor an event.
        squares = torch.where(valid_bthw, (rain_mmh_bthw - future_mmh_bthw).double().square(), 0.0).sum()
        sums = {
            "loss": self._losses(prepared, forecast_bthw, frames).double().sum(),
            "terms": torch.full_like(squares, float(prepared.num_valid)),
            "squares": squares,
            "pixels": valid_bthw.sum().double(),
            "nonfinite": (valid_bthw & ~rain_mmh_bthw.isfinite()).sum().double(),
        }

        for threshold in THRESHOLDS_MMH:
            forecast_event_bthw = valid_bthw & (rain_mmh_bthw > threshold)
            observed_event_bthw = valid_bthw & (future_mmh_bthw > threshold)
            events = (forecast_event_bthw & observed_event_bthw, forecast_event_bthw, observed_event_bthw)
            for kind, event_bthw in zip(EVENTS, events, strict=True):
                sums[f"{kind} {threshold:g}"] = event_bthw.sum().double()
        return sums

    def drawing(self, batch: Batch, step: int) -> Callable[[Path], None]:
        """Forecast one window."""
        _, rain_mmh_bthw, frames, _ = self._forecast(batch)

        def draw(path: Path) -> None:
            from ..pictures.forecasts import forecast_beside_radar, radar_credit

            cadence_s = self.windows.index.cadence_s
            case = case_of(
                frames,
                {"Forecast": _array(rain_mmh_bthw)},
                reference_time_s=self.first_s + (self.task.frames_in - 1) * cadence_s,
                cadence_s=cadence_s,
                grid=self.origin.grid.cropped(self.origin.crop),
                credit=radar_credit(self.origin.source, self.origin.licence),
            )
            leads = np.unique(np.linspace(1, case.num_leads, NUM_SHOWN_LEADS).round().astype(int)).tolist()
            title = f"{self.headline(step)}\nfrom {case.clock(0)}"
            forecast_beside_radar(path, case, leads=leads, title=title)

        return draw


def case_of(
    frames: Frames,
    forecasts_mmh: Mapping[str, np.ndarray],
    *,
    reference_time_s: int,
    cadence_s: int,
    grid: Grid,
    credit: str,
    unknown_thw: Mapping[str, np.ndarray] | None = None,
) -> "Case":
    """Put a window and its forecasts together for a picture.

    Args:
        frames: The window; the first one is taken where there are several.
        forecasts_mmh: By model, mm/h, (lead times, rows, cols).
        reference_time_s: End of its last past frame, epoch seconds.
        cadence_s: Seconds from frame to frame.
        grid: Where the pixels lie.
        credit: Whose radar data they are.
        unknown_thw: By model, what it cannot know; None: all know all.
    """
    # Matplotlib takes half a second, which only a rank that draws has to wait for.
    from ..forecasting.map_lines import map_lines
    from ..pictures.forecasts import Case

    return Case(
        radar_mmh_thw=_array(frames.past_mmh_bthw),
        radar_valid_thw=_mask(frames.past_mmh_bthw, frames.past_valid_bthw),
        forecasts_mmh=forecasts_mmh,
        observed_mmh_thw=_array(frames.future_mmh_bthw),
        observed_valid_thw=_mask(frames.future_mmh_bthw, frames.future_valid_bthw),
        reference_time_s=reference_time_s,
        cadence_s=cadence_s,
        pixel_km=grid.pixel_km,
        map=map_lines(grid),
        credit=credit,
        unknown_thw=unknown_thw or {},
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _array(frames_bthw: Tensor) -> np.ndarray:
    values: np.ndarray = frames_bthw[0].detach().float().cpu().numpy()
    return values


def _mask(frames_bthw: Tensor, valid_bthw: Tensor | None) -> np.ndarray:
    valid = torch.ones_like(frames_bthw, dtype=torch.bool) if valid_bthw is None else valid_bthw
    values: np.ndarray = valid[0].cpu().numpy()
    return values
