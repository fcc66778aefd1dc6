"""Windows as the models of an evaluation see them: rain in mm/h, one window at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.stream.stream import Batch
from ...data.units import MISSING_COUNT
from ..training.nowcast_task import Frames


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowRain(Frames):
    """One window, float32 on the CPU.

    Attributes:
        row: Of the window table.
    """

    row: int


def windows_of(batches: Iterator[Batch], frames_in: int) -> Iterator[WindowRain]:
    """Take the windows of batches one by one, without padding: nothing that is made of one depends on its batch."""
    for batch in batches:
        for position, row in enumerate(batch.window_b.tolist()):
            if row < 0:
                continue
            counts = batch.counts_bthw[position : position + 1].to(torch.float32)
            valid = counts != MISSING_COUNT
            # Rounded once, to what models see: forecast and radar lie on the same side of a threshold.
            rain = torch.where(valid, counts * batch.scale_mmh_b[position], 0.0)
            yield WindowRain(
                row=row,
                past_mmh_bthw=rain[:, :frames_in],
                past_valid_bthw=_mask(valid[:, :frames_in]),
                future_mmh_bthw=rain[:, frames_in:],
                future_valid_bthw=_mask(valid[:, frames_in:]),
            )


def _mask(valid_bthw: Tensor) -> Tensor | None:
    return None if bool(valid_bthw.all()) else valid_bthw
