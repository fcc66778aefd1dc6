"""Rain split by scale, each scale forecast by how long this window's own rain keeps it."""

import itertools
from typing import Final

import torch
from torch import Tensor, nn

from .blend import smooth
from .motion import DRIZZLE_MMH, MARGIN_PX, Carried, Space

SCALES_PX: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Standard deviations of the Gaussians between which the levels lie, finest first: the strides of the decoder."""
NUM_LEVELS: Final = len(SCALES_PX)
LEAST_CORRELATION, MOST_CORRELATION = 0.02, 0.99999
"""Correlations are kept between these, where their logit is finite. Rain at 32 pixels correlates by 0.998 from frame to
frame on four of five events, and how that falls with the lag tells its trend: with at most 0.995 MeteoSwiss' squared
error was 2 to 5% larger, FMI's 1 to 2%, and no event's smaller (tests/bench/RESULTS.md)."""
BORDER_SHARE: Final = 1 / 8
"""Share of a side that correlations leave out at each border: there flows in what the frame before did not hold."""
RIDGE: Final = 1e-3
"""Added to what a scale's two frames differ by (its share of the variance), which is divided by (ours): CSI above 0.5
mm/h was lower with 0.01 and with 0.03 on all of four events."""
MOST_CHANGE: Final = 2.0
"""Most that a scale's last change may count for, however steadily it seems to grow: a frame with a fault would count as
much. Untrained, CSI above 0.5 mm/h on Melbourne's radar is 0.559, 0.566 and 0.569 with 1, 2 and 4 (S-PROG 0.563)."""
DRY_DEPTH: Final = 0.3
"""Start of the learned depth of dry pixels below no rain, model space."""
STRIDE: Final = 10.0
"""The few weights that all pixels share are kept divided by it: an optimizer moves every weight about as far a step,
and these have further to go than a convolution's."""


class Cascade(nn.Module):
    """A field for each lead time from the last two frames: a sum of their scales, each kept for as long as it lives.

    S-PROG (Seed 2003, doi:10.1175/1520-0450(2003)042<0381:ADASSA>2.0.CO;2) forecasts each scale by an autoregression of
    second order, fitted to three frames of the window. Here the correlation r(lag) of each scale with itself is
    measured along the rain's motion over all past frames, and the best linear forecast of a lead time from the last two
    frames x and y follows from the normal equations of that very lead time:

        d x + c (y - r(1) x),  d = r(lead),  c = (r(lead + 1) - r(1) r(lead)) / (1 - r(1)^2)

    d is corrected to sigmoid(offset + gain logit(r(lead))), and c by a factor; offsets, gains and factors are learned,
    and start at 0, 1 and 1. c is at most `MOST_CHANGE` either way.

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
        self.changes = nn.Parameter(torch.full((NUM_LEVELS * num_leads,), 1 / STRIDE))
        self.dry_depth = nn.Parameter(torch.full((1,), DRY_DEPTH / STRIDE))

    def forward(self, carried: Carried, space: Space) -> tuple[Tensor, Tensor, Tensor]:
        """Split, and forecast every scale.

        Args:
            carried: a window.
            space: of its frames.

        Returns:
            The forecast fields (b, leads, h, w); the last frame's levels (b, levels, h, w); and what is left of each,
            (b, levels, leads): the square root of the share of its variance that is forecast, 1 for all of it.
        """
        last_b1hw = carried.canvas_b1hw
        # Beyond the frame the one before is not known apart: it takes the last one's guess.
        before_b1hw = last_b1hw.clone()
        inner = slice(MARGIN_PX, -MARGIN_PX)
        before_b1hw[..., inner, inner] = carried.known_bthw[:, -2:-1].to(last_b1hw.dtype)

        drizzle = space.from_mmh(last_b1hw.new_tensor(DRIZZLE_MMH))
        depth = STRIDE * self.dry_depth.to(last_b1hw.dtype).clamp(min=0)
        last_bshw, before_bshw = (
            split(torch.where(field < drizzle, -depth, field)) for field in (last_b1hw, before_b1hw)
        )

        with torch.no_grad():
            correlation_bsl = correlations(carried.known_bthw.to(last_b1hw.dtype), self.num_leads + 1)
            first_bs1, wanted_bsl = correlation_bsl[..., :1], correlation_bsl[..., :-1]
            next_bsl = correlation_bsl[..., 1:]
            unlike_bs1 = 1 - first_bs1.square()
            change_bsl = (next_bsl - first_bs1 * wanted_bsl) / (unlike_bs1 + RIDGE)
        shape = (NUM_LEVELS, self.num_leads)
        offsets_sl, gains_sl, factors_sl = (
            STRIDE * weight.to(last_b1hw.dtype).view(shape) for weight in (self.offsets, self.gains, self.changes)
        )
        damping_bsl = torch.sigmoid(offsets_sl + gains_sl * torch.logit(wanted_bsl))
        # What is lost does not come back.
        damping_bsl = damping_bsl.cummin(2).values
        change_bsl = (factors_sl * change_bsl).clamp(-MOST_CHANGE, MOST_CHANGE)

        # The mean of the coarsest level stays: what is damped is what that level differs by from it.
        mean_b1 = last_bshw[:, -1].mean((1, 2)).unsqueeze(1)
        own_bsl = damping_bsl - first_bs1 * change_bsl
        field_blhw = torch.einsum("bshw,bsl->blhw", last_bshw, own_bsl)
        field_blhw = field_blhw + torch.einsum("bshw,bsl->blhw", before_bshw, change_bsl)
        means_bl = own_bsl[:, -1] * mean_b1 + change_bsl[:, -1] * before_bshw[:, -1].mean((1, 2)).unsqueeze(1)
        field_blhw = field_blhw + (mean_b1 - means_bl)[:, :, None, None]

        # x and y - r(1) x are uncorrelated: their shares of the variance add up.
        kept_bsl = (damping_bsl.square() + unlike_bs1 * change_bsl.square()).clamp(max=1).sqrt().cummin(2).values
        return field_blhw, last_bshw, kept_bsl


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
