"""Scores as pictures: skill against lead time a threshold, against scale, frequency bias, errors, and rain rates.

All take plain arrays by model name and give a figure that is narrow enough to be read on a phone. Colours are those of
Okabe and Ito (2008), Color universal design, https://jfly.uni-koeln.de/color/; marks and dashes differ besides, so that
no line is told by its colour alone.
"""

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .forecasts import shortened
from .panels import INK

MODEL_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE_COLOURS: Final = ("#4d4d4d", "#8a8a8a", "#b0a78f", "#6f6a5e", "#9fa8b3")
MARKS: Final = "osD^vP"
BASELINE_DASHES: Final = ("--", ":", "-.", (0, (7, 1.5)), (0, (1, 2.5)))
RADAR_COLOUR: Final = "#000000"
USEFUL_BIAS: Final = (0.5, 2.0)
"""Frequency bias within which a forecast rains about as often as the radar."""

LEAST_SHARE: Final = 1e-6
"""Foot of the distribution's axis: a pixel in a million is a handful in a day of frames."""

_WIDTH_INCHES = 4.8
_PANEL_INCHES = 1.75
_DOTS_PER_INCH = 200
_GRID_COLOUR = "#e3e5e8"

Curves = Mapping[str, npt.NDArray[np.floating]]
Bands = Mapping[str, tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]]


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One panel's place and words."""

    axis: Axes
    last_line: bool


def skill_against_lead(
    curves: Curves,
    *,
    lead_min: Sequence[float],
    thresholds_mmh: Sequence[float],
    score: str = "CSI",
    bands: Bands | None = None,
    baselines: Collection[str] = (),
) -> Figure:
    """Draw a score between 0 and 1 against lead time: a panel a threshold, a line a model, one scale for all.

    Args:
        curves: By model: (leads, thresholds); NaN leaves a gap.
        lead_min: Lead times in minutes.
        thresholds_mmh: Rain thresholds in mm/h.
        score: Its name.
        bands: By model: low and high end of a confidence interval, each (leads, thresholds); models may be left out.
        baselines: Models that are drawn grey and dashed: they are what is to be beaten.

    Raises:
        ValueError: Shapes that do not fit.
    """
    _check(curves, (len(lead_min), len(thresholds_mmh)), bands)
    heads = [f"rain > {threshold:g} mm/h" for threshold in thresholds_mmh]
    figure, panels = _panels(heads, f"{score} against lead time (1 is best)", curves, baselines)
    for number, panel in enumerate(panels):
        _draw_lines(panel, lead_min, _columns(curves, number), _band_columns(bands, number), baselines)
        _lead_axis(panel, lead_min)
        panel.axis.set_ylim(0, 1)
        panel.axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    return figure


def fss_against_scale(
    curves: Curves,
    *,
    scales_km: Sequence[float],
    thresholds_mmh: Sequence[float],
    bands: Bands | None = None,
    baselines: Collection[str] = (),
    note: str = "",
) -> Figure:
    """Draw the fractions skill score against the scale of the window: a panel a threshold.

    Roberts and Lean (2008), doi:10.1175/2007MWR2123.1.

    Args:
        curves: By model: (scales, thresholds), 0 to 1; NaN leaves a gap.
        scales_km: Sides of the windows in km.
        thresholds_mmh: Rain thresholds in mm/h.
        bands: As in `skill_against_lead`.
        baselines: As in `skill_against_lead`.
        note: Which lead times are meant.
    """
    _check(curves, (len(scales_km), len(thresholds_mmh)), bands)
    heads = [f"rain > {threshold:g} mm/h" for threshold in thresholds_mmh]
    title = f"Fractions skill score against window size{f', {note}' if note else ''} (1 is best)"
    figure, panels = _panels(heads, title, curves, baselines)
    for number, panel in enumerate(panels):
        _draw_lines(panel, scales_km, _columns(curves, number), _band_columns(bands, number), baselines)
        panel.axis.set_xscale("log")
        _plain_ticks(panel.axis.xaxis, scales_km, most=7)
        panel.axis.set_xlim(min(scales_km) / 1.15, max(scales_km) * 1.15)
        if panel.last_line:
            panel.axis.set_xlabel("window, km", fontsize=8.5, color=INK)
        panel.axis.set_ylim(0, 1)
        panel.axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    return figure


def bias_against_lead(
    curves: Curves,
    *,
    lead_min: Sequence[float],
    thresholds_mmh: Sequence[float],
    bands: Bands | None = None,
    baselines: Collection[str] = (),
) -> Figure:
    """Draw the frequency bias against lead time on a logarithmic axis; 1 rains as often as the radar.

    The band from 0.5 to 2 is shaded. What lies outside 1/16 to 16, none included, is drawn at that border.

    Args:
        curves: By model: (leads, thresholds), >= 0; NaN leaves a gap.
        lead_min: Lead times in minutes.
        thresholds_mmh: Rain thresholds in mm/h.
        bands: As in `skill_against_lead`.
        baselines: As in `skill_against_lead`.
    """
    _check(curves, (len(lead_min), len(thresholds_mmh)), bands)
    heads = [f"rain > {threshold:g} mm/h" for threshold in thresholds_mmh]
    figure, panels = _panels(heads, "Frequency bias against lead time (1 is unbiased)", curves, baselines)
    for number, panel in enumerate(panels):
        panel.axis.axhspan(*USEFUL_BIAS, facecolor="#eef4ea", zorder=0)
        panel.axis.axhline(1, color="#9bb08c", linewidth=1, zorder=1)
        shown = {name: _within(line) for name, line in _columns(curves, number).items()}
        limits = {name: (_within(low), _within(high)) for name, (low, high) in _band_columns(bands, number).items()}
        _draw_lines(panel, lead_min, shown, limits, baselines)
        _lead_axis(panel, lead_min)
        panel.axis.set_yscale("log", base=2)
        panel.axis.set_ylim(1 / 16 / 1.15, 16 * 1.15)
        _plain_ticks(
            panel.axis.yaxis, [1 / 16, 0.25, 0.5, 1, 2, 4, 16], words=["1/16", "1/4", "1/2", "1", "2", "4", "16"]
        )
    return figure


def error_against_lead(
    curves: Curves,
    *,
    lead_min: Sequence[float],
    name: str = "Mean squared error, (mm/h)²",
    bands: Bands | None = None,
    baselines: Collection[str] = (),
) -> Figure:
    """Draw an error against lead time, 0 at the foot; less is better.

    Args:
        curves: By model: (leads,), such as the mean squared error in (mm/h)².
        lead_min: Lead times in minutes.
        name: What it is, with its unit.
        bands: By model: low and high end of a confidence interval, (leads,) each.
        baselines: As in `skill_against_lead`.
    """
    _check(curves, (len(lead_min),), bands)
    figure, panels = _panels([""], f"{name}, against lead time (less is better)", curves, baselines, height_inches=2.6)
    _draw_lines(panels[0], lead_min, dict(curves), dict(bands or {}), baselines)
    _lead_axis(panels[0], lead_min)
    highest = [float(np.nanmax(line)) for line in curves.values() if np.isfinite(line).any()]
    panels[0].axis.set_ylim(0, 1.08 * max(highest, default=1.0) or 1.0)
    return figure


def rain_rate_distribution(
    radar_share: npt.NDArray[np.floating],
    shares: Curves,
    *,
    levels_mmh: Sequence[float],
    baselines: Collection[str] = (),
    note: str = "",
) -> Figure:
    """Draw how often a rain rate is exceeded, radar and forecasts, on logarithmic axes: reliability of intensity.

    Args:
        radar_share: Share of the radar's pixels with at least each level, (levels,), 0 to 1; 0 is not drawn.
        shares: By model: the same of its forecasts.
        levels_mmh: Rain rates in mm/h, > 0.
        baselines: As in `skill_against_lead`.
        note: Which lead times are meant.
    """
    _check({"radar": radar_share, **shares}, (len(levels_mmh),), None)
    title = f"Share of pixels with at least a rain rate{f', {note}' if note else ''}"
    figure, panels = _panels([""], title, shares, baselines, height_inches=3.0, with_radar=True)
    axis = panels[0].axis
    drawn = {name: np.where(line > 0, line, np.nan) for name, line in shares.items()}
    axis.plot(levels_mmh, np.where(radar_share > 0, radar_share, np.nan), color=RADAR_COLOUR, linewidth=2.6, zorder=3)
    _draw_lines(panels[0], levels_mmh, drawn, {}, baselines)
    axis.set_xscale("log")
    axis.set_yscale("log")
    _plain_ticks(axis.xaxis, [level for level in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if level <= max(levels_mmh)])
    positive = [float(value) for line in (radar_share, *shares.values()) for value in line if value > 0]
    lowest = max(min(positive, default=0.1), LEAST_SHARE)
    axis.set_ylim(10 ** np.floor(np.log10(lowest)), 1)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4f}".rstrip("0").rstrip(".") + "%"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("rain rate, mm/h", fontsize=8.5, color=INK)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """Give a figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
    return buffer.getvalue()


def _check(curves: Curves, shape: tuple[int, ...], bands: Bands | None) -> None:
    if not curves or 0 in shape:
        raise ValueError(f"{len(curves)} curves of shape {shape}; expected at least one, of at least one value")
    for name, values in curves.items():
        if values.shape != shape:
            raise ValueError(f"the curve of {name!r} has shape {values.shape}; expected {shape}")
    for name, ends in (bands or {}).items():
        if name not in curves or any(end.shape != shape for end in ends):
            shapes = " and ".join(str(end.shape) for end in ends)
            raise ValueError(
                f"the band of {name!r} has shapes {shapes}; expected a curve of that name, and {shape} twice"
            )


def _columns(curves: Curves, number: int) -> dict[str, npt.NDArray[np.floating]]:
    return {name: values[:, number] for name, values in curves.items()}


def _band_columns(bands: Bands | None, number: int) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    return {name: (low[:, number], high[:, number]) for name, (low, high) in (bands or {}).items()}


def _within(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return np.clip(values, 1 / 16, 16)


def _styles(names: Sequence[str], baselines: Collection[str]) -> dict[str, dict[str, Any]]:
    """Give each model its colour, mark and dash; the order of the names decides."""
    coloured, grey = _pairs(MODEL_COLOURS, MARKS), _pairs(BASELINE_COLOURS, BASELINE_DASHES)
    styles: dict[str, dict[str, Any]] = {}
    for name in names:
        if name in baselines:
            colour, dash = next(grey)
            styles[name] = {"color": colour, "linestyle": dash, "linewidth": 1.7}
        else:
            colour, mark = next(coloured)
            styles[name] = {"color": colour, "marker": mark, "markersize": 3.6, "linewidth": 1.6, "zorder": 4}
    return styles


def _pairs(colours: Sequence[str], others: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Pair colours with marks or dashes, shifted by one each time around: every pair comes before one comes again."""
    for place in count():
        turn, colour = divmod(place, len(colours))
        yield colours[colour], others[(colour + turn) % len(others)]


def _panels(
    heads: Sequence[str],
    title: str,
    curves: Curves,
    baselines: Collection[str],
    *,
    height_inches: float = _PANEL_INCHES,
    with_radar: bool = False,
) -> tuple[Figure, list[_Panel]]:
    """Lay out a title, a legend and panels two in a line, with margins in inches."""
    across = min(2, len(heads))
    lines = -(-len(heads) // across)
    labels = [shortened(name, 30) for name in curves]
    entries = [Line2D([], [], **style) for style in _styles(list(curves), baselines).values()]
    if with_radar:
        labels.insert(0, "Radar")
        entries.insert(0, Line2D([], [], color=RADAR_COLOUR, linewidth=2.6))
    legend_columns = 1 if max(map(len, labels)) > 24 else 2
    legend_inches = 0.15 * -(-len(entries) // legend_columns) + 0.06
    left, right, gap_across = 0.5 if heads[0] else 0.72, 0.12, 0.2
    gap_down = 0.27 if heads[0] else 0.1
    top, foot = 0.36 + legend_inches, 0.5
    height = top + lines * (height_inches + gap_down) + foot
    figure = Figure(figsize=(_WIDTH_INCHES, height), facecolor="white", dpi=_DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    points = min(10.5, 72 * 0.96 * _WIDTH_INCHES / (0.58 * len(title)))
    figure.text(0.025, 1 - 0.19 / height, title, fontsize=points, fontweight="bold", color=INK, va="center")
    legend = figure.legend(
        handles=entries, labels=["."] * len(entries), loc="upper left", bbox_to_anchor=(0.018, 1 - 0.33 / height),
        ncols=legend_columns, fontsize=8, frameon=False, labelcolor=INK, handlelength=2.6, borderaxespad=0,
        labelspacing=0.3,
    )  # fmt: skip
    # Set afterwards: a legend leaves out labels that begin with an underscore.
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)
    width = (_WIDTH_INCHES - left - right - (across - 1) * gap_across) / across
    panels = []
    for number, head in enumerate(heads):
        line, column = divmod(number, across)
        bottom = height - top - (line + 1) * (height_inches + gap_down)
        x = left + column * (width + gap_across)
        box = (x / _WIDTH_INCHES, bottom / height, width / _WIDTH_INCHES, height_inches / height)
        axis = figure.add_axes(box)
        _plain_axis(axis)
        axis.set_title(head, fontsize=8.5, color=INK, loc="left", pad=3)
        # One scale for all: its numbers stand at the left and at the foot.
        axis.tick_params(labelleft=column == 0, labelbottom=number + across >= len(heads))
        panels.append(_Panel(axis=axis, last_line=number + across >= len(heads)))
    return figure, panels


def _plain_axis(axis: Axes) -> None:
    axis.grid(color=_GRID_COLOUR, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8, labelcolor=INK, length=2.5, color="#999999")
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#999999")


def _draw_lines(
    panel: _Panel,
    x: Sequence[float],
    lines: Curves,
    bands: Bands,
    baselines: Collection[str],
) -> None:
    for name, style in _styles(list(lines), baselines).items():
        if name in bands:
            panel.axis.fill_between(x, *bands[name], color=style["color"], alpha=0.16, linewidth=0, zorder=2)
        # Twelve marks on a narrow panel hide the line that they sit on.
        every = max(1, round(len(x) / 6))
        panel.axis.plot(x, lines[name], markevery=((len(x) - 1) % every, every), **style)
    if not any(np.isfinite(line).any() for line in lines.values()):
        panel.axis.text(
            0.5, 0.5, "no such rain\nin this split", transform=panel.axis.transAxes, ha="center", va="center",
            fontsize=8.5, color="#777777",
        )  # fmt: skip


def _lead_axis(panel: _Panel, lead_min: Sequence[float]) -> None:
    last = max(lead_min)
    step = next((step for step in (5, 10, 15, 20, 30, 60, 120, 180) if last / step <= 5), 360)
    panel.axis.set_xlim(0, 1.03 * last)
    panel.axis.set_xticks(np.arange(0, last + 0.5, step))
    if panel.last_line:
        panel.axis.set_xlabel("lead time, min", fontsize=8.5, color=INK)


def _plain_ticks(axis: Any, values: Sequence[float], words: Sequence[str] | None = None, most: int = 12) -> None:
    """Put ticks at chosen values of a logarithmic axis, and no others."""
    chosen = list(values)[:: -(-len(values) // most)]
    axis.set_major_locator(FixedLocator(chosen))
    axis.set_minor_locator(NullLocator())
    table = dict(zip(chosen, words or [f"{value:g}" for value in chosen], strict=False))
    axis.set_major_formatter(FuncFormatter(lambda value, _: table.get(value, f"{value:g}")))
