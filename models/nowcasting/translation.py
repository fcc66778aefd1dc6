"""From features of the past to features of the future, level by level of the encoder (SpaT-SparK's translation)."""

from collections.abc import Sequence
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..norm import BatchNorm2d, RunningStatistics, run_block

TranslationName = Literal["identity", "linear", "mixer"]
MIXER_WIDTH = 256
"""Channels of the mixer's coarsest level, halved at each finer one: a tenth of a ResNet-18's cost (counted)."""
MIXER_BLOCKS = (3, 3, 2, 2)
"""Blocks a level, coarsest first. At stride 16 three of them see 19 map pixels, 304 image pixels."""


class Translation(nn.Module):
    """Maps of every level, coarsest first, (b, C_i, h_i, w_i), to maps of the same shapes.

    Attributes:
        checkpoint_blocks: recompute every block in the backward pass instead of keeping its activations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.checkpoint_blocks = False

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Translate; always dense maps, zeros in the masked patches."""
        raise NotImplementedError


class IdentityTranslation(Translation):
    """The features themselves: the decoder alone turns past into future."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Hand the maps on."""
        return maps


class LinearTranslation(Translation):
    """The published `linearA`: convolutions 3x3 and tanh, one at the two coarsest levels, two at the others.

    Parameters have the published names `net.<level>.<layer>.*`.

    Args:
        channels: widths, coarsest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.net = nn.ModuleList()
        for level, width in enumerate(channels):
            layers: list[nn.Module] = []
            for _ in range(1 if level < 2 else 2):
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.Tanh()]
            self.net.append(nn.Sequential(*layers))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Translate each level by itself."""
        return [layers(map_bchw) for layers, map_bchw in zip(self.net, maps, strict=True)]


class MixerBlock(nn.Module):
    """A residual block: depthwise 7x7, normalisation, two pointwise convolutions with GELU between.

    The block of ConvNeXt (Liu et al. 2022, arXiv:2201.03545, figure 4) with batch normalisation and, for cost, an
    expansion of 2 instead of 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width, bias=False)
        self.norm = BatchNorm2d(width)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.reduce = nn.Conv2d(2 * width, width, 1)

    def forward(self, x_bchw: Tensor, statistics: list[RunningStatistics] | None = None) -> Tensor:
        """Mix space, then channels; for `statistics` see `BatchNorm2d.forward`."""
        mixed = self.norm(self.depthwise(x_bchw), statistics)
        return x_bchw + self.reduce(F.gelu(self.expand(mixed)))


class MixerTranslation(Translation):
    """Large kernels at every level, told from coarse to fine where the rain moves to.

    A storm moves up to 70 pixels in an hour: far beyond a 3x3 at the fine levels, a few map pixels at the coarse ones.
    So each level is read into a thinner map, takes the next coarser one's upsampled, and passes `MixerBlock`s; what
    comes out is added to the features. All input times take part: they are mixed in the encoder's channels.
    The last weights start at 0, so that it starts as the identity.

    Args:
        channels: widths, coarsest first, each level twice as fine as the one before.
        width: channels of the coarsest inner map; halved at each finer one, 16 at least.
        num_blocks: `MixerBlock`s a level, coarsest first.
    """

    def __init__(
        self, channels: Sequence[int], width: int = MIXER_WIDTH, num_blocks: Sequence[int] = MIXER_BLOCKS
    ) -> None:
        super().__init__()
        widths = [max(width // 2**level, 16) for level in range(len(channels))]
        self.enter, self.descend = nn.ModuleList(), nn.ModuleList()
        self.blocks, self.leave = nn.ModuleList(), nn.ModuleList()
        for level, (outer, inner) in enumerate(zip(channels, widths, strict=True)):
            self.enter.append(nn.Sequential(nn.Conv2d(outer, inner, 1, bias=False), BatchNorm2d(inner)))
            self.descend.append(nn.Conv2d(widths[level - 1], inner, 1) if level else nn.Identity())
            self.blocks.append(nn.Sequential(*(MixerBlock(inner) for _ in range(num_blocks[level]))))
            leave = nn.Conv2d(inner, outer, 1)
            nn.init.zeros_(leave.weight)
            nn.init.zeros_(leave.bias)  # type: ignore[arg-type]
            self.leave.append(leave)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Translate, coarsest level first."""
        translated: list[Tensor] = []
        coarser: Tensor | None = None
        for level, map_bchw in enumerate(maps):
            x = self.enter[level](map_bchw)
            if coarser is not None:
                # Nearest, whose backward pass is repeatable on a GPU; the 7x7 that follows smooths.
                x = x + F.interpolate(self.descend[level](coarser), scale_factor=2.0, mode="nearest")
            for block in cast(nn.Sequential, self.blocks[level]):
                x = run_block(block, self.checkpoint_blocks, x)
            translated.append(map_bchw + self.leave[level](x))
            coarser = x
        return translated


def build_translation(name: TranslationName, channels: Sequence[int]) -> Translation:
    """Make a translation with freshly initialised weights.

    Args:
        name: `identity`, `linear` (published) or `mixer`.
        channels: widths of the encoder's maps, coarsest first.

    Raises:
        ValueError: another name.
    """
    match name:
        case "identity":
            return IdentityTranslation()
        case "linear":
            return LinearTranslation(channels)
        case "mixer":
            return MixerTranslation(channels)
    raise ValueError(f"translation {name!r} is not known; expected 'identity', 'linear' or 'mixer'")
