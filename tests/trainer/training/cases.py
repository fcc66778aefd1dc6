"""Batches of windows with known counts, and what a task has drawn for them."""

import numpy as np
import numpy.typing as npt
import torch

from rainspark.data.stream.stream import Batch
from rainspark.data.units import MISSING_COUNT

SCALE_MMH = 0.12


def batch_of(
    counts: npt.NDArray[np.uint16], *, first: int = 0, step: int = 3, windows: tuple[int, ...] | None = None
) -> Batch:
    """Make a batch of these counts, (b, t, rows, cols), from place `first` of the global batch of a step."""
    rows = np.arange(len(counts)) + first
    return Batch(
        counts_bthw=torch.from_numpy(counts.copy()),
        scale_mmh_b=torch.full((len(counts),), SCALE_MMH, dtype=torch.float64),
        has_missing=bool((counts == MISSING_COUNT).any()),
        window_b=rows if windows is None else np.array(windows),
        index_b=rows,
        step=step,
        micro_step=0,
        epoch=0,
    )


def drawn(values: torch.Tensor | None) -> torch.Tensor:
    """Give what was drawn, which has to be there."""
    assert values is not None
    return values
