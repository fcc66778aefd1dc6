"""What every task has in common: its batches, what a step gives back, and what is drawn for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...data.randomness import generator
from ...data.stream.stream import Batch
from ...data.units import MISSING_COUNT

Places = Sequence[tuple[int, ...]]
"""What decides each window's draws: (global step, index in the global batch), or (row of the window table,)."""


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
class PreparedBatch:
    """One rank's part of a micro-batch with everything random about it, drawn on the host.

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
        tensors: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                pinned = value if value.is_pinned() else value.pin_memory()
                tensors[item.name] = pinned.to(device, non_blocking=True)
        return replace(self, **tensors)

    def rain(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Turn counts into rain, turned as drawn: (mm/h, 0 where missing; valid, or None where nothing is missing)."""
        counts_bthw = self.counts_bthw.to(dtype)
        if self.turn_b is not None:
            counts_bthw = turn(counts_bthw, self.turn_b)
        rain_mmh_bthw = counts_bthw * self.scale_mmh_b.to(dtype).view(-1, 1, 1, 1)
        if not self.has_missing:
            return rain_mmh_bthw, None
        valid_bthw = counts_bthw != MISSING_COUNT
        return torch.where(valid_bthw, rain_mmh_bthw, 0.0), valid_bthw


class Task(Protocol):
    """A loss over windows, as the loop sees it."""

    def prepare(self, batch: Batch) -> Any:
        """Draw on the host what is random for a training batch, and count its terms: a `PreparedBatch`."""

    def step(self, model: Callable[..., Any], batch: Any) -> StepOutput:
        """Compute the sum of the loss' terms of such a batch on the model's device."""


def turn(frames_bhw: Tensor, turn_b: Tensor) -> Tensor:
    """Flip and transpose each image by its own code; the last two dimensions are rows and columns.

    Codes as in `PreparedBatch.turn_b`; all eight are the symmetries of the square (dihedral group of order 8).
    """
    shape = (-1,) + (1,) * (frames_bhw.dim() - 1)
    columns, rows, transposed = ((turn_b >> bit & 1).bool().view(shape) for bit in range(3))
    turned = torch.where(columns, frames_bhw.flip(-1), frames_bhw)
    turned = torch.where(rows, turned.flip(-2), turned)
    if frames_bhw.shape[-1] == frames_bhw.shape[-2]:
        turned = torch.where(transposed, turned.transpose(-1, -2), turned)
    return turned


def places_of(batch: Batch) -> Places:
    """Give what decides the draws of a training batch's windows, whatever rank holds them."""
    return [(batch.step, int(index)) for index in batch.index_b]


def draw_turns(seed: int, places: Places, *, square: bool) -> Tensor:
    """Draw a code of `turn` for each window, (b,): all eight for square frames, the four flips for others."""
    draws = [int(generator(seed, "turn", *place).integers(8 if square else 4)) for place in places]
    return torch.tensor(draws, dtype=torch.int64)


def draw_depth(seed: int, places: Places, rates_k: npt.NDArray[np.float64], dtype: torch.dtype) -> Tensor | None:
    """Draw which residual branches each window keeps, (k, b): 0 or 1 / (1 - rate); None where all are kept.

    Stochastic depth, Huang et al. 2016, https://arxiv.org/abs/1603.09382, scaled while training so that the mean stays.
    """
    if not rates_k.any():
        return None
    keep_bk = [(generator(seed, "depth", *place).random(rates_k.size) >= rates_k) / (1 - rates_k) for place in places]
    return torch.from_numpy(np.stack(keep_bk, axis=1)).to(dtype)


def mark_padding_missing(batch: Batch) -> npt.NDArray[np.bool_]:
    """Make all padding missing, so that no term comes of it; tell which windows are real, (b,)."""
    real_b: npt.NDArray[np.bool_] = batch.window_b >= 0
    if not real_b.all():
        batch.counts_bthw.numpy()[~real_b] = MISSING_COUNT
    return real_b
