"""What one step computes: from a batch of counts to the sum of a loss' terms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from data.randomness import generator
from data.stream import Batch
from data.units import MISSING_COUNT, ModelSpace
from models.masking import visible_positions
from models.spark import SparK, SparKOutput, counted_patches, num_terms

_Batch = TypeVar("_Batch")


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What a task's step hands to the loop.

    Attributes:
        loss: Sum of the loss' terms over this rank's part of the micro-batch, a scalar to differentiate.
        metrics: Further means to report, as detached (sum, count) pairs, (2,); the same names in every step.
        num_valid: Terms in that sum.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    num_valid: int


@dataclass(frozen=True, kw_only=True)
class PretrainBatch:
    """One rank's part of a micro-batch with everything random about it, drawn on the host.

    Attributes:
        counts_bthw: Counts, uint16.
        visible_bv: Flat positions of the visible patches, sorted, int64.
        turn_b: Flips and quarter turns, 0 to 7 (bit 0: columns, bit 1: rows, bit 2: transposed), int64; None for none.
        depth_keep_kb: Multiplier of each residual branch and image, float32; None without stochastic depth.
        scale_mmh: Rain of one count, mm/h.
        has_missing: Whether any pixel may be missing.
        num_valid: Terms of the loss in it.
    """

    counts_bthw: Tensor
    visible_bv: Tensor
    turn_b: Tensor | None
    depth_keep_kb: Tensor | None
    scale_mmh: float
    has_missing: bool
    num_valid: int

    def to(self, device: torch.device) -> Self:
        """Copy the tensors to a device, without waiting where the memory is pinned."""
        return moved(self, device)


def moved(batch: _Batch, device: torch.device) -> _Batch:
    """Copy a batch's tensors to a device, without waiting where the memory is pinned."""
    if device.type == "cpu":
        return batch
    tensors: dict[str, Tensor] = {}
    for item in fields(batch):  # type: ignore[arg-type]
        value = getattr(batch, item.name)
        if isinstance(value, Tensor):
            pinned = value if value.is_pinned() else value.pin_memory()
            tensors[item.name] = pinned.to(device, non_blocking=True)
    return replace(batch, **tensors)  # type: ignore[type-var]


class Prepared(Protocol):
    """One rank's part of a micro-batch, with everything random about it drawn."""

    @property
    def num_valid(self) -> int:
        """Terms of the loss in it."""

    def to(self, device: torch.device) -> Self:
        """Copy its tensors to a device."""


class Task(Protocol):
    """A loss over windows, as the loop sees it."""

    def prepare(self, batch: Batch) -> Any:
        """Draw on the host what is random for a training batch, and count its terms: a `Prepared` of this task's."""

    def step(self, model: Callable[..., Any], batch: Any) -> StepOutput:
        """Compute the sum of the loss' terms of such a batch on the model's device."""


def turn(frames_bhw: Tensor, turn_b: Tensor) -> Tensor:
    """Flip and transpose each image by its own code; the last two dimensions are rows and columns.

    Codes as in `PretrainBatch.turn_b`; all eight are the symmetries of the square (dihedral group of order 8).
    """
    shape = (-1,) + (1,) * (frames_bhw.dim() - 1)
    columns, rows, transposed = ((turn_b >> bit & 1).bool().view(shape) for bit in range(3))
    turned = torch.where(columns, frames_bhw.flip(-1), frames_bhw)
    turned = torch.where(rows, turned.flip(-2), turned)
    if frames_bhw.shape[-1] == frames_bhw.shape[-2]:
        turned = torch.where(transposed, turned.transpose(-1, -2), turned)
    return turned


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
        places = [(batch.step, int(index)) for index in batch.index_b]
        turn_b = depth_keep_kb = None
        if self.augment:
            codes = 8 if self.grid_hw[0] == self.grid_hw[1] else 4
            draws = [int(generator(self.seed, "turn", *place).integers(codes)) for place in places]
            turn_b = torch.tensor(draws, dtype=torch.int64)
        if self.depth_rates.any():
            rates = self.depth_rates
            keep_bk = [
                (generator(self.seed, "depth", *place).random(rates.size) >= rates) / (1 - rates) for place in places
            ]
            depth_keep_kb = torch.from_numpy(np.stack(keep_bk, axis=1)).to(self.dtype)
        return self._prepared(batch, "mask", places, turn_b, depth_keep_kb)

    def prepare_held_out(self, batch: Batch) -> PretrainBatch:
        """Draw fixed masks from (seed, purpose, window): equal for every evaluation of a run, world size or place."""
        return self._prepared(batch, "held-out mask", [(int(window),) for window in batch.window_b], None, None)

    def _prepared(
        self,
        batch: Batch,
        purpose: str,
        places: Sequence[tuple[int, ...]],
        turn_b: Tensor | None,
        depth_keep_kb: Tensor | None,
    ) -> PretrainBatch:
        real_b = batch.window_b >= 0
        if not real_b.all():
            # Padding of an evaluation: nothing in it is valid, so that no term comes of it.
            batch.counts_bthw.numpy()[~real_b] = MISSING_COUNT
        positions = [
            visible_positions(self.grid_hw, self.mask_ratio, generator(self.seed, purpose, *place)) for place in places
        ]
        visible_bv = np.stack(positions)
        counted_bl = None
        if batch.has_missing:
            counted_bl = self._counted(batch.counts_bthw[torch.from_numpy(real_b)], turn_b)
        return PretrainBatch(
            counts_bthw=batch.counts_bthw,
            visible_bv=torch.from_numpy(visible_bv),
            turn_b=turn_b,
            depth_keep_kb=depth_keep_kb,
            scale_mmh=batch.scale_mmh,
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
        counts_bthw = batch.counts_bthw.to(self.dtype)
        if batch.turn_b is not None:
            counts_bthw = turn(counts_bthw, batch.turn_b)
        frames_bthw = self.space.from_mmh(counts_bthw * batch.scale_mmh)
        if not batch.has_missing:
            return frames_bthw, None
        valid_bthw = counts_bthw != MISSING_COUNT
        return torch.where(valid_bthw, frames_bthw, 0.0), valid_bthw

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
