"""Which patches of an image stay visible: pure functions of (shape, ratio, generator)."""

import numpy as np
import numpy.typing as npt


def num_visible(grid_hw: tuple[int, int], mask_ratio: float) -> int:
    """How many patches of a (rows, cols) grid stay visible: round(patches * (1 - mask_ratio)), at least one.

    The rounding is the published one (SparK `spark.py`, `len_keep`): Python's, halves to even.

    Raises:
        ValueError: an empty grid, or a ratio outside [0, 1).
    """
    rows, cols = grid_hw
    if rows < 1 or cols < 1:
        raise ValueError(f"a grid of {rows} x {cols} patches holds none; expected at least 1 x 1")
    if not 0.0 <= mask_ratio < 1.0:
        raise ValueError(f"mask ratio is {mask_ratio}; expected 0 <= ratio < 1 (the share of patches hidden)")
    return max(1, round(rows * cols * (1.0 - mask_ratio)))


def visible_positions(
    grid_hw: tuple[int, int], mask_ratio: float, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Flat positions (row * cols + col) of one image's visible patches, sorted, int64 (v,), each set equally likely."""
    rows, cols = grid_hw
    count = num_visible(grid_hw, mask_ratio)
    return np.sort(generator.permutation(rows * cols)[:count]).astype(np.int64)
