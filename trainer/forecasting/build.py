"""Build the nowcaster that settings describe."""

from typing import TYPE_CHECKING

from ...models.nowcasting.smaat_unet import SmaAtUNet
from ..settings.model import NowcastConfig

if TYPE_CHECKING:
    from ...models.nowcasting.nowcaster import Nowcaster


def build_nowcaster(config: NowcastConfig) -> "Nowcaster | SmaAtUNet":
    """Build the model that the settings describe, with fresh weights from torch's generator."""
    if config.name == "smaat_unet":
        smaat_unet = SmaAtUNet(config.frames_in, config.frames_out, width=config.smaat_width)
        smaat_unet.set_checkpoint_blocks(config.checkpoint_blocks)
        return smaat_unet

    # These bring timm, whose import takes longer than a forecast.
    from ...models.encoder import build_encoder
    from ...models.nowcasting.nowcaster import Nowcaster

    model = Nowcaster(
        build_encoder(config.encoder, config.frames_in, depth_drop=config.depth_drop),
        frames_out=config.frames_out,
        decoder_width=config.decoder_width,
        decoder_activation=config.decoder_activation,
        translation=config.translation,
        head=config.head,
        ensemble=config.ensemble,
        masks=config.mask_ratio > 0,
        space=config.space,
    )
    model.freeze(config.freeze)
    if config.head != "patch":
        # This head's last layer starts anew, at 0 for most: frozen, it would forecast nothing and pass no gradient on.
        model.dense_decoder.proj.requires_grad_(True)
    model.set_checkpoint_blocks(config.checkpoint_blocks)
    return model
