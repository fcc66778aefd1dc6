"""The sections of a run's configuration: frozen dataclasses that check their ranges."""

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Literal

from data.sequences import TimeSpan


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
        save_every: Steps between two checkpoints; a stop and the last step always save one.
        keep_last: Checkpoints kept, 2 or more.
        max_nonfinite: Steps with a loss or gradient that is not finite, in a row, after which the run stops.
        allow_plan_change: On resume, accept another micro-batch, lanes or block: order and batch statistics change.
        progress: A bar where the terminal shows one, else log lines; or one of the two.
    """

    dir: str
    steps: int = 1000
    log_every: int = 10
    evaluate_every: int = 500
    save_every: int = 500
    keep_last: int = 3
    max_nonfinite: int = 5
    allow_plan_change: bool = False
    progress: Literal["auto", "bar", "lines"] = "auto"

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least("run.steps", self.steps, 1)
        _at_least("run.log_every", self.log_every, 1)
        _at_least("run.evaluate_every", self.evaluate_every, 1)
        _at_least("run.save_every", self.save_every, 1)
        _at_least("run.keep_last", self.keep_last, 2)
        _at_least("run.max_nonfinite", self.max_nonfinite, 1)


@dataclass(frozen=True, kw_only=True)
class NowcastRunConfig(RunConfig):
    """Where a nowcaster's run lies, how long it is, and which of its checkpoints is the best.

    Args:
        choose_by: What makes a checkpoint the best, on the validation part: `csi`: the mean CSI over 0.5, 1 and 2 mm/h,
            all lead times together; `mse`: the squared error in (mm/h)^2; `loss`: the loss it is trained with.
    """

    choose_by: Literal["csi", "mse", "loss"] = "csi"


@dataclass(frozen=True, kw_only=True)
class WindowsConfig:
    """Which windows are read, in which batches, and with which memory.

    The archive is split in time: by shares (training first, then validation, then test, with the guard between them),
    or by stated times. A window belongs to a part when all its frames do.

    Args:
        shards: Folder of packed shards (`python -m data.pack`).
        min_rain_fraction: Share of rainy pixels that the target frame needs for its window to be taken, 0 to 1.
        target_frame: The frame of the window that `min_rain_fraction` is about; -1 is the last.
        validation_share: Share of the archive's time that is held out while training, 0 (nothing) to below 1.
        test_share: Last share of the archive's time, never looked at while training, 0 to below 1.
        guard_h: Hours left out between the parts, so that one rain system is not in two of them.
        train_times: Frames to train on, instead of shares: a list of START/STOP, UTC, START included and STOP not, such
            as '["2016-01-01T00:00/2019-01-01T00:00"]'.
        validation_times: Likewise, frames that are held out while training. Only with `train_times`.
        test_times: Likewise, frames that are never looked at while training. Only with `train_times`.
        global_batch: Windows an update.
        micro_batch: Windows a forward pass, over ALL ranks; batch statistics are theirs. Null: the global batch.
        lanes: Parallel readers of the plan, a divisor of the micro-batch. Null: the largest one up to 16.
        block_mb: Compressed megabytes of neighbouring sequences that a lane shuffles at a time. Null: enough for a
            global batch to hold many days.
        decoded_mb: Megabytes of decoded frames kept a rank.
        threads: Threads a rank that read, verify and decode.
        prefetch_steps: Global batches prepared ahead.
        augment: Random flips and, on square frames, quarter turns.
        evaluation_windows: Held-out windows that an evaluation uses at most, evenly spread over them.
    """

    shards: str
    min_rain_fraction: float = 0.0
    target_frame: int = -1
    validation_share: float = 0.1
    test_share: float = 0.0
    guard_h: float = 24.0
    train_times: tuple[str, ...] | None = None
    validation_times: tuple[str, ...] | None = None
    test_times: tuple[str, ...] | None = None
    global_batch: int = 256
    micro_batch: int | None = None
    lanes: int | None = None
    block_mb: float | None = None
    decoded_mb: float = 1024.0
    threads: int = 2
    prefetch_steps: int = 2
    augment: bool = True
    evaluation_windows: int = 256

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("global_batch", "threads", "prefetch_steps", "evaluation_windows"):
            _at_least(f"data.{name}", getattr(self, name), 1)
        for name in ("micro_batch", "lanes"):
            if (value := getattr(self, name)) is not None:
                _at_least(f"data.{name}", value, 1)
        if not 0 <= self.min_rain_fraction <= 1:
            raise ConfigError(f"data.min_rain_fraction is {self.min_rain_fraction}; it is a share, from 0 to 1")
        for name in ("validation_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"data.{name} is {getattr(self, name)}; it is a share, 0 to below 1")
        if not self.guard_h >= 0:
            raise ConfigError(f"data.guard_h is {self.guard_h}; a finite number of hours, 0 or more")
        for name in ("block_mb", "decoded_mb"):
            if (size := getattr(self, name)) is not None and not size > 0:
                raise ConfigError(f"data.{name} is {size}; above 0 megabytes")
        self._check_times()

    def _check_times(self) -> None:
        """Read the stated times once, so that a slip ends the run before anything is opened."""
        for name in ("validation_times", "test_times"):
            if getattr(self, name) is not None and self.train_times is None:
                raise ConfigError(f"data.{name} is set and data.train_times is not; state the times of training too")
        defaults = {item.name: item.default for item in fields(WindowsConfig)}
        for name in ("validation_share", "test_share"):
            if self.train_times is not None and getattr(self, name) not in (0, defaults[name]):
                raise ConfigError(
                    f"data.{name} is {getattr(self, name)}, but data.train_times states the parts' times, and no share "
                    f"has an effect beside them: leave data.{name} out, or data.train_times"
                )
        self.stated_spans()

    def stated_spans(self) -> dict[str, tuple[TimeSpan, ...]] | None:
        """Give the stated times as spans of "train", "validation" and "test"; None where shares decide.

        Raises:
            ConfigError: A text that is no span, or parts that are nearer to each other than the guard.
        """
        if self.train_times is None:
            return None
        spans: dict[str, tuple[TimeSpan, ...]] = {}
        for part in ("train", "validation", "test"):
            texts = getattr(self, f"{part}_times") or ()
            spans[part] = tuple(parse_span(f"data.{part}_times", text) for text in texts)
        if not spans["train"]:
            raise ConfigError("data.train_times holds no span; expected at least one START/STOP")
        guard_s = round(self.guard_h * 3600)
        named = [(part, span) for part, some in spans.items() for span in some]
        for place, (part, span) in enumerate(named):
            for other_part, other in named[:place]:
                if (
                    other_part != part
                    and span.start_s < other.stop_s + guard_s
                    and other.start_s < span.stop_s + guard_s
                ):
                    raise ConfigError(
                        f"data.{other_part}_times {other} and data.{part}_times {span} overlap or are nearer to each "
                        f"other than data.guard_h {self.guard_h:g} hours; move them apart, or shorten the guard"
                    )
        return spans

    @property
    def micro(self) -> int:
        """Windows of one forward pass over all ranks."""
        return self.micro_batch or self.global_batch


@dataclass(frozen=True, kw_only=True)
class DataConfig(WindowsConfig):
    """The windows of masked pretraining.

    Args:
        window: Frames a window; they are the input channels.
    """

    window: int = 12

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        _at_least("data.window", self.window, 1)
        check_target_frame(self.target_frame, self.window)


@dataclass(frozen=True, kw_only=True)
class NowcastDataConfig(WindowsConfig):
    """The windows of a nowcaster: as many frames as it takes in and gives out.

    Args:
        crop: Side in pixels of the square that is cut out of every training window at a random place, a multiple of
            32. Null: whole frames. Evaluation is always on whole frames.
    """

    crop: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.crop is not None and (self.crop < 32 or self.crop % 32):
            raise ConfigError(f"data.crop is {self.crop}; a multiple of 32 pixels, or null for whole frames")


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
        _at_least("model.frames_in", self.frames_in, 2 if finds_motion else 1)
        _at_least("model.frames_out", self.frames_out, 1)
        _at_least("model.smaat_width", self.smaat_width, 2)
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


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be {least} or more")


def check_target_frame(target_frame: int, window: int) -> None:
    """Refuse a target frame outside the window."""
    if not -window <= target_frame < window:
        raise ConfigError(f"data.target_frame is {target_frame}, outside a window of {window} frames")


def parse_span(name: str, text: str) -> TimeSpan:
    """Read a span of frame end times such as 2016-01-01T00:00/2019-01-01T00:00 (UTC, the second one excluded).

    Args:
        name: The setting, for the error.
        text: The span.

    Raises:
        ConfigError: It is no span, or ends before it begins.
    """
    try:
        start, stop = (_epoch_s(word.strip()) for word in text.split("/"))
    except ValueError as error:
        raise ConfigError(
            f"{name}: {text!r} is no span of time; expected START/STOP in UTC, such as "
            "2016-01-01T00:00/2019-01-01T00:00"
        ) from error
    if start >= stop:
        raise ConfigError(f"{name}: {text!r} ends before it begins; expected START/STOP with START before STOP")
    return TimeSpan(start_s=start, stop_s=stop)


def _epoch_s(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return int((moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp())
