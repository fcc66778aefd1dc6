"""How well a nowcaster in training forecasts windows that it does not train on: loss, a few scores and a picture."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...data.stream.stream import Batch
from ...data.units import ModelSpace
from ...data.windows.selection import WindowTable
from ..engine.engine import Engine
from ..forecasting.forecaster import forecast_whole, rain_of
from ..pictures.forecasts import Case, forecast_beside_radar
from ..record.folder import EVALUATED
from ..settings.experiment import FinetuneConfig
from .held_out import HeldOut
from .nowcast_task import Frames, NowcastTask
from .windows import Windows

THRESHOLDS_MMH = (0.5, 1.0, 2.0)
"""Events of the scores while training; trainer/evaluate.py has all of them."""
NONFINITE = "held_out_nonfinite"
"""Forecast values that are no number, at measured pixels."""
NUM_SHOWN_LEADS = 4


class NowcastHeldOut(HeldOut):
    """Scores the model on the validation windows, and draws one of them.

    Args:
        config: The run.
        engine: The prepared engine.
        windows: The archive, split in time.
        task: The task.
        space: The model's space.
    """

    picture = "forecast"

    def __init__(
        self, config: FinetuneConfig, engine: Engine, windows: Windows, *, task: NowcastTask, space: ModelSpace
    ) -> None:
        super().__init__(config.data, engine, windows)
        self.match, self.task, self.space = config.model.match, task, space

    def _forecast(self, batch: Batch) -> tuple[Tensor, Tensor, Frames, int]:
        """Forecast a batch: in model space, as rain, what was and what came, and the windows that count."""
        prepared = self.task.prepare_held_out(batch).to(self.engine.device)
        frames = self.task.frames(prepared)
        with self.engine.accumulate(last=True):
            forecast_bthw = forecast_whole(self.engine.model, frames.past_mmh_bthw, frames.past_valid_bthw, self.space)
        rain_mmh_bthw = rain_of(
            forecast_bthw, frames.past_mmh_bthw, frames.past_valid_bthw, space=self.space, match=self.match
        )
        return forecast_bthw, rain_mmh_bthw, frames, prepared.num_valid

    def scores(self, table: WindowTable) -> dict[str, float]:
        """Loss, squared error and CSI over all windows, pixels and lead times: the same for any world size."""
        engine = self.engine
        # Loss, windows, squared error, pixels, forecasts that are no number; then hits, forecast events and observed
        # events of each threshold.
        sums = torch.zeros(5 + 3 * len(THRESHOLDS_MMH), dtype=torch.float64, device=engine.device)
        for batch in self.batches(table):
            forecast_bthw, rain_mmh_bthw, frames, num_valid = self._forecast(batch)
            sums += self._sums(forecast_bthw, rain_mmh_bthw, frames, num_valid)
        loss, num_windows, squares, pixels, nonfinite, *events = engine.sum_over_ranks(sums).tolist()
        metrics = {
            EVALUATED: self.mean_loss(loss, num_windows),
            "held_out_mse": _ratio(squares, pixels),
            NONFINITE: nonfinite,
        }
        skills = []
        for place, threshold in enumerate(THRESHOLDS_MMH):
            hits, forecast, observed = events[3 * place : 3 * place + 3]
            skills.append(_ratio(hits, forecast + observed - hits))
            metrics[f"held_out_csi_{threshold:g}"] = skills[-1]
            metrics[f"held_out_bias_{threshold:g}"] = _ratio(forecast, observed)
        defined = [skill for skill in skills if not math.isnan(skill)]
        metrics["held_out_csi"] = sum(defined) / len(defined) if defined else math.nan
        return metrics

    def _sums(self, forecast_bthw: Tensor, rain_mmh_bthw: Tensor, frames: Frames, num_valid: int) -> Tensor:
        future = frames.future_mmh_bthw
        valid = frames.future_valid_bthw
        valid = torch.ones_like(future, dtype=torch.bool) if valid is None else valid
        squares = torch.where(valid, (rain_mmh_bthw - future).double().square(), 0.0).sum()
        pieces = [
            self.task.losses(forecast_bthw, frames).double().sum(),
            torch.full_like(squares, float(num_valid)),
            squares,
            valid.sum().double(),
            (valid & ~rain_mmh_bthw.isfinite()).sum().double(),
        ]
        for threshold in THRESHOLDS_MMH:
            forecast, observed = valid & (rain_mmh_bthw > threshold), valid & (future > threshold)
            pieces += [(forecast & observed).sum().double(), forecast.sum().double(), observed.sum().double()]
        return torch.stack(pieces)

    def drawing(self, batch: Batch, step: int) -> Callable[[Path], None]:
        """Forecast one window."""
        _, rain_mmh_bthw, frames, _ = self._forecast(batch)
        return partial(self._draw, step=step, rain_mmh_bthw=rain_mmh_bthw, frames=frames)

    def _draw(self, path: Path, *, step: int, rain_mmh_bthw: Tensor, frames: Frames) -> None:
        case = self._case(rain_mmh_bthw, frames)
        leads = np.unique(np.linspace(1, case.num_leads, NUM_SHOWN_LEADS).round().astype(int)).tolist()
        start = datetime.fromtimestamp(case.reference_time_s, UTC)
        title = f"{self.headline(step)}\nfrom {start:%Y-%m-%d %H:%M} UTC"
        forecast_beside_radar(path, case, leads=leads, title=title)

    def _case(self, rain_mmh_bthw: Tensor, frames: Frames) -> Case:
        index = self.windows.index
        return Case(
            radar_mmh_thw=_array(frames.past_mmh_bthw),
            radar_valid_thw=_mask(frames.past_mmh_bthw, frames.past_valid_bthw),
            forecasts_mmh={"Forecast": _array(rain_mmh_bthw)},
            observed_mmh_thw=_array(frames.future_mmh_bthw),
            observed_valid_thw=_mask(frames.future_mmh_bthw, frames.future_valid_bthw),
            reference_time_s=self.first_s + (self.task.frames_in - 1) * index.cadence_s,
            cadence_s=index.cadence_s,
            pixel_km=self.origin.grid.pixel_km,
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
