"""Animated GIFs: the radar that a forecast starts from, then the forecast; several models stand side by side."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...data.shards.palette import DRY_COLOUR, MISSING_COLOUR, RAIN_COLOURS
from ...data.store.storage import open_storage
from .forecasts import NONFINITE_COLOUR, Case, Stage, shortened

RADAR_MS: Final = 180
FORECAST_MS: Final = 320
REST_MS: Final = 900
"""How long the last radar frame and the last forecast frame stand."""

GIF_COLOURS: Final = 256
CODE: Final = np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
"""Turns red, green and blue into a number of 24 bits."""


def animation_frames(case: Case, title: str) -> tuple[list[npt.NDArray[np.uint8]], list[int]]:
    """Draw the input frames, labelled "radar", then the forecast, labelled with its lead time.

    A panel a model; where what came is known, it stands in a panel of its own before them.

    Args:
        case: What is shown.
        title: Of the animation.

    Returns:
        (the pictures, (height, width, 3) each; how long each stands, in milliseconds)
    """
    models = list(case.forecasts_mmh)
    with_observed = case.observed_mmh_thw is not None
    num_panels = len(models) + with_observed
    stage = Stage(case, num_panels, title)
    pictures = []

    # The radar in every panel: forecasts begin where it ends.
    for frame, image in enumerate(case.radar_images()):
        step = frame - len(case.radar_mmh_thw) + 1
        labels = [f"{shortened(model)}: radar" if num_panels > 1 else "radar" for model in models]
        if with_observed:
            labels = ["Radar", *labels]
        pictures.append(
            stage.draw([image] * num_panels, labels, f"{case.clock(step)}   radar {case.lead_text(step)}", step)
        )

    # Then each model's forecast in its own.
    for lead in range(case.num_leads):
        step = lead + 1
        text = f"forecast {case.lead_text(step)}"
        labels = [case.label(model, lead, shortened(model) if num_panels > 1 else text) for model in models]
        images = [case.forecast_image(model, lead) for model in models]
        if with_observed:
            labels = ["Radar: what came", *labels]
            images = [case.observed_image(lead), *images]
        pictures.append(stage.draw(images, labels, f"{case.clock(step)}   {text}", step))

    # The last radar frame and the last forecast rest for a moment.
    durations_ms = [RADAR_MS] * len(case.radar_mmh_thw) + [FORECAST_MS] * case.num_leads
    for last in (len(case.radar_mmh_thw) - 1, -1):
        durations_ms[last] = REST_MS
    return pictures, durations_ms


def write_animation(path: Path, case: Case, title: str) -> None:
    """Write a case as an animated GIF that runs for ever; raises DataError where it cannot be written."""
    pictures, durations_ms = animation_frames(case, title)
    write_gif(path, pictures, durations_ms)


def write_gif(path: Path, pictures: Sequence[npt.NDArray[np.uint8]], durations_ms: Sequence[int]) -> None:
    """Write pictures as an animated GIF with one palette: the rain colours stay exactly what they are.

    Args:
        path: Of the file; it appears whole or not at all.
        pictures: (height, width, 3), 0..255, all of one shape.
        durations_ms: How long each stands.

    Raises:
        DataError: The file cannot be written.
    """
    # Colours as numbers, then as indices into one palette of all pictures.
    codes_thw = np.stack([picture.astype(np.int32) @ CODE for picture in pictures])
    palette, index_of = _palette(codes_thw)
    frames = [Image.fromarray(index_of[codes_hw], mode="P") for codes_hw in codes_thw]
    for frame in frames:
        frame.putpalette(palette.tobytes())

    buffer = io.BytesIO()
    options: dict[str, Any] = {"loop": 0, "optimize": False, "disposal": 1}
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=list(durations_ms), **options)
    open_storage(path.parent).write(path.name, buffer.getvalue())


def _palette(codes_thw: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Choose 256 colours: the scale's own first, then the most frequent; every other takes the nearest of them.

    Args:
        codes_thw: Colours as numbers of 24 bits.

    Returns:
        (palette, (256, 3); the palette's index of every 24-bit colour that occurs, (2**24,))
    """
    scale = [int(colour[1:], 16) for colour in (DRY_COLOUR, *RAIN_COLOURS, MISSING_COLOUR, NONFINITE_COLOUR)]
    # The most frequent of the others fill the palette; equally frequent ones by their code.
    codes, counts = np.unique(codes_thw, return_counts=True)
    others = codes[np.lexsort((codes, -counts))]
    others = others[~np.isin(others, scale)]
    num_others = GIF_COLOURS - len(scale)
    chosen = np.concatenate([scale, others[:num_others]])

    palette = np.zeros((GIF_COLOURS, 3), dtype=np.uint8)
    palette[: len(chosen)] = _parts(chosen)
    index_of = np.zeros(1 << 24, dtype=np.uint8)
    index_of[chosen] = np.arange(len(chosen), dtype=np.uint8)

    for code in others[num_others:]:
        index_of[code] = np.argmin(((_parts(chosen) - _parts(code)) ** 2).sum(axis=-1))
    return palette, index_of


def _parts(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Split colours into red, green and blue."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1)
