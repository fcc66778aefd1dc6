"""Bridge frames that are missing or damaged: rain carried along from the nearest frames that there are."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.nowcasting.motion import advect, estimate_motion

MEASURED: Final = 0.999
"""Least share of a carried pixel that has to come from measured ones."""

Field = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]
"""Rain in mm/h, float32 (rows, cols), 0 where missing; and True where it was measured."""


def bridge(fields: Sequence[Field | None]) -> list[Field]:
    """Fill in the fields that are None; at least two others are there.

    A gap between two fields takes both, carried to the time between and weighted by how near they lie in time. At an
    end the nearest field is carried on. The motion is that between two fields (`models.nowcasting.motion`).

    Args:
        fields: In time order, at one cadence.
    """
    known = [number for number, field in enumerate(fields) if field is not None]
    bridged = []
    for number, field in enumerate(fields):
        if field is None:
            # The fields on both sides; at an end, the nearest two say how the rain moves.
            at = min(max(sum(other < number for other in known), 1), len(known) - 1)
            field = _carried(fields, known[at - 1], known[at], number)
        bridged.append(field)
    return bridged


def _carried(fields: Sequence[Field | None], first: int, second: int, number: int) -> Field:
    """Carry the fields of two times to another one."""
    pair = [field for field in (fields[first], fields[second]) if field is not None]
    rain_mmh_12hw, valid_12hw = (torch.from_numpy(np.stack([field[kind] for field in pair]))[None] for kind in (0, 1))
    motion_12hw = estimate_motion(rain_mmh_12hw, valid_12hw) / (second - first)

    # Outside the two times only the nearer field counts.
    share = min(max((number - first) / (second - first), 0.0), 1.0)
    rain_mmh_hw = torch.zeros_like(rain_mmh_12hw[0, 0])
    weight_hw = torch.zeros_like(rain_mmh_hw)
    for at, time, weight in ((0, first, 1.0 - share), (1, second, share)):
        moved_mmh_hw, measured_hw = _moved(
            rain_mmh_12hw[:, at : at + 1], valid_12hw[:, at : at + 1], motion_12hw * (number - time)
        )
        rain_mmh_hw += weight * measured_hw * moved_mmh_hw
        weight_hw += weight * measured_hw
    valid_hw = weight_hw > 0
    rain_mmh_hw = torch.where(valid_hw, rain_mmh_hw / weight_hw.clamp(min=1e-6), 0.0)
    return rain_mmh_hw.numpy(), valid_hw.numpy()


def _moved(rain_mmh_11hw: Tensor, valid_11hw: Tensor, displacement_12hw: Tensor) -> tuple[Tensor, Tensor]:
    """Carry one field along: its rain, and where that comes from measured pixels of the field itself."""
    # What lies outside the field was not measured; nor is a pixel that missing ones, which are 0, have a part in.
    moved_mmh = advect(rain_mmh_11hw, displacement_12hw)
    measured = advect(F.pad(valid_11hw.float(), (1, 1, 1, 1)), displacement_12hw, margin_px=1) > MEASURED
    return moved_mmh[0, 0], measured[0, 0]
