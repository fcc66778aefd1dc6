"""Animated GIFs: the radar that a forecast starts from, then the forecast; several models stand side by side."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...data.shards.palette import DRY_COLOUR, MISSING_COLOUR, RAIN_COLOURS
from ...data.store.storage import open_storage
from .forecasts import NONFINITE_COLOUR, Case, Stage, forecast_label, shortened

RADAR_MS: Final = 180
FORECAST_MS: Final = 320
REST_MS: Final = 900
"""How long the last radar frame and the last forecast frame stand."""

GIF_COLOURS: Final = 256


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
    stage = Stage(case, len(models) + with_observed, title)
    named = len(models) + with_observed > 1
    pictures, durations_ms = [], []
    for frame in range(len(case.radar_mmh_thw)):
        step = frame - len(case.radar_mmh_thw) + 1
        labels = [f"{shortened(model)}: radar" if named else "radar" for model in models]
        if with_observed:
            labels = ["Radar", *labels]
        clock = f"{case.clock(step)}   radar {case.lead_text(step)}"
        pictures.append(stage.draw([case.radar_image(frame)] * len(labels), labels, clock, step))
        durations_ms.append(RADAR_MS if step else REST_MS)
    for lead in range(case.num_leads):
        step = lead + 1
        text = f"forecast {case.lead_text(step)}"
        heads = [shortened(model) if named else text for model in models]
        labels = [forecast_label(case, model, lead, head) for model, head in zip(models, heads, strict=True)]
        images = [case.forecast_image(model, lead) for model in models]
        if with_observed:
            labels, images = ["Radar: what came", *labels], [case.observed_image(lead), *images]
        pictures.append(stage.draw(images, labels, f"{case.clock(step)}   {text}", step))
        durations_ms.append(FORECAST_MS)
    durations_ms[-1] = REST_MS
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
        ValueError: No pictures, shapes that differ, or not one duration a picture.
        DataError: The file cannot be written.
    """
    if not pictures or len({picture.shape for picture in pictures}) != 1 or len(durations_ms) != len(pictures):
        raise ValueError(
            f"{len(pictures)} pictures of shapes {sorted({picture.shape for picture in pictures})} and "
            f"{len(durations_ms)} durations; expected at least one picture, one shape, and a duration each"
        )
    packed = [_packed(picture) for picture in pictures]
    palette, index_of = _palette(packed)
    frames = []
    for codes_hw in packed:
        frame = Image.fromarray(index_of[codes_hw], mode="P")
        frame.putpalette(palette.tobytes())
        frames.append(frame)
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format="GIF", save_all=True, append_images=frames[1:], duration=list(durations_ms), loop=0,
        optimize=False, disposal=1,
    )  # fmt: skip
    open_storage(path.parent).write(path.name, buffer.getvalue())


def _packed(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Give a number a colour, (height, width)."""
    red, green, blue = (picture[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _palette(packed: Sequence[npt.NDArray[np.int32]]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Choose 256 colours: the scale's own first, then the most frequent; every other takes the nearest of them.

    Returns:
        (palette, (256, 3); the palette's index of every 24-bit colour that occurs, (2**24,))
    """
    scale = [DRY_COLOUR, *RAIN_COLOURS, MISSING_COLOUR, NONFINITE_COLOUR]
    chosen = [int(colour[1:], 16) for colour in scale]
    counts: dict[int, int] = {}
    for codes_hw in packed:
        codes, times = np.unique(codes_hw, return_counts=True)
        for code, count in zip(codes.tolist(), times.tolist(), strict=True):
            counts[code] = counts.get(code, 0) + count
    others = sorted(counts.keys() - set(chosen), key=lambda code: (-counts[code], code))
    chosen += others[: GIF_COLOURS - len(chosen)]
    palette = np.zeros((GIF_COLOURS, 3), dtype=np.uint8)
    palette[: len(chosen)] = [_unpacked(code) for code in chosen]
    index_of = np.zeros(1 << 24, dtype=np.uint8)
    index_of[chosen] = np.arange(len(chosen), dtype=np.uint8)
    used = palette[: len(chosen)].astype(np.int32)
    for code in others[GIF_COLOURS - len(scale) :]:
        index_of[code] = np.argmin(((used - np.array(_unpacked(code))) ** 2).sum(axis=1))
    return palette, index_of


def _unpacked(code: int) -> tuple[int, int, int]:
    return code >> 16, code >> 8 & 255, code & 255
