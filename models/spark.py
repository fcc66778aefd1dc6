"""SparK: masked pretraining of a convolutional encoder (Tian et al. 2023, arXiv:2301.03580), on gappy radar."""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .autoencoder import Autoencoder
from .decoder import Activation
from .encoder import Encoder
from .patches import PATCH, patch_moments, patchify, unpatchify
from .sparse import PatchLayout

Loss = Literal["masked", "all"]
Mask = TypeVar("Mask", Tensor, npt.NDArray[np.bool_])


@dataclass(frozen=True, kw_only=True)
class SparKOutput:
    """What a forward leaves; P = p * p * C values a patch, in the order (row, column, channel).

    Attributes:
        error_bl: mean squared error of each patch over its valid pixels, against the normalised target.
        counted_bl: patches with enough valid pixels to enter a loss.
        visible_bl: patches that the encoder saw.
        prediction_blp: predicted patches, normalised.
        mean_bl1: mean of each patch's valid pixels, model space.
        deviation_bl1: sqrt(variance + target_eps) of each patch's valid pixels, model space.
        grid_hw: rows and columns of patches.
    """

    error_bl: Tensor
    counted_bl: Tensor
    visible_bl: Tensor
    prediction_blp: Tensor
    mean_bl1: Tensor
    deviation_bl1: Tensor
    grid_hw: tuple[int, int]


class SparK(Autoencoder):
    """Encoder on visible patches, mask tokens in the gaps, decoder, error against normalised patches.

    Args:
        encoder: see `build_encoder`.
        decoder_width: channels of the decoder at the coarsest level; halved at each finer one.
        patch: height and width of a mask patch in pixels; a multiple of the encoder's coarsest stride, 32.
        loss: `masked`: SparK's, the masked patches; `all`: the published SpaT-SparK's, all patches (see `loss_sum`).
        target_eps: added to a patch's variance, squared model space (published: 1e-6).
        decoder_activation: `leaky_relu`: SpaT-SparK's; `relu6`: SparK's.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        decoder_width: int = 768,
        patch: int = PATCH,
        loss: Loss = "masked",
        target_eps: float = 1e-6,
        decoder_activation: Activation = "leaky_relu",
    ) -> None:
        super().__init__(
            encoder,
            out_chans=encoder.in_chans,
            decoder_width=decoder_width,
            decoder_activation=decoder_activation,
            patch=patch,
            target_eps=target_eps,
        )
        if loss not in ("masked", "all"):
            raise ValueError(f"loss is {loss!r}; expected 'masked' or 'all'")
        self.loss = loss

    def forward(
        self,
        frames_bchw: Tensor,
        visible_bv: Tensor,
        valid_bchw: Tensor | None = None,
        depth_keep_kb: Tensor | None = None,
    ) -> SparKOutput:
        """Reconstruct all patches from the visible ones.

        Args:
            frames_bchw: model space, 0 where missing; height and width are multiples of the patch.
            visible_bv: int64, flat positions of the visible patches, sorted, none twice.
            valid_bchw: bool, False where a pixel is missing; None: none is.
            depth_keep_kb: stochastic depth, see `Encoder.forward_packed`.

        Raises:
            ValueError: shapes that do not fit each other.
        """
        grid_hw = self.grid_of(frames_bchw, visible_bv, valid_bchw)
        layout = PatchLayout.from_positions(visible_bv, grid_hw)
        packed = self.sparse_encoder.forward_packed(frames_bchw, layout, depth_keep_kb)

        # Coarsest first, mask tokens in the gaps, as the decoder takes them.
        maps = []
        for level, features in enumerate(reversed(packed)):
            normalised = self.densify_norms[level](features)
            dense = layout.dense(normalised, self.mask_tokens[level])
            maps.append(self.densify_projs[level](dense))
        decoded_bchw = self.dense_decoder(maps)
        return self._compare(decoded_bchw, frames_bchw, valid_bchw, layout)

    def loss_sum(self, output: SparKOutput) -> Tensor:
        """Sum of the loss's terms over this batch; `num_terms` is what it is to be divided by.

        masked: errors of the masked, counted patches. all: errors of all counted patches (over the number of images:
        the published `l2_loss`).
        """
        enters_bl = output.counted_bl
        if self.loss == "masked":
            enters_bl = enters_bl & ~output.visible_bl
        return torch.where(enters_bl, output.error_bl, 0.0).sum()

    def reconstruct(self, output: SparKOutput) -> Tensor:
        """The predicted patches with the moments of the true ones, put together, (b, C, h, w), model space."""
        patches_blp = output.prediction_blp * output.deviation_bl1 + output.mean_bl1
        return unpatchify(patches_blp, self.patch, output.grid_hw)

    def _compare(
        self, decoded_bchw: Tensor, frames_bchw: Tensor, valid_bchw: Tensor | None, layout: PatchLayout
    ) -> SparKOutput:
        """Errors against the normalised patches, in float32 at least whatever autocast made of the decoder's output."""
        wide = torch.promote_types(frames_bchw.dtype, torch.float32)
        target_blp = patchify(frames_bchw.to(wide), self.patch)
        prediction_blp = patchify(decoded_bchw.to(wide), self.patch)
        visible_bl = layout.slot_bl < layout.num_packed

        # The target is normalised by the moments of its own valid pixels: SparK learns texture, not amount.
        valid_blp = None if valid_bchw is None else patchify(valid_bchw.to(wide), self.patch)
        mean_bl1, deviation_bl1 = patch_moments(target_blp, valid_blp, self.target_eps)
        squared_blp = (prediction_blp - (target_blp - mean_bl1) / deviation_bl1).square()

        if valid_bchw is None or valid_blp is None:
            error_bl = squared_blp.mean(-1)
            counted_bl = torch.ones_like(visible_bl)
        else:
            error_bl = (squared_blp * valid_blp).sum(-1) / valid_blp.sum(-1).clamp_min(1.0)
            counted_bl = counted_patches(valid_bchw, self.patch)

        return SparKOutput(
            error_bl=error_bl,
            counted_bl=counted_bl,
            visible_bl=visible_bl,
            prediction_blp=prediction_blp,
            mean_bl1=mean_bl1,
            deviation_bl1=deviation_bl1,
            grid_hw=layout.grid_hw,
        )


def counted_patches(valid_bchw: Mask, patch: int = PATCH) -> Mask:
    """Patches (b, L) of which at least half the pixels, all channels together, are valid (bool (b, C, h, w))."""
    images, channels, height, width = valid_bchw.shape
    shape = (images, channels, height // patch, patch, width // patch, patch)
    valid: Any = valid_bchw.reshape(shape)
    counts = valid.sum((1, 3, 5)).reshape(images, -1)
    return cast(Mask, counts * 2 >= channels * patch * patch)


def num_terms(
    loss: Loss,
    visible_bv: npt.NDArray[np.int64],
    counted_bl: npt.NDArray[np.bool_] | None,
    num_images: int,
    num_patches: int,
) -> int:
    """What the sum of a loss's terms is divided by, known on the host before the forward.

    Args:
        loss: `masked`: the number of masked, counted patches; `all`: the number of images (as published) with a counted
            patch.
        visible_bv: positions of the visible patches.
        counted_bl: see `counted_patches`; None: all count.
        num_images: images in the batch.
        num_patches: patches an image.
    """
    if loss == "all":
        return num_images if counted_bl is None else int(counted_bl.any(axis=1).sum())
    if counted_bl is None:
        return num_images * num_patches - visible_bv.size
    return int(counted_bl.sum() - np.take_along_axis(counted_bl, visible_bv, axis=1).sum())
