"""Scores of ensembles and of probabilities as pictures: reliability, ROC, ranks, CRPS, spread beside error, spectra.

All take plain arrays by model name and give a figure that is narrow enough to be read on a phone. How they are read:
Wilks (2019), Statistical methods in the atmospheric sciences, fourth edition, chapter 9.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from .forecasts import shortened
from .scores_panels import QUIET, RADAR_STYLE, Array, Lines, Style, plain_ticks, score_panels, threshold_heads

FIRST_STYLE: Final[Style] = {"color": "#0072B2", "marker": "o", "markersize": 3.2, "linewidth": 1.6}
SECOND_STYLE: Final[Style] = {"color": "#D55E00", "linestyle": "--", "linewidth": 1.6}
"""Of two lines that stand in every panel alike, whichever model it is about."""

_QUIET_STYLE: Final[Style] = {"color": QUIET, "linewidth": 1.1}
_BASE_STYLE: Final[Style] = {"color": "#9bb08c", "linewidth": 1.1}
_BAND_STYLE: Final[Style] = {"color": "#dfe3e8", "linewidth": 6}
FACTOR: Final = 2.0
"""A member has the radar's structure where its power lies within this factor of the radar's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """Power of rain by wavelength, at one lead time.

    Attributes:
        radar: Of the radar, (wavelengths,).
        members: Of a model's members, the mean of their powers, likewise.
        mean: Of the mean of its members, likewise.
    """

    radar: Array
    members: Array
    mean: Array


def reliability_diagram(
    observed: Lines,
    probability: Mapping[str, Array],
    num_pixels: Mapping[str, npt.NDArray[Any]],
    *,
    thresholds_mmh: Sequence[float],
    base_rates: Sequence[float],
) -> Figure:
    """Draw how often it rained where a probability was given, and beside it how many pixels had that probability.

    Args:
        observed: Share of the pixels of each class of probability with rain, (classes, thresholds).
        probability: Mean probability of each class, by model, likewise.
        num_pixels: Of each class, by model, likewise.
        thresholds_mmh: Rain thresholds in mm/h, a line of panels each.
        base_rates: Share of the radar's pixels above each threshold.
    """
    title = "Reliability: how often it rained where a probability was given"
    legend = [*observed.styles().items(), ("perfect", _QUIET_STYLE), ("share of pixels with rain", _BASE_STYLE)]
    heads = [head for named in threshold_heads(thresholds_mmh) for head in (named, "pixels with that probability")]
    figure, panels = score_panels(heads, title, legend, share_y=False)

    for number, base_rate in enumerate(base_rates):
        diagram, counts = panels[2 * number : 2 * number + 2]
        # Left, what is perfect and what always stating the base rate gives; right, counts over decades.
        diagram.axis.plot([0, 1], [0, 1], **_QUIET_STYLE)
        diagram.axis.axhline(base_rate, **_BASE_STYLE)
        diagram.share_axis()
        counts.axis.set_yscale("log")
        counts.axis.yaxis.set_major_locator(LogLocator(numticks=5))
        counts.axis.yaxis.set_minor_locator(NullLocator())

        # A class without a pixel has no point on either side.
        for name, style in observed.styles().items():
            at = probability[name][:, number]
            num = np.where(num_pixels[name][:, number] > 0, num_pixels[name][:, number], np.nan)
            diagram.axis.plot(at, observed.curves[name][:, number], **style)
            counts.axis.plot(at, num, **style)
        for panel in (diagram, counts):
            panel.axis.set_xlim(0, 1)
            panel.axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
            panel.label_x("probability")
    return figure


def roc_curves(hit_rate: Lines, false_alarm_rate: Mapping[str, Array], *, thresholds_mmh: Sequence[float]) -> Figure:
    """Draw hits against false alarms, a point a probability from which on the event is forecast.

    Mason (1982), A model for assessment of weather forecasts, Australian Meteorological Magazine 30, 291-303.

    Args:
        hit_rate: Share of the pixels with rain that were forecast, (probabilities, thresholds).
        false_alarm_rate: Share of the pixels without rain that were forecast, by model, likewise.
        thresholds_mmh: Rain thresholds in mm/h, a panel each.
    """
    title = "ROC: rain forecast against dry pixels forecast"
    legend = [*hit_rate.styles().items(), ("no skill", _QUIET_STYLE)]
    figure, panels = score_panels(threshold_heads(thresholds_mmh), title, legend)
    for number, panel in enumerate(panels):
        panel.axis.plot([0, 1], [0, 1], **_QUIET_STYLE)
        for name, style in hit_rate.styles().items():
            panel.axis.plot(false_alarm_rate[name][:, number], hit_rate.curves[name][:, number], **style)
        panel.share_axis()
        panel.axis.set_xlim(0, 1)
        panel.axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        panel.label_x("share of dry pixels")
    return figure


def rank_histograms(ranks: Mapping[str, tuple[Array, Array]]) -> Figure:
    """Draw how often the radar took each rank among the members: a line of panels a model, all pixels and wet ones.

    Flat: the radar looks like one more member. A U: the members are too alike; a dome: too different; a slope: biased.
    Hamill (2001), Monthly Weather Review 129, 550-560, doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2.

    Args:
        ranks: Share of the pixels of each rank, (members + 1,), by model: of all pixels, and of those where radar or a
            member has rain. NaN: there is none.
    """
    title = "Rank of the radar among the members (flat at 1 is best)"
    heads = [f"{shortened(name, 26)}: {which}" for name in ranks for which in ("all", "wet")]
    figure, panels = score_panels(heads, title, [("as often as by chance", _QUIET_STYLE)], height_inches=1.3)
    for panel, share in zip(panels, [each for both in ranks.values() for each in both], strict=True):
        num_ranks = len(share)
        panel.axis.axhline(1, zorder=3, **_QUIET_STYLE)
        panel.axis.set_xlim(0, 1)
        panel.axis.set_xticks([0, 1], ["low", "high"])
        panel.label_x("rank of the radar")
        if np.isnan(share).any():
            panel.write("no pixel\nto be ranked")
            continue
        # Ensembles of any size have ranks from 0 to 1, and a flat histogram lies at 1.
        middles = (np.arange(num_ranks) + 0.5) / num_ranks
        panel.axis.bar(middles, share * num_ranks, 0.9 / num_ranks, color=FIRST_STYLE["color"])
    return figure


def crps_against_lead(lines: Lines, *, lead_min: Sequence[float], heads: Sequence[str]) -> Figure:
    """Draw the continuous ranked probability score against lead time, 0 at the foot: a panel a pooling.

    Args:
        lines: (leads, poolings), mm/h.
        lead_min: Lead times in minutes.
        heads: Names of the poolings.
    """
    title = "CRPS against lead time, mm/h (less is better)"
    figure, panels = score_panels(heads, title, list(lines.styles().items()), share_y=False)
    for number, panel in enumerate(panels):
        column = lines.column(number)
        panel.draw(lead_min, column)
        panel.lead_axis(lead_min)
        panel.rising_axis(*column.curves.values())
    return figure


def spread_and_error(models: Mapping[str, tuple[Array, Array]], *, lead_min: Sequence[float]) -> Figure:
    """Draw the spread of the members and the error of their mean against lead time: a panel a model.

    Args:
        models: Spread and root mean squared error, each (leads,), mm/h, by model.
        lead_min: Lead times in minutes.
    """
    title = "Spread of the members and error of their mean, mm/h (equal is best)"
    legend = [("error of the mean", SECOND_STYLE), ("spread of the members", FIRST_STYLE)]
    figure, panels = score_panels(list(models), title, legend)
    for panel, (spread, error) in zip(panels, models.values(), strict=True):
        panel.axis.plot(lead_min, error, **SECOND_STYLE)
        panel.axis.plot(lead_min, spread, **FIRST_STYLE)
        panel.lead_axis(lead_min)
    panels[0].rising_axis(*(values for both in models.values() for values in both))
    return figure


def power_spectra(spectra: Mapping[str, Spectrum], *, wavelengths_km: Array) -> Figure:
    """Draw the power of rain by wavelength: radar, members and their mean, with the band of a factor 2 of the radar's.

    Args:
        spectra: By the head of the panel.
        wavelengths_km: Falling.
    """
    title = "Power of rain by wavelength: radar, members, mean"
    legend = [
        ("Radar", RADAR_STYLE),
        (f"within a factor {FACTOR:g} of it", _BAND_STYLE),
        ("members", FIRST_STYLE),
        ("their mean", SECOND_STYLE),
    ]
    figure, panels = score_panels(list(spectra), title, legend)

    for panel, each in zip(panels, spectra.values(), strict=True):
        # Where nothing has a power, such as in a dry mean, a logarithmic axis has no point.
        axis = panel.axis
        radar = np.where(each.radar > 0, each.radar, np.nan)
        axis.fill_between(wavelengths_km, radar / FACTOR, radar * FACTOR, color=_BAND_STYLE["color"], linewidth=0)
        for values, style in ((radar, RADAR_STYLE), (each.members, FIRST_STYLE), (each.mean, SECOND_STYLE)):
            axis.plot(wavelengths_km, np.where(values > 0, values, np.nan), **style)

        # Long waves stand at the left.
        axis.set_xscale("log")
        axis.set_yscale("log")
        plain_ticks(
            axis.xaxis, [km for km in (512, 256, 128, 64, 32, 16, 8, 4, 2) if km <= max(wavelengths_km)], most=9
        )
        axis.set_xlim(max(wavelengths_km), min(wavelengths_km))
        panel.label_x("wavelength, km")
    return figure
