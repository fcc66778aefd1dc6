"""Masks, weights and frames that the model tests draw."""

import numpy as np
import torch
from torch import Tensor, nn

from rainspark.models.masking import visible_positions


def draw_positions(images: int, grid_hw: tuple[int, int], ratio: float, seed: int = 0) -> Tensor:
    """Visible positions (images, v), int64."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([visible_positions(grid_hw, ratio, generator) for _ in range(images)]))


def shake(module: nn.Module, seed: int = 0) -> None:
    """Move one-dimensional parameters off their 0 and 1: timm's last normalisation of a block starts at 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))
