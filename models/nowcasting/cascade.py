"""Rain split by scale, each scale damped as fast as this window's own rain loses it."""

import itertools
from typing import Final

import torch
from torch import Tensor, nn

from .blend import smooth
from .motion import DRIZZLE_MMH, Carried, Space

SCALES_PX: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Standard deviations of the Gaussians between which the levels lie, finest first: the strides of the decoder."""
NUM_LEVELS: Final = len(SCALES_PX)
LEAST_CORRELATION, MOST_CORRELATION = 0.02, 0.995
"""Correlations are kept between these, where their logit is finite and sampling noise does not rule it."""
BORDER_SHARE: Final = 1 / 8
"""Share of a side that correlations leave out at each border: there flows in what the frame before did not hold."""
DRY_DEPTH: Final = 0.3
"""Start of the learned depth of dry pixels below no rain, model space."""
STRIDE: Final = 10.0
"""The few weights that all pixels share are kept divided by it: an optimizer moves every weight about as far a step,
and these have further to go than a convolution's."""


class Cascade(nn.Module):
    """A field for each lead time from the last frame: a sum of its scales, each damped by how long it lives.

    S-PROG (Seed 2003, doi:10.1175/1520-0450(2003)042<0381:ADASSA>2.0.CO;2) follows the scales' lifetimes by an
    autoregression that it fits to three frames of the window. Here the correlation of each scale with itself is
    measured along the rain's motion over all past frames, lag by lag, and the damping at a lead time is
    sigmoid(offset + gain logit(correlation at that lag)): offsets and gains are learned, and start at 0 and 1.

    Dry pixels stand a learned depth below no rain, so that smoothing does not spread the rain's edges into them.

    Args:
        num_leads: lead times.
    """

    def __init__(self, num_leads: int) -> None:
        super().__init__()
        self.num_leads = num_leads
        # One-dimensional, so that weight decay leaves them alone: zero is no more likely than another weight.
        self.offsets = nn.Parameter(torch.zeros(NUM_LEVELS * num_leads))
        self.gains = nn.Parameter(torch.full((NUM_LEVELS * num_leads,), 1 / STRIDE))
        self.dry_depth = nn.Parameter(torch.full((1,), DRY_DEPTH / STRIDE))

    def forward(self, carried: Carried, space: Space) -> tuple[Tensor, Tensor, Tensor]:
        """Split and damp.

        Args:
            carried: a window.
            space: of its frames.

        Returns:
            The damped fields (b, leads, h, w), the levels (b, levels, h, w) and their damping (b, levels, leads).
        """
        canvas = carried.canvas_b1hw
        drizzle = space.from_mmh(canvas.new_tensor(DRIZZLE_MMH))
        depth = STRIDE * self.dry_depth.to(canvas.dtype).clamp(min=0)
        levels_bshw = split(torch.where(canvas < drizzle, -depth, canvas))

        # What is damped is what the coarsest level differs by from its mean; the mean itself stays.
        mean_b1 = levels_bshw[:, -1].mean((1, 2)).unsqueeze(1)
        with torch.no_grad():
            correlation_bsl = correlations(carried.past_bthw.to(canvas.dtype), self.num_leads)
        shape = (NUM_LEVELS, self.num_leads)
        offsets_sl, gains_sl = (STRIDE * weight.to(canvas.dtype).view(shape) for weight in (self.offsets, self.gains))
        damping_bsl = torch.sigmoid(offsets_sl + gains_sl * torch.logit(correlation_bsl))
        # What is lost does not come back.
        damping_bsl = damping_bsl.cummin(2).values

        damped_blhw = torch.einsum("bshw,bsl->blhw", levels_bshw, damping_bsl)
        lost_bl = (1 - damping_bsl[:, -1]) * mean_b1
        return damped_blhw + lost_bl[:, :, None, None], levels_bshw, damping_bsl


def split(field_b1hw: Tensor) -> Tensor:
    """Split a field into what lies between neighbouring Gaussians, (b, levels, h, w); the levels' sum is the field."""
    smoothed = [smooth(field_b1hw, deviation) for deviation in SCALES_PX]
    finer = [fine - coarse for fine, coarse in itertools.pairwise(smoothed)]
    return torch.cat([*finer, smoothed[-1]], dim=1)


def correlations(past_bthw: Tensor, num_lags: int) -> Tensor:
    """Correlate each scale with itself along the rain's motion, lag by lag, (b, levels, lags).

    The correlation at a lag is over all pairs of frames that far apart, and over the middle of the frame. Lags that the
    frames do not reach go on at the last step's rate.

    Args:
        past_bthw: past frames moved on to the last one's time, nothing missing, at least 2.
        num_lags: lags, in frames.
    """
    batch, num_past, rows, cols = past_bthw.shape
    top, left = int(rows * BORDER_SHARE), int(cols * BORDER_SHARE)
    levels = split(past_bthw.reshape(-1, 1, rows, cols))[..., top : rows - top, left : cols - left]
    levels = levels - levels.mean((2, 3), keepdim=True)
    levels_btsp = levels.reshape(batch, num_past, NUM_LEVELS, -1)

    # Sums over frames and pixels; a level without variation is forgotten at once.
    power_bts = levels_btsp.square().sum(3)
    lags = []
    for lag in range(1, min(num_past, num_lags + 1)):
        together_bs = (levels_btsp[:, lag:] * levels_btsp[:, :-lag]).sum((1, 3))
        power_bs = power_bts[:, lag:].sum(1) * power_bts[:, :-lag].sum(1)
        lags.append(together_bs / power_bs.clamp(min=torch.finfo(power_bs.dtype).tiny).sqrt())
    measured = torch.stack(lags, dim=2).clamp(LEAST_CORRELATION, MOST_CORRELATION)

    # Beyond the longest lag: the same share is lost at every further step.
    before = measured[..., -2:-1] if measured.shape[2] > 1 else torch.ones_like(measured[..., -1:])
    rate = (measured[..., -1:] / before).clamp(max=1.0)
    beyond = torch.arange(1, num_lags - measured.shape[2] + 1, dtype=measured.dtype, device=measured.device)
    further = measured[..., -1:] * rate**beyond
    return torch.cat([measured, further], dim=2).clamp(LEAST_CORRELATION, MOST_CORRELATION)
