"""Probability matching: a forecast keeps where its rain lies and takes how strong it is from what was measured."""

from typing import Final

import torch
from torch import Tensor

SUM_STEP_MMH: Final = 2.0**-24
"""Sums of rain are kept in whole steps of this: integers add up to the same in any order, on any device."""


def match_distribution(
    forecast_mmh_bthw: Tensor, reference_mmh_bthw: Tensor, valid_bthw: Tensor | None = None
) -> Tensor:
    """Exchange each frame's rain rates for those of a measured field, rank by rank.

    A forecast that hedges its bets is smooth: too much drizzle, no cores. Its order of pixels is still the best guess
    of where it rains most; the rates of the last radar frame are the best guess of how much (Ebert 2001,
    doi:10.1175/1520-0493(2001)129<2461:AOAPMS>2.0.CO;2, probability matching). Where the measured field is mostly dry,
    so is the result. Equal forecast values get equal results: the mean of the rates that their ranks stand for.

    Args:
        forecast_mmh_bthw: forecast in mm/h.
        reference_mmh_bthw: field in mm/h, finite where valid, whose distribution is taken: one a window or a frame.
        valid_bthw: bool, False where that field is missing, one a window or a frame: distributions are compared
            over the other pixels; None: none is missing.

    Returns:
        The shape of the forecast; a frame with a value that is not finite, and one without a measured pixel, stays as
        it is. A pixel without a measurement gets the rate of its value among the measured ones,
        between two of them linearly.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    batch, leads, rows, cols = forecast_mmh_bthw.shape
    fields = [reference_mmh_bthw, *([] if valid_bthw is None else [valid_bthw])]
    if any(field.shape not in ((batch, 1, rows, cols), (batch, leads, rows, cols)) for field in fields):
        raise ValueError(
            f"forecast has shape {tuple(forecast_mmh_bthw.shape)}, measured field and validity "
            f"{[tuple(field.shape) for field in fields]}; expected {(batch, 1, rows, cols)}, or the forecast's"
        )

    # Frames that take from the same field are exchanged together.
    one_a_window = all(field.shape[1] == 1 for field in fields)
    groups = [slice(0, leads)] if one_a_window else [slice(lead, lead + 1) for lead in range(leads)]
    matched = forecast_mmh_bthw.clone()
    for window, frames_thw in enumerate(forecast_mmh_bthw):
        finite_t = torch.isfinite(frames_thw).all(2).all(1)
        for group in groups:
            reference_p, *valid_p = (
                field[window, group.start if field.shape[1] > 1 else 0].flatten() for field in fields
            )
            values_tp = frames_thw[group][finite_t[group]].flatten(1)
            matched[window, group][finite_t[group]] = _matched(values_tp, reference_p, *valid_p).view(-1, rows, cols)
    return matched


def _matched(values_tp: Tensor, reference_p: Tensor, valid_p: Tensor | None = None) -> Tensor:
    """Exchange the values of frames for those of one field."""
    if valid_p is None:
        return _exchanged(values_tp, reference_p)[0]
    if not valid_p.any():
        return values_tp
    rates_tp = torch.empty_like(values_tp)
    rates_tp[:, valid_p], values_tn, rates_tn = _exchanged(values_tp[:, valid_p], reference_p[valid_p])
    rates_tp[:, ~valid_p] = _between(values_tp[:, ~valid_p], values_tn, rates_tn)
    return rates_tp


def _exchanged(values_tn: Tensor, reference_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give each value the rate of its rank; besides, the values in order and their rates."""
    ordered_tn, order_tn = values_tn.sort(dim=1)
    reference_n = reference_n.to(values_tn.dtype).sort().values
    num = reference_n.numel()
    rank_n = torch.arange(num, device=reference_n.device)

    # Ranks of the first and the last value of each run of equal ones.
    differs = ordered_tn[:, 1:] != ordered_tn[:, :-1]
    first_tn, last_tn = torch.zeros_like(order_tn), torch.full_like(order_tn, num - 1)
    first_tn[:, 1:] = torch.where(differs, rank_n[1:], 0).cummax(1).values
    last_tn[:, :-1] = torch.where(differs, rank_n[1:], num).flip(1).cummin(1).values.flip(1) - 1

    # The mean rate of each run of ranks, from sums of whole steps.
    steps_n = (reference_n.double() / SUM_STEP_MMH).round().to(torch.int64)
    sums = torch.cat([steps_n.new_zeros(1), steps_n.cumsum(0)])
    mean_tn = (sums[last_tn + 1] - sums[first_tn]).double() * SUM_STEP_MMH / (last_tn - first_tn + 1)
    # A mean lies between the least and the most: so one rate, or equal ones, come out as they are.
    rates_tn = torch.clamp(mean_tn.to(reference_n.dtype), reference_n[first_tn], reference_n[last_tn])
    return torch.empty_like(rates_tn).scatter_(1, order_tn, rates_tn), ordered_tn, rates_tn


def _between(values_tm: Tensor, ordered_tn: Tensor, rates_tn: Tensor) -> Tensor:
    """Look up rates of other values: linear between two values in order, the end's beyond it."""
    above_tm = torch.searchsorted(ordered_tn, values_tm.contiguous()).clamp(max=ordered_tn.shape[1] - 1)
    below_tm = (above_tm - 1).clamp(min=0)
    low_tm, high_tm = ordered_tn.gather(1, below_tm), ordered_tn.gather(1, above_tm)
    rate_low_tm, rate_high_tm = rates_tn.gather(1, below_tm), rates_tn.gather(1, above_tm)
    share_tm = ((values_tm - low_tm) / (high_tm - low_tm)).clamp(0, 1)
    return torch.where(high_tm > low_tm, rate_low_tm + share_tm * (rate_high_tm - rate_low_tm), rate_high_tm)
