"""A timm ResNet as hierarchical encoder. The only door to timm's models."""

from collections.abc import Iterator
from typing import Any, cast

import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from .norm import BatchNorm2d, run_block
from .sparse import PackedBlock, PackedConv2d, PackedMaxPool2d, PatchLayout

ENCODERS = ("resnet18", "resnet26", "resnet34", "resnet50", "resnet101")
STAGES = ("layer1", "layer2", "layer3", "layer4")


class Encoder(nn.Module):
    """Four feature maps of an image, on dense maps or on visible patches only.

    `sp_cnn` holds timm's network under timm's names (the published name of the attribute), with its convolutions,
    pooling and blocks exchanged for ones that also take packed patches.

    Attributes:
        channels: widths of the four maps, finest first.
        strides: image pixels a map pixel, finest first: 4, 8, 16, 32.
        depth_drop: rate of stochastic depth at the last block; see `depth_rates`.
        checkpoint_blocks: recompute every block in the backward pass instead of keeping its activations.
    """

    def __init__(self, network: nn.Module, name: str, in_chans: int, depth_drop: float) -> None:
        super().__init__()
        self.sp_cnn = network
        self.name, self.in_chans, self.depth_drop = name, in_chans, depth_drop
        self.checkpoint_blocks = False
        blocks = [list(cast(nn.Sequential, getattr(network, stage)))[-1] for stage in STAGES]
        convs = [cast(PackedConv2d, getattr(block, f"conv{block.num_convs}")) for block in blocks]
        self.channels: tuple[int, ...] = tuple(conv.out_channels for conv in convs)
        self.strides: tuple[int, ...] = (4, 8, 16, 32)

    def forward(self, frames_bchw: Tensor, depth_keep_kb: Tensor | None = None) -> list[Tensor]:
        """Encode whole images: maps (b, channels[i], h / strides[i], w / strides[i]), finest first."""
        return self._walk(frames_bchw, None, depth_keep_kb)

    def forward_packed(
        self, frames_bchw: Tensor, layout: PatchLayout, depth_keep_kb: Tensor | None = None
    ) -> list[Tensor]:
        """Encode the visible patches of images.

        Args:
            frames_bchw: whole frames; what the layout hides does not enter.
            layout: the visible patches; a patch is a multiple of 32 pixels high and wide.
            depth_keep_kb: a multiplier (0, or 1 / share kept) for each residual block and image.

        Returns:
            Packed maps (n, channels[i], p / strides[i], p / strides[i]) for patches of p pixels, finest first.
        """
        return self._walk(frames_bchw, layout, depth_keep_kb)

    def blocks(self) -> Iterator[nn.Module]:
        """The residual blocks, in order."""
        for stage in STAGES:
            yield from cast(nn.Sequential, getattr(self.sp_cnn, stage))

    def _walk(self, frames_bchw: Tensor, layout: PatchLayout | None, depth_keep_kb: Tensor | None) -> list[Tensor]:
        """Stem, then block by block."""
        net: Any = self.sp_cnn
        x = net.conv1(frames_bchw, layout, True)
        x = net.maxpool(net.act1(net.bn1(x)), layout)
        maps = []
        number = 0
        for stage in STAGES:
            for block in cast(nn.Sequential, getattr(net, stage)):
                # Stochastic depth is drawn an image; all patches of it share the multiplier.
                keep_n111 = None
                if depth_keep_kb is not None:
                    keep_b = depth_keep_kb[number]
                    keep_n111 = keep_b.view(-1, 1, 1, 1) if layout is None else layout.per_patch(keep_b)
                x = run_block(block, self.checkpoint_blocks, x, layout, keep_n111)
                number += 1
            maps.append(x)
        return maps


def build_encoder(name: str, in_chans: int, depth_drop: float = 0.0) -> Encoder:
    """Make an encoder with freshly initialised weights.

    Args:
        name: timm's name; one of `ENCODERS`.
        in_chans: channels of an image (frames of a window).
        depth_drop: rate of stochastic depth at the last block, 0 <= rate < 1.

    Raises:
        ValueError: another name, or a network with parts that the packed computation does not cover.
    """
    if name not in ENCODERS:
        raise ValueError(
            f"encoder {name!r} is not covered; expected one of {', '.join(ENCODERS)} (plain ResNets: networks with "
            "squeeze-and-excitation, anti-aliasing, a deep stem or another activation need parts not built yet)"
        )
    if in_chans < 1:
        raise ValueError(f"encoder has {in_chans} input channels; expected at least 1")
    if not 0.0 <= depth_drop < 1.0:
        raise ValueError(f"stochastic depth rate is {depth_drop}; expected 0 <= rate < 1")
    # Through timm's public feature API: channels, strides and names of weights are its own.
    network = timm.create_model(
        name, features_only=True, out_indices=(1, 2, 3, 4), in_chans=in_chans, norm_layer=BatchNorm2d
    )
    pack_network(network, name)
    return Encoder(network, name, in_chans, depth_drop)


def timm_shapes(name: str, in_chans: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what `timm.create_model(name, in_chans=in_chans, num_classes=0)` loads; takes no memory."""
    with torch.device("meta"):
        network = timm.create_model(name, in_chans=in_chans, num_classes=0)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def depth_rates(encoder: Encoder) -> tuple[float, ...]:
    """Rate at which each residual block is left out: rising linearly from 0 to `depth_drop` (timm's `make_blocks`)."""
    last = sum(1 for _ in encoder.blocks()) - 1
    return tuple(encoder.depth_drop * number / last for number in range(last + 1))


def pack_network(network: nn.Module, name: str) -> None:
    """Exchange, on this instance, the modules of a timm ResNet for ones that also take packed patches.

    Raises:
        ValueError: a part that the packed computation does not cover; the network is left as it was.
    """
    problem = _uncovered(network)
    if problem:
        raise ValueError(f"{name}: {problem}; the packed encoder covers plain ResNets only ({', '.join(ENCODERS)})")
    network.conv1 = PackedConv2d.holding(cast(nn.Conv2d, network.conv1))
    network.maxpool = PackedMaxPool2d(3, 2, 1)
    for stage in STAGES:
        blocks = cast(nn.Sequential, getattr(network, stage))
        for index, block in enumerate(blocks):
            blocks[index] = PackedBlock(block)


def _uncovered(network: Any) -> str | None:
    """Name what of a network the packed computation does not cover; None where it covers all."""
    # The stem: patches take its rows of neighbours from the frames, and zeros around a patch must change nothing.
    conv = getattr(network, "conv1", None)
    pool = getattr(network, "maxpool", None)
    if type(conv) is not nn.Conv2d or (conv.kernel_size, conv.stride, conv.padding) != ((7, 7), (2, 2), (3, 3)):
        return f"its stem conv1 is {_kind(conv)}, not one 7x7 convolution of stride 2 (a deep stem?)"
    if type(getattr(network, "act1", None)) is not nn.ReLU:
        return (
            f"act1 before the pooling is {_kind(getattr(network, 'act1', None))}, not ReLU: zeros would not be neutral"
        )
    if type(pool) is not nn.MaxPool2d or (pool.kernel_size, pool.stride, pool.padding) != (3, 2, 1):
        return f"maxpool is {_kind(pool)}, not a 3x3 max pooling of stride 2 (anti-aliasing?)"

    # Other normalisations would take the statistics of one rank, or those of the batch twice when recomputed.
    for key, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, BatchNorm2d):
            return f"{key} is a {_kind(module)}, not models.norm.BatchNorm2d"

    for stage in STAGES:
        if not isinstance(getattr(network, stage, None), nn.Sequential):
            return f"it has no stage {stage}"
        for index, block in enumerate(getattr(network, stage)):
            problem = _uncovered_in_block(block)
            if problem:
                return f"{stage}.{index} {problem}"
    return None


def _uncovered_in_block(block: Any) -> str | None:
    """Name what of a residual block the packed computation does not cover; None where it covers all."""
    if type(block) not in (BasicBlock, Bottleneck):
        return f"is a {_kind(block)}, not a BasicBlock or Bottleneck"
    if block.se is not None:
        return f"has channel attention ({_kind(block.se)}): squeeze-and-excitation is not covered"
    if block.drop_path is not None:
        return "has timm's DropPath, which draws from the global generator; give depth_drop instead"
    for name in ("aa", "drop_block"):
        if type(getattr(block, name)) is not nn.Identity:
            return f"has {name} {_kind(getattr(block, name))}: anti-aliasing and DropBlock are not covered"

    # A 3x3 convolution of padding 1 needs one row of the neighbours, which is the halo that is attached.
    for key, module in block.named_children():
        if key.startswith("conv") and not _covered_conv(module):
            return f"has {key} {module}: expected a 1x1, or a 3x3 with padding 1, without dilation"
        if key.startswith("act") and type(module) is not nn.ReLU:
            return f"has {key} {_kind(module)}: expected ReLU"

    # The shortcut: what a patch's pixels need of their neighbours there is nothing.
    if block.downsample is None:
        return None
    for module in block.downsample:
        pools = type(module) is nn.AvgPool2d and module.kernel_size == module.stride == 2
        if not (pools or type(module) is nn.Identity or isinstance(module, BatchNorm2d) or _covered_conv(module, (1,))):
            return f"has {module} in its downsample: expected 2x2 average pooling, 1x1 convolution, normalisation"
    return None


def _covered_conv(module: nn.Module, kernels: tuple[int, ...] = (1, 3)) -> bool:
    """Whether it is a convolution that the packed computation covers."""
    if type(module) is not nn.Conv2d or module.kernel_size[0] not in kernels:
        return False
    kernel, padding = module.kernel_size[0], module.padding
    return module.kernel_size == (kernel, kernel) and padding == (kernel // 2,) * 2 and module.dilation == (1, 1)


def _kind(module: object) -> str:
    return type(module).__name__
