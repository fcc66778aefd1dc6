"""Rain cells that move as they are told, and what is found of it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Field = npt.NDArray[np.float64]
SIZE = 128


@dataclass(frozen=True)
class Tenths:
    """A linear model space: 10 mm/h are 1."""

    def from_mmh(self, rain_mmh: Tensor) -> Tensor:
        return rain_mmh / 10.0

    def to_mmh(self, values: Tensor) -> Tensor:
        return values * 10.0


def cells(seed: int, size: int = SIZE) -> tuple[Field, Field]:
    """Centres (x, y), in the frame and half of it around, and (width, rate) of rain cells, about 10 in SIZE x SIZE."""
    random = np.random.default_rng(seed)
    num = 40 * size**2 // SIZE**2
    return random.uniform(-size / 2, 1.5 * size, (num, 2)), random.uniform((6, 1), (16, 9), (num, 2))


def rain_of(centres: Field, shapes: Field, size: int = SIZE) -> Tensor:
    """Round cells, mm/h, (size, size)."""
    place = np.arange(size)
    across = np.exp(-((place - centres[:, :1]) ** 2) / (2 * shapes[:, :1] ** 2))
    down = np.exp(-((place - centres[:, 1:]) ** 2) / (2 * shapes[:, :1] ** 2))
    return torch.from_numpy(np.einsum("n,nr,nc->rc", shapes[:, 1], down, across))


def moving(step: tuple[float, float], *, frames: int = 3, seed: int = 0, size: int = SIZE) -> Tensor:
    """Cells that all move by (x, y) pixels a frame: (1, frames, size, size)."""
    centres, shapes = cells(seed, size)
    return torch.stack([rain_of(centres + frame * np.array(step), shapes, size) for frame in range(frames)])[None]


def far(motion_b2hw: Tensor, step: tuple[float, float]) -> Tensor:
    """Distance from the true motion, pixels, (b, h, w)."""
    return (motion_b2hw - torch.tensor(step, dtype=motion_b2hw.dtype).view(1, 2, 1, 1)).norm(dim=1)


def circle(radius: float, frames: int = 3) -> Tensor:
    """Pixels in the radar's range, (1, frames, SIZE, SIZE)."""
    place = torch.arange(SIZE) - (SIZE - 1) / 2
    return (torch.hypot(place[:, None], place[None]) < radius).expand(1, frames, SIZE, SIZE).contiguous()
