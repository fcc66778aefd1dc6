"""Nowcasting: from a window of counts to the sum of its forecast's losses."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...data.randomness import generator
from ...data.stream.stream import Batch
from ...data.units import MISSING_COUNT
from ...models import losses
from ...models.encoder import depth_rates
from ...models.nowcasting.crps import ensemble_loss
from ...models.nowcasting.event_loss import event_loss
from ...models.nowcasting.members import Noise
from ...models.nowcasting.nowcaster import Nowcaster
from ...models.nowcasting.smaat_unet import SmaAtUNet
from ...models.patches import PATCH
from ..settings.experiment import FinetuneConfig
from .task import DrawKeys, PreparedBatch, StepOutput, Task, draw_keys, mark_padding_missing

Loss = Literal["mse", "mse_ssim", "weighted", "spectral", "csi", "crps"]
MEMBERS_A_STEP: Final = 2
"""Members of a training step: Lang et al. 2024 (AIFS-CRPS, arXiv:2412.15832) train with two."""
LEADS_A_STEP: Final = 4
"""Lead times of which a training step makes members, one of each equal stretch (ours): members cost most of a step."""
RAIN_FLOOR_MMH: Final = 0.2
"""Added to a window's mean rain, by which the loss in mm/h is divided, so that a wet window does not outweigh all."""


@dataclass(frozen=True, kw_only=True)
class NowcastBatch(PreparedBatch):
    """Windows to forecast: past and future frames, cropped where asked for; a term is one with a measured future pixel.

    Attributes:
        visible_bv: Flat positions of the patches that the encoder sees, sorted, int64; None: all.
        white_nhw: See `Noise`, like the next two; None but for ensembles.
        shift_nls2: See `Noise`.
        motion_n4: See `Noise`.
        leads: Numbers of the lead times that members are made of.
    """

    visible_bv: Tensor | None
    white_nhw: Tensor | None = None
    shift_nls2: Tensor | None = None
    motion_n4: Tensor | None = None
    leads: tuple[int, ...] | None = None

    @property
    def noise(self) -> Noise | None:
        """Give the members' noise."""
        if self.white_nhw is None or self.shift_nls2 is None or self.motion_n4 is None:
            return None
        return Noise(white_nhw=self.white_nhw, shift_nls2=self.shift_nls2, motion_n4=self.motion_n4)


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
        prepared = self._batch(batch, counts_bthw, visible_bv, turn_b, self.draw_depth(keys_b))
        return self._with_noise(prepared, "noise", keys_b, self._draw_leads(batch.step))

    def prepare_held_out(self, batch: Batch) -> NowcastBatch:
        """Take a window as it is: an evaluation draws nothing but members, and padding has no terms."""
        real_b = mark_padding_missing(batch)
        prepared = self._batch(batch, batch.counts_bthw, None, None, None, always_missing=not real_b.all())
        # Padding, whose row is -1, draws as the first window does.
        rows_b = [(max(int(row), 0),) for row in batch.window_b]
        return self._with_noise(prepared, "held out noise", rows_b, self._draw_leads(0))

    def _draw_leads(self, step: int) -> tuple[int, ...]:
        """Draw the lead times of a step, the same for all windows of the global batch: one of each equal stretch."""
        bounds = np.linspace(0, self.frames_out, min(LEADS_A_STEP, self.frames_out) + 1).round().astype(int)
        draws = generator(self.seed, "leads", step)
        return tuple(int(draws.integers(first, after)) for first, after in itertools.pairwise(bounds))

    def _with_noise(self, batch: NowcastBatch, purpose: str, keys_b: DrawKeys, leads: tuple[int, ...]) -> NowcastBatch:
        """Draw what members need, each from its own stream; a batch of one field stays as it is."""
        if self.loss != "crps":
            return batch
        rows, cols = batch.counts_bthw.shape[-2:]
        # Frames are extended to whole patches before they are forecast.
        size_hw = (rows + -rows % PATCH, cols + -cols % PATCH)
        drawn = [
            Noise.draw(generator(self.seed, purpose, *keys, member), size_hw, self.frames_out)
            for keys in keys_b
            for member in range(MEMBERS_A_STEP)
        ]
        return replace(
            batch,
            white_nhw=torch.cat([noise.white_nhw for noise in drawn]),
            shift_nls2=torch.cat([noise.shift_nls2 for noise in drawn]),
            motion_n4=torch.cat([noise.motion_n4 for noise in drawn]),
            leads=leads,
        )

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

    def ensemble_losses(self, members_bmlhw: Tensor, frames: Frames, leads: tuple[int, ...]) -> Tensor:
        """Give each window's loss, (b,): members in model space, of some lead times.

        It is scored twice: in model space, where light rain counts, and in mm/h over the window's mean rain.
        """
        future_mmh = frames.future_mmh_bthw[:, leads]
        valid = None if frames.future_valid_bthw is None else frames.future_valid_bthw[:, leads]
        # No rain is less than none: that much below is as good.
        members = members_bmlhw.clamp(min=0)
        mean_b = future_mmh.mean((1, 2, 3)) + RAIN_FLOOR_MMH
        light_b = ensemble_loss(members, self.space.from_mmh(future_mmh), valid)
        return light_b + ensemble_loss(self.space.to_mmh(members), future_mmh, valid) / mean_b

    def step(self, model: Callable[..., Any], batch: NowcastBatch) -> StepOutput:
        """Compute the sum of the windows' losses."""
        frames = self.frames(batch)
        past_bthw = self.space.from_mmh(frames.past_mmh_bthw)
        if batch.leads is not None:
            arguments = (past_bthw, batch.visible_bv, frames.past_valid_bthw, batch.depth_keep_kb)
            loss_b = self.ensemble_losses(model(*arguments, batch.noise, batch.leads), frames, batch.leads)
            return StepOutput(loss=loss_b.sum(), metrics={}, num_valid=batch.num_valid)
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
