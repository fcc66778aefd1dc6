"""The grid of mask patches: images cut into patches and put together again, and the moments of a patch."""

import torch
from torch import Tensor

PATCH = 32


def misfit(rows: int, cols: int, *, crop: int | None = None, patch: int = PATCH) -> str | None:
    """Explain why frames, or square crops of them, hold no whole number of patches; None where they do.

    Args:
        rows: of a frame, pixels.
        cols: of a frame, pixels.
        crop: side of the crops, a multiple of the patch; None: whole frames are taken.
        patch: side of a patch, pixels.
    """
    largest = min(rows, cols) // patch * patch
    advice = f"a crop of {largest} or less fits" if largest else "larger ones are needed"
    if crop is not None and crop > min(rows, cols):
        return f"frames of {rows} x {cols} pixels are smaller than the crop, {crop}: {advice}"
    if crop is None and (rows % patch or cols % patch):
        return f"frames of {rows} x {cols} pixels; expected sides that are multiples of {patch}: {advice}"
    return None


def patchify(image_bchw: Tensor, patch: int) -> Tensor:
    """Cut images into patches: (b, C, h, w) -> (b, L, p * p * C), values in the order (row, column, channel)."""
    images, channels, height, width = image_bchw.shape
    p, rows, cols = patch, height // patch, width // patch
    parts = image_bchw.reshape(images, channels, rows, p, cols, p).permute(0, 2, 4, 3, 5, 1)
    return parts.reshape(images, rows * cols, p * p * channels)


def unpatchify(patches_blp: Tensor, patch: int, grid_hw: tuple[int, int]) -> Tensor:
    """Put patches of p * p * C values together, the reverse of `patchify`: (b, C, rows * p, cols * p)."""
    (rows, cols), p = grid_hw, patch
    channels = patches_blp.shape[-1] // (p * p)
    parts = patches_blp.reshape(-1, rows, cols, p, p, channels).permute(0, 5, 1, 3, 2, 4)
    return parts.reshape(-1, channels, rows * p, cols * p)


def patch_moments(patches_blp: Tensor, valid_blp: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch's valid values, all channels together; (b, L, 1) each.

    The deviation is sqrt(unbiased variance + eps) (SparK `spark.py`). A patch without a valid value has mean 0, and
    one with fewer than two has variance 0.

    Args:
        patches_blp: float32 or float64, 0 where missing.
        valid_blp: 1 where a value is valid and 0 where it is not, in the type of the patches; None: all are.
        eps: added to the variance, squared units of the values.
    """
    if valid_blp is None:
        mean_bl1 = patches_blp.mean(-1, keepdim=True)
        return mean_bl1, (patches_blp.var(-1, keepdim=True) + eps).sqrt()
    count_bl1 = valid_blp.sum(-1, keepdim=True)
    mean_bl1 = (patches_blp * valid_blp).sum(-1, keepdim=True) / count_bl1.clamp_min(1.0)
    squares_bl1 = ((patches_blp - mean_bl1).square() * valid_blp).sum(-1, keepdim=True)
    return mean_bl1, (squares_bl1 / (count_bl1 - 1.0).clamp_min(1.0) + eps).sqrt()


def place_moments(image_bchw: Tensor, mean_bl1: Tensor, deviation_bl1: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Give every patch of an image a deviation and a mean: image * deviation + mean, patch by patch."""
    images, channels, height, width = image_bchw.shape
    rows, cols = grid_hw
    parts = image_bchw.reshape(images, channels, rows, height // rows, cols, width // cols)
    shape = (images, 1, rows, 1, cols, 1)
    return (parts * deviation_bl1.view(shape) + mean_bl1.view(shape)).reshape(image_bchw.shape)


def pack(dense_bchw: Tensor, visible_bv: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Cut the visible patches out of dense maps, (n, C, t, t), the reverse of `PatchLayout.dense`.

    Args:
        dense_bchw: maps of rows * t by cols * t.
        visible_bv: int64, positions of the visible patches.
        grid_hw: rows and columns of patches.
    """
    images, channels, height, width = dense_bchw.shape
    rows, cols = grid_hw
    size = height // rows
    grid = dense_bchw.permute(0, 2, 3, 1).reshape(images, rows, size, cols, width // cols, channels)
    patches = grid.transpose(2, 3).reshape(images * rows * cols, size, width // cols, channels)
    first_b1 = torch.arange(images, device=visible_bv.device)[:, None] * (rows * cols)
    return patches.index_select(0, (visible_bv + first_b1).flatten()).permute(0, 3, 1, 2)
