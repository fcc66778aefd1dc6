"""Encoder, densification and decoder under the published names: what SparK and the nowcaster have in common."""

import torch
from torch import Tensor, nn

from .decoder import Activation, LightDecoder
from .encoder import Encoder
from .norm import BatchNorm2d
from .patches import PATCH, misfit


class Autoencoder(nn.Module):
    """The parts of SparK (Tian et al. 2023, arXiv:2301.03580), without a forward.

    Parameters have the published names: `sparse_encoder.sp_cnn.<timm key>`, `dense_decoder.*`, `densify_norms.<i>.*`,
    `densify_projs.<i>.*`, `mask_tokens.<i>`, where i counts from the coarsest level.

    Args:
        encoder: see `build_encoder`.
        out_chans: channels of the decoded image.
        decoder_width: channels of the decoder at the coarsest level; halved at each finer one.
        decoder_activation: `leaky_relu`: SpaT-SparK's; `relu6`: SparK's.
        patch: height and width of a mask patch in pixels; a multiple of the encoder's coarsest stride, 32.
        target_eps: added to a patch's variance, squared model space (published: 1e-6).
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        out_chans: int,
        decoder_width: int = 768,
        decoder_activation: Activation = "leaky_relu",
        patch: int = PATCH,
        target_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        stride = encoder.strides[-1]
        if patch < stride or patch % stride:
            raise ValueError(f"patch is {patch} pixels; expected a multiple of the encoder's stride {stride}")
        self.patch, self.target_eps = patch, target_eps
        self.sparse_encoder = encoder
        self.dense_decoder = LightDecoder(stride, decoder_width, out_chans, decoder_activation)
        self.densify_norms, self.densify_projs = nn.ModuleList(), nn.ModuleList()
        self.mask_tokens = nn.ParameterList()
        for level, channels in enumerate(reversed(encoder.channels)):
            # As published (SparK `spark.py`): cut at one standard deviation.
            token = nn.init.trunc_normal_(torch.empty(1, channels, 1, 1), std=0.02, a=-0.02, b=0.02)
            self.mask_tokens.append(nn.Parameter(token))
            self.densify_norms.append(BatchNorm2d(channels))
            self.densify_projs.append(_densify_projection(level, channels, decoder_width // 2**level))

    def set_checkpoint_blocks(self, recompute: bool) -> None:
        """Switch activation checkpointing of the encoder's and the decoder's blocks."""
        self.sparse_encoder.checkpoint_blocks = recompute
        self.dense_decoder.checkpoint_blocks = recompute

    def grid_of(self, frames_bchw: Tensor, visible_bv: Tensor | None, valid_bchw: Tensor | None) -> tuple[int, int]:
        """Rows and columns of patches, after checking the shapes.

        Args:
            frames_bchw: model space.
            visible_bv: positions of the visible patches, or None.
            valid_bchw: validity of the pixels, or None.

        Raises:
            ValueError: shapes that do not fit each other.
        """
        if frames_bchw.ndim != 4 or frames_bchw.shape[1] != self.sparse_encoder.in_chans:
            raise ValueError(
                f"frames have shape {tuple(frames_bchw.shape)}; expected (images, {self.sparse_encoder.in_chans}, h, w)"
            )
        height, width = frames_bchw.shape[2:]
        if problem := misfit(height, width, patch=self.patch):
            raise ValueError(problem)
        if visible_bv is not None and visible_bv.shape[0] != frames_bchw.shape[0]:
            raise ValueError(f"visible positions of {visible_bv.shape[0]} images, frames of {frames_bchw.shape[0]}")
        if valid_bchw is not None and valid_bchw.shape != frames_bchw.shape:
            raise ValueError(f"validity has shape {tuple(valid_bchw.shape)}, frames have {tuple(frames_bchw.shape)}")
        return height // self.patch, width // self.patch


def _densify_projection(level: int, channels: int, width: int) -> nn.Module:
    """Encoder width to decoder width: 1x1 at the coarsest level, 3x3 at the others (SparK `spark.py`)."""
    if level == 0 and channels == width:
        return nn.Identity()
    kernel = 1 if level == 0 else 3
    return nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=True)
