"""LAMB where every rank holds slices of the parameters (ZeRO 1 to 3): the trust ratio of each whole parameter."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .optimizers import Lamb, square_norm, trust_ratio


class PartitionedLamb(Lamb):
    """`Lamb` over flat parts, each of which holds this rank's slices of a group's parameters.

    The squared norms of a parameter and of its update are summed over its slices in float64, in one small all-reduce a
    group, so that the ratio does not depend on how the parameters are cut. `lay_out` comes before the first step.
    """

    _slices: Mapping[Tensor, Sequence[slice]]

    def lay_out(self, slices: Mapping[Tensor, Sequence[slice]]) -> None:
        """State where the parameters lie.

        Args:
            slices: By flat part, the place of each parameter of its group, in the same order on all ranks; empty for
                a parameter that other ranks hold. Padding belongs to none.
        """
        self._slices = slices

    def _scale(self, parameter: Tensor, update: Tensor) -> None:
        """Multiply each slice of a flat update by its parameter's trust ratio; collective."""
        slices = self._slices[parameter]
        squares_2n = torch.stack([square_norm(flat[piece]) for flat in (parameter, update) for piece in slices])
        dist.all_reduce(squares_2n)
        ratios = trust_ratio(squares_2n[: len(slices)], squares_2n[len(slices) :]).to(update.dtype)
        for piece, ratio in zip(slices, ratios.unbind(), strict=True):
            update[piece].mul_(ratio)
