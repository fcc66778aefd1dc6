"""The loss of an ensemble: almost fair CRPS, of pixels and of means over squares."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

ALMOST: Final = 0.95
"""alpha of Lang et al. 2024 (AIFS-CRPS, arXiv:2412.15832), equation 4: 1 is the fair CRPS, under which all members but
one may be anything where that one is right."""
SQUARES_PX: Final = (1, 4, 16)
"""Sides of the squares over which members and radar are averaged before they are compared: under pixels alone, noise
without structure would do."""


def ensemble_loss(members_bmthw: Tensor, target_bthw: Tensor, valid_bthw: Tensor | None = None) -> Tensor:
    """Sum the almost fair CRPS of pixels and of squares, each a mean over what was measured, (b,).

    Args:
        members_bmthw: at least 2 members.
        target_bthw: of the same space.
        valid_bthw: bool, False where a pixel is missing; None: none is. A square with a missing pixel, or beyond the
            border, is left out; a window without any costs nothing.

    Raises:
        ValueError: shapes that do not fit each other, or one member.
    """
    batch, num_members, leads, rows, cols = members_bmthw.shape
    if num_members < 2 or target_bthw.shape != (batch, leads, rows, cols):
        raise ValueError(
            f"members {tuple(members_bmthw.shape)}, target {tuple(target_bthw.shape)}; expected (b, 2 or more, t, h, "
            "w) and (b, t, h, w)"
        )

    valid = torch.ones_like(target_bthw) if valid_bthw is None else valid_bthw.to(target_bthw.dtype)
    if valid_bthw is not None:
        # What was not measured gives no slope, whatever stands there.
        target_bthw = torch.where(valid_bthw, target_bthw, 0.0)
        members_bmthw = torch.where(valid_bthw.unsqueeze(1), members_bmthw, 0.0)

    loss_b = target_bthw.new_zeros(batch)
    for side in SQUARES_PX:
        squares = (batch, num_members, leads, rows // side, cols // side)
        members = F.avg_pool2d(members_bmthw.flatten(0, 2), side).view(squares)
        target = F.avg_pool2d(target_bthw, side)
        whole = (F.avg_pool2d(valid, side) == 1).to(target.dtype)
        crps = almost_fair_crps(members, target) * whole
        loss_b = loss_b + crps.sum((1, 2, 3)) / whole.sum((1, 2, 3)).clamp(min=1)
    return loss_b


def almost_fair_crps(members_bmthw: Tensor, target_bthw: Tensor, almost: float = ALMOST) -> Tensor:
    """Compute alpha fair CRPS + (1 - alpha) CRPS of every pixel, (b, t, h, w).

    It is mean |x - y| - (1 - epsilon) / (2 M (M - 1)) sum |x_j - x_k| with epsilon = (1 - alpha) / M: Lang et al. 2024,
    arXiv:2412.15832, equation 4.

    Args:
        members_bmthw: at least 2 members.
        target_bthw: of the same space.
        almost: alpha.
    """
    num_members = members_bmthw.shape[1]
    error_bthw = (members_bmthw - target_bthw.unsqueeze(1)).abs().mean(1)
    # Sorted, the sum of |x_j - x_k| over all pairs is a weighted sum of the members.
    rank_m = torch.arange(num_members, dtype=members_bmthw.dtype, device=members_bmthw.device)
    weight_m = 2 * (2 * rank_m - num_members + 1)
    pairs_bthw = (members_bmthw.sort(dim=1).values * weight_m.view(-1, 1, 1, 1)).sum(1)
    share = (1 - (1 - almost) / num_members) / (2 * num_members * (num_members - 1))
    return error_bthw - share * pairs_bthw
