"""An ensemble in pictures: how likely rain is beside the most likely rain, all members at one lead time, and plumes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...data.shards.palette import MISSING_COLOUR, rgb
from .forecasts import ACCENT, Case, scale_bar
from .maps import MapLines, draw_map, write_credit
from .panels import INK, SIDE_INCHES, add_class_bar, hatch_missing, panel_grid, plain_axis, rain_legend, write_line

PROBABILITY_LEVELS: Final = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
"""Lower bound of each class of probabilities; below the first, rain is unlikely."""

# Our own choice: one hue that darkens evenly, which no kind of colour blindness and no grey print disorders, and which
# is none of the rain's, so that nobody takes a probability for a rate.
PROBABILITY_COLOURS: Final = ("#fbf7fb", "#ecd3e8", "#dba6d3", "#c274b8", "#a0409a", "#741d75", "#3d0a45")
"""Colour of each class, the unlikely first."""

FIGURE_INCHES: Final = 10.4
MARGIN: Final = 0.03
MOST_STAMPS: Final = 30
STAMPS_ACROSS: Final = 5
BANDS_ALPHA: Final = (0.16, 0.3)
_STAMP_INCHES: Final = 1.75
_MEMBER_COLOUR: Final = "#8d939b"


def probability_rgb(share: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Colour probabilities, 0 to 1, any shape; NaN is missing. Gives that shape + (3,), 0..255."""
    table = np.array([list(bytes.fromhex(colour[1:])) for colour in (*PROBABILITY_COLOURS, MISSING_COLOUR)], np.uint8)
    # A share of 3 in 20 is no more than 0.15 in float32: the levels take the shares' own precision.
    classes = np.digitize(share, np.asarray(PROBABILITY_LEVELS, dtype=share.dtype))
    return table[np.where(np.isnan(share), len(table) - 1, classes)]


@dataclass(frozen=True, kw_only=True)
class _View:
    """The pixels of a map that are shown: those around what a radar saw, for grids reach far beyond.

    Attributes:
        rows: First and last row.
        cols: First and last column.
        map: What is drawn over them.
    """

    rows: tuple[int, int]
    cols: tuple[int, int]
    map: MapLines | None

    @classmethod
    def of(cls, case: Case) -> "_View":
        """Choose them for a case: all, where no radar saw any."""
        ends = []
        for axis, length in ((1, case.seen_hw.shape[0]), (0, case.seen_hw.shape[1])):
            seen = np.flatnonzero(case.seen_hw.any(axis=axis))
            first, last = (int(seen[0]), int(seen[-1])) if len(seen) else (0, length - 1)
            margin = round(MARGIN * (last - first))
            ends.append((max(first - margin, 0), min(last + margin, length - 1)))
        return cls(rows=ends[0], cols=ends[1], map=case.map)

    @property
    def shape(self) -> tuple[int, int]:
        """Count its rows and columns."""
        return self.rows[1] - self.rows[0] + 1, self.cols[1] - self.cols[0] + 1

    def draw(self, axis: Axes, image: npt.NDArray[np.uint8]) -> None:
        """Draw a coloured field, (rows, cols, 3), and the map over it."""
        axis.imshow(image, interpolation="nearest")
        axis.set_xlim(self.cols[0] - 0.5, self.cols[1] + 0.5)
        axis.set_ylim(self.rows[1] + 0.5, self.rows[0] - 0.5)
        if self.map is not None:
            draw_map(axis, self.map, labelled=False)


def probability_maps(
    case: Case,
    probabilities: Mapping[str, npt.NDArray[np.floating]],
    *,
    leads: Sequence[int],
    title: str,
) -> Figure:
    """Draw a line of maps a lead time: the rain that is forecast, and beside it how likely rain is.

    Args:
        case: Its only forecast is the most likely rain; its name heads the column.
        probabilities: By heading: (number of `leads`, rows, cols), 0 to 1, NaN where missing.
        leads: Lead numbers; 1 is the first forecast frame.
        title: Of the picture; what follows a line break is set smaller below it.
    """
    ((model, _),) = case.forecasts_mmh.items()
    num_columns = 1 + len(probabilities)
    view = _View.of(case)
    figure, axes = panel_grid((len(leads), *view.shape), num_columns, title, FIGURE_INCHES / num_columns)

    # Rain first, then the probabilities, on one map.
    for line, lead in enumerate(leads):
        heading = f"{case.lead_text(lead)}   {case.clock(lead)[11:16]} UTC"
        axes[line][0].set_ylabel(heading, fontsize=9, color=INK)
        images = [case.forecast_image(model, lead - 1)]
        images += [probability_rgb(share_lhw[line]) for share_lhw in probabilities.values()]
        for axis, image in zip(axes[line], images, strict=True):
            view.draw(axis, image)
            hatch_missing(axis, ~case.seen_hw)
    for axis, heading in zip(axes[0], (model, *probabilities), strict=True):
        axis.set_title(heading, fontsize=9, color=INK, pad=5, parse_math=False)

    scale_bar(axes[0][0], case.pixel_km)
    rain_legend(figure, case.legend_patches())
    bounds = [f"{100 * level:g}" for level in PROBABILITY_LEVELS]
    add_class_bar(figure, SIDE_INCHES + 6.0, 2.9, PROBABILITY_COLOURS, bounds, "Probability in %")
    write_credit(figure, case.credit_line)
    return figure


def member_stamps(case: Case, members_mmh_mhw: npt.NDArray[np.floating], *, lead: int, title: str) -> Figure:
    """Draw every member at one lead time, small; of more than 30 the first.

    Args:
        case: What the members start from; its forecasts are not drawn.
        members_mmh_mhw: Rain in mm/h, (members, rows, cols), NaN where missing.
        lead: Lead number; 1 is the first forecast frame.
        title: Of the picture; lead time and clock are written below it.
    """
    drawn = members_mmh_mhw[:MOST_STAMPS]
    num_lines = ceil(len(drawn) / STAMPS_ACROSS)
    view = _View.of(case)
    which = "every member" if len(drawn) == len(members_mmh_mhw) else f"{len(drawn)} of {len(members_mmh_mhw)} members"
    heading = f"{title}\n{which} at {case.lead_text(lead)}, {case.clock(lead)}"
    figure, axes = panel_grid((num_lines, *view.shape), STAMPS_ACROSS, heading, _STAMP_INCHES)

    panels = [axis for line in axes for axis in line]
    for number, (axis, field_hw) in enumerate(zip(panels, drawn, strict=False)):
        view.draw(axis, rgb(field_hw))
        style: dict[str, Any] = {"fontsize": 7.5, "color": INK, "va": "top", "transform": axis.transAxes}
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5}
        axis.text(0.03, 0.97, f"{number}", bbox=box, zorder=5, **style)
    for axis in panels[len(drawn) :]:
        axis.remove()

    scale_bar(panels[0], case.pixel_km)
    rain_legend(figure, case.legend_patches())
    write_credit(figure, case.credit_line)
    return figure


@dataclass(frozen=True, kw_only=True, eq=False)
class Plume:
    """Rain at one pixel.

    Attributes:
        radar_mmh_t: What the radar measured in the input frames, NaN where it did not.
        members_mmh_mt: By member and lead time.
        quantiles: Rising, 0 to 1.
        quantiles_mmh_qt: By quantile and lead time.
        summary: A line below the title.
    """

    radar_mmh_t: npt.NDArray[np.floating]
    members_mmh_mt: npt.NDArray[np.floating]
    quantiles: Sequence[float]
    quantiles_mmh_qt: npt.NDArray[np.floating]
    summary: str


def plume_picture(case: Case, plume: Plume, *, title: str) -> Figure:
    """Draw rain at one pixel against time: the radar, then members as thin lines and their quantiles as bands.

    Args:
        case: Times and credit.
        plume: What is drawn.
        title: Of the picture.
    """
    figure = Figure(figsize=(6.2, 3.9), facecolor="white", dpi=150)
    FigureCanvasAgg(figure)
    write_line(figure, title, 0.2, 10, letter=0.58)
    write_line(figure, plume.summary, 0.42, 8, letter=0.58)
    axis = figure.add_axes((0.09, 0.2, 0.86, 0.65))
    step_min = case.cadence_s / 60
    past_min = step_min * np.arange(1 - len(plume.radar_mmh_t), 1)
    lead_min = step_min * np.arange(1, plume.members_mmh_mt.shape[1] + 1)

    # Pairs of quantiles from the outermost to the innermost, each band over the last.
    axis.axvline(0, color="#b9bec5", linewidth=0.8, zorder=1)
    axis.plot(lead_min, plume.members_mmh_mt.T, color=_MEMBER_COLOUR, linewidth=0.5, alpha=0.6, zorder=3)
    handles: list[Any] = [Line2D([], [], color=_MEMBER_COLOUR, linewidth=0.8, label="members")]
    num_pairs = len(plume.quantiles) // 2
    for number in range(num_pairs):
        low, high = (f"{100 * plume.quantiles[at]:g}" for at in (number, -1 - number))
        ends = plume.quantiles_mmh_qt[number], plume.quantiles_mmh_qt[-1 - number]
        alpha = np.interp(number, (0, max(num_pairs - 1, 1)), BANDS_ALPHA)
        axis.fill_between(lead_min, *ends, color=ACCENT, alpha=alpha, linewidth=0, zorder=2)
        handles.append(Patch(color=ACCENT, alpha=min(1, alpha + 0.16 * number), label=f"{low} to {high}%"))
    if len(plume.quantiles) % 2:
        middle = f"{100 * plume.quantiles[num_pairs]:g}%"
        label = "median" if plume.quantiles[num_pairs] == 0.5 else middle
        handles += axis.plot(
            lead_min, plume.quantiles_mmh_qt[num_pairs], color=ACCENT, linewidth=2, label=label, zorder=4
        )
    handles += axis.plot(past_min, plume.radar_mmh_t, color=INK, linewidth=1.8, marker="o", markersize=3, label="radar")

    _style_plume(figure, case, past_min[0], lead_min[-1], handles)
    return figure


def _style_plume(figure: Figure, case: Case, first_min: float, last_min: float, handles: Sequence[Any]) -> None:
    """Set the axes of a plume: minutes from the last radar frame, clocks below them, and rain from 0 on."""
    (axis,) = figure.axes
    # Nine ticks at most, each at a frame's time, and one at the last radar frame.
    first_step, last_step = round(60 * first_min / case.cadence_s), round(60 * last_min / case.cadence_s)
    every = ceil((last_step - first_step) / 8)
    steps = range(-(-first_step // every * every), last_step + 1, every)
    labels = [f"{case.lead_text(step)}\n{case.clock(step)[11:16]}" for step in steps]
    axis.set_xticks([step * case.cadence_s / 60 for step in steps], labels, fontsize=7.5, color=INK)
    axis.set_xlim(first_min, last_min)
    axis.set_ylim(bottom=0, top=max(axis.get_ylim()[1], 1))
    axis.set_ylabel("rain rate, mm/h", fontsize=8.5, color=INK)
    axis.grid(axis="y", color="#e3e5e8", linewidth=0.7)
    plain_axis(axis, font_size=7.5)

    style: dict[str, Any] = {"fontsize": 8, "labelcolor": INK, "frameon": False, "ncols": len(handles)}
    figure.legend(handles=list(handles), loc="lower center", bbox_to_anchor=(0.52, 0.025), **style)
    write_credit(figure, case.credit_line)
