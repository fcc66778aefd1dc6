"""Nowcasting: from a window of counts to the sum of its forecast's losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...data.randomness import generator
from ...data.stream.stream import Batch
from ...data.units import MISSING_COUNT
from ...models import losses
from ...models.encoder import depth_rates
from ...models.nowcasting.event_loss import event_loss
from ...models.nowcasting.nowcaster import Nowcaster
from ...models.nowcasting.smaat_unet import SmaAtUNet
from ...models.patches import PATCH
from ..settings.experiment import FinetuneConfig
from .task import DrawKeys, PreparedBatch, StepOutput, Task, draw_keys, mark_padding_missing

Loss = Literal["mse", "mse_ssim", "weighted", "spectral", "csi"]


@dataclass(frozen=True, kw_only=True)
class NowcastBatch(PreparedBatch):
    """Windows to forecast: past and future frames, cropped where asked for; a term is one with a measured future pixel.

    Attributes:
        visible_bv: Flat positions of the patches that the encoder sees, sorted, int64; None: all.
    """

    visible_bv: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Windows on the device: rain in mm/h, 0 where missing, and where it was measured (None: everywhere)."""

    past_mmh_bthw: Tensor
    future_mmh_bthw: Tensor
    past_valid_bthw: Tensor | None
    future_valid_bthw: Tensor | None


@dataclass(kw_only=True, eq=False)
class NowcastTask(Task):
    """A forecast of the future frames of a window from its past ones.

    Attributes:
        frames_in: Past frames.
        frames_out: Future frames.
        loss: See `trainer.settings.model.NowcastConfig`.
        crop: Side of the random square that training windows are cut to, None for whole frames.
    """

    frames_in: int
    frames_out: int
    loss: Loss
    crop: int | None

    def prepare(self, batch: Batch) -> NowcastBatch:
        """Draw crop, turn, mask and depth from (seed, purpose, global step, index in the global batch)."""
        keys_b = draw_keys(batch)
        counts_bthw = self._cropped(batch.counts_bthw, keys_b)
        rows, cols = counts_bthw.shape[-2:]
        # Without a mask the model takes its dense path.
        visible_bv = None
        if self.mask_ratio > 0:
            visible_bv = torch.from_numpy(self.draw_visible("mask", keys_b, (rows // PATCH, cols // PATCH)))
        turn_b = self.draw_turns(keys_b, (rows, cols))
        return self._batch(batch, counts_bthw, visible_bv, turn_b, self.draw_depth(keys_b))

    def prepare_held_out(self, batch: Batch) -> NowcastBatch:
        """Take a window as it is: an evaluation draws nothing, and padding has no terms."""
        real_b = mark_padding_missing(batch)
        return self._batch(batch, batch.counts_bthw, None, None, None, always_missing=not real_b.all())

    def _cropped(self, counts_bthw: Tensor, keys_b: DrawKeys) -> Tensor:
        rows, cols = counts_bthw.shape[-2:]
        if self.crop is None or (rows, cols) == (self.crop, self.crop):
            return counts_bthw

        # Of a uint16 tensor torch on the CPU stacks and copies, but little more: numpy does the cutting.
        counts: npt.NDArray[np.uint16] = counts_bthw.numpy()
        cropped = np.empty((*counts.shape[:2], self.crop, self.crop), np.uint16)
        for number, keys in enumerate(keys_b):
            draws = generator(self.seed, "crop", *keys)
            row, col = (int(draws.integers(size - self.crop + 1)) for size in (rows, cols))
            cropped[number] = counts[number, :, row : row + self.crop, col : col + self.crop]
        return torch.from_numpy(cropped)

    def _batch(
        self,
        batch: Batch,
        counts_bthw: Tensor,
        visible_bv: Tensor | None,
        turn_b: Tensor | None,
        depth_keep_kb: Tensor | None,
        *,
        always_missing: bool = False,
    ) -> NowcastBatch:
        # Each window with a measured future pixel gives a term.
        has_missing = batch.has_missing or always_missing
        num_valid = len(counts_bthw)
        if has_missing:
            measured_bthw = counts_bthw[:, self.frames_in :].numpy() != MISSING_COUNT
            num_valid = int(measured_bthw.any(axis=(1, 2, 3)).sum())
        return NowcastBatch(
            counts_bthw=counts_bthw,
            visible_bv=visible_bv,
            turn_b=turn_b,
            depth_keep_kb=depth_keep_kb,
            scale_mmh_b=batch.scale_mmh_b,
            has_missing=has_missing,
            num_valid=num_valid,
        )

    def frames(self, batch: NowcastBatch) -> Frames:
        """Turn counts into rain, past and future."""
        rain_mmh_bthw, valid_bthw = batch.rain(self.dtype)
        split = self.frames_in
        return Frames(
            past_mmh_bthw=rain_mmh_bthw[:, :split],
            future_mmh_bthw=rain_mmh_bthw[:, split:],
            past_valid_bthw=None if valid_bthw is None else valid_bthw[:, :split],
            future_valid_bthw=None if valid_bthw is None else valid_bthw[:, split:],
        )

    def losses(self, forecast_bthw: Tensor, frames: Frames) -> Tensor:
        """Give each window's loss, (b,): forecast in model space, rain in mm/h."""
        # Losses are computed in model space, but for events, which are thresholds in mm/h.
        target_bthw = self.space.from_mmh(frames.future_mmh_bthw)
        valid_bthw = frames.future_valid_bthw
        if self.loss == "mse":
            return losses.mse(forecast_bthw, target_bthw, valid_bthw)
        if self.loss == "mse_ssim":
            return losses.mse_ssim(forecast_bthw, target_bthw, valid_bthw)
        if self.loss == "weighted":
            weight_bthw = losses.rain_weights(frames.future_mmh_bthw)
            return losses.weighted(forecast_bthw, target_bthw, valid_bthw, weight_bthw=weight_bthw)
        if self.loss == "spectral":
            return losses.spectral(forecast_bthw, target_bthw, valid_bthw)
        return event_loss(self.space.to_mmh(forecast_bthw), frames.future_mmh_bthw, valid_bthw)

    def step(self, model: Callable[..., Any], batch: NowcastBatch) -> StepOutput:
        """Compute the sum of the windows' losses."""
        frames = self.frames(batch)
        past_bthw = self.space.from_mmh(frames.past_mmh_bthw)
        forecast_bthw = model(past_bthw, batch.visible_bv, frames.past_valid_bthw, batch.depth_keep_kb)
        loss_b = self.losses(forecast_bthw, frames)
        return StepOutput(loss=loss_b.sum(), metrics={}, num_valid=batch.num_valid)


def build_nowcast_task(config: FinetuneConfig, model: Nowcaster | SmaAtUNet) -> NowcastTask:
    """Build the loss of a model's forecasts."""
    return NowcastTask(
        space=config.model.space,
        frames_in=config.model.frames_in,
        frames_out=config.model.frames_out,
        loss=config.model.loss,
        mask_ratio=config.model.mask_ratio,
        crop=config.data.crop,
        depth_rates=depth_rates(model.sparse_encoder) if isinstance(model, Nowcaster) else (),
        augment=config.data.augment,
        seed=config.seed,
        dtype=torch.float64 if config.engine.precision == "fp64" else torch.float32,
    )
