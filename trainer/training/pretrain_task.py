"""What one step computes: from a batch of counts to the sum of a loss' terms."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...data.randomness import generator
from ...data.stream.stream import Batch
from ...data.units import MISSING_COUNT, ModelSpace
from ...models.masking import visible_positions
from ...models.spark import SparK, SparKOutput, counted_patches, num_terms
from .task import Places, PreparedBatch, StepOutput, draw_depth, draw_turns, mark_padding_missing, places_of, turn


@dataclass(frozen=True, kw_only=True)
class PretrainBatch(PreparedBatch):
    """Windows to fill in.

    Attributes:
        visible_bv: Flat positions of the visible patches, sorted, int64.
    """

    visible_bv: Tensor


def draw_visible(
    seed: int, purpose: str, places: Places, grid_hw: tuple[int, int], mask_ratio: float
) -> npt.NDArray[np.int64]:
    """Draw the positions of each window's visible patches, (b, v), sorted."""
    return np.stack([visible_positions(grid_hw, mask_ratio, generator(seed, purpose, *place)) for place in places])


class PretrainTask:
    """Masked pretraining: hide patches of a window, reconstruct them.

    Args:
        model: The model, not wrapped: it knows its loss.
        space: The model's space.
        mask_ratio: Share of the patches that are masked.
        seed: The run's seed.
        grid_hw: Patches of a window, rows and columns.
        depth_rates: Drop probability of each residual branch; empty without stochastic depth.
        augment: Draw flips and quarter turns.
        dtype: Floating type of the model's input.
    """

    def __init__(
        self,
        model: SparK,
        space: ModelSpace,
        *,
        mask_ratio: float,
        seed: int,
        grid_hw: tuple[int, int],
        depth_rates: tuple[float, ...],
        augment: bool,
        dtype: torch.dtype,
    ) -> None:
        self.loss = model.loss
        self.loss_sum = model.loss_sum
        self.space = space
        self.mask_ratio = mask_ratio
        self.seed = seed
        self.grid_hw = grid_hw
        self.depth_rates = np.asarray(depth_rates, dtype=np.float64)
        self.augment = augment
        self.dtype = dtype

    def prepare(self, batch: Batch) -> PretrainBatch:
        """Draw masks, turns and depth from (seed, purpose, global step, index in the global batch)."""
        places = places_of(batch)
        turn_b = None
        if self.augment:
            turn_b = draw_turns(self.seed, places, square=self.grid_hw[0] == self.grid_hw[1])
        depth_keep_kb = draw_depth(self.seed, places, self.depth_rates, self.dtype)
        return self._prepared(batch, "mask", places, turn_b, depth_keep_kb)

    def prepare_held_out(self, batch: Batch) -> PretrainBatch:
        """Draw fixed masks from (seed, purpose, window): equal for every evaluation of a run, world size or place."""
        return self._prepared(batch, "held-out mask", [(int(window),) for window in batch.window_b], None, None)

    def _prepared(
        self,
        batch: Batch,
        purpose: str,
        places: Places,
        turn_b: Tensor | None,
        depth_keep_kb: Tensor | None,
    ) -> PretrainBatch:
        real_b = mark_padding_missing(batch)
        visible_bv = draw_visible(self.seed, purpose, places, self.grid_hw, self.mask_ratio)
        counted_bl = None
        if batch.has_missing and real_b.any():
            real = torch.from_numpy(real_b)
            counted_bl = self._counted(batch.counts_bthw[real], None if turn_b is None else turn_b[real])
        return PretrainBatch(
            counts_bthw=batch.counts_bthw,
            visible_bv=torch.from_numpy(visible_bv),
            turn_b=turn_b,
            depth_keep_kb=depth_keep_kb,
            scale_mmh_b=batch.scale_mmh_b,
            has_missing=batch.has_missing or not bool(real_b.all()),
            num_valid=num_terms(
                self.loss, visible_bv[real_b], counted_bl, int(real_b.sum()), self.grid_hw[0] * self.grid_hw[1]
            ),
        )

    def _counted(self, counts_bthw: Tensor, turn_b: Tensor | None) -> np.ndarray:
        valid_bthw = torch.from_numpy(counts_bthw.numpy() != MISSING_COUNT)
        if turn_b is not None:
            valid_bthw = turn(valid_bthw, turn_b)
        counted_bl: np.ndarray = counted_patches(valid_bthw.numpy())
        return counted_bl

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
        masked_bl = output.counted_bl & ~output.visible_bl
        metrics = {
            "masked_error": _sum_and_count(output.error_bl, masked_bl),
            "visible_error": _sum_and_count(output.error_bl, output.counted_bl & output.visible_bl),
        }
        return StepOutput(loss=self.loss_sum(output), metrics=metrics, num_valid=batch.num_valid)


def _sum_and_count(error_bl: Tensor, chosen_bl: Tensor) -> Tensor:
    errors = torch.where(chosen_bl, error_bl.detach(), 0.0)
    return torch.stack([errors.sum().double(), chosen_bl.sum().double()])
