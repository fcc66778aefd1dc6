"""A loss that asks the verification's question: does it rain more than this, here, then? Blur does not pay under it."""

import math
from typing import Final

import torch
from torch import Tensor

from ..losses import measured

EVENTS_MMH: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Thresholds of the verification."""
EVENT_WEIGHTS: Final = (0.5, 1.0, 1.0, 1.0, 0.5, 0.25)
"""Shares of the thresholds: the rare ones are noisy, and the least is near what radar can tell from nothing (ours)."""
OFFSET_MMH: Final = 0.2
"""Rain is compared as log(1 + R / offset), close to linear below it (ours)."""
SOFTNESS: Final = 0.2
"""Width of the soft threshold in that logarithm: about 20% of the rain rate (ours)."""
SMOOTHING_PX: Final = 20.0
"""Pixels added to areas, so that a frame with hardly an event counts for little (ours)."""
AREA_WEIGHT: Final = 0.1
"""Weight of the squared logarithm of the frequency bias: what CSI alone would gain by forecasting too much (ours)."""
SQUARES_WEIGHT: Final = 0.2
"""Weight of the mean squared error in log(1 + R / offset), which gives far-off pixels a slope (ours)."""


def event_loss(forecast_mmh_bthw: Tensor, target_mmh_bthw: Tensor, valid_bthw: Tensor | None = None) -> Tensor:
    """Give each window 1 - CSI over thresholds and lead times, with a price on bias and on squared error, (b,).

    CSI is hits / (hits + misses + false alarms) (Donaldson et al. 1975) with the soft event
    e = sigmoid((L(R) - L(threshold)) / softness) in place of the forecast's hard one, L(R) = log(1 + R / offset); each
    frame's areas are sums over its pixels (the soft Jaccard index, Rahman and Wang 2016,
    doi:10.1007/978-3-319-50835-1_22). An event is rain above the threshold, as in the verification.

    At 0 mm/h the soft event of the least threshold is still 0.12: dry pixels are cheapest at -0.1 to -0.2 mm/h, and are
    to be set to 0 in a forecast.

    Args:
        forecast_mmh_bthw: mm/h; below 0 the logarithm goes on as a straight line.
        target_mmh_bthw: mm/h.
        valid_bthw: bool, False where a pixel is missing; None: none is. A frame without a measured pixel costs nothing,
            a window without one gives 0.

    Raises:
        ValueError: shapes that differ.
    """
    forecast_mmh, target_mmh = measured(forecast_mmh_bthw, target_mmh_bthw, valid_bthw)
    valid = torch.ones_like(target_mmh) if valid_bthw is None else valid_bthw.to(target_mmh.dtype)
    forecast, target = _logarithm(forecast_mmh), _logarithm(target_mmh)

    # A soft table of hits, misses and false alarms for each threshold and frame.
    loss_b = torch.zeros_like(forecast[:, 0, 0, 0])
    for threshold, weight in zip(EVENTS_MMH, EVENT_WEIGHTS, strict=True):
        level = math.log1p(threshold / OFFSET_MMH)
        predicted = torch.sigmoid((forecast - level) / SOFTNESS) * valid
        observed = (target_mmh > threshold).to(forecast.dtype) * valid
        predicted_bt = predicted.sum((2, 3))
        observed_bt = observed.sum((2, 3))
        hits_bt = (predicted * observed).sum((2, 3))
        csi_bt = (hits_bt + SMOOTHING_PX) / (predicted_bt + observed_bt - hits_bt + SMOOTHING_PX)
        bias_bt = ((predicted_bt + SMOOTHING_PX) / (observed_bt + SMOOTHING_PX)).log()
        loss_b = loss_b + weight * (1 - csi_bt + AREA_WEIGHT * bias_bt.square()).mean(1)

    squares_b = ((forecast - target).square() * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3)).clamp(min=1)
    return loss_b / sum(EVENT_WEIGHTS) + SQUARES_WEIGHT * squares_b


def _logarithm(rain_mmh: Tensor) -> Tensor:
    # Below zero the line goes on straight, so that a dry pixel that should rain feels a slope.
    return torch.where(rain_mmh > 0, torch.log1p(rain_mmh.clamp(min=0) / OFFSET_MMH), rain_mmh / OFFSET_MMH)
