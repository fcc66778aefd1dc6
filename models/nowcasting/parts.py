"""Run a convolutional network over large frames in overlapping parts, so that memory does not grow with the frame."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

PART_PX: Final = 1024
"""Side of a part's own pixels: with its margin, a ResNet-50 takes about 6 GB for it."""
OVERLAP_PX: Final = 256
"""Pixels around a part that the network sees too; a multiple of its patches."""


def in_parts(network: Callable[[Tensor], Tensor], frames_bchw: Tensor, part_px: int, overlap_px: int) -> Tensor:
    """Run a network over frames part by part; what a part's own pixels get is put together.

    The network sees `overlap_px` beyond each part, where the frame goes on; it is run once over frames that are no
    larger than one part with its overlap.

    Args:
        network: Gives as many rows and columns as it takes, and moves with its input by multiples of its patch.
        frames_bchw: Its input.
        part_px: Side of a part; a multiple of the network's patch.
        overlap_px: Pixels beyond a part, a multiple of the patch too.
    """
    height, width = frames_bchw.shape[-2:]
    if max(height, width) <= part_px + 2 * overlap_px:
        return network(frames_bchw)

    rows = []
    for row in range(0, height, part_px):
        cols = []
        for col in range(0, width, part_px):
            top, left = min(row, overlap_px), min(col, overlap_px)
            seen = frames_bchw[..., row - top : row + part_px + overlap_px, col - left : col + part_px + overlap_px]
            # Of what the network gives, the overlap belongs to the parts beside.
            cols.append(network(seen)[..., top : top + part_px, left : left + part_px])
        rows.append(torch.cat(cols, dim=-1))
    return torch.cat(rows, dim=-2)
