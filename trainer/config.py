"""What a run is: frozen dataclasses, read from YAML and the command line, checked across fields."""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from trainer.engine import EngineConfig
from trainer.optim import OptimConfig
from trainer.tracking import TrackingConfig


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
class DataConfig:
    """Which windows are read, in which batches, and with which memory.

    Args:
        shards: Folder of packed shards (`python -m data.pack`).
        window: Frames a window; they are the input channels.
        min_rain_fraction: Share of rainy pixels that the target frame needs for its window to be taken, 0 to 1.
        target_frame: The frame of the window that `min_rain_fraction` is about; -1 is the last.
        validation_share: Last share of the archive's time that is held out, 0 (nothing) to below 1.
        guard_h: Hours left out before the held-out part, so that one rain system is not in both.
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
    window: int = 12
    min_rain_fraction: float = 0.0
    target_frame: int = -1
    validation_share: float = 0.1
    guard_h: float = 24.0
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
        for name in ("window", "global_batch", "threads", "prefetch_steps", "evaluation_windows"):
            _at_least(f"data.{name}", getattr(self, name), 1)
        for name in ("micro_batch", "lanes"):
            if (value := getattr(self, name)) is not None:
                _at_least(f"data.{name}", value, 1)
        if not 0 <= self.min_rain_fraction <= 1:
            raise ConfigError(f"data.min_rain_fraction is {self.min_rain_fraction}; it is a share, from 0 to 1")
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"data.validation_share is {self.validation_share}; it is a share, 0 to below 1")
        if not -self.window <= self.target_frame < self.window:
            raise ConfigError(f"data.target_frame is {self.target_frame}, outside a window of {self.window} frames")
        if self.guard_h < 0:
            raise ConfigError(f"data.guard_h is {self.guard_h}; hours, 0 or more")
        for name in ("block_mb", "decoded_mb"):
            if (size := getattr(self, name)) is not None and not size > 0:
                raise ConfigError(f"data.{name} is {size}; above 0 megabytes")

    @property
    def micro(self) -> int:
        """Windows of one forward pass over all ranks."""
        return self.micro_batch or self.global_batch


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
class PretrainConfig:
    """A masked pretraining run.

    Args:
        run: Where and how long.
        data: Windows and batches.
        model: The model and its loss.
        optim: Optimizer and schedules.
        engine: Processes, precision, DeepSpeed.
        tracking: Where metrics go.
        seed: Seed of everything that is random.
        init_from: Weights to start from: a run, a checkpoint, a .safetensors or a published .pth.
    """

    run: RunConfig
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0
    init_from: str | None = None

    def __post_init__(self) -> None:
        """Check what concerns several fields, and that every number is one."""
        for key, value in _leaves(self):
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise ConfigError(f"{key} is {value}; it must be a finite number")
        if self.data.global_batch % self.data.micro:
            sizes = [size for size in range(1, self.data.global_batch + 1) if self.data.global_batch % size == 0]
            raise ConfigError(
                f"data.global_batch {self.data.global_batch} is not a multiple of data.micro_batch {self.data.micro}; "
                f"micro-batches that work: {', '.join(map(str, sizes))}"
            )
        if self.optim.warmup_steps >= self.run.steps:
            raise ConfigError(
                f"optim.warmup_steps {self.optim.warmup_steps} leaves nothing of run.steps {self.run.steps}; "
                "warm up for fewer steps or run longer"
            )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be {least} or more")


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = str(loader.construct_object(key_node))
        if key in seen:
            raise ConfigError(f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}: {key} is set twice")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _check_files(argv: Sequence[str]) -> None:
    """Refuse what the parser would take from a file without a word, or refuse without naming it."""
    sections = {key.rpartition(".")[0] for key in dotted_keys(PretrainConfig)} - {""}
    for position, word in enumerate(argv):
        path = word.partition("=")[2] if word.startswith("--config=") else None
        if word == "--config" and position + 1 < len(argv):
            path = argv[position + 1]
        if not (path and Path(path).is_file()):
            continue
        with Path(path).open(encoding="utf-8") as stream:
            try:
                settings = yaml.load(stream, Loader=_UniqueKeyLoader)
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path} is not YAML: {error}") from error
        for section in sorted(sections):
            found = settings
            for name in section.split("."):
                found = found.get(name, {}) if isinstance(found, dict) else {}
            if not isinstance(found, dict):
                raise ConfigError(f"{path}: {section} is {found!r}; it holds settings: remove it or list some")


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for leaf in dataclasses.fields(config):
        value = getattr(config, leaf.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{leaf.name}.")
        else:
            yield f"{prefix}{leaf.name}", value


def dotted_keys(cls: type, prefix: str = "") -> list[str]:
    """List every setting of a configuration class, as written on the command line."""
    keys: list[str] = []
    for leaf in dataclasses.fields(cls):
        name = f"{prefix}{leaf.name}"
        if dataclasses.is_dataclass(leaf.type):
            keys += dotted_keys(leaf.type, f"{name}.")  # type: ignore[arg-type]
        else:
            keys.append(name)
    return keys


def _with_nearest(message: str, keys: Sequence[str]) -> str:
    """Add the valid key that an unknown one, as the parser quotes it, is nearest to."""
    leaves = {key.rpartition(".")[2]: key for key in keys}
    for asked in re.findall(r"(?:--|')([\w.]+)", message):
        if asked in keys:
            continue
        for pool in (list(keys), list(leaves)):
            if near := difflib.get_close_matches(asked, pool, n=1, cutoff=0.75):
                return f"{message}; the nearest valid key is {leaves.get(near[0], near[0])}"
    return message


def parse_config(argv: Sequence[str], *, prog: str) -> PretrainConfig:
    """Read the command line of an entry point, `--config FILE` and `--key.sub value` overrides, later ones winning.

    Raises:
        ConfigError: An unknown or mistyped setting, named with the nearest valid key, or settings that contradict.
    """
    _check_files(argv)
    parser = ArgumentParser(prog=prog, exit_on_error=False, description="Masked pretraining on radar rain sequences.")
    parser.add_argument("--config", action="config", help="YAML file of settings; later options override it")
    parser.add_class_arguments(PretrainConfig, None)
    try:
        settings = parser.instantiate(parser.parse_args(list(argv)))
    except (ArgumentError, TypeError, ValueError) as error:
        cause = error
        while cause.__cause__ is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__  # type: ignore[assignment]
        text = str(cause if isinstance(cause, ConfigError) else error)
        raise ConfigError(_with_nearest(text, dotted_keys(PretrainConfig))) from None
    return PretrainConfig(**{leaf.name: settings[leaf.name] for leaf in dataclasses.fields(PretrainConfig)})


def as_dict(config: PretrainConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain YAML and JSON values."""
    plain: dict[str, Any] = yaml.safe_load(as_yaml(config))
    return plain


def as_yaml(config: PretrainConfig) -> str:
    """Write the resolved configuration as YAML that `--config` reads back to the same run."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
