"""A small case to draw, and what colours a picture has."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor

from rainspark.data.shards.palette import DRY_COLOUR, MASKED_COLOUR, MISSING_COLOUR, RAIN_COLOURS, RAIN_LEVELS_MMH
from rainspark.trainer.pictures.forecasts import NONFINITE_COLOUR, Case

ROWS, COLS = 40, 32


def field(rain_mmh: float, frames: int = 3) -> npt.NDArray[np.float32]:
    """Give frames of one rain rate."""
    return np.full((frames, ROWS, COLS), rain_mmh, dtype=np.float32)


def make_case(**changes: Any) -> Case:
    """Radar at 3 mm/h, the model "a" at 7, "b" at 15, and 30 that came."""
    arguments: dict[str, Any] = {
        "radar_mmh_thw": field(3, 2),
        "radar_valid_thw": np.ones((2, ROWS, COLS), dtype=bool),
        "forecasts_mmh": {"a": field(7), "b": field(15)},
        "observed_mmh_thw": field(30),
        "observed_valid_thw": np.ones((3, ROWS, COLS), dtype=bool),
        "reference_time_s": 1_282_780_800,
        "cadence_s": 300,
    }
    return Case(**(arguments | changes))


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Read a picture's pixels."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def shares(pixels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Share of a picture's pixels that have each colour exactly."""
    named = {f"{level:g}": colour for level, colour in zip(RAIN_LEVELS_MMH, RAIN_COLOURS, strict=True)}
    named |= {"dry": DRY_COLOUR, "masked": MASKED_COLOUR, "missing": MISSING_COLOUR, "no number": NONFINITE_COLOUR}
    return {name: float((pixels == ImageColor.getrgb(colour)).all(axis=-1).mean()) for name, colour in named.items()}
