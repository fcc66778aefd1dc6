"""Extrapolation that loses detail with lead time, as weather does: small features live shorter than large ones."""

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMOOTHING_PX: Final = (0.0, 2.0, 4.0, 8.0, 16.0)
"""Standard deviations of the Gaussians between which a lead time chooses."""
DETAIL_LOST_PX: Final = 0.7
"""Smoothing that a lead time starts with, pixels a frame: on KNMI's composites 0.5 to 0.8 gave the best CSI at 0.5 to
2 mm/h with the rain rates matched, 0.43 instead of 0.40 at 0.5 mm/h and 60 minutes."""
SPREAD: Final = 0.6
"""Width of the first choice, in the logarithm of the smoothing."""


class Blend(nn.Module):
    """A field for each lead time, from one: a weighted mean of it at several smoothings, with learned weights.

    The idea is S-PROG's (Seed 2003, doi:10.1175/1520-0450(2003)042<0381:ADASSA>2.0.CO;2): scales are damped as they
    lose their predictability.

    Args:
        num_leads: lead times.
    """

    def __init__(self, num_leads: int) -> None:
        super().__init__()
        wanted = torch.log1p(DETAIL_LOST_PX * torch.arange(1, num_leads + 1))
        offered = torch.tensor([math.log1p(deviation) for deviation in SMOOTHING_PX])
        logits = -((wanted[:, None] - offered[None]) ** 2) / (2 * SPREAD**2)
        # One-dimensional, so that weight decay leaves it alone: zero is no more likely than another weight.
        self.logits = nn.Parameter(logits.flatten())

    def forward(self, field_b1hw: Tensor) -> Tensor:
        """Smooth.

        Args:
            field_b1hw: model space, nothing missing.

        Returns:
            (b, leads, h, w).
        """
        with torch.no_grad():
            levels_bshw = torch.cat([smooth(field_b1hw, deviation) for deviation in SMOOTHING_PX], dim=1)
        weights_ls = self.logits.view(-1, len(SMOOTHING_PX)).softmax(1)
        return F.conv2d(levels_bshw, weights_ls[:, :, None, None].to(levels_bshw.dtype))


def smooth(field_b1hw: Tensor, deviation_px: float) -> Tensor:
    """Smooth with a Gaussian; the field goes on beyond its borders as it is there."""
    if deviation_px == 0:
        return field_b1hw
    height, width = field_b1hw.shape[-2:]
    # A wide Gaussian of a field is one of its coarse means: at least 2 coarse pixels wide, they are not seen.
    factor = max(1, round(deviation_px / 2))
    coarse = F.avg_pool2d(field_b1hw, factor, ceil_mode=True, count_include_pad=False)
    # Means over squares and the way back between them smooth too: variances of factor^2 / 12 and / 6.
    deviation = math.sqrt(deviation_px**2 - (factor**2 / 4 if factor > 1 else 0)) / factor
    radius = math.ceil(3 * deviation)
    offsets = torch.arange(-radius, radius + 1, dtype=coarse.dtype, device=coarse.device)
    kernel = torch.exp(-(offsets**2) / (2 * deviation**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(coarse, (radius,) * 4, mode="replicate")
    smoothed = F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    if factor == 1:
        return smoothed
    # Back on the fine grid, whose last coarse pixel may be cut.
    fine = F.interpolate(smoothed, scale_factor=factor, mode="bilinear", align_corners=False)
    return fine[..., :height, :width]
