"""Masked pretraining: from a window of counts to the sum of the loss' terms."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.shards.index import Index
from ...data.stream.stream import Batch
from ...data.units import MISSING_COUNT
from ...models.encoder import build_encoder, depth_rates
from ...models.patches import PATCH
from ...models.spark import SparK, SparKOutput, counted_patches, num_terms
from ..settings.experiment import PretrainConfig
from .task import DrawKeys, PreparedBatch, StepOutput, Task, draw_keys, mark_padding_missing, turn


@dataclass(frozen=True, kw_only=True)
class PretrainBatch(PreparedBatch):
    """Windows to fill in.

    Attributes:
        visible_bv: Flat positions of the visible patches, sorted, int64.
    """

    visible_bv: Tensor


@dataclass(kw_only=True, eq=False)
class PretrainTask(Task):
    """Masked pretraining: hide patches of a window, reconstruct them.

    Attributes:
        model: The model, not wrapped: it knows its loss.
        grid_hw: Patches of a window, rows and columns.
    """

    model: SparK
    grid_hw: tuple[int, int]

    def prepare(self, batch: Batch) -> PretrainBatch:
        """Draw masks, turns and depth from (seed, purpose, global step, index in the global batch)."""
        keys_b = draw_keys(batch)
        return self._prepared(batch, "mask", keys_b, self.draw_turns(keys_b, self.grid_hw), self.draw_depth(keys_b))

    def prepare_held_out(self, batch: Batch) -> PretrainBatch:
        """Draw fixed masks from (seed, purpose, window): equal for every evaluation of a run, world size or place."""
        return self._prepared(batch, "held-out mask", [(int(window),) for window in batch.window_b], None, None)

    def _prepared(
        self, batch: Batch, purpose: str, keys_b: DrawKeys, turn_b: Tensor | None, depth_keep_kb: Tensor | None
    ) -> PretrainBatch:
        real_b = mark_padding_missing(batch)
        num_patches = self.grid_hw[0] * self.grid_hw[1]
        visible_bv = self.draw_visible(purpose, keys_b, self.grid_hw)

        # Of a patch with a missing pixel the loss has no term.
        counted_bl = None
        if batch.has_missing and real_b.any():
            valid_bthw = torch.from_numpy(batch.counts_bthw.numpy()[real_b] != MISSING_COUNT)
            if turn_b is not None:
                valid_bthw = turn(valid_bthw, turn_b[torch.from_numpy(real_b)])
            counted_bl = counted_patches(valid_bthw.numpy())
        return PretrainBatch(
            counts_bthw=batch.counts_bthw,
            visible_bv=torch.from_numpy(visible_bv),
            turn_b=turn_b,
            depth_keep_kb=depth_keep_kb,
            scale_mmh_b=batch.scale_mmh_b,
            has_missing=batch.has_missing or not bool(real_b.all()),
            num_valid=num_terms(self.model.loss, visible_bv[real_b], counted_bl, int(real_b.sum()), num_patches),
        )

    def frames(self, batch: PretrainBatch) -> tuple[Tensor, Tensor | None]:
        """Turn counts into the model's space: (frames_bthw, valid_bthw or None where nothing is missing).

        Missing pixels are 0 in the frames.
        """
        rain_mmh_bthw, valid_bthw = batch.rain(self.dtype)
        return self.space.from_mmh(rain_mmh_bthw), valid_bthw

    def step(self, model: Callable[..., SparKOutput], batch: PretrainBatch) -> StepOutput:
        """Compute the sum of the loss' terms: SparK, Tian et al. 2023, https://arxiv.org/abs/2301.03580, section 3."""
        frames_bthw, valid_bthw = self.frames(batch)
        output = model(frames_bthw, batch.visible_bv, valid_bthw, batch.depth_keep_kb)
        # What is trained on and what is not: the error of visible patches shows copying, not understanding.
        masked_bl = output.counted_bl & ~output.visible_bl
        metrics = {
            "masked_error": _sum_and_count(output.error_bl, masked_bl),
            "visible_error": _sum_and_count(output.error_bl, output.counted_bl & output.visible_bl),
        }
        return StepOutput(loss=self.model.loss_sum(output), metrics=metrics, num_valid=batch.num_valid)


def _sum_and_count(error_bl: Tensor, chosen_bl: Tensor) -> Tensor:
    errors = torch.where(chosen_bl, error_bl.detach(), 0.0)
    return torch.stack([errors.sum().double(), chosen_bl.sum().double()])


def build_spark(config: PretrainConfig) -> SparK:
    """Build SparK as the settings describe it, with fresh weights from torch's generator."""
    model = SparK(
        build_encoder(config.model.encoder, config.data.window, depth_drop=config.model.depth_drop),
        decoder_width=config.model.decoder_width,
        loss=config.model.loss,
        decoder_activation=config.model.decoder_activation,
    )
    model.set_checkpoint_blocks(config.model.checkpoint_blocks)
    return model


def build_pretrain_task(config: PretrainConfig, model: SparK, index: Index) -> PretrainTask:
    """Build masked modelling of an archive's frames."""
    return PretrainTask(
        model=model,
        space=config.model.space,
        mask_ratio=config.model.mask_ratio,
        grid_hw=(index.rows // PATCH, index.cols // PATCH),
        depth_rates=depth_rates(model.sparse_encoder),
        augment=config.data.augment,
        seed=config.seed,
        dtype=torch.float64 if config.engine.precision == "fp64" else torch.float32,
    )
