"""How well a pretraining run fills in windows that it never saw: a fixed loss and a picture."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...data.stream.stream import Batch
from ...data.windows.selection import WindowTable
from ...models.spark import SparK, SparKOutput
from ..engine.engine import Engine
from ..pictures.panels import reconstruction_picture
from ..record.folder import EVALUATED
from ..settings.data import WindowsConfig
from .held_out import HeldOut
from .pretrain_task import PretrainTask
from .windows import Windows

NUM_SHOWN_FRAMES = 4
NOT_PREDICTED = "(the mean and spread of each patch are the radar's; the network predicts what is in it)"


class PretrainHeldOut(HeldOut):
    """Evaluates the model on the held-out windows, and draws one of them.

    Args:
        data: The section of the run that says how windows are read.
        engine: The prepared engine.
        windows: The archive, split in time.
        model: The model, not wrapped: it puts patches together.
        task: The task.
    """

    picture = "reconstruction"

    def __init__(
        self, data: WindowsConfig, engine: Engine, windows: Windows, *, model: SparK, task: PretrainTask
    ) -> None:
        super().__init__(data, engine, windows)
        self.model, self.task = model, task

    def scores(self, table: WindowTable) -> dict[str, float]:
        """Compute the mean of the loss' terms with fixed masks: the same for any world size."""
        engine = self.engine
        loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
        num_valid = 0
        for batch in self.batches(table):
            prepared = self.task.prepare_held_out(batch).to(engine.device)
            with engine.accumulate(last=True):
                output = self.task.step(engine.model, prepared)
            loss_sum += output.loss.double()
            num_valid += output.num_valid
        terms = torch.full((), float(num_valid), dtype=torch.float64, device=engine.device)
        total, count = engine.sum_over_ranks(torch.stack([loss_sum, terms])).tolist()
        return {EVALUATED: self.mean_loss(total, count)}

    def drawing(self, batch: Batch, step: int) -> Callable[[Path], None]:
        """Reconstruct one window."""
        engine, task = self.engine, self.task
        prepared = task.prepare_held_out(batch).to(engine.device)
        frames_bthw, valid_bthw = task.frames(prepared)
        with engine.accumulate(last=True):
            output: SparKOutput = engine.model(frames_bthw, prepared.visible_bv, valid_bthw, None)
        return partial(
            self._draw,
            step=step,
            frames_bthw=frames_bthw,
            visible_v=prepared.visible_bv[0],
            valid_bthw=valid_bthw,
            output=output,
        )

    def _draw(
        self,
        path: Path,
        *,
        step: int,
        frames_bthw: Tensor,
        visible_v: Tensor,
        valid_bthw: Tensor | None,
        output: SparKOutput,
    ) -> None:
        visible_l = np.zeros(math.prod(self.task.grid_hw), dtype=bool)
        visible_l[visible_v.cpu().numpy()] = True
        frames = np.unique(np.linspace(0, self.shown.window - 1, NUM_SHOWN_FRAMES).round().astype(int))
        reconstruction_picture(
            path,
            radar_mmh_thw=self._rain(frames_bthw)[frames],
            visible_hw=visible_l.reshape(self.task.grid_hw),
            reconstruction_mmh_thw=self._rain(self.model.reconstruct(output))[frames],
            valid_thw=None if valid_bthw is None else valid_bthw[0].cpu().numpy()[frames],
            frame_titles=[self._frame_title(frame) for frame in frames],
            title=f"{self.headline(step)}\n{NOT_PREDICTED}",
        )

    def _rain(self, frames_bthw: Tensor) -> np.ndarray:
        rain_mmh: np.ndarray = self.task.space.to_mmh(frames_bthw[0].detach().double()).clamp(min=0).cpu().numpy()
        return rain_mmh

    def _frame_title(self, frame: int) -> str:
        end_s = self.first_s + frame * self.windows.index.cadence_s
        return f"{datetime.fromtimestamp(end_s, UTC):%Y-%m-%d\n%H:%M UTC}"
