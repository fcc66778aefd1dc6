"""Pictures of what a model makes of rain, on one colour scale, and the parts that all pictures share."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text

from ...data.shards.palette import DRY_COLOUR, MASKED_COLOUR, MISSING_COLOUR, RAIN_COLOURS, RAIN_LEVELS_MMH, rgb
from ...data.whole_file import write_whole

_PANEL_INCHES = 2.5
_TITLE_INCHES = 0.85
_FOOT_INCHES = 0.95
SIDE_INCHES = 0.5
GAP_INCHES = 0.08
DOTS_PER_INCH = 130
INK = "#333333"


def reconstruction_picture(
    path: Path,
    *,
    radar_mmh_thw: npt.NDArray[np.floating],
    visible_hw: npt.NDArray[np.bool_],
    reconstruction_mmh_thw: npt.NDArray[np.floating],
    valid_thw: npt.NDArray[np.bool_] | None,
    frame_titles: Sequence[str],
    title: str,
) -> None:
    """Draw frames as rows: the radar, what the network saw, and what it made of it.

    The third column shows the radar in visible patches and the network in masked ones (as SparK's and SpaT-SparK's
    figures do).

    Args:
        path: of the PNG; it appears whole or not at all.
        radar_mmh_thw: rain in mm/h, (frames, rows, cols).
        visible_hw: True for the patches that the network saw, (patch rows, patch cols).
        reconstruction_mmh_thw: the network's rain in mm/h in masked patches; its visible patches are not looked at.
        valid_thw: False where the radar has no data; None: everywhere data.
        frame_titles: a title a frame, such as its time.
        title: of the picture; what follows a line break is set smaller below it.

    Raises:
        OSError: the file cannot be written.
    """
    # Patches are squares that tile the frame.
    patch = radar_mmh_thw.shape[1] // visible_hw.shape[0]
    missing_thw = np.isnan(radar_mmh_thw) if valid_thw is None else np.isnan(radar_mmh_thw) | ~valid_thw
    visible_pixels_hw = np.kron(visible_hw, np.ones((patch, patch), dtype=bool)).astype(bool)
    filled_thw = np.where(visible_pixels_hw, radar_mmh_thw, reconstruction_mmh_thw)
    columns = {
        "Radar": radar_mmh_thw,
        f"What the network saw ({1 - visible_hw.mean():.0%} masked)": radar_mmh_thw,
        "Reconstruction of the masked part": filled_thw,
    }

    # A line of panels a frame, a column a field; the second column hides what the network did not see.
    figure, axes = panel_grid(radar_mmh_thw.shape, len(columns), title)
    for row, frame_title in enumerate(frame_titles):
        axes[row][0].set_ylabel(frame_title, fontsize=8, color=INK)
        for axis, field_thw in zip(axes[row], columns.values(), strict=True):
            # What the network made of pixels without radar cannot be judged: they stay grey in every column.
            axis.imshow(rgb(field_thw[row], missing_thw[row]), interpolation="nearest")
            hatch_missing(axis, missing_thw[row])
        _cover(axes[row][1], ~visible_hw, patch)
    for axis, head in zip(axes[0], columns, strict=True):
        axis.set_title(head, fontsize=9, color=INK, pad=5)

    neutral = [Patch(facecolor=MASKED_COLOUR, edgecolor="#6b727d", label="masked")]
    rain_legend(figure, [*neutral, missing_patch()] if missing_thw.any() else neutral)
    write_png(figure, path)


def panel_grid(
    shape: tuple[int, ...], num_columns: int, title: str, panel_inches: float = _PANEL_INCHES
) -> tuple[Figure, list[list[Axes]]]:
    """Lay out panels with fixed margins in inches, so that nothing overlaps whatever the number of frames.

    Args:
        shape: (lines of panels, pixel rows, pixel columns).
        num_columns: Panels in a line.
        title: Of the picture; what follows a line break is set smaller below it.
        panel_inches: Width of a panel.

    Returns:
        The figure, and its axes by line and column.
    """
    num_lines, rows, cols = shape
    panel_height = panel_inches * rows / cols
    width = SIDE_INCHES + num_columns * (panel_inches + GAP_INCHES)
    height = _TITLE_INCHES + num_lines * (panel_height + GAP_INCHES) + _FOOT_INCHES
    figure = Figure(figsize=(width, height), facecolor="white", dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)

    heading, _, note = title.partition("\n")
    write_line(figure, heading, 0.22, 11, letter=0.6)
    write_line(figure, note, 0.44, 8, letter=0.6)

    axes: list[list[Axes]] = [[] for _ in range(num_lines)]
    for line, column in np.ndindex(num_lines, num_columns):
        bottom = height - _TITLE_INCHES - (line + 1) * panel_height - line * GAP_INCHES
        left = SIDE_INCHES + column * (panel_inches + GAP_INCHES)
        axes[line].append(add_panel(figure, left, bottom, panel_inches, panel_height))
    return figure, axes


def write_line(figure: Figure, text: str, from_top: float, points: float, *, letter: float) -> Text:
    """Write a line of text, centred; a long one is set smaller, not cut off.

    Args:
        figure: To write on.
        text: The line; a name in it may hold a dollar sign, and is no formula.
        from_top: Inches below the upper edge.
        points: Size of the font.
        letter: Width of a letter as a share of that.
    """
    # As large as asked for, unless the letters would not fit into the width.
    width, height = figure.get_size_inches()
    size = min(points, 72 * 0.96 * width / (letter * max(len(text), 1)))
    y = 1 - from_top / height
    return figure.text(0.5, y, text, ha="center", va="center", fontsize=size, color=INK, parse_math=False)


def add_panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes without ticks, in a thin grey frame; all arguments in inches."""
    whole_width, whole_height = figure.get_size_inches()
    axis = figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("#888888")
        spine.set_linewidth(0.6)
    return axis


def hatch_missing(axis: Axes, missing_hw: npt.NDArray[np.bool_]) -> None:
    """Draw the hatching of missing pixels, (rows, cols), over a panel."""
    if not missing_hw.any() or min(missing_hw.shape) < 2:
        return
    # imshow's pixel centres are whole numbers, and so are contourf's: the half level runs between the two kinds.
    filled = axis.contourf(missing_hw.astype(float), levels=[0.5, 1.5], colors="none", hatches=["////"])
    filled.set_edgecolor("#8c8c8c")
    filled.set_linewidth(0)


def _cover(axis: Axes, masked_hw: npt.NDArray[np.bool_], patch: int) -> None:
    for row, column in np.argwhere(masked_hw):
        corner = (column * patch - 0.5, row * patch - 0.5)
        axis.add_patch(Rectangle(corner, patch, patch, facecolor=MASKED_COLOUR, edgecolor="#6b727d", linewidth=0.4))


def missing_patch(*, hatched: bool = True) -> Patch:
    """Give the legend's patch for pixels without data, hatched where `hatch_missing` draws them so."""
    hatch = "////" if hatched else None
    return Patch(facecolor=MISSING_COLOUR, edgecolor="#8c8c8c", hatch=hatch, linewidth=0.4, label="no data")


def rain_legend(figure: Figure, neutral: Sequence[Patch]) -> None:
    """Draw the rain classes as a bar at the figure's foot with their bounds in mm/h, and neutral colours beside it."""
    width, height = figure.get_size_inches()
    bounds = [f"{level:g}" for level in RAIN_LEVELS_MMH]
    title = "Rain rate in mm/h (below 0.1: dry)"
    add_class_bar(figure, SIDE_INCHES, min(0.62 * width, 5.6), (DRY_COLOUR, *RAIN_COLOURS), bounds, title)

    if neutral:
        style: dict[str, Any] = {"fontsize": 8, "labelcolor": INK, "frameon": False, "borderaxespad": 0}
        anchor = (1 - GAP_INCHES / width, 0.5 / height)
        figure.legend(handles=list(neutral), loc="center right", bbox_to_anchor=anchor, **style)


def add_class_bar(
    figure: Figure, left: float, bar_inches: float, colours: Sequence[str], bounds: Sequence[str], title: str
) -> None:
    """Draw classes as a bar at the figure's foot.

    Args:
        figure: To draw on.
        left: Of the bar, inches.
        bar_inches: Its length.
        colours: Of the classes, the lowest first.
        bounds: Between the classes; each is the lower bound of the class to its right.
        title: Above the bar.
    """
    width, height = figure.get_size_inches()
    bar = figure.add_axes((left / width, 0.42 / height, bar_inches / width, 0.17 / height))
    for position, colour in enumerate(colours):
        bar.add_patch(Rectangle((position, 0), 1, 1, facecolor=colour, edgecolor="#888888", linewidth=0.4))

    bar.set_xlim(0, len(colours))
    bar.set_ylim(0, 1)
    bar.set_yticks([])
    bar.set_xticks(range(1, len(colours)), list(bounds), fontsize=7.5, color=INK)
    bar.tick_params(length=2, color="#888888")
    for spine in bar.spines.values():
        spine.set_visible(False)
    bar.set_title(title, fontsize=8, color=INK, loc="left", pad=4)


def plain_axis(axis: Axes, font_size: float) -> None:
    """Draw the frame of an axis at the left and below alone, with small quiet numbers."""
    axis.tick_params(labelsize=font_size, labelcolor=INK, length=2.5, color="#999999")
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#999999")


def png_bytes(figure: Figure) -> bytes:
    """Write a figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi="figure")
    return buffer.getvalue()


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG that appears whole or not at all; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, png_bytes(figure))
