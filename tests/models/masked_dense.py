"""The slow definition of the sparse encoder: dense maps multiplied by the mask (SparK `encoder.py`).

Used by tests and benchmarks, and written on its own: it runs timm's network module by module, with no code of
`rainspark.models.sparse` in it.
"""

from typing import Any, Literal, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Statistics = Literal["gather", "multiply"]


def mask_at(visible_bhw: Tensor, height: int, width: int) -> Tensor:
    """The patch grid at a map's resolution, bool (b, 1, height, width)."""
    rows, cols = visible_bhw.shape[1:]
    return visible_bhw.repeat_interleave(height // rows, 1).repeat_interleave(width // cols, 2)[:, None]


def masked_norm(x: Tensor, norm: nn.BatchNorm2d, visible_bhw: Tensor, statistics: Statistics) -> Tensor:
    """Batch normalisation over visible positions, zeros elsewhere.

    `gather` picks them by index and normalises the (positions, C) matrix, as published; `multiply` takes the moments
    of the whole map weighted by the mask.
    """
    mask = mask_at(visible_bhw, *x.shape[2:])
    if statistics == "gather":
        rows = x.permute(0, 2, 3, 1)
        index = mask[:, 0]
        if norm.training:
            cast(Tensor, norm.num_batches_tracked).add_(1)
        picked = F.batch_norm(
            rows[index],
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            norm.training,
            cast(float, norm.momentum),
            norm.eps,
        )
        out = torch.zeros_like(rows)
        out[index] = picked
        return out.permute(0, 3, 1, 2)
    assert norm.training
    weight = mask.to(x.dtype)
    count = weight.sum()
    mean = (x * weight).sum((0, 2, 3), keepdim=True) / count
    var = ((x - mean).square() * weight).sum((0, 2, 3), keepdim=True) / count
    scaled = (x - mean) * torch.rsqrt(var + norm.eps) * norm.weight[:, None, None] + norm.bias[:, None, None]
    return scaled * weight


class MaskedDense(nn.Module):
    """A timm ResNet whose convolutions and pooling are multiplied by the mask, parameters under timm's names.

    With `visible_bhw=None` it is the plain network, walked the same way.
    """

    def __init__(self, name: str, in_chans: int, statistics: Statistics = "gather") -> None:
        super().__init__()
        self.sp_cnn = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4), in_chans=in_chans)
        self.statistics = statistics

    def forward(
        self, frames_bchw: Tensor, visible_bhw: Tensor | None, depth_keep_kb: Tensor | None = None
    ) -> list[Tensor]:
        """Four maps, finest first."""
        net: Any = self.sp_cnn
        x = frames_bchw if visible_bhw is None else frames_bchw * mask_at(visible_bhw, *frames_bchw.shape[2:])
        x = torch.relu(self._norm(net.bn1, self._masked(net.conv1(x), visible_bhw), visible_bhw))
        x = self._masked(F.max_pool2d(x, 3, 2, 1), visible_bhw)
        maps, number = [], 0
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            for block in stage:
                keep = None if depth_keep_kb is None else depth_keep_kb[number].view(-1, 1, 1, 1)
                x = self._block(block, x, visible_bhw, keep)
                number += 1
            maps.append(x)
        return maps

    def _block(self, block: Any, x: Tensor, visible_bhw: Tensor | None, keep: Tensor | None) -> Tensor:
        shortcut = x
        convs = [block.conv1, block.conv2, *([block.conv3] if hasattr(block, "conv3") else [])]
        norms = [block.bn1, block.bn2, *([block.bn3] if hasattr(block, "bn3") else [])]
        for conv, norm in zip(convs, norms, strict=True):
            x = self._norm(norm, self._masked(conv(x), visible_bhw), visible_bhw)
            if conv is not convs[-1]:
                x = torch.relu(x)
        if keep is not None:
            x = x * keep
        if block.downsample is not None:
            conv, norm = block.downsample
            shortcut = self._norm(norm, self._masked(conv(shortcut), visible_bhw), visible_bhw)
        return torch.relu(x + shortcut)

    def _norm(self, norm: nn.BatchNorm2d, x: Tensor, visible_bhw: Tensor | None) -> Tensor:
        return norm(x) if visible_bhw is None else masked_norm(x, norm, visible_bhw, self.statistics)

    @staticmethod
    def _masked(x: Tensor, visible_bhw: Tensor | None) -> Tensor:
        return x if visible_bhw is None else x * mask_at(visible_bhw, *x.shape[2:])
