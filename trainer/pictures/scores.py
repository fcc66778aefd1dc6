"""Scores as pictures: skill against lead time a threshold, against scale, frequency bias, errors, and rain rates.

All take plain arrays by model name and give a figure that is narrow enough to be read on a phone. Colours are those of
Okabe and Ito (2008), Color universal design, https://jfly.uni-koeln.de/color/; marks and dashes differ besides, so that
no line is told by its colour alone.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lines:
    """What is drawn: a line a model.

    Attributes:
        curves: By model: (x,) or (x, panels); NaN leaves a gap.
        bands: By model: low and high end of a confidence interval, shaped as its curve; models may be left out.
        baselines: Models that are drawn grey and dashed: they are what is to be beaten.
    """

    curves: Mapping[str, Array]
    bands: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    baselines: Collection[str] = ()

    def each(self, change: Callable[[Array], Array]) -> "Lines":
        """Change all curves and the ends of all bands alike."""
        curves = {name: change(values) for name, values in self.curves.items()}
        bands = {name: (change(low), change(high)) for name, (low, high) in self.bands.items()}
        return replace(self, curves=curves, bands=bands)

    def column(self, number: int) -> "Lines":
        """Take the lines of one panel."""
        return self.each(lambda values: values[:, number])

    def styles(self) -> dict[str, dict[str, Any]]:
        """Give each model its colour, mark and dash; the order of the names decides."""
        coloured, grey = _pairs(MODEL_COLOURS, MARKS), _pairs(BASELINE_COLOURS, BASELINE_DASHES)
        styles: dict[str, dict[str, Any]] = {}
        for name in self.curves:
            if name in self.baselines:
                colour, dash = next(grey)
                styles[name] = {"color": colour, "linestyle": dash, "linewidth": 1.7}
            else:
                colour, mark = next(coloured)
                styles[name] = {"color": colour, "marker": mark, "markersize": 3.6, "linewidth": 1.6, "zorder": 4}
        return styles


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One panel, and whether it stands in the last row, where the labels of the axes are."""

    axis: Axes
    is_last_row: bool

    def draw(self, x: Sequence[float], lines: Lines) -> None:
        for name, style in lines.styles().items():
            if name in lines.bands:
                self.axis.fill_between(x, *lines.bands[name], color=style["color"], alpha=0.16, linewidth=0, zorder=2)
            # Twelve marks on a narrow panel hide the line that they sit on.
            every = max(1, round(len(x) / 6))
            self.axis.plot(x, lines.curves[name], markevery=((len(x) - 1) % every, every), **style)

        if not any(np.isfinite(line).any() for line in lines.curves.values()):
            words = "no such rain\nin this split"
            style = {"ha": "center", "va": "center", "fontsize": 8.5, "color": "#777777"}
            self.axis.text(0.5, 0.5, words, transform=self.axis.transAxes, **style)

    def label_x(self, text: str) -> None:
        if self.is_last_row:
            self.axis.set_xlabel(text, fontsize=8.5, color=INK)

    def lead_axis(self, lead_min: Sequence[float]) -> None:
        # Five intervals at most: a narrow panel holds no more numbers.
        last = max(lead_min)
        step = next((step for step in (5, 10, 15, 20, 30, 60, 120, 180) if last / step <= 5), 360)
        self.axis.set_xlim(0, 1.03 * last)
        self.axis.set_xticks(np.arange(0, last + 0.5, step))
        self.label_x("lead time, min")

    def share_axis(self) -> None:
        self.axis.set_ylim(0, 1)
        self.axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])


def csi_against_lead(lines: Lines, *, lead_min: Sequence[float], thresholds_mmh: Sequence[float]) -> Figure:
    """Draw the critical success index against lead time: a panel a threshold, one scale for all.

    Args:
        lines: (leads, thresholds).
        lead_min: Lead times in minutes.
        thresholds_mmh: Rain thresholds in mm/h.
    """
    title = "CSI against lead time (1 is best)"
    figure, panels = _panels_by_threshold(lines, thresholds_mmh, title)
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
    figure, panels = _panels_by_threshold(lines, thresholds_mmh, title)
    for panel, column in panels:
        panel.draw(scales_km, column)
        panel.axis.set_xscale("log")
        _plain_ticks(panel.axis.xaxis, scales_km, most=7)
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
    figure, panels = _panels_by_threshold(lines, thresholds_mmh, title)
    ticks = {1 / 16: "1/16", 0.25: "1/4", 0.5: "1/2", 1: "1", 2: "2", 4: "4", 16: "16"}
    for panel, column in panels:
        panel.axis.axhspan(*USEFUL_BIAS, facecolor="#eef4ea", zorder=0)
        panel.axis.axhline(1, color="#9bb08c", linewidth=1, zorder=1)
        panel.draw(lead_min, column.each(lambda values: np.clip(values, 1 / 16, 16)))
        panel.lead_axis(lead_min)
        panel.axis.set_yscale("log", base=2)
        panel.axis.set_ylim(1 / 16 / 1.15, 16 * 1.15)
        _plain_ticks(panel.axis.yaxis, list(ticks), words=list(ticks.values()))
    return figure


def squared_error_against_lead(lines: Lines, *, lead_min: Sequence[float]) -> Figure:
    """Draw the mean squared error against lead time, 0 at the foot; less is better.

    Args:
        lines: (leads,), (mm/h)².
        lead_min: Lead times in minutes.
    """
    title = "Mean squared error, (mm/h)², against lead time (less is better)"
    figure, (panel,) = _panels([""], title, lines, height_inches=2.6)
    panel.draw(lead_min, lines)
    panel.lead_axis(lead_min)
    # Room above the highest line; bands may leave the panel.
    highest = [float(np.nanmax(line)) for line in lines.curves.values() if np.isfinite(line).any()]
    panel.axis.set_ylim(0, 1.08 * max(highest, default=1.0) or 1.0)
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
    figure, (panel,) = _panels([""], title, lines, height_inches=3.0, with_radar=True)
    axis = panel.axis
    axis.plot(levels_mmh, _above_zero(radar_share), color=RADAR_COLOUR, linewidth=2.6, zorder=3)
    panel.draw(levels_mmh, lines.each(_above_zero))

    axis.set_xscale("log")
    axis.set_yscale("log")
    _plain_ticks(axis.xaxis, [level for level in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if level <= max(levels_mmh)])
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


def _pairs(colours: Sequence[str], others: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Pair colours with marks or dashes, shifted by one each time around: every pair comes before one comes again."""
    for number in count():
        turn, colour = divmod(number, len(colours))
        yield colours[colour], others[(colour + turn) % len(others)]


def _panels_by_threshold(
    lines: Lines, thresholds_mmh: Sequence[float], title: str
) -> tuple[Figure, list[tuple[_Panel, Lines]]]:
    """Lay out a panel a threshold, each with its lines."""
    figure, panels = _panels([f"rain > {threshold:g} mm/h" for threshold in thresholds_mmh], title, lines)
    return figure, [(panel, lines.column(number)) for number, panel in enumerate(panels)]


def _panels(
    heads: Sequence[str], title: str, lines: Lines, *, height_inches: float = _PANEL_INCHES, with_radar: bool = False
) -> tuple[Figure, list[_Panel]]:
    """Lay out a title, panels two in a row, and a legend below them, where no line can cross it."""
    labels = [shortened(name, 30) for name in lines.curves]
    entries = [Line2D([], [], **style) for style in lines.styles().values()]
    if with_radar:
        labels.insert(0, "Radar")
        entries.insert(0, Line2D([], [], color=RADAR_COLOUR, linewidth=2.6))
    legend_columns = 1 if max(map(len, labels)) > 24 else 2
    across = min(2, len(heads))
    down = -(-len(heads) // across)

    # The width is that of a phone; a line of panels or of the legend makes the picture higher.
    height = down * (height_inches + 0.27) + 0.17 * -(-len(entries) // legend_columns) + 0.7
    figure = Figure(figsize=(_WIDTH_INCHES, height), facecolor="white", dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    points = min(10.5, 72 * 0.96 * _WIDTH_INCHES / (0.58 * len(title)))
    figure.suptitle(title, x=0.025, ha="left", fontsize=points, fontweight="bold", color=INK)
    style: dict[str, Any] = {"fontsize": 8, "labelcolor": INK, "frameon": False, "handlelength": 2.6}
    legend = figure.legend(entries, ["."] * len(entries), loc="outside lower left", ncols=legend_columns, **style)
    # Set afterwards: a legend leaves out labels that begin with an underscore.
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)

    # One scale for all: its numbers stand at the left, and at the foot of each column.
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for axis in grid[len(heads) :]:
        axis.remove()
    panels = []
    for number, (axis, head) in enumerate(zip(grid, heads, strict=False)):
        _plain_axis(axis)
        axis.set_title(head, fontsize=8.5, color=INK, loc="left", pad=3)
        is_last_row = number + across >= len(heads)
        axis.tick_params(labelbottom=is_last_row)
        panels.append(_Panel(axis=axis, is_last_row=is_last_row))
    return figure, panels


def _plain_axis(axis: Axes) -> None:
    axis.grid(color=_GRID_COLOUR, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8, labelcolor=INK, length=2.5, color="#999999")
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#999999")


def _plain_ticks(axis: Any, values: Sequence[float], words: Sequence[str] | None = None, most: int = 12) -> None:
    """Put ticks at chosen values of a logarithmic axis, and no others."""
    # Where there are too many for the panel every second or third is left.
    chosen = list(values)[:: -(-len(values) // most)]
    axis.set_major_locator(FixedLocator(chosen))
    axis.set_minor_locator(NullLocator())
    table = dict(zip(chosen, words or [f"{value:g}" for value in chosen], strict=False))
    axis.set_major_formatter(FuncFormatter(lambda value, _: table.get(value, f"{value:g}")))
