"""Build models and tasks from their settings."""

import torch

from ...data.shards.index import Index
from ...data.units import ModelSpace
from ...models.encoder import build_encoder, depth_rates
from ...models.nowcasting.nowcaster import Nowcaster
from ...models.nowcasting.smaat_unet import SmaAtUNet
from ...models.patches import PATCH
from ...models.spark import SparK
from ..settings.experiment import FinetuneConfig, PretrainConfig
from .nowcast_task import NowcastTask
from .pretrain_task import PretrainTask


def build_spark(config: PretrainConfig) -> SparK:
    """Build SparK as the settings describe it, with fresh weights from torch's generator."""
    model = SparK(
        build_encoder(config.model.encoder, config.data.window, depth_drop=config.model.depth_drop),
        decoder_width=config.model.decoder_width,
        loss=config.model.loss,
        decoder_activation=config.model.decoder_activation,
    )
    model.set_checkpoint_blocks(config.model.checkpoint_blocks)
    return model


def build_pretrain_task(config: PretrainConfig, model: SparK, space: ModelSpace, index: Index) -> PretrainTask:
    """Build masked modelling of an archive's frames."""
    return PretrainTask(
        model,
        space,
        mask_ratio=config.model.mask_ratio,
        seed=config.seed,
        grid_hw=(index.rows // PATCH, index.cols // PATCH),
        depth_rates=depth_rates(model.sparse_encoder),
        augment=config.data.augment,
        dtype=torch.float64 if config.engine.precision == "fp64" else torch.float32,
    )


def build_nowcast_task(config: FinetuneConfig, model: Nowcaster | SmaAtUNet, space: ModelSpace) -> NowcastTask:
    """Build the loss of a model's forecasts."""
    return NowcastTask(
        space,
        frames_in=config.model.frames_in,
        frames_out=config.model.frames_out,
        loss=config.model.loss,
        mask_ratio=config.model.mask_ratio,
        crop=config.data.crop,
        depth_rates=depth_rates(model.sparse_encoder) if isinstance(model, Nowcaster) else (),
        augment=config.data.augment,
        seed=config.seed,
        dtype=torch.float64 if config.engine.precision == "fp64" else torch.float32,
    )
