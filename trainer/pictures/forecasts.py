"""Forecasts as pictures, on the radar colours: one frame a lead time, and chosen leads beside the radar."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text

from ...data.shards.palette import MISSING_COLOUR, rgb
from .maps import NATURAL_EARTH, MapLines, Overlay, draw_map, write_credit
from .panels import (
    DOTS_PER_INCH,
    GAP_INCHES,
    INK,
    add_panel,
    hatch_missing,
    missing_patch,
    panel_grid,
    rain_legend,
    write_line,
    write_png,
)

NONFINITE_COLOUR: Final = "#00a884"
"""Forecast pixels that are no finite number: a green that no rain class comes near."""

UNKNOWN_COLOUR: Final = "#e3e3e3"
STRIPES_PX: Final = 8
"""Pixels that a forecast cannot know are striped in this colour and that of missing ones, so wide."""

ACCENT: Final = "#0b5cad"
TRACK_COLOUR: Final = "#d5d8dc"
_MARGIN_INCHES = 0.14
_HEAD_INCHES = 0.82
_LABEL_INCHES = 0.24
_FOOT_INCHES = 0.95
_PANEL_PIXELS = 560
_SMALL_PANEL_PIXELS = 300
_BESIDE_INCHES = 1.9
_LABELLED_PIXELS = 400
"""Panels from this width on carry the degrees and the north arrow."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Radar frames, and the forecasts that start from them.

    Attributes:
        radar_mmh_thw: Rain of the input frames in mm/h, (frames in, rows, cols).
        radar_valid_thw: True where the radar measured; same shape.
        forecasts_mmh: By model: rain in mm/h, (frames out, rows, cols).
        observed_mmh_thw: What came, (frames out, rows, cols), mm/h; None where the future is not known yet.
        observed_valid_thw: True where it was measured; None with the former.
        reference_time_s: End of the last input frame, epoch seconds UTC.
        cadence_s: Seconds between frames.
        pixel_km: Side of a pixel.
        unknown_thw: By model, what it cannot know, (frames out, rows, cols), such as what flows in from outside; models
            that know all are left out.
        map: Coasts, borders and graticule on the grid; None where they cannot be drawn.
        credit: Whose radar data the pictures show; see `radar_credit`.
    """

    radar_mmh_thw: npt.NDArray[np.floating]
    radar_valid_thw: npt.NDArray[np.bool_]
    forecasts_mmh: Mapping[str, npt.NDArray[np.floating]]
    observed_mmh_thw: npt.NDArray[np.floating] | None = None
    observed_valid_thw: npt.NDArray[np.bool_] | None = None
    reference_time_s: int
    cadence_s: int
    pixel_km: float = 1.0
    unknown_thw: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    map: MapLines | None = None
    credit: str = ""

    @property
    def num_leads(self) -> int:
        """Count the lead times."""
        return len(next(iter(self.forecasts_mmh.values())))

    @property
    def credit_line(self) -> str:
        """Name whose data a picture shows, those of the map besides."""
        return " ".join(text for text in (self.credit, NATURAL_EARTH if self.map else "") if text)

    @property
    def seen_hw(self) -> npt.NDArray[np.bool_]:
        """Mark the pixels measured in at least one input frame, (rows, cols): elsewhere a forecast rests on nothing."""
        seen_hw: npt.NDArray[np.bool_] = np.any(self.radar_valid_thw, axis=0)
        return seen_hw

    def radar_images(self) -> npt.NDArray[np.uint8]:
        """Colour the input frames, (frames, rows, cols, 3)."""
        return rgb(self.radar_mmh_thw, ~self.radar_valid_thw)

    def observed_image(self, lead: int) -> npt.NDArray[np.uint8]:
        """Colour what the radar saw at a lead (0 is the first), (rows, cols, 3)."""
        assert self.observed_mmh_thw is not None
        assert self.observed_valid_thw is not None
        return rgb(self.observed_mmh_thw[lead], ~self.observed_valid_thw[lead])

    def forecast_image(self, model: str, lead: int) -> npt.NDArray[np.uint8]:
        """Colour a forecast at a lead, (rows, cols, 3): what is not finite in green, what is unknown striped."""
        field_hw = self.forecasts_mmh[model][lead]
        image = rgb(field_hw, ~self.seen_hw)
        image[~np.isfinite(field_hw) & self.seen_hw] = _bytes_of(NONFINITE_COLOUR)
        if model in self.unknown_thw:
            unknown_hw = self.unknown_thw[model][lead] & self.seen_hw
            row, col = np.nonzero(unknown_hw)
            is_dark = (row + col) % STRIPES_PX < STRIPES_PX / 2
            image[row, col] = np.where(is_dark[:, None], _bytes_of(MISSING_COLOUR), _bytes_of(UNKNOWN_COLOUR))
        return image

    def num_nonfinite(self, model: str, lead: int) -> int:
        """Count the pixels of a forecast that are no finite number where the radar had measured."""
        known_hw = ~self.unknown_thw[model][lead] if model in self.unknown_thw else True
        return int((~np.isfinite(self.forecasts_mmh[model][lead]) & self.seen_hw & known_hw).sum())

    def label(self, model: str, lead: int, text: str) -> str:
        """Add to a panel's label how many pixels of its forecast are no finite number."""
        count = self.num_nonfinite(model, lead)
        return f"{text} ({count} px no number)" if count else text

    def clock(self, step: int) -> str:
        """Write the end time of a frame, `step` cadences after the last radar frame."""
        time = datetime.fromtimestamp(self.reference_time_s + step * self.cadence_s, UTC)
        return time.strftime("%Y-%m-%d %H:%M UTC")

    def lead_text(self, step: int) -> str:
        """Write the distance of a frame from the last radar frame in minutes."""
        return f"{step * self.cadence_s / 60:+g} min" if step else "0 min"

    def legend_patches(self, *, hatched: bool = True) -> list[Patch]:
        """Give the patches of the neutral colours that occur; missing pixels are hatched or plain."""
        patches = []
        if not all(valid is None or valid.all() for valid in (self.radar_valid_thw, self.observed_valid_thw)):
            patches.append(missing_patch(hatched=hatched))
        if any(self.unknown_thw[model].any() for model in self.forecasts_mmh if model in self.unknown_thw):
            style: dict[str, Any] = {"edgecolor": MISSING_COLOUR, "linewidth": 0.4, "hatch": "/////"}
            patches.append(Patch(facecolor=UNKNOWN_COLOUR, label="unknown: flows in", **style))
        if any(self.num_nonfinite(model, lead) for model in self.forecasts_mmh for lead in range(self.num_leads)):
            patches.append(Patch(facecolor=NONFINITE_COLOUR, edgecolor="#666666", linewidth=0.4, label="not a number"))
        return patches


class Stage:
    """Panels side by side that change from frame to frame, with a clock, a time line, the rain scale and a scale bar.

    Args:
        case: What is shown; its shape and legend.
        num_panels: Panels; more than one stand two or three in a line.
        title: Of the picture.
    """

    def __init__(self, case: Case, num_panels: int, title: str) -> None:
        rows, cols = case.radar_mmh_thw.shape[1:]
        across = num_panels if num_panels < 3 else 2 if num_panels <= 4 else 3
        down = -(-num_panels // across)

        # Whole screen pixels for a radar pixel: nothing is blurred, and no row is drawn twice as thick as the next.
        zoom = max(1, round((_PANEL_PIXELS if num_panels == 1 else _SMALL_PANEL_PIXELS) / cols))
        panel_width = zoom * cols / DOTS_PER_INCH
        panel_height = zoom * rows / DOTS_PER_INCH
        width = max(2 * _MARGIN_INCHES + across * panel_width + (across - 1) * GAP_INCHES, 4.4)
        height = _HEAD_INCHES + down * (panel_height + _LABEL_INCHES) + _FOOT_INCHES

        # What stays: title, clock, panels, time line and legend; a frame changes their contents only.
        self._figure = Figure(figsize=(width, height), facecolor="white", dpi=DOTS_PER_INCH)
        self._canvas = FigureCanvasAgg(self._figure)
        write_line(self._figure, title, 0.2, 10, letter=0.58)
        self._clock = write_line(self._figure, "", 0.45, 12.5, letter=0.58)
        self._clock.set_fontweight("bold")

        self._images: list[AxesImage] = []
        self._labels: list[Text] = []
        # In points times letters, a letter being about 0.56 of the font size wide: a long name is set smaller.
        self._label_room = 72 * panel_width / 0.56

        # The map is drawn once, and laid over every frame's pixels.
        self._overlay = None
        if case.map is not None:
            self._overlay = Overlay(case.map, (rows, cols), zoom, labelled=zoom * cols >= _LABELLED_PIXELS)

        # Lines of panels from the top down, centred; the first one carries the scale bar.
        left_inches = (width - across * panel_width - (across - 1) * GAP_INCHES) / 2
        for panel in range(num_panels):
            line, column = divmod(panel, across)
            left = left_inches + column * (panel_width + GAP_INCHES)
            bottom = height - _HEAD_INCHES - (line + 1) * (panel_height + _LABEL_INCHES)
            axis = add_panel(self._figure, left, bottom, panel_width, panel_height)
            blank = np.zeros((rows, cols, 3), dtype=np.uint8)
            extent = (-0.5, cols - 0.5, rows - 0.5, -0.5)
            self._images.append(axis.imshow(blank, interpolation="nearest", aspect="auto", extent=extent))
            # Five points above the panel, however high that is.
            label: dict[str, Any] = {"fontsize": 8.5, "color": INK, "va": "bottom", "parse_math": False}
            self._labels.append(axis.annotate("", (0, 1), (0, 5), "axes fraction", "offset points", **label))
            if panel == 0:
                scale_bar(axis, case.pixel_km)

        self._add_time_line(case, left_inches, width, height)
        write_credit(self._figure, case.credit_line)
        rain_legend(self._figure, case.legend_patches(hatched=False))

    def draw(
        self, images: Sequence[npt.NDArray[np.uint8]], labels: Sequence[str], clock: str, step: int
    ) -> npt.NDArray[np.uint8]:
        """Draw one frame.

        Args:
            images: A coloured field a panel.
            labels: A line above each panel.
            clock: The time, written large.
            step: Cadences after the last radar frame; above 0 the frame is a forecast.

        Returns:
            The picture, (height, width, 3), 0..255.
        """
        for panel, image in zip(self._images, images, strict=True):
            panel.set_data(image if self._overlay is None else self._overlay.over(image))
        for text, label in zip(self._labels, labels, strict=True):
            text.set_text(label)
            text.set_fontsize(min(8.5, self._label_room / max(len(label), 1)))
        self._clock.set_text(clock)
        self._clock.set_color(ACCENT if step > 0 else INK)

        # The time line: dark up to the last radar frame, then in colour.
        start = 0 if step > 0 else self._first_step
        self._now.set_x(start)
        self._now.set_width(step - start)
        self._now.set_facecolor(ACCENT if step > 0 else INK)
        self._past.set_visible(step > 0)

        canvas: Any = self._canvas
        canvas.draw()
        return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()

    def _add_time_line(self, case: Case, left_inches: float, width: float, height: float) -> None:
        """Draw a bar that fills: dark for radar frames, coloured for forecast ones."""
        self._first_step = -(len(case.radar_mmh_thw) - 1)
        box = (left_inches / width, 1 - 0.7 / height, 1 - 2 * left_inches / width, 0.06 / height)
        bar = self._figure.add_axes(box)
        bar.set_xlim(self._first_step - 0.001, case.num_leads)
        bar.set_ylim(0, 1)
        bar.axis("off")
        bar.add_patch(Rectangle((self._first_step, 0), case.num_leads - self._first_step, 1, facecolor=TRACK_COLOUR))
        self._past = Rectangle((self._first_step, 0), -self._first_step, 1, facecolor=INK)
        self._now = Rectangle((self._first_step, 0), 0, 1, facecolor=INK)
        bar.add_patch(self._past)
        bar.add_patch(self._now)


def forecast_frames(case: Case, model: str, title: str) -> list[npt.NDArray[np.uint8]]:
    """Draw a picture a lead time of one model's forecast, (height, width, 3) each."""
    stage = Stage(case, 1, title)
    pictures = []
    for lead in range(case.num_leads):
        step = lead + 1
        clock = f"{case.clock(step)}   {case.lead_text(step)}"
        label = case.label(model, lead, "forecast")
        pictures.append(stage.draw([case.forecast_image(model, lead)], [label], clock, step))
    return pictures


def forecast_beside_radar(path: Path, case: Case, *, leads: Sequence[int], title: str) -> None:
    """Draw chosen leads as columns: the radar above, the models below it, on the same colours.

    Args:
        path: Of the PNG; it appears whole or not at all.
        case: With what was observed, or without: then the first line is left out.
        leads: Lead numbers; 1 is the first forecast frame.
        title: Of the picture; what follows a line break is set smaller below it.

    Raises:
        OSError: The file cannot be written.
    """
    rows, cols = case.radar_mmh_thw.shape[1:]
    names = ([] if case.observed_mmh_thw is None else [None]) + list(case.forecasts_mmh)
    figure, axes = panel_grid((len(names), rows, cols), len(leads), title, _BESIDE_INCHES)
    # A line of panels a name; None is the radar.
    for line, name in enumerate(names):
        label = "Radar" if name is None else shortened(name)
        axes[line][0].set_ylabel(label, fontsize=9, color=INK, parse_math=False)
        for column, lead in enumerate(leads):
            axis = axes[line][column]
            if name is None:
                assert case.observed_valid_thw is not None
                image = case.observed_image(lead - 1)
                missing_hw = ~case.observed_valid_thw[lead - 1]
            else:
                image = case.forecast_image(name, lead - 1)
                missing_hw = ~case.seen_hw
            axis.imshow(image, interpolation="nearest")
            hatch_missing(axis, missing_hw)
            if case.map is not None:
                draw_map(axis, case.map, labelled=False)
            if line == 0:
                heading = f"{case.lead_text(lead)}   {case.clock(lead)[11:16]} UTC"
                axis.set_title(heading, fontsize=9, color=INK, pad=5)

    scale_bar(axes[0][0], case.pixel_km)
    rain_legend(figure, case.legend_patches())
    write_credit(figure, case.credit_line)
    write_png(figure, path)


def _bytes_of(colour: str) -> list[int]:
    return list(bytes.fromhex(colour[1:]))


def radar_credit(source: str, licence: str) -> str:
    """Name the product that was drawn and its licence."""
    return f"Radar: {source}. Licence: {licence}."


def scale_bar(axis: Axes, pixel_km: float) -> None:
    """Draw a bar of a round number of km in the lower left of a panel whose axes count pixels."""
    left, right = axis.get_xlim()
    low, high = sorted(axis.get_ylim())
    # The longest of 1, 2, 5 times a power of ten that takes at most a third of the width.
    most_km = 0.3 * (right - left) * pixel_km
    power = 10 ** np.floor(np.log10(most_km))
    length_km = next(float(digit * power) for digit in (5, 2, 1) if digit * power <= most_km)

    # Near the lower left corner, with a halo that keeps it legible on any colour.
    x = left + 0.04 * (right - left)
    y = high - 0.05 * (high - low)
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]
    axis.plot([x, x + length_km / pixel_km], [y, y], color=INK, linewidth=1.6, path_effects=halo, solid_capstyle="butt")
    axis.text(x, y - 0.015 * (high - low), f"{length_km:g} km", fontsize=7, color=INK, va="bottom", path_effects=halo)
    axis.set_xlim(left, right)


def shortened(name: str, most: int = 26) -> str:
    """Cut a long name in its middle: the ends tell runs apart."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"
