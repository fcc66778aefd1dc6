"""The sections of a run's configuration but its data: frozen dataclasses that check their ranges."""

from dataclasses import dataclass, field, fields
from typing import Literal


class ConfigError(ValueError):
    """A setting that the user has to change."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lies, how long it is, and how often it reports.

    Args:
        dir: Folder of the run: configuration, metrics, checkpoints, pictures. The same folder again goes on from there.
        steps: Global batches to train on.
        log_every: Steps between two lines of metrics.
        evaluate_every: Steps between two held-out evaluations, each with a picture; the last step always has one.
        save_every: Steps between two checkpoints; a stop and the last step always save one. A save that fails is a
            warning; two in a row, or the last one, end the run.
        keep_last: Checkpoints kept, 2 or more.
        keep_every: Checkpoints after multiples of so many steps stay for ever besides, in the folder and in the second
            place; a multiple of save_every, null for none.
        checkpoint_url: A second place for the checkpoints, a folder or a store (s3://, gs://, az://): each is copied
            there, and a run whose folder is behind or gone goes on from there. One place a run; None: the folder only.
        push_deadline_s: Seconds that the copy of one checkpoint to that place may take, above 0; what is cut off is a
            warning, and the next save tries again.
        max_nonfinite: Steps with a loss or gradient that is not finite, or without a valid pixel, in a row, after which
            the run stops.
        allow_plan_change: On resume, accept another micro-batch, lanes or block: order and batch statistics change.
        progress: A bar where the terminal shows one, else log lines; or one of the two.
    """

    dir: str
    steps: int = 1000
    log_every: int = 10
    evaluate_every: int = 500
    save_every: int = 500
    keep_last: int = 3
    keep_every: int | None = None
    checkpoint_url: str | None = None
    push_deadline_s: float = 60.0
    max_nonfinite: int = 5
    allow_plan_change: bool = False
    progress: Literal["auto", "bar", "lines"] = "auto"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.dir.strip():
            raise ConfigError(f"run.dir is {self.dir!r}; name the folder of the run, such as runs/first")
        at_least("run.steps", self.steps, 1)
        at_least("run.log_every", self.log_every, 1)
        at_least("run.evaluate_every", self.evaluate_every, 1)
        at_least("run.save_every", self.save_every, 1)
        at_least("run.keep_last", self.keep_last, 2)
        if self.keep_every is not None:
            at_least("run.keep_every", self.keep_every, 1)
            if self.keep_every % self.save_every:
                raise ConfigError(
                    f"run.keep_every is {self.keep_every} and run.save_every {self.save_every}: checkpoints are made "
                    "after multiples of save_every, so keep_every must be one of those"
                )
        if not self.push_deadline_s > 0:
            raise ConfigError(f"run.push_deadline_s is {self.push_deadline_s}; above 0 seconds")
        at_least("run.max_nonfinite", self.max_nonfinite, 1)


@dataclass(frozen=True, kw_only=True)
class NowcastRunConfig(RunConfig):
    """Where a nowcaster's run lies, how long it is, and which of its checkpoints is the best.

    Args:
        choose_by: What makes a checkpoint the best, on the validation part: `csi`: the mean CSI over 0.5, 1 and 2 mm/h,
            all lead times together; `mse`: the squared error in (mm/h)^2; `loss`: the loss it is trained with.
    """

    choose_by: Literal["csi", "mse", "loss"] = "csi"


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """The space that the model sees: rain in mm/h, scaled or as a logarithm.

    Args:
        kind: `linear`: rain / scale; `log`: log(1 + rain / scale).
        scale_mmh: The scale in mm/h. The published models' is 47.83 mm per 5 min, 573.96 mm/h.
        clip_mmh: Rain above it counts as this much, null for no limit.
    """

    kind: Literal["linear", "log"] = "log"
    scale_mmh: float = 1.0
    clip_mmh: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.scale_mmh <= 0:
            raise ConfigError(f"model.space.scale_mmh is {self.scale_mmh}; above 0 mm/h")
        if self.clip_mmh is not None and self.clip_mmh <= 0:
            raise ConfigError(f"model.space.clip_mmh is {self.clip_mmh}; above 0 mm/h, or null for no limit")


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
    space: SpaceConfig = field(default_factory=SpaceConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.decoder_width < 32 or self.decoder_width % 32:
            raise ConfigError(f"model.decoder_width is {self.decoder_width}; it is halved 5 times: a multiple of 32")
        if not 0 <= self.mask_ratio < 1:
            raise ConfigError(f"model.mask_ratio is {self.mask_ratio}; a share, 0 to below 1")
        if self.mask_ratio == 0 and self.loss == "masked":
            raise ConfigError(
                "model.loss is masked, but model.mask_ratio is 0 and masks nothing: raise it or take `all`"
            )
        if not 0 <= self.depth_drop < 1:
            raise ConfigError(f"model.depth_drop is {self.depth_drop}; a probability, 0 to below 1")


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
            the input, and the input is seen moved to the last frame's time (spat_spark).
        smaat_width: Channels of the first level (smaat_unet; published: 64).
        freeze: Parts that keep the weights they start from, their normalisation too (spat_spark). The decoder's last
            layer is trained all the same where `head` is not `patch`: it starts anew.
        mask_ratio: Share of the input's 32 x 32 patches that are hidden while training, 0 to below 1; a forecast always
            sees everything (spat_spark).
        loss: `mse`; `mse_ssim`: the published MSE + 1e-4 (1 - SSIM); `weighted`: squared error with more weight on
            heavier rain; `spectral`: MSE and the amplitude spectrum; `csi`: 1 - a differentiable CSI, and some MSE.
        match: Whether a forecast frame keeps its order of pixels and takes its rain rates from elsewhere (probability
            matching, Ebert 2001): `last_frame`: from the last input frame; `extrapolated`: from that frame carried
            along to the lead time; `floor`: from there too, where they are higher than its own; `none`.
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
    head: Literal["patch", "direct", "residual", "advected"] = "advected"
    smaat_width: int = 64
    freeze: Literal["none", "encoder", "decoder", "both"] = "none"
    mask_ratio: float = 0.0
    loss: Literal["mse", "mse_ssim", "weighted", "spectral", "csi"] = "mse"
    match: Literal["none", "last_frame", "extrapolated", "floor"] = "none"
    depth_drop: float = 0.0
    checkpoint_blocks: bool = False
    space: SpaceConfig = field(default_factory=SpaceConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        self._check_effects()
        advects = self.name == "spat_spark" and self.head == "advected"
        finds_motion = advects or self.match in ("extrapolated", "floor")
        at_least("model.frames_in", self.frames_in, 2 if finds_motion else 1)
        at_least("model.frames_out", self.frames_out, 1)
        at_least("model.smaat_width", self.smaat_width, 2)
        if self.decoder_width < 32 or self.decoder_width % 32:
            raise ConfigError(f"model.decoder_width is {self.decoder_width}; it is halved 5 times: a multiple of 32")
        for name in ("mask_ratio", "depth_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; 0 to below 1")
        if self.freeze == "both" and self.translation == "identity" and self.head == "patch":
            raise ConfigError(
                "model.freeze both with model.translation identity and model.head patch leaves nothing to train: "
                "freeze less, or choose a translation with weights"
            )

    def _check_effects(self) -> None:
        """Refuse what was set for the other kind of model: it would have no effect."""
        others = _SPAT_SPARK_ONLY if self.name == "smaat_unet" else _SMAAT_ONLY
        defaults = {item.name: item.default for item in fields(NowcastConfig)}
        found = [f"model.{name} {getattr(self, name)}" for name in others if getattr(self, name) != defaults[name]]
        if found:
            raise ConfigError(f"{', '.join(found)}: no effect with model.name {self.name}; leave it out")


_SPAT_SPARK_ONLY = (
    "encoder",
    "decoder_width",
    "decoder_activation",
    "translation",
    "head",
    "freeze",
    "mask_ratio",
    "depth_drop",
)
_SMAAT_ONLY = ("smaat_width",)


def at_least(name: str, value: int, least: int) -> None:
    """Raise ConfigError for a setting below its least value."""
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be {least} or more")
