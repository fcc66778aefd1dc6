"""SmaAt-UNet, the baseline: a small UNet with attention (Trebing, Stanczyk and Mehrkanoon 2021, arXiv:2007.04417).

Built from the paper: a UNet whose convolutions are depthwise-separable, with two kernels for each input channel, and
whose skip connections pass a convolutional block attention module (CBAM; Woo et al. 2018, arXiv:1807.06521).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..norm import BatchNorm2d, RunningStatistics, run_block
from ..patches import misfit

KERNELS_PER_CHANNEL = 2
"""Depthwise kernels for each input channel: Trebing et al., section 3."""
REDUCTION = 16
"""Channels a hidden unit of the channel attention: Woo et al., section 3.1."""
STRIDE = 16
"""Pixels of the image a pixel of the coarsest map."""


class SmaAtUNet(nn.Module):
    """Past frames to future frames in model space; the call is that of `models.nowcasting.nowcaster.Nowcaster`.

    Args:
        frames_in: past frames.
        frames_out: future frames.
        width: channels of the finest level; the five levels have width * (1, 2, 4, 8, 8). Published: 64.

    Raises:
        ValueError: a number of frames or channels that cannot be.
    """

    def __init__(self, frames_in: int, frames_out: int, width: int = 64) -> None:
        super().__init__()
        if min(frames_in, frames_out) < 1 or width < 2:
            raise ValueError(
                f"{frames_in} frames in, {frames_out} out, width {width}; expected at least 1, 1 and a width of 2"
            )
        self.frames_in, self.frames_out = frames_in, frames_out
        self.checkpoint_blocks = False
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.down = nn.ModuleList(
            DoubleConv(cin, cout, cout) for cin, cout in zip([frames_in, *widths[:-1]], widths, strict=True)
        )
        self.attention = nn.ModuleList(Attention(channels) for channels in widths)
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths) - 1)):
            joined = 2 * widths[level]
            self.up.append(DoubleConv(joined, joined // 2, widths[max(level - 1, 0)]))
        self.proj = nn.Conv2d(width, frames_out, 1)

    def forward(
        self,
        frames_bthw: Tensor,
        visible_bv: Tensor | None = None,
        valid_bthw: Tensor | None = None,
        depth_keep_kb: Tensor | None = None,
    ) -> Tensor:
        """Forecast.

        Args:
            frames_bthw: the past, model space, 0 where missing; height and width are multiples of 16.
            visible_bv: None; this model hides nothing.
            valid_bthw: not used: a missing pixel is 0 in the frames.
            depth_keep_kb: None; this model has no residual blocks to leave out.

        Returns:
            (b, frames_out, h, w), model space, float32 at least, without bounds.

        Raises:
            ValueError: shapes that do not fit, or a mask or stochastic depth.
        """
        self._check(frames_bthw, valid_bthw)
        if visible_bv is not None or depth_keep_kb is not None:
            what = "patches to hide" if visible_bv is not None else "stochastic depth"
            raise ValueError(f"SmaAt-UNet was given {what}, which it does not have; train it without")
        skips: list[Tensor] = []
        x = frames_bthw
        for level, block in enumerate(self.down):
            x = run_block(block, self.checkpoint_blocks, F.max_pool2d(x, 2) if level else x)
            skips.append(self.attention[level](x))
        x = skips.pop()
        for block in self.up:
            finer = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = run_block(block, self.checkpoint_blocks, torch.cat((skips.pop(), finer), 1))
        return self.proj(x).to(torch.promote_types(frames_bthw.dtype, torch.float32))

    def set_checkpoint_blocks(self, recompute: bool) -> None:
        """Switch activation checkpointing of the convolutions."""
        self.checkpoint_blocks = recompute

    def _check(self, frames_bthw: Tensor, valid_bthw: Tensor | None) -> None:
        if frames_bthw.ndim != 4 or frames_bthw.shape[1] != self.frames_in:
            raise ValueError(f"frames have shape {tuple(frames_bthw.shape)}; expected (images, {self.frames_in}, h, w)")
        if problem := misfit(*frames_bthw.shape[2:], patch=STRIDE):
            raise ValueError(problem)
        if valid_bthw is not None and valid_bthw.shape != frames_bthw.shape:
            raise ValueError(f"validity has shape {tuple(valid_bthw.shape)}, frames have {tuple(frames_bthw.shape)}")


class DoubleConv(nn.Module):
    """Twice: depthwise-separable 3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _separable(in_channels, mid_channels), BatchNorm2d(mid_channels)
        self.conv2, self.norm2 = _separable(mid_channels, out_channels), BatchNorm2d(out_channels)

    def forward(self, x_bchw: Tensor, statistics: list[RunningStatistics] | None = None) -> Tensor:
        """Convolve; for `statistics` see `BatchNorm2d.forward`."""
        x = F.relu(self.norm1(self.conv1(x_bchw), statistics))
        return F.relu(self.norm2(self.conv2(x), statistics))


class Attention(nn.Module):
    """CBAM: weigh the channels, then the places, each between 0 and 1 (Woo et al. 2018, section 3).

    Channels (equation 2): sigmoid of a shared two-layer perceptron of the mean and of the maximum over all places.
    Places (equation 3): sigmoid of a normalised 7x7 convolution of the mean and of the maximum over all channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // REDUCTION, 1)
        self.channel = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))
        self.place = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = BatchNorm2d(1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Weigh; the shape stays."""
        mean_bc11, largest_bc11 = x_bchw.mean((2, 3), keepdim=True), x_bchw.amax((2, 3), keepdim=True)
        x = x_bchw * torch.sigmoid(self.channel(mean_bc11) + self.channel(largest_bc11))
        pooled_b2hw = torch.cat((x.amax(1, keepdim=True), x.mean(1, keepdim=True)), 1)
        return x * torch.sigmoid(self.norm(self.place(pooled_b2hw)))


def _separable(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution (Trebing et al., section 3)."""
    inner = KERNELS_PER_CHANNEL * in_channels
    return nn.Sequential(
        nn.Conv2d(in_channels, inner, 3, padding=1, groups=in_channels), nn.Conv2d(inner, out_channels, 1)
    )
