"""Pictures of what a model makes of rain, on one colour scale, and the parts that all pictures share."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

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
    patch: int = 32,
    prediction_mmh_thw: npt.NDArray[np.floating] | None = None,
) -> None:
    """Draw frames as rows: the radar, what the network saw, and what it made of it.

    The third column shows the radar in visible patches and the network in masked ones (as SparK's and SpaT-SparK's
    figures do); a fourth, if asked for, shows the network everywhere.

    Args:
        path: of the PNG; it appears whole or not at all.
        radar_mmh_thw: rain in mm/h, (frames, rows, cols).
        visible_hw: True for the patches that the network saw, (rows / patch, cols / patch).
        reconstruction_mmh_thw: the network's rain in mm/h in masked patches; its visible patches are not looked at.
        valid_thw: False where the radar has no data; None: everywhere data.
        frame_titles: a title a frame, such as its time.
        title: of the picture; what follows a line break is set smaller below it.
        patch: pixels a side of a patch.
        prediction_mmh_thw: the network's rain in mm/h in all patches, for the fourth column.

    Raises:
        ValueError: shapes that do not belong together.
        OSError: the file cannot be written.
    """
    _check_shapes(radar_mmh_thw, visible_hw, reconstruction_mmh_thw, valid_thw, frame_titles, patch, prediction_mmh_thw)
    missing_thw = np.isnan(radar_mmh_thw) if valid_thw is None else np.isnan(radar_mmh_thw) | ~valid_thw
    visible_pixels_hw = np.kron(visible_hw, np.ones((patch, patch), dtype=bool)).astype(bool)
    filled_thw = np.where(visible_pixels_hw, radar_mmh_thw, reconstruction_mmh_thw)
    share = 1 - visible_hw.mean()
    heads = ["Radar", f"What the network saw ({share:.0%} masked)", "Reconstruction of the masked part"]
    columns = [radar_mmh_thw, radar_mmh_thw, filled_thw]
    if prediction_mmh_thw is not None:
        heads, columns = [*heads, "The network everywhere"], [*columns, prediction_mmh_thw]

    figure, axes = panel_grid(radar_mmh_thw.shape, len(columns), title)
    for row, frame_title in enumerate(frame_titles):
        axes[row][0].set_ylabel(frame_title, fontsize=8, color=INK)
        for column, field_thw in enumerate(columns):
            # What the network made of pixels without radar cannot be judged: they stay grey in every column.
            missing_hw = missing_thw[row]
            axis = axes[row][column]
            axis.imshow(rgb(field_thw[row], missing_hw), interpolation="nearest")
            if missing_hw.any():
                hatch_missing(axis, missing_hw)
            if column == 1:
                _cover(axis, ~visible_hw, patch)
            if row == 0:
                axis.set_title(heads[column], fontsize=9, color=INK, pad=5)
    neutral = [Patch(facecolor=MASKED_COLOUR, edgecolor="#6b727d", label="masked")]
    rain_legend(figure, [*neutral, missing_patch()] if missing_thw.any() else neutral)
    write_png(figure, path)


def _check_shapes(
    radar_mmh_thw: npt.NDArray[np.floating],
    visible_hw: npt.NDArray[np.bool_],
    reconstruction_mmh_thw: npt.NDArray[np.floating],
    valid_thw: npt.NDArray[np.bool_] | None,
    frame_titles: Sequence[str],
    patch: int,
    prediction_mmh_thw: npt.NDArray[np.floating] | None,
) -> None:
    shape = radar_mmh_thw.shape
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"radar_mmh_thw has shape {shape}, expected (frames, rows, cols)")
    others = {"reconstruction": reconstruction_mmh_thw, "valid": valid_thw, "prediction": prediction_mmh_thw}
    for name, other in others.items():
        if other is not None and other.shape != shape:
            raise ValueError(f"{name} has shape {other.shape}, expected the radar's, {shape}")
    if (visible_hw.shape[0] * patch, visible_hw.shape[1] * patch) != shape[1:]:
        raise ValueError(f"visible_hw has shape {visible_hw.shape}; with patch {patch} it does not tile {shape[1:]}")
    if len(frame_titles) != shape[0]:
        raise ValueError(f"{len(frame_titles)} frame titles for {shape[0]} frames; expected one each")


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
    num_frames, rows, cols = shape
    panel_width, panel_height = panel_inches, panel_inches * rows / cols
    width = SIDE_INCHES + num_columns * (panel_width + GAP_INCHES)
    height = _TITLE_INCHES + num_frames * (panel_height + GAP_INCHES) + _FOOT_INCHES
    figure = Figure(figsize=(width, height), facecolor="white", dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    heading, _, note = title.partition("\n")
    for text, points, from_top in ((heading, 11, 0.22), (note, 8, 0.44)):
        # A letter is about 0.6 of the font size wide: a long line is set smaller, not cut off.
        points_that_fit = 72 * 0.96 * width / (0.6 * max(len(text), 1))
        y = 1 - from_top / height
        # A name may hold a dollar sign, and is no formula.
        size = min(points, points_that_fit)
        figure.text(0.5, y, text, ha="center", va="center", fontsize=size, color=INK, parse_math=False)
    axes: list[list[Axes]] = []
    for row in range(num_frames):
        bottom = height - _TITLE_INCHES - (row + 1) * panel_height - row * GAP_INCHES
        line = []
        for column in range(num_columns):
            left = SIDE_INCHES + column * (panel_width + GAP_INCHES)
            box = (left / width, bottom / height, panel_width / width, panel_height / height)
            axis = figure.add_axes(box)
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_color("#888888")
                spine.set_linewidth(0.6)
            line.append(axis)
        axes.append(line)
    return figure, axes


def hatch_missing(axis: Axes, missing_hw: npt.NDArray[np.bool_]) -> None:
    """Draw the hatching of missing pixels, (rows, cols), over a panel."""
    # imshow's pixel centres are whole numbers, and so are contourf's: the half level runs between the two kinds.
    rows, cols = np.arange(missing_hw.shape[0]), np.arange(missing_hw.shape[1])
    if min(missing_hw.shape) < 2:
        return
    filled = axis.contourf(cols, rows, missing_hw.astype(float), levels=[0.5, 1.5], colors="none", hatches=["////"])
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
    num_classes = len(RAIN_COLOURS) + 1
    bar_inches = min(0.62 * width, 5.6)
    bar = figure.add_axes((SIDE_INCHES / width, 0.42 / height, bar_inches / width, 0.17 / height))
    for position, colour in enumerate((DRY_COLOUR, *RAIN_COLOURS)):
        bar.add_patch(Rectangle((position, 0), 1, 1, facecolor=colour, edgecolor="#888888", linewidth=0.4))
    bar.set_xlim(0, num_classes)
    bar.set_ylim(0, 1)
    bar.set_yticks([])
    bar.set_xticks(range(1, num_classes), [f"{level:g}" for level in RAIN_LEVELS_MMH], fontsize=7.5, color=INK)
    bar.tick_params(length=2, color="#888888")
    for spine in bar.spines.values():
        spine.set_visible(False)
    bar.set_title("Rain rate in mm/h (below 0.1: dry)", fontsize=8, color=INK, loc="left", pad=4)
    if not neutral:
        return
    figure.legend(
        handles=list(neutral),
        loc="center right",
        bbox_to_anchor=(1 - GAP_INCHES / width, 0.5 / height),
        fontsize=8,
        labelcolor=INK,
        frameon=False,
        borderaxespad=0,
    )


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG that appears whole or not at all; raises OSError."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getbuffer())
