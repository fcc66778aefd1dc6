"""Scores of single fields as pictures: skill against lead time a threshold, against scale, bias, errors, rain rates.

All take plain arrays by model name and give a figure that is narrow enough to be read on a phone.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from .scores_panels import RADAR_STYLE, Array, Lines, panels_by_threshold, plain_ticks, score_panels

USEFUL_BIAS: Final = (0.5, 2.0)
"""Frequency bias within which a forecast rains about as often as the radar."""

LEAST_SHARE: Final = 1e-6
"""Foot of the distribution's axis: a pixel in a million is a handful in a day of frames."""


def csi_against_lead(lines: Lines, *, lead_min: Sequence[float], thresholds_mmh: Sequence[float]) -> Figure:
    """Draw the critical success index against lead time: a panel a threshold, one scale for all.

    Args:
        lines: (leads, thresholds).
        lead_min: Lead times in minutes.
        thresholds_mmh: Rain thresholds in mm/h.
    """
    title = "CSI against lead time (1 is best)"
    figure, panels = panels_by_threshold(lines, thresholds_mmh, title)
    for panel, column in panels:
        panel.draw(lead_min, column)
        panel.lead_axis(lead_min)
        panel.share_axis()
    return figure


def fss_against_scale(lines: Lines, *, scales_km: Sequence[float], thresholds_mmh: Sequence[float]) -> Figure:
    """Draw the fractions skill score of all lead times against the scale of the window: a panel a threshold.

    Roberts and Lean (2008), doi:10.1175/2007MWR2123.1.

    Args:
        lines: (scales, thresholds), 0 to 1.
        scales_km: Sides of the windows in km.
        thresholds_mmh: Rain thresholds in mm/h.
    """
    title = "Fractions skill score against window size, all lead times (1 is best)"
    figure, panels = panels_by_threshold(lines, thresholds_mmh, title)
    for panel, column in panels:
        panel.draw(scales_km, column)
        panel.axis.set_xscale("log")
        plain_ticks(panel.axis.xaxis, scales_km, most=7)
        panel.axis.set_xlim(min(scales_km) / 1.15, max(scales_km) * 1.15)
        panel.label_x("window, km")
        panel.share_axis()
    return figure


def bias_against_lead(lines: Lines, *, lead_min: Sequence[float], thresholds_mmh: Sequence[float]) -> Figure:
    """Draw the frequency bias against lead time on a logarithmic axis; 1 rains as often as the radar.

    The band from 0.5 to 2 is shaded. What lies outside 1/16 to 16, none included, is drawn at that border.

    Args:
        lines: (leads, thresholds), >= 0.
        lead_min: Lead times in minutes.
        thresholds_mmh: Rain thresholds in mm/h.
    """
    title = "Frequency bias against lead time (1 is unbiased)"
    figure, panels = panels_by_threshold(lines, thresholds_mmh, title)
    ticks = {1 / 16: "1/16", 0.25: "1/4", 0.5: "1/2", 1: "1", 2: "2", 4: "4", 16: "16"}
    for panel, column in panels:
        # What a forecast may do and still be of use, and what it should do.
        panel.axis.axhspan(*USEFUL_BIAS, facecolor="#eef4ea", zorder=0)
        panel.axis.axhline(1, color="#9bb08c", linewidth=1, zorder=1)
        panel.draw(lead_min, column.each(lambda values: np.clip(values, 1 / 16, 16)))
        panel.lead_axis(lead_min)
        panel.axis.set_yscale("log", base=2)
        panel.axis.set_ylim(1 / 16 / 1.15, 16 * 1.15)
        plain_ticks(panel.axis.yaxis, list(ticks), words=list(ticks.values()))
    return figure


def squared_error_against_lead(lines: Lines, *, lead_min: Sequence[float]) -> Figure:
    """Draw the mean squared error against lead time, 0 at the foot; less is better.

    Args:
        lines: (leads,), (mm/h)².
        lead_min: Lead times in minutes.
    """
    title = "Mean squared error, (mm/h)², against lead time (less is better)"
    figure, (panel,) = score_panels([""], title, list(lines.styles().items()), height_inches=2.6)
    panel.draw(lead_min, lines)
    panel.lead_axis(lead_min)
    panel.rising_axis(*lines.curves.values())
    return figure


def rain_rate_distribution(radar_share: Array, lines: Lines, *, levels_mmh: Sequence[float]) -> Figure:
    """Draw how often a rain rate is exceeded at any lead time, radar and forecasts: reliability of intensity.

    Both axes are logarithmic.

    Args:
        radar_share: Share of the radar's pixels with at least each level, (levels,), 0 to 1; 0 is not drawn.
        lines: The same of the forecasts.
        levels_mmh: Rain rates in mm/h, > 0.
    """
    title = "Share of pixels with at least a rain rate, all lead times"
    figure, (panel,) = score_panels([""], title, [("Radar", RADAR_STYLE), *lines.styles().items()], height_inches=3.0)
    axis = panel.axis
    axis.plot(levels_mmh, _above_zero(radar_share), zorder=3, **RADAR_STYLE)
    panel.draw(levels_mmh, lines.each(_above_zero))

    axis.set_xscale("log")
    axis.set_yscale("log")
    plain_ticks(axis.xaxis, [level for level in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if level <= max(levels_mmh)])
    # From the smallest share that occurs, in whole decades, up to all pixels.
    positive = [float(value) for line in (radar_share, *lines.curves.values()) for value in line if value > 0]
    lowest = max(min(positive, default=0.1), LEAST_SHARE)
    axis.set_ylim(10 ** np.floor(np.log10(lowest)), 1)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4f}".rstrip("0").rstrip(".") + "%"))
    axis.yaxis.set_minor_locator(NullLocator())
    panel.label_x("rain rate, mm/h")
    return figure


def _above_zero(values: Array) -> Array:
    return np.where(values > 0, values, np.nan)
