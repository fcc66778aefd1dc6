"""What all pictures of scores share: lines with bands, each model's look, and narrow panels with one legend.

Colours are those of Okabe and Ito (2008), Color universal design, https://jfly.uni-koeln.de/color/; marks and dashes
differ besides, so that no line is told by its colour alone.
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
from .panels import INK, plain_axis

MODEL_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE_COLOURS: Final = ("#4d4d4d", "#8a8a8a", "#b0a78f", "#6f6a5e", "#9fa8b3")
MARKS: Final = "osD^vP"
BASELINE_DASHES: Final = ("--", ":", "-.", (0, (7, 1.5)), (0, (1, 2.5)))
RADAR_COLOUR: Final = "#000000"
RADAR_STYLE: Final[dict[str, Any]] = {"color": RADAR_COLOUR, "linewidth": 2.6}
QUIET: Final = "#9a9a9a"
"""Of lines that stand for no model: what would be perfect, or known without a forecast."""

MOST_BANDS: Final = 3
"""Lines that may have bands one on another before baselines lose theirs."""

_WIDTH_INCHES = 4.8
PANEL_INCHES: Final = 1.75
_DOTS_PER_INCH = 200
_GRID_COLOUR = "#e3e5e8"

Array = npt.NDArray[np.floating]
Style = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cast:
    """Who takes part in an evaluation: a model looks alike in all its pictures, whoever is left out of one.

    Attributes:
        names: All models, in the user's order.
        baselines: Those that are drawn grey and dashed: they are what is to be beaten.
        alike: Other names that a model goes by, such as that of an ensemble's mean, and the model that they look like.
        thin: Names of what else is made of a model, and that model, whose colour they have.
    """

    names: Sequence[str]
    baselines: Collection[str] = ()
    alike: Mapping[str, str] = field(default_factory=dict)
    thin: Mapping[str, str] = field(default_factory=dict)

    def is_baseline(self, name: str) -> bool:
        """Tell whether a model, or what is made of one, is what is to be beaten."""
        return {**self.alike, **self.thin}.get(name, name) in self.baselines

    def styles(self) -> dict[str, Style]:
        """Give each model its colour, mark and dash; the order of the names decides."""
        coloured, grey = _pairs(MODEL_COLOURS, MARKS), _pairs(BASELINE_COLOURS, BASELINE_DASHES)
        styles: dict[str, Style] = {}
        for name in self.names:
            if name in self.baselines:
                colour, dash = next(grey)
                styles[name] = {"color": colour, "linestyle": dash, "linewidth": 1.7}
            else:
                colour, mark = next(coloured)
                styles[name] = {"color": colour, "marker": mark, "markersize": 3.6, "linewidth": 1.6, "zorder": 4}

        styles |= {name: styles[whole] for name, whole in self.alike.items()}
        crossed = {"marker": "x", "markersize": 3.6, "linewidth": 0.9}
        return styles | {name: styles[whole] | crossed for name, whole in self.thin.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Lines:
    """What is drawn: a line a model.

    Attributes:
        curves: By model: (x,) or (x, panels); NaN leaves a gap.
        bands: By model: low and high end of a confidence interval, shaped as its curve; models may be left out.
        cast: Who takes part; None: the models of the curves.
    """

    curves: Mapping[str, Array]
    bands: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    cast: Cast | None = None

    def each(self, change: Callable[[Array], Array]) -> "Lines":
        """Change all curves and the ends of all bands alike."""
        curves = {name: change(values) for name, values in self.curves.items()}
        bands = {name: (change(low), change(high)) for name, (low, high) in self.bands.items()}
        return replace(self, curves=curves, bands=bands)

    def column(self, number: int) -> "Lines":
        """Take the lines of one panel."""
        return self.each(lambda values: values[:, number])

    def has_band(self, name: str) -> bool:
        """Tell whether a line's band is drawn: among many lines those of baselines and products would hide others."""
        is_quiet = self.cast is not None and (self.cast.is_baseline(name) or name in self.cast.thin)
        return name in self.bands and not (is_quiet and len(self.curves) > MOST_BANDS)

    def styles(self) -> dict[str, Style]:
        """Give the look of each line."""
        styles = (self.cast or Cast(names=list(self.curves))).styles()
        return {name: styles[name] for name in self.curves}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel, and whether it stands in the last row, where the labels of the axes are."""

    axis: Axes
    is_last_row: bool

    def draw(self, x: Sequence[float], lines: Lines) -> None:
        """Draw all lines over their bands; where none has a value the panel says so."""
        for name, style in lines.styles().items():
            if lines.has_band(name):
                self.axis.fill_between(x, *lines.bands[name], color=style["color"], alpha=0.16, linewidth=0, zorder=2)
            # Twelve marks on a narrow panel hide the line that they sit on.
            every = max(1, round(len(x) / 6))
            self.axis.plot(x, lines.curves[name], markevery=((len(x) - 1) % every, every), **style)
        if not any(np.isfinite(line).any() for line in lines.curves.values()):
            self.write("no such rain\nin this split")

    def write(self, words: str) -> None:
        """Write in the middle why the panel is empty."""
        style: Style = {"ha": "center", "va": "center", "fontsize": 8.5, "color": "#777777"}
        self.axis.text(0.5, 0.5, words, transform=self.axis.transAxes, **style)

    def label_x(self, text: str) -> None:
        """Name the horizontal axis where its numbers stand."""
        if self.is_last_row:
            self.axis.set_xlabel(text, fontsize=8.5, color=INK)

    def lead_axis(self, lead_min: Sequence[float]) -> None:
        """Let lead time run from 0 to the last one."""
        # Five intervals at most: a narrow panel holds no more numbers.
        last = max(lead_min)
        step = next((step for step in (5, 10, 15, 20, 30, 60, 120, 180) if last / step <= 5), 360)
        self.axis.set_xlim(0, 1.03 * last)
        self.axis.set_xticks(np.arange(0, last + 0.5, step))
        self.label_x("lead time, min")

    def share_axis(self) -> None:
        """Let the vertical axis run from 0 to 1."""
        self.axis.set_ylim(0, 1)
        self.axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])

    def rising_axis(self, *curves: Array) -> None:
        """Let the vertical axis begin at 0, with room above the highest value; bands may leave the panel."""
        highest = [float(np.nanmax(values)) for values in curves if np.isfinite(values).any()]
        self.axis.set_ylim(0, 1.08 * max(highest, default=1.0) or 1.0)


def panels_by_threshold(
    lines: Lines, thresholds_mmh: Sequence[float], title: str
) -> tuple[Figure, list[tuple[Panel, Lines]]]:
    """Lay out a panel a threshold, each with its lines."""
    figure, panels = score_panels(threshold_heads(thresholds_mmh), title, list(lines.styles().items()))
    return figure, [(panel, lines.column(number)) for number, panel in enumerate(panels)]


def threshold_heads(thresholds_mmh: Sequence[float]) -> list[str]:
    """Name the panels of thresholds."""
    return [f"rain > {threshold:g} mm/h" for threshold in thresholds_mmh]


def score_panels(
    heads: Sequence[str],
    title: str,
    legend: Sequence[tuple[str, Style]],
    *,
    height_inches: float = PANEL_INCHES,
    share_y: bool = True,
) -> tuple[Figure, list[Panel]]:
    """Lay out a title, panels two in a row, and a legend below them, where no line can cross it.

    Args:
        heads: Of the panels.
        title: Of the picture.
        legend: What lines stand for, and how they look.
        height_inches: Of a panel.
        share_y: One vertical scale for all panels.
    """
    labels = [shortened(name, 30) for name, _ in legend]
    entries = [Line2D([], [], **style) for _, style in legend]
    legend_columns = 1 if max(map(len, labels)) > 24 else 2
    across = min(2, len(heads))
    down = -(-len(heads) // across)

    # The width is that of a phone; a line of panels or of the legend makes the picture higher.
    height = down * (height_inches + 0.27) + 0.17 * -(-len(entries) // legend_columns) + 0.7
    figure = Figure(figsize=(_WIDTH_INCHES, height), facecolor="white", dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    points = min(10.5, 72 * 0.96 * _WIDTH_INCHES / (0.58 * len(title)))
    figure.suptitle(title, x=0.025, ha="left", fontsize=points, fontweight="bold", color=INK)
    style: Style = {"fontsize": 8, "labelcolor": INK, "frameon": False, "handlelength": 2.6}
    below = figure.legend(entries, ["."] * len(entries), loc="outside lower left", ncols=legend_columns, **style)
    # Set afterwards: a legend leaves out labels that begin with an underscore.
    for text, label in zip(below.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)

    # One scale for all: its numbers stand at the left, and at the foot of each column.
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=share_y).ravel()
    for axis in grid[len(heads) :]:
        axis.remove()
    panels = []
    for number, (axis, head) in enumerate(zip(grid, heads, strict=False)):
        plain_axis(axis, font_size=8)
        axis.grid(color=_GRID_COLOUR, linewidth=0.7)
        axis.set_axisbelow(True)
        axis.set_title(shortened(head, 34), fontsize=8.5, color=INK, loc="left", pad=3, parse_math=False)
        is_last_row = number + across >= len(heads)
        axis.tick_params(labelbottom=is_last_row)
        panels.append(Panel(axis=axis, is_last_row=is_last_row))
    return figure, panels


def plain_ticks(axis: Any, values: Sequence[float], words: Sequence[str] | None = None, most: int = 12) -> None:
    """Put ticks at chosen values of a logarithmic axis, and no others."""
    # Where there are too many for the panel every second or third is left.
    chosen = list(values)[:: -(-len(values) // most)]
    axis.set_major_locator(FixedLocator(chosen))
    axis.set_minor_locator(NullLocator())
    table = dict(zip(chosen, words or [f"{value:g}" for value in chosen], strict=False))
    axis.set_major_formatter(FuncFormatter(lambda value, _: table.get(value, f"{value:g}")))


def _pairs(colours: Sequence[str], others: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Pair colours with marks or dashes, shifted by one each time around: every pair comes before one comes again."""
    for number in count():
        turn, colour = divmod(number, len(colours))
        yield colours[colour], others[(colour + turn) % len(others)]
