"""The evaluation of a pretraining run on windows that it does not train on: a loss with fixed masks, a picture."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...data.stream.stream import Batch
from ...models.spark import SparKOutput
from ..engine.engine import Engine
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
        task: The task.
    """

    picture = "reconstruction"

    def __init__(self, data: WindowsConfig, engine: Engine, windows: Windows, task: PretrainTask) -> None:
        super().__init__(data, engine, windows)
        self.task = task

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """Add up the loss' terms of a batch with fixed masks."""
        prepared = self.task.prepare_held_out(batch).to(self.engine.device)
        with self.engine.accumulate(last=True):
            output = self.task.step(self.engine.model, prepared)
        loss = output.loss.double()
        return {"loss": loss, "terms": torch.full_like(loss, float(output.num_valid))}

    def drawing(self, batch: Batch, step: int) -> Callable[[Path], None]:
        """Reconstruct one window."""
        task = self.task
        prepared = task.prepare_held_out(batch).to(self.engine.device)
        frames_bthw, valid_bthw = task.frames(prepared)
        with self.engine.accumulate(last=True):
            output: SparKOutput = self.engine.model(frames_bthw, prepared.visible_bv, valid_bthw, None)

        def draw(path: Path) -> None:
            # Matplotlib takes half a second, which only a rank that draws has to wait for.
            from ..pictures.panels import reconstruction_picture

            visible_l = np.zeros(math.prod(task.grid_hw), dtype=bool)
            visible_l[prepared.visible_bv[0].cpu().numpy()] = True
            # A few frames of the window, its first and last among them.
            shown = np.unique(np.linspace(0, self.shown.window - 1, NUM_SHOWN_FRAMES).round().astype(int))
            reconstruction_picture(
                path,
                radar_mmh_thw=self._rain(frames_bthw)[shown],
                visible_hw=visible_l.reshape(task.grid_hw),
                reconstruction_mmh_thw=self._rain(task.model.reconstruct(output))[shown],
                valid_thw=None if valid_bthw is None else valid_bthw[0].cpu().numpy()[shown],
                frame_titles=[self._frame_title(frame) for frame in shown],
                title=f"{self.headline(step)}\n{NOT_PREDICTED}",
            )

        return draw

    def _rain(self, frames_bthw: Tensor) -> np.ndarray:
        rain_mmh: np.ndarray = self.task.space.to_mmh(frames_bthw[0].detach().double()).clamp(min=0).cpu().numpy()
        return rain_mmh

    def _frame_title(self, frame: int) -> str:
        end_s = self.first_s + frame * self.windows.index.cadence_s
        return f"{datetime.fromtimestamp(end_s, UTC):%Y-%m-%d\n%H:%M UTC}"
