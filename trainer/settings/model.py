"""The sections of a run's configuration but its data: frozen dataclasses that check their ranges."""

from dataclasses import dataclass, field, fields
from typing import Final, Literal

from ...data.errors import ConfigError
from ...data.units import ModelSpace
from .ranges import MOST_FRAMES, check_number

MOST_WIDTH: Final = 16_384
"""Channels of a level: one 3 x 3 convolution of so many to as many has 10 GB of weights."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The masked pretraining model.

    Args:
        encoder: A timm ResNet by name.
        decoder_width: Channels of the decoder at its coarsest level, a multiple of 32.
        decoder_activation: `leaky_relu` as in the published SpaT-SparK, `relu6` as in the published SparK; their
            checkpoints do not say which.
        mask_ratio: Share of the 32 x 32 patches that are masked, 0 to below 1.
        loss: `masked`: SparK's, over masked patches; `all`: the published SpaT-SparK's, over all patches.
        depth_drop: Stochastic depth of the last block, growing linearly from 0 at the first, an image at a time.
        checkpoint_blocks: Recompute activations in the backward pass: less memory, about a third more time.
        space: The space that the model sees.
    """

    encoder: Literal["resnet18", "resnet26", "resnet34", "resnet50", "resnet101"] = "resnet50"
    decoder_width: int = 768
    decoder_activation: Literal["leaky_relu", "relu6"] = "leaky_relu"
    mask_ratio: float = 0.6
    loss: Literal["masked", "all"] = "masked"
    depth_drop: float = 0.0
    checkpoint_blocks: bool = False
    space: ModelSpace = field(default_factory=ModelSpace)

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_shared(self)
        if self.mask_ratio == 0 and self.loss == "masked":
            raise ConfigError(
                "model.loss is masked, but model.mask_ratio is 0 and masks nothing: raise it or take `all`"
            )


@dataclass(frozen=True, kw_only=True)
class NowcastConfig:
    """The nowcaster: what goes in, what comes out, and what is between.

    Args:
        name: `spat_spark`: encoder, translation, decoder; `smaat_unet`: the baseline of Trebing et al. 2021.
        frames_in: Frames that the forecast starts from.
        frames_out: Frames that are forecast; with a five-minute cadence 12 are an hour.
        encoder: A timm ResNet by name (spat_spark).
        decoder_width: Channels of the decoder at its coarsest level, a multiple of 32 (spat_spark).
        decoder_activation: `leaky_relu` or `relu6`, as the pretraining had it (spat_spark).
        translation: What turns features of the past into features of the future: `identity`; `linear`: the published
            linearA; `mixer`: wide residual convolutions that exchange between levels (spat_spark).
        head: `patch`: the published one, in each input patch's own mean and deviation; `direct`: the decoder's output;
            `residual`: added to the last frame; `advected`: added to the last frame as it moves on with the motion of
            the input, and the input is seen moved to the last frame's time; `cascade`: the same, with each scale
            forecast from the last two frames by how long this window's own rain keeps it (spat_spark).
        ensemble: Learn noise that members are drawn with, for `rainspark forecast --members`; head `cascade` and loss
            `crps` (spat_spark).
        smaat_width: Channels of the first level (smaat_unet; published: 64).
        freeze: Parts that keep the weights they start from, their normalisation too (spat_spark). The decoder's last
            layer is trained all the same where `head` is not `patch`: it starts anew.
        mask_ratio: Share of the input's 32 x 32 patches that are hidden while training, 0 to below 1; a forecast always
            sees everything (spat_spark).
        loss: `mse`; `mse_ssim`: the published MSE + 1e-4 (1 - SSIM); `weighted`: squared error with more weight on
            heavier rain; `spectral`: MSE and the amplitude spectrum; `csi`: 1 - a differentiable CSI, and some MSE;
            `crps`: the almost fair CRPS of two members, of pixels and of squares of 4 and 16 pixels (ensembles).
        match: Whether a forecast frame keeps its order of pixels and takes its rain rates from elsewhere (probability
            matching, Ebert 2001): `last_frame`: from the last input frame; `halfway`: where it rains, the mean of those
            and its own in the model's space; `extrapolated`: from the last frame carried along to the lead time;
            `floor`: from there too, where they are higher than its own; `none`.
        depth_drop: Stochastic depth of the last block, growing linearly from 0 at the first (spat_spark).
        checkpoint_blocks: Recompute activations in the backward pass: less memory, more time.
        space: The space that the model sees.
    """

    name: Literal["spat_spark", "smaat_unet"] = "spat_spark"
    frames_in: int = 12
    frames_out: int = 12
    encoder: Literal["resnet18", "resnet26", "resnet34", "resnet50", "resnet101"] = "resnet50"
    decoder_width: int = 768
    decoder_activation: Literal["leaky_relu", "relu6"] = "leaky_relu"
    translation: Literal["identity", "linear", "mixer"] = "linear"
    head: Literal["patch", "direct", "residual", "advected", "cascade"] = "advected"
    ensemble: bool = False
    smaat_width: int = 64
    freeze: Literal["none", "encoder", "decoder", "both"] = "none"
    mask_ratio: float = 0.0
    loss: Literal["mse", "mse_ssim", "weighted", "spectral", "csi", "crps"] = "mse"
    match: Literal["none", "last_frame", "halfway", "extrapolated", "floor"] = "none"
    depth_drop: float = 0.0
    checkpoint_blocks: bool = False
    space: ModelSpace = field(default_factory=ModelSpace)

    def __post_init__(self) -> None:
        """Check the ranges."""
        self._check_effects()

        # Motion is found between two frames: one is too few.
        advects = self.name == "spat_spark" and self.head in ("advected", "cascade")
        finds_motion = advects or self.match in ("extrapolated", "floor")
        check_number("model.frames_in", self.frames_in, least=2 if finds_motion else 1)
        check_number("model.frames_in", self.frames_in, most=MOST_FRAMES)
        check_number("model.frames_out", self.frames_out, least=1, most=MOST_FRAMES)
        check_number("model.smaat_width", self.smaat_width, least=2, most=MOST_WIDTH)
        _check_shared(self)

        # Members differ by the noise of one head, and one loss alone rewards that they do.
        if self.ensemble and self.head != "cascade":
            raise ConfigError(f"model.ensemble needs model.head cascade, which noise is added to; it is {self.head}")
        if self.ensemble != (self.loss == "crps"):
            raise ConfigError(
                f"model.ensemble is {str(self.ensemble).lower()} and model.loss {self.loss}: an ensemble is trained "
                "with crps, and nothing else is; set model.ensemble true with model.loss crps, or neither"
            )

        # A run without a weight that learns would end as it began.
        if self.freeze == "both" and self.translation == "identity" and self.head == "patch":
            raise ConfigError(
                "model.freeze both with model.translation identity and model.head patch leaves nothing to train: "
                "freeze less, or choose a translation with weights"
            )

    def _check_effects(self) -> None:
        """Refuse what was set for the other kind of model: it would have no effect."""
        # Compared with the defaults: a setting that was left alone is no contradiction.
        others = _SPAT_SPARK_ONLY if self.name == "smaat_unet" else _SMAAT_ONLY
        defaults = {item.name: item.default for item in fields(NowcastConfig)}
        changed = [f"model.{name} {getattr(self, name)}" for name in others if getattr(self, name) != defaults[name]]
        if changed:
            raise ConfigError(f"{', '.join(changed)}: no effect with model.name {self.name}; leave it out")


def _check_shared(config: ModelConfig | NowcastConfig) -> None:
    """Check the ranges of what masked pretraining and nowcasters have both."""
    if config.decoder_width < 32 or config.decoder_width % 32:
        raise ConfigError(f"model.decoder_width is {config.decoder_width}; it is halved 5 times: a multiple of 32")
    check_number("model.decoder_width", config.decoder_width, most=MOST_WIDTH)
    check_number("model.mask_ratio", config.mask_ratio, least=0, below=1)
    check_number("model.depth_drop", config.depth_drop, least=0, below=1)


_SPAT_SPARK_ONLY = (
    "encoder",
    "decoder_width",
    "decoder_activation",
    "translation",
    "head",
    "ensemble",
    "freeze",
    "mask_ratio",
    "depth_drop",
)
_SMAAT_ONLY = ("smaat_width",)
