"""A task: a loss over windows, with its batches and with what is drawn for them; the loop knows no other kind."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...data.randomness import generator
from ...data.stream.stream import Batch
from ...data.units import MISSING_COUNT, ModelSpace
from ...models.masking import visible_positions

DrawKeys = Sequence[tuple[int, ...]]
"""What decides the draws of each window: (global step, index in the global batch), or (row of the window table,)."""


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """The result of a task's step on one rank's part of a micro-batch.

    Attributes:
        loss: Sum of the loss' terms, a scalar to differentiate.
        metrics: Further means to report, as detached (sum, count) pairs, (2,); the same names in every step.
        num_valid: Terms in that sum.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    num_valid: int


@dataclass(frozen=True, kw_only=True)
class PreparedBatch:
    """One rank's part of a micro-batch, with everything random about it drawn on the host.

    Attributes:
        counts_bthw: Counts, uint16.
        turn_b: Flips and quarter turns, 0 to 7 (bit 0: columns, bit 1: rows, bit 2: transposed), int64; None for none.
        depth_keep_kb: Multiplier of each residual branch and image, float32; None without stochastic depth.
        scale_mmh_b: Rain of one count of each window, mm/h.
        has_missing: Whether any pixel may be missing.
        num_valid: Terms of the loss in it.
    """

    counts_bthw: Tensor
    turn_b: Tensor | None
    depth_keep_kb: Tensor | None
    scale_mmh_b: Tensor
    has_missing: bool
    num_valid: int

    def to(self, device: torch.device) -> Self:
        """Copy the tensors to a device, without waiting where the memory is pinned."""
        if device.type == "cpu":
            return self
        # Pinned memory makes the copy asynchronous, and what is not pinned yet becomes so here.
        tensors: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                pinned = value if value.is_pinned() else value.pin_memory()
                tensors[item.name] = pinned.to(device, non_blocking=True)
        return replace(self, **tensors)

    def rain(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Turn counts into rain, turned as drawn: (mm/h, 0 where missing; valid, or None where nothing is missing)."""
        # Turned before they are scaled: the mark of a missing pixel is a count.
        counts_bthw = self.counts_bthw.to(dtype)
        if self.turn_b is not None:
            counts_bthw = turn(counts_bthw, self.turn_b)
        rain_mmh_bthw = counts_bthw * self.scale_mmh_b.to(dtype).view(-1, 1, 1, 1)
        if not self.has_missing:
            return rain_mmh_bthw, None
        valid_bthw = counts_bthw != MISSING_COUNT
        return torch.where(valid_bthw, rain_mmh_bthw, 0.0), valid_bthw


@dataclass(kw_only=True, eq=False)
class Task(ABC):
    """A loss over windows, as the loop sees it.

    Attributes:
        space: The model's space.
        mask_ratio: Share of the patches that are hidden.
        depth_rates: Drop probability of each residual branch; empty without stochastic depth.
        augment: Draw flips and quarter turns.
        seed: The run's seed.
        dtype: Floating type of the model's input.
    """

    space: ModelSpace
    mask_ratio: float
    depth_rates: Sequence[float]
    augment: bool
    seed: int
    dtype: torch.dtype

    @abstractmethod
    def prepare(self, batch: Batch) -> PreparedBatch:
        """Draw on the host what is random for a training batch, and count its terms."""

    @abstractmethod
    def step(self, model: Callable[..., Any], batch: Any) -> StepOutput:
        """Compute the sum of the loss' terms of a prepared batch on the model's device."""

    def draw_visible(self, purpose: str, keys_b: DrawKeys, grid_hw: tuple[int, int]) -> npt.NDArray[np.int64]:
        """Draw the positions of each window's visible patches, (b, v), sorted."""
        generators = (generator(self.seed, purpose, *keys) for keys in keys_b)
        return np.stack([visible_positions(grid_hw, self.mask_ratio, draws) for draws in generators])

    def draw_turns(self, keys_b: DrawKeys, size_hw: tuple[int, int]) -> Tensor | None:
        """Draw a code of `turn` for each window, (b,): all eight for square frames, the four flips for others."""
        if not self.augment:
            return None
        # A frame that is not square keeps its shape under flips only.
        num_codes = 8 if size_hw[0] == size_hw[1] else 4
        codes = [int(generator(self.seed, "turn", *keys).integers(num_codes)) for keys in keys_b]
        return torch.tensor(codes, dtype=torch.int64)

    def draw_depth(self, keys_b: DrawKeys) -> Tensor | None:
        """Draw which residual branches each window keeps, (k, b): 0 or 1 / (1 - rate); None where all are kept.

        Stochastic depth, Huang et al. 2016, https://arxiv.org/abs/1603.09382, scaled while training so that the mean
        stays.
        """
        rates_k = np.asarray(self.depth_rates, dtype=np.float64)
        if not rates_k.any():
            return None
        # One stream a window: a window draws the same, whatever shares its batch.
        draws_bk = [generator(self.seed, "depth", *keys).random(rates_k.size) for keys in keys_b]
        keep_bk = [(draws_k >= rates_k) / (1 - rates_k) for draws_k in draws_bk]
        return torch.from_numpy(np.stack(keep_bk, axis=1)).to(self.dtype)


def turn(frames_bhw: Tensor, turn_b: Tensor) -> Tensor:
    """Flip and transpose each image by its own code; the last two dimensions are rows and columns.

    Codes as in `PreparedBatch.turn_b`; all eight are the symmetries of the square (dihedral group of order 8).
    """
    shape = (-1,) + (1,) * (frames_bhw.dim() - 1)
    # One bit each; all images go through the same operations, and `where` picks.
    columns, rows, transposed = ((turn_b >> bit & 1).bool().view(shape) for bit in range(3))
    turned = torch.where(columns, frames_bhw.flip(-1), frames_bhw)
    turned = torch.where(rows, turned.flip(-2), turned)
    if frames_bhw.shape[-1] == frames_bhw.shape[-2]:
        turned = torch.where(transposed, turned.transpose(-1, -2), turned)
    return turned


def draw_keys(batch: Batch) -> DrawKeys:
    """Give what decides the draws of a training batch's windows, whatever rank holds them."""
    return [(batch.step, int(index)) for index in batch.index_b]


def mark_padding_missing(batch: Batch) -> npt.NDArray[np.bool_]:
    """Make all padding missing, so that no term comes of it; return which windows are real, (b,)."""
    real_b: npt.NDArray[np.bool_] = batch.window_b >= 0
    if not real_b.all():
        batch.counts_bthw.numpy()[~real_b] = MISSING_COUNT
    return real_b
