"""How well a pretraining run fills in windows that it never saw: a fixed loss and a picture."""

import logging
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.plan import WindowTable
from data.stream import evaluation_batches
from models.spark import SparK
from trainer.config import PretrainConfig
from trainer.engine import Engine
from trainer.lifecycle import EVALUATED
from trainer.report import reconstruction_picture
from trainer.tasks import PretrainBatch, PretrainTask
from trainer.windows import Windows, wettest

LOG = logging.getLogger(__name__)
NUM_SHOWN_FRAMES = 4
NOT_PREDICTED = "(the mean and spread of each patch are the radar's; the network predicts what is in it)"


class HeldOut:
    """Evaluates the model on the held-out windows, and draws one of them.

    Args:
        config: The run.
        engine: The prepared engine.
        model: The model, not wrapped: it puts patches together.
        task: The task.
        windows: The archive, split in time.
    """

    picture = "reconstruction"

    def __init__(
        self, config: PretrainConfig, engine: Engine, model: SparK, task: PretrainTask, windows: Windows
    ) -> None:
        self.config, self.engine, self.model, self.task, self.windows = config, engine, model, task, windows
        self.table = windows.held_out
        shown = self.table if self.table is not None else windows.train
        self.shown = wettest(windows.index, shown)

    def evaluate(self, picture: Path, *, step: int) -> dict[str, float]:
        """Compute the held-out loss on all ranks and draw on the main one; the model is in evaluation mode."""
        with torch.no_grad():
            metrics = {EVALUATED: self._loss(self.table)} if self.table is not None else {}
            self._draw(picture, step)
        return metrics

    def _loss(self, table: WindowTable) -> float:
        """Mean of the loss' terms with fixed masks: the same for any world size."""
        engine = self.engine
        loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
        num_valid = 0
        for batch in evaluation_batches(
            self.windows.storage,
            self.windows.index,
            table,
            micro_batch=self.config.data.micro,
            rank=engine.rank,
            world_size=engine.world_size,
            limit=self.config.data.evaluation_windows,
            threads=self.config.data.threads,
        ):
            prepared = self.task.prepare_held_out(batch).to(engine.device)
            with engine.accumulate(last=True):
                output = self.task.step(engine.model, prepared)
            loss_sum += output.loss.double()
            num_valid += output.num_valid
        terms = torch.full((), float(num_valid), dtype=torch.float64, device=engine.device)
        total, count = engine.sum_over_ranks(torch.stack([loss_sum, terms])).tolist()
        return total / count if count else math.nan

    def _draw(self, path: Path, step: int) -> None:
        """Run one window through the model on every rank, as sharded weights need, and draw it on the main one."""
        engine, task = self.engine, self.task
        (batch,) = evaluation_batches(
            self.windows.storage, self.windows.index, self.shown, micro_batch=1, rank=0, world_size=1
        )
        prepared: PretrainBatch = task.prepare_held_out(batch).to(engine.device)
        frames_bthw, valid_bthw = task.frames(prepared)
        with engine.accumulate(last=True):
            output = engine.model(frames_bthw, prepared.visible_bv, valid_bthw, None)
        if not engine.is_main:
            return
        reconstruction_bthw = self.model.reconstruct(output)
        visible_hw = torch.zeros(task.grid_hw, dtype=torch.bool).view(-1)
        visible_hw[prepared.visible_bv[0].cpu()] = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._picture(path, step, frames_bthw, reconstruction_bthw, valid_bthw, visible_hw.view(task.grid_hw))
        except Exception as error:
            # A picture tells about a run; it cannot end one.
            LOG.warning("step %d: the picture %s was not drawn: %s: %s", step, path, type(error).__name__, error)

    def _picture(
        self,
        path: Path,
        step: int,
        frames_bthw: Tensor,
        reconstruction_bthw: Tensor,
        valid_bthw: Tensor | None,
        visible_hw: Tensor,
    ) -> None:
        part = "held out" if self.table is not None else "a training window: nothing is held out"
        frames = np.unique(np.linspace(0, self.shown.window - 1, NUM_SHOWN_FRAMES).round().astype(int))
        reconstruction_picture(
            path,
            radar_mmh_thw=self._rain(frames_bthw)[frames],
            visible_hw=visible_hw.numpy(),
            reconstruction_mmh_thw=self._rain(reconstruction_bthw)[frames],
            valid_thw=None if valid_bthw is None else valid_bthw[0].cpu().numpy()[frames],
            frame_titles=[self._frame_title(frame) for frame in frames],
            title=f"{self.windows.index.source}, {part}, after {step} steps\n{NOT_PREDICTED}",
        )

    def _rain(self, frames_bthw: Tensor) -> np.ndarray:
        rain_mmh: np.ndarray = self.task.space.to_mmh(frames_bthw[0].detach().double()).clamp(min=0).cpu().numpy()
        return rain_mmh

    def _frame_title(self, frame: int) -> str:
        index = self.windows.index
        entry = index.sequences[int(self.shown.sequence[0])]
        end_s = entry.start_s + (int(self.shown.start[0]) + frame) * index.cadence_s
        return f"{datetime.fromtimestamp(end_s, UTC):%Y-%m-%d\n%H:%M UTC}"
