"""What a map shows over rain: coast, borders, a graticule with its degrees, and where north is."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .panels import DOTS_PER_INCH, INK, SIDE_INCHES

Line = npt.NDArray[np.float64]
"""Points in a frame's pixels, whose centres are whole numbers: columns and rows, (2, points); NaN between lines."""

LAND_COLOUR: Final = "#1d1d1d"
GRATICULE_COLOUR: Final = "#6e6e6e"
NATURAL_EARTH: Final = "Map: Natural Earth."
_ARROW_INCHES = 0.26


@dataclass(frozen=True, kw_only=True)
class Label:
    """A line of the graticule where it meets the frame: at (col, row), on its upper or right edge."""

    col: float
    row: float
    text: str
    on_top: bool


@dataclass(frozen=True, kw_only=True)
class MapLines:
    """Lines in a frame's pixels.

    Attributes:
        coast: Where land meets water.
        borders: Between countries.
        graticule: Meridians and parallels.
        labels: Their degrees.
        north_deg: Where north is in the upper left corner: degrees clockwise from up.
    """

    coast: Line
    borders: Line
    graticule: Line
    labels: tuple[Label, ...]
    north_deg: float


def draw_map(axis: Axes, lines: MapLines, *, labelled: bool) -> None:
    """Draw lines over a panel whose axes count pixels.

    Args:
        axis: Its limits stay.
        lines: What to draw.
        labelled: Also write the degrees and draw the north arrow: on large panels.
    """
    limits = axis.get_xlim(), axis.get_ylim()
    thin = 1.0 if labelled else 0.7

    # Dark lines in a pale sheath: they stand out on white, on blue, on red and on grey.
    axis.plot(*lines.graticule, color=GRATICULE_COLOUR, linewidth=0.4 * thin, alpha=0.55, zorder=2)
    halo = [patheffects.withStroke(linewidth=1.9 * thin, foreground="white", alpha=0.75)]
    axis.plot(*lines.coast, color=LAND_COLOUR, linewidth=0.75 * thin, path_effects=halo, zorder=3)
    dashes = (0, (4, 1.6))
    axis.plot(*lines.borders, color=LAND_COLOUR, linewidth=0.7 * thin, linestyle=dashes, path_effects=halo, zorder=3)

    if labelled:
        _write_degrees(axis, lines)
        _draw_north(axis, lines.north_deg)
    axis.set_xlim(limits[0])
    axis.set_ylim(limits[1])


class Overlay:
    """Lines drawn once, for panels that change from frame to frame.

    Args:
        lines: What to draw.
        shape: Pixel rows and columns of a frame.
        zoom: Screen pixels along a side of a pixel.
        labelled: Also write the degrees and draw the north arrow.
    """

    def __init__(self, lines: MapLines, shape: tuple[int, int], zoom: int, *, labelled: bool) -> None:
        rows, cols = shape
        size_inches = (zoom * cols / DOTS_PER_INCH, zoom * rows / DOTS_PER_INCH)
        figure = Figure(figsize=size_inches, dpi=DOTS_PER_INCH, facecolor="none")
        canvas: Any = FigureCanvasAgg(figure)
        axis = figure.add_axes((0, 0, 1, 1))
        axis.axis("off")
        axis.set_xlim(-0.5, cols - 0.5)
        axis.set_ylim(rows - 0.5, -0.5)
        draw_map(axis, lines, labelled=labelled)
        canvas.draw()

        # The few pixels that it covers, with its colours and how much of them shows.
        drawn = np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[: zoom * rows, : zoom * cols]
        self._zoom = zoom
        self._at = np.nonzero(drawn[..., 3])
        covering = drawn[self._at].astype(np.float32)
        self._share = covering[:, 3:] / 255
        self._colours = covering[:, :3] * self._share

    def over(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Lay the lines over a frame, (rows, cols, 3): gives (zoom x rows, zoom x cols, 3)."""
        zoomed = image.repeat(self._zoom, axis=0).repeat(self._zoom, axis=1)
        zoomed[self._at] = np.rint(zoomed[self._at] * (1 - self._share) + self._colours)
        return zoomed


def write_credit(figure: Figure, credit: str) -> None:
    """Write whose data a picture shows as a small line at its foot; a long one is set smaller, not cut off."""
    width, height = figure.get_size_inches()
    room_points = 72 * (width - SIDE_INCHES - 0.1)
    size = min(6.5, room_points / (0.6 * max(len(credit), 1)))
    style: dict[str, Any] = {"fontsize": size, "color": "#555555", "va": "bottom", "parse_math": False}
    figure.text(SIDE_INCHES / width, 0.06 / height, credit, **style)


def _write_degrees(axis: Axes, lines: MapLines) -> None:
    style: dict[str, Any] = {
        "fontsize": 6.5,
        "color": INK,
        "path_effects": [patheffects.withStroke(linewidth=2, foreground="white")],
        "textcoords": "offset points",
        "zorder": 4,
    }
    for label in lines.labels:
        where = (label.col, label.row)
        if label.on_top:
            axis.annotate(label.text, where, (2, -3), ha="left", va="top", **style)
        else:
            axis.annotate(label.text, where, (-3, 2), ha="right", va="bottom", **style)


def _draw_north(axis: Axes, north_deg: float) -> None:
    """Draw an arrow in the upper left corner."""
    box = axis.get_window_extent()
    length = _ARROW_INCHES * axis.figure.get_dpi()
    # In pixels of the screen, from the panel's lower left.
    right, up = np.sin(np.radians(north_deg)), np.cos(np.radians(north_deg))
    centre = np.array([1.05 * length, box.height - 1.05 * length])
    tip, tail, letter = (
        tuple((centre + share * length * np.array([right, up])).tolist()) for share in (0.5, -0.5, -0.78)
    )

    # The letter stands at the tail.
    arrow = {
        "arrowstyle": "-|>,head_length=0.45,head_width=0.18",
        "color": INK,
        "linewidth": 1.1,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]
    axis.annotate("", tip, tail, "axes pixels", "axes pixels", {**arrow, "path_effects": halo}, zorder=4)
    axis.annotate(
        "N",
        letter,
        xycoords="axes pixels",
        fontsize=7,
        color=INK,
        ha="center",
        va="center",
        path_effects=halo,
        zorder=4,
    )
