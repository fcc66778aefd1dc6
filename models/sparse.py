"""Run a convolutional network on visible patches only.

The mask is a grid of patches and every image keeps equally many of them, so the visible patches of a batch form one
dense tensor (n, C, t, t), n = images * visible patches, in the order of `PatchLayout.visible_bv`. 1x1 convolution,
normalisation and activation act on it as they are; a larger convolution or a pooling first attaches a halo from the
neighbouring patches, zeros where the neighbour is masked or outside the image. This equals the computation on dense
maps that are multiplied by the mask after every convolution and pooling (SparK, arXiv:2301.03580), and costs the
visible share of it.

The modules here hold the parameters of the ones that they replace, under the same names. With `layout=None` they
compute what those do.
Tensors are kept in channels-last memory: halos are then copies of whole rows of channels.
"""

from dataclasses import dataclass
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .norm import RunningStatistics

# The eight neighbours as (row, column) offsets; the one opposite to number d is number 7 - d.
NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


@dataclass(frozen=True, kw_only=True)
class PatchLayout:
    """Where packed patches lie. `n` is the number of packed patches and, as an index, stands for "masked or outside".

    Attributes:
        visible_bv: int64, flat grid positions (row * cols + col) of each image's visible patches.
        slot_bl: int64, packed index of every patch of every image, n where masked.
        neighbours_8n: int64, packed index of each patch's neighbours in the order of `NEIGHBOURS`, n where none.
        grid_hw: rows and columns of patches.
    """

    visible_bv: Tensor
    slot_bl: Tensor
    neighbours_8n: Tensor
    grid_hw: tuple[int, int]

    @classmethod
    def from_positions(cls, visible_bv: Tensor, grid_hw: tuple[int, int]) -> Self:
        """Lay out the visible patches of a batch; on the device of `visible_bv`, without a wait for it.

        Args:
            visible_bv: int64, positions within the grid, none twice in an image.
            grid_hw: rows and columns of patches.
        """
        rows, cols = grid_hw
        if visible_bv.ndim != 2 or visible_bv.dtype != torch.int64 or not 0 < visible_bv.shape[1] <= rows * cols:
            raise ValueError(
                f"visible positions have shape {tuple(visible_bv.shape)} and type {visible_bv.dtype}; expected int64 "
                f"(images, 1 to {rows * cols}) for a grid of {rows} x {cols} patches"
            )

        # The packed index of every patch, by its place in the grid.
        images, visible = visible_bv.shape
        count = images * visible
        order_bv = torch.arange(count, device=visible_bv.device).view(images, visible)
        slot_bl = torch.full((images, rows * cols), count, device=visible_bv.device, dtype=torch.int64)
        slot_bl = slot_bl.scatter(1, visible_bv, order_bv)

        # The grid, framed by "outside" and shifted in eight directions, gives each patch its neighbours.
        framed = F.pad(slot_bl.view(images, rows, cols), (1, 1, 1, 1), value=count)
        shifted = [framed[:, 1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + cols] for dy, dx in NEIGHBOURS]
        around_8bl = torch.stack(shifted).reshape(8, images, rows * cols)
        neighbours_8bv = around_8bl.gather(2, visible_bv.expand(8, images, visible))
        return cls(
            visible_bv=visible_bv, slot_bl=slot_bl, neighbours_8n=neighbours_8bv.reshape(8, count), grid_hw=grid_hw
        )

    @property
    def num_images(self) -> int:
        """Images in the batch."""
        return self.visible_bv.shape[0]

    @property
    def num_packed(self) -> int:
        """Visible patches in the batch, n."""
        return self.visible_bv.numel()

    def visible_bhw(self) -> Tensor:
        """The mask as a grid, True where the patch is visible."""
        return (self.slot_bl < self.num_packed).view(self.num_images, *self.grid_hw)

    def per_patch(self, values_b: Tensor) -> Tensor:
        """One number an image (b,) repeated for its patches, (n, 1, 1, 1)."""
        return values_b[:, None].expand(self.visible_bv.shape).reshape(-1, 1, 1, 1)

    def windows(self, frames_bchw: Tensor, before: int, after: int) -> Tensor:
        """Cut the visible patches with their surroundings out of the masked frames.

        Returns:
            (n, C, before + p + after, ...): masked patches, and what is outside the frame, are zeros.
        """
        rows, cols = self.grid_hw
        size_h, size_w = frames_bchw.shape[2] // rows, frames_bchw.shape[3] // cols
        images, channels = frames_bchw.shape[:2]

        # Hide what is masked, with rows of channels together in memory.
        mask = self.visible_bhw().view(images, rows, 1, cols, 1, 1)
        frames = frames_bchw.permute(0, 2, 3, 1).reshape(images, rows, size_h, cols, size_w, channels)
        # `where`, not a product: what is masked must not reach the encoder, not even as NaN * 0.
        masked = torch.where(mask, frames, 0.0).reshape(images, rows * size_h, cols * size_w, channels)

        # Windows that overlap by their surroundings; the visible ones are picked.
        framed = F.pad(masked, (0, 0, before, after, before, after))
        span = before + after
        windows = framed.unfold(1, size_h + span, size_h).unfold(2, size_w + span, size_w).permute(0, 1, 2, 4, 5, 3)
        image_bv = torch.arange(images, device=frames_bchw.device)[:, None]
        cut = windows[image_bv, self.visible_bv // cols, self.visible_bv % cols]
        return cut.flatten(0, 1).permute(0, 3, 1, 2)

    def dense(self, packed_nctt: Tensor, fill_1c11: Tensor) -> Tensor:
        """Packed patches back in their places, (b, C, rows * t, cols * t), with `fill_1c11` in the masked ones."""
        size = packed_nctt.shape[-1]
        rows, cols = self.grid_hw
        patches = cast(
            Tensor, _FillMasked.apply(packed_nctt, fill_1c11.to(packed_nctt.dtype), self.slot_bl, self.visible_bv)
        )
        grid = patches.permute(0, 2, 3, 1).view(self.num_images, rows, cols, size, size, -1)
        dense = grid.transpose(2, 3).reshape(self.num_images, rows * size, cols * size, -1)
        return dense.permute(0, 3, 1, 2)

    def attach_halo(self, x_nctt: Tensor, before: int, after: int) -> Tensor:
        """Patches with `before` rows and columns of their upper and left neighbours and `after` of the others."""
        return cast(Tensor, _Halo.apply(x_nctt, self.neighbours_8n, before, after))


class PackedConv2d(nn.Conv2d):
    """A convolution that also takes packed patches; a 7x7 stem can be given whole frames to cut them from."""

    def forward(self, input: Tensor, layout: PatchLayout | None = None, from_frames: bool = False) -> Tensor:
        """Convolve (b, C, h, w) as usual, or with a layout packed patches (n, C, t, t) -> (n, C', t/stride, t/stride).

        Args:
            input: dense maps, packed patches, or (`from_frames`) unmasked frames (b, C, h, w).
            layout: where the packed patches lie; None for dense maps.
            from_frames: cut the patches and their surroundings straight from the frames.
        """
        if layout is None:
            return super().forward(input)
        kernel, stride, size = self.kernel_size[0], self.stride[0], input.shape[-1]
        before, after = _halo_widths(kernel, stride, int(self.padding[0]))
        if from_frames:
            input = layout.windows(input, before, after)
        elif before or after:
            input = layout.attach_halo(input, before, after)
        if size == stride and self.groups == 1:
            # One output a patch: a matrix product; oneDNN's convolution takes 2.5 times as long there (measured).
            columns = input[:, :, :kernel, :kernel].permute(0, 2, 3, 1).flatten(1)
            return F.linear(columns, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)[:, :, None, None]
        return F.conv2d(input, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    @classmethod
    def holding(cls, conv: nn.Conv2d) -> Self:
        """A packed convolution with the parameters of `conv` (the same tensors)."""
        packed = cls(
            conv.in_channels,
            conv.out_channels,
            cast(tuple[int, int], conv.kernel_size),
            cast(tuple[int, int], conv.stride),
            cast(tuple[int, int], conv.padding),
            cast(tuple[int, int], conv.dilation),
            conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        packed.weight, packed.bias = conv.weight, conv.bias
        return packed


class PackedMaxPool2d(nn.MaxPool2d):
    """A max pooling of non-negative maps (a ReLU stands before it), for which zeros around a patch change nothing."""

    def forward(self, input: Tensor, layout: PatchLayout | None = None) -> Tensor:
        """Pool dense maps, or with a layout packed patches."""
        if layout is None:
            return super().forward(input)
        kernel, stride = cast(int, self.kernel_size), cast(int, self.stride)
        input = layout.attach_halo(input, *_halo_widths(kernel, stride, cast(int, self.padding)))
        return F.max_pool2d(input, kernel, stride)


class PackedBlock(nn.Module):
    """A residual block of a plain ResNet, basic (two convolutions) or bottleneck (three), under timm's names.

    Made from timm's block by `models.encoder`, which has checked that nothing in it is left out here.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.num_convs = 3 if hasattr(block, "conv3") else 2
        for number in range(1, self.num_convs + 1):
            self.add_module(
                f"conv{number}", PackedConv2d.holding(cast(nn.Conv2d, block.get_submodule(f"conv{number}")))
            )
            self.add_module(f"bn{number}", block.get_submodule(f"bn{number}"))
            self.add_module(f"act{number}", block.get_submodule(f"act{number}"))
        self.downsample: nn.Sequential | None = None
        if isinstance(block.downsample, nn.Sequential):
            modules = [
                PackedConv2d.holding(module) if isinstance(module, nn.Conv2d) else module for module in block.downsample
            ]
            self.downsample = nn.Sequential(*modules)

    def forward(
        self,
        x: Tensor,
        layout: PatchLayout | None = None,
        keep_n111: Tensor | None = None,
        statistics: list[RunningStatistics] | None = None,
    ) -> Tensor:
        """Run the block on dense maps or packed patches.

        Args:
            x: (b, C, h, w), or with a layout (n, C, t, t).
            layout: where the packed patches lie.
            keep_n111: multiplier of the residual branch, one a row of `x` (stochastic depth).
            statistics: see `BatchNorm2d.forward`.
        """
        shortcut = x
        for number in range(1, self.num_convs + 1):
            x = getattr(self, f"conv{number}")(x, layout)
            x = getattr(self, f"bn{number}")(x, statistics)
            if number < self.num_convs:
                x = getattr(self, f"act{number}")(x)
        if keep_n111 is not None:
            x = x * keep_n111.to(x.dtype)

        if self.downsample is not None:
            # Before them, in timm's "d" variants, a 2x2 average of even patches, which needs no neighbour.
            *pools, conv, norm = self.downsample
            for pool in pools:
                shortcut = pool(shortcut)
            shortcut = norm(conv(shortcut, layout), statistics)
        x = x + shortcut
        return getattr(self, f"act{self.num_convs}")(x)


def _halo_widths(kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Rows needed before and after a patch whose size the stride divides."""
    return padding, max(kernel - stride - padding, 0)


def _cut(offset: int, size: int, before: int, after: int) -> tuple[slice, slice]:
    """Where one neighbour's part lies along one axis: in the patch with its halo, and in the neighbour itself."""
    if offset < 0:
        return slice(0, before), slice(size - before, size)
    if offset > 0:
        return slice(before + size, before + size + after), slice(0, after)
    return slice(before, before + size), slice(0, size)


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[index]` along the first axis, zeros where the index is the number of rows."""
    return torch.cat((rows, rows.new_zeros((1, *rows.shape[1:])))).index_select(0, index)


class _Halo(torch.autograd.Function):
    """Attach the neighbours' edges to packed patches.

    "Is my lower neighbour" and "is my upper neighbour" are inverse to each other, so the gradient of an edge is
    gathered from the halos of the neighbours that it went to: no scattered addition, hence fast, and repeatable.
    """

    @staticmethod
    def forward(ctx: Any, x_nctt: Tensor, neighbours_8n: Tensor, before: int, after: int) -> Tensor:
        ctx.save_for_backward(neighbours_8n)
        ctx.widths = (before, after)
        x = x_nctt.permute(0, 2, 3, 1)
        count, size, _, channels = x.shape
        wide = size + before + after
        out = x.new_empty((count, wide, wide, channels))
        out[:, before : before + size, before : before + size] = x
        for number, (dy, dx) in enumerate(NEIGHBOURS):
            if (after or max(dy, dx) <= 0) and (before or min(dy, dx) >= 0):
                (out_rows, rows), (out_cols, cols) = _cut(dy, size, before, after), _cut(dx, size, before, after)
                out[:, out_rows, out_cols] = _take(x[:, rows, cols], neighbours_8n[number])
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ncss: Tensor) -> tuple[Tensor, None, None, None]:
        (neighbours_8n,) = ctx.saved_tensors
        before, after = ctx.widths
        grad = grad_ncss.permute(0, 2, 3, 1)
        size = grad.shape[1] - before - after
        grad_x = grad[:, before : before + size, before : before + size].clone(memory_format=torch.contiguous_format)
        for number, (dy, dx) in enumerate(NEIGHBOURS):
            if (after or max(dy, dx) <= 0) and (before or min(dy, dx) >= 0):
                (out_rows, rows), (out_cols, cols) = _cut(dy, size, before, after), _cut(dx, size, before, after)
                grad_x[:, rows, cols] += _take(grad[:, out_rows, out_cols], neighbours_8n[7 - number])
        return grad_x.permute(0, 3, 1, 2), None, None, None


class _FillMasked(torch.autograd.Function):
    """Packed patches (n, C, t, t) to all patches (b * L, C, t, t), a fill value (1, C, 1, 1) in the masked ones."""

    @staticmethod
    def forward(ctx: Any, packed_nctt: Tensor, fill_1c11: Tensor, slot_bl: Tensor, visible_bv: Tensor) -> Tensor:
        ctx.save_for_backward(slot_bl, visible_bv)
        packed = packed_nctt.permute(0, 2, 3, 1)
        fill = fill_1c11.permute(0, 2, 3, 1).expand(1, *packed.shape[1:])
        return torch.cat((packed, fill)).index_select(0, slot_bl.flatten()).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_pctt: Tensor) -> tuple[Tensor, Tensor, None, None]:
        slot_bl, visible_bv = ctx.saved_tensors
        images, patches = slot_bl.shape
        grad = grad_pctt.permute(0, 2, 3, 1)
        first_b1 = torch.arange(images, device=slot_bl.device)[:, None] * patches
        grad_packed = grad.index_select(0, (visible_bv + first_b1).flatten())
        # By the patch first: one sum a patch and channel, then the masked ones of them.
        sums_pc = grad.sum((1, 2))
        masked_p1 = (slot_bl == visible_bv.numel()).view(-1, 1)
        grad_fill = torch.where(masked_p1, sums_pc, 0.0).sum(0)
        return grad_packed.permute(0, 3, 1, 2), grad_fill.view(1, -1, 1, 1), None, None
