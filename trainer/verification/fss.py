"""The fractions skill score's sums for one field, with missing pixels left out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
CountArray = npt.NDArray[np.int32]


def fss_sums(
    forecast_khw: BoolArray | npt.NDArray[np.uint16],
    observed_khw: BoolArray,
    valid_hw: BoolArray | None,
    scales_px: Sequence[int],
    *,
    members: int = 1,
) -> tuple[FloatArray, FloatArray]:
    """Sum up what the fractions skill score of a field is made of, for every threshold and scale.

    FSS = 1 - sum (F - O)^2 / (sum F^2 + sum O^2): Roberts and Lean (2008), Scale-selective verification of rainfall
    accumulations from high-resolution forecasts of convective events, Monthly Weather Review 136, equations 5 to 7,
    doi:10.1175/2007MWR2123.1. F and O are the fractions of events in the square neighbourhood of a pixel; one of an
    even side reaches a pixel further to the north and to the west, as scipy's and so pysteps' does.

    Without missing pixels what lies outside the domain is no event, as in pysteps. A missing pixel is neither event nor
    none: the fraction is that of the neighbourhood's valid pixels, times the share of the neighbourhood inside the
    domain, and the sums go over valid pixels only. Events are counted in integers.

    Of an ensemble F is the fraction of members and pixels, the neighbourhood ensemble probability: Schwartz and others
    (2010), Toward improved convection-allowing ensembles, doi:10.1175/2009WAF2222267.1, and Duc, Saito and Seko (2013),
    Spatial-temporal fractions verification for high-resolution ensemble forecasts, doi:10.3402/tellusa.v65i0.18171.

    Args:
        forecast_khw: True where the event was forecast, (thresholds, rows, cols); False where missing. Of an ensemble
            the number of members that forecast it.
        observed_khw: True where it was observed, the same shape; False where missing.
        valid_hw: True where the radar measured, (rows, cols); None: everywhere.
        scales_px: Sides of the neighbourhood in pixels, 1 or more.
        members: Of the ensemble.

    Returns:
        sum (F - O)^2 and sum F^2 + sum O^2, each (thresholds, scales).
    """
    num_thresholds, rows, cols = forecast_khw.shape
    # In whole numbers of members: an event is one of all members.
    events_khw = observed_khw if members == 1 else observed_khw * np.uint16(members)
    margin = max(scales_px) // 2
    # Weights are needed only where pixels are missing: whole fields are counted in integers.
    weights = {} if valid_hw is None else _weights(valid_hw, scales_px, margin)
    numerator = np.zeros((num_thresholds, len(scales_px)))
    denominator = np.zeros((num_thresholds, len(scales_px)))

    for k in range(num_thresholds):
        # A field without an event adds nothing to any sum.
        fields = [events_hw for events_hw in (forecast_khw[k], events_khw[k]) if events_hw.any()]
        integrals = [_integral(events_hw, margin) for events_hw in fields]

        for s, scale in enumerate(scales_px):
            if scale == 1 and members == 1:
                numerator[k, s] = np.count_nonzero(forecast_khw[k] ^ observed_khw[k])
                denominator[k, s] = sum(np.count_nonzero(events_hw) for events_hw in fields)
                continue

            weight_hw = weights.get(scale)
            # Fractions times scale^2: counts of events in whole numbers, until missing pixels are left out.
            if scale == 1:
                counts = [events_hw.astype(np.float64) for events_hw in fields]
            else:
                counts = [_box_counts(integral, scale, rows, cols, margin).astype(np.float64) for integral in integrals]
            if weight_hw is not None:
                counts = [count_hw * weight_hw for count_hw in counts]

            # Sums of whole numbers below 2^53 are exact in any order.
            exact = weight_hw is None and (members * scale**2) ** 2 * rows * cols < 2**53
            squares = [_sum_of_squares(count_hw, exact) for count_hw in counts]
            both = sum(squares)
            if len(counts) == 2 and exact:
                both -= 2 * float(np.vdot(*counts))
            elif len(counts) == 2:
                both = _sum_of_squares(counts[0] - counts[1], exact)
            numerator[k, s] = both / (members**2 * scale**4)
            denominator[k, s] = sum(squares) / (members**2 * scale**4)
    return numerator, denominator


def _weights(valid_hw: BoolArray, scales_px: Sequence[int], margin: int) -> dict[int, FloatArray]:
    """Pixels of each neighbourhood inside the domain over valid ones of it; 0 where the pixel itself is missing."""
    rows, cols = valid_hw.shape
    integral = _integral(valid_hw, margin)
    weights = {}
    # Of one pixel the weight is 1, and nothing is counted where it is missing.
    for scale in (scale for scale in scales_px if scale > 1):
        inside_hw = np.outer(_inside(rows, scale), _inside(cols, scale))
        valid_count_hw = _box_counts(integral, scale, rows, cols, margin)
        weights[scale] = np.divide(inside_hw, valid_count_hw, out=np.zeros((rows, cols)), where=valid_hw)
    return weights


def _inside(length: int, scale: int) -> npt.NDArray[np.intp]:
    """Count the pixels of each neighbourhood that lie inside the domain, along one axis."""
    first = np.arange(length) - scale // 2
    return np.minimum(first + scale, length) - np.maximum(first, 0)


def _integral(events_hw: BoolArray | npt.NDArray[np.uint16], margin: int) -> CountArray:
    """Count the events above and to the left of every corner: (rows + 1, cols + 1) and `margin` more on all sides."""
    rows, cols = events_hw.shape
    integral = np.zeros((rows + 1 + 2 * margin, cols + 1 + 2 * margin), np.int32)
    inner = integral[margin + 1 : margin + 1 + rows, margin + 1 : margin + 1 + cols]
    np.cumsum(events_hw, axis=0, dtype=np.int32, out=inner)
    np.cumsum(inner, axis=1, out=inner)
    # To the right of the domain and below it nothing is added.
    integral[:, margin + 1 + cols :] = integral[:, margin + cols, None]
    integral[margin + 1 + rows :] = integral[margin + rows]
    return integral


def _box_counts(integral: CountArray, scale: int, rows: int, cols: int, margin: int) -> CountArray:
    """Count the events in the neighbourhood of every pixel, (rows, cols)."""
    first = margin - scale // 2
    strips = integral[first + scale : first + scale + rows] - integral[first : first + rows]
    return strips[:, first + scale : first + scale + cols] - strips[:, first : first + cols]


def _sum_of_squares(values_hw: FloatArray, exact: bool) -> float:
    """Sum the squares; BLAS is faster, but its order of adding depends on the number of threads."""
    return float(np.vdot(values_hw, values_hw) if exact else np.square(values_hw).sum())
