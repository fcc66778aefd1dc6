"""The rain colour scale that every picture shares: contact sheets of shards, reconstructions, forecasts."""

from typing import Final

import numpy as np
import numpy.typing as npt

RAIN_LEVELS_MMH: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""Lower bound of each rain class in mm/h; below the first it is dry, the last class is open above."""

# Our own choice: blues that darken up to 5 mm/h, then yellow to dark red and violet. No step rests on telling red from
# green, and neighbours differ in lightness, so the order survives colour blindness and a grey print of either half.
RAIN_COLOURS: Final = (
    *("#cde8f6", "#9fcfec", "#66aede", "#3a87c8", "#1f4f9e"),
    *("#fbe65a", "#fbb22f", "#ee6a24", "#b8182f", "#5c0a4e"),
)
"""Colour of each class of `RAIN_LEVELS_MMH`."""

DRY_COLOUR: Final = "#f8f7f3"
MISSING_COLOUR: Final = "#b4b4b4"
MASKED_COLOUR: Final = "#565c66"


def rgb(rain_mmh: npt.NDArray[np.floating], missing: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.uint8]:
    """Colour a rain field.

    Args:
        rain_mmh: rain rate in mm/h, any shape; NaN counts as missing, values below zero (a network's) as dry.
        missing: True where there is no measurement, same shape.

    Returns:
        The image, shape of `rain_mmh` + (3,), 0..255.

    Raises:
        ValueError: the two shapes differ.
    """
    no_data = np.isnan(rain_mmh)
    if missing is not None:
        if missing.shape != rain_mmh.shape:
            raise ValueError(f"missing has shape {missing.shape}, expected {rain_mmh.shape}, the shape of rain_mmh")
        no_data = no_data | missing

    table = np.array([_bytes_of(colour) for colour in (DRY_COLOUR, *RAIN_COLOURS, MISSING_COLOUR)], dtype=np.uint8)
    # The levels take the field's own precision: a float32 field's 0.1 belongs to the class that starts at 0.1.
    classes = np.digitize(rain_mmh, np.asarray(RAIN_LEVELS_MMH, dtype=rain_mmh.dtype))
    return table[np.where(no_data, len(table) - 1, classes)]


def _bytes_of(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
