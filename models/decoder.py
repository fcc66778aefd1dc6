"""The UNet-like decoder of SparK (Tian et al. 2023, arXiv:2301.03580), under its published names.

Two published versions differ in one activation and in nothing that a checkpoint shows: SparK's `decoder.py` has ReLU6,
SpaT-SparK's a leaky ReLU of slope 0.01 (which is what the reference cases were computed with).
"""

import itertools
import math
from typing import Literal

from torch import Tensor, nn

from .norm import BatchNorm2d, RunningStatistics, run_block

Activation = Literal["leaky_relu", "relu6"]


class UNetBlock(nn.Module):
    """Transposed convolution and two 3x3 convolutions: (b, cin, h, w) -> (b, cout, 2h, 2w)."""

    def __init__(self, in_channels: int, out_channels: int, activation: Activation) -> None:
        super().__init__()
        self.up_sample = nn.ConvTranspose2d(in_channels, in_channels, 4, stride=2, padding=1, bias=True)
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False),
            BatchNorm2d(in_channels),
            nn.ReLU6(inplace=True) if activation == "relu6" else nn.LeakyReLU(inplace=True),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            BatchNorm2d(out_channels),
        )

    def forward(self, x_bchw: Tensor, statistics: list[RunningStatistics] | None = None) -> Tensor:
        """Upsample; for `statistics` see `BatchNorm2d.forward`."""
        x = self.up_sample(x_bchw)
        x = self.conv[2](self.conv[1](self.conv[0](x), statistics))
        return self.conv[4](self.conv[3](x), statistics)


class LightDecoder(nn.Module):
    """Feature maps, coarsest first, to an image: one `UNetBlock` per factor of two, then a 1x1 convolution.

    Args:
        stride: upsampling from the coarsest map to the image; a power of two.
        width: channels of the coarsest map; halved by every block.
        out_channels: channels of the image.
        activation: between the convolutions of a block.
    """

    def __init__(self, stride: int, width: int, out_channels: int, activation: Activation = "leaky_relu") -> None:
        super().__init__()
        num_blocks = round(math.log2(stride))
        if stride < 2 or 2**num_blocks != stride:
            raise ValueError(f"decoder stride is {stride}; expected a power of two, at least 2")
        if width < 2**num_blocks or width % 2**num_blocks:
            raise ValueError(
                f"decoder width is {width}; expected a multiple of {2**num_blocks}, it halves {num_blocks} times"
            )
        if activation not in ("leaky_relu", "relu6"):
            raise ValueError(f"decoder activation is {activation!r}; expected 'leaky_relu' or 'relu6'")
        self.width = width
        channels = [width // 2**level for level in range(num_blocks + 1)]
        self.dec = nn.ModuleList(UNetBlock(cin, cout, activation) for cin, cout in itertools.pairwise(channels))
        self.proj = nn.Conv2d(channels[-1], out_channels, 1, bias=True)
        self.checkpoint_blocks = False
        self._initialise()

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Decode.

        Args:
            maps: level i, coarsest first, (b, width / 2^i, h 2^i, w 2^i); no more than there are blocks.

        Returns:
            (b, out_channels, h stride, w stride).
        """
        return self.proj(self.features(maps))

    def features(self, maps: list[Tensor]) -> Tensor:
        """Decode but for the last layer, (b, width / stride, h stride, w stride); for `maps` see `forward`."""
        x = maps[0]
        for level, block in enumerate(self.dec):
            if 0 < level < len(maps):
                x = x + maps[level]
            x = run_block(block, self.checkpoint_blocks, x)
        return x

    def _initialise(self) -> None:
        """Initialise as published: convolutions N(0, 0.02^2) cut at +-2, transposed ones Kaiming fan-out, biases 0.

        The source is SparK's `LightDecoder.initialize`; its Kaiming branch names Conv2d too, but never reaches it.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
