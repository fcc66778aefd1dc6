"""What a run is: sections of settings, read from YAML and the command line, checked across them."""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ...data.redaction import looks_secret
from ..engine.optimizers import OptimConfig
from ..engine.processes import EngineConfig
from ..tracking.trackers import TrackingConfig
from .data import DataConfig, NowcastDataConfig, WindowsConfig
from .model import ConfigError, ModelConfig, NowcastConfig, NowcastRunConfig, RunConfig, SpaceConfig

__all__ = [
    "ConfigError",
    "DataConfig",
    "FinetuneConfig",
    "ModelConfig",
    "NowcastConfig",
    "NowcastDataConfig",
    "NowcastRunConfig",
    "PretrainConfig",
    "RunConfig",
    "SpaceConfig",
    "TrainingConfig",
    "WindowsConfig",
    "as_dict",
    "as_yaml",
    "dotted_keys",
    "from_dict",
    "parse_config",
]


MAX_YAML_DEPTH: Final = 8
"""Settings stand at most three sections deep; the rest is room for lists and tables in them."""


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
        init_from: Weights to start from: a run, a checkpoint, a .safetensors or a published .pth. Of a run or a
            checkpoint the averaged weights are taken where it has them.
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
        _check_together(self)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The training of a nowcaster.

    Args:
        run: Where and how long, and which checkpoint is the best.
        data: Windows and batches.
        model: The nowcaster and its loss.
        optim: Optimizer and schedules.
        engine: Processes, precision, DeepSpeed.
        tracking: Where metrics go.
        seed: Seed of everything that is random.
        init_from: Weights to start from: a pretrained or fine-tuned run, a checkpoint, a .safetensors or a published
            .pth. Of a run the best checkpoint is taken where one was chosen, else the newest, its averaged weights
            where it has them. Null: from nothing.
    """

    run: NowcastRunConfig
    data: NowcastDataConfig
    model: NowcastConfig = field(default_factory=NowcastConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0
    init_from: str | None = None

    def __post_init__(self) -> None:
        """Check what concerns several fields, and that every number is one."""
        _check_together(self)
        self.data.selection(self.model.frames_in + self.model.frames_out)
        model = self.model
        if self.optim.layer_decay != 1 and (model.name == "smaat_unet" or model.freeze in ("encoder", "both")):
            why = "model.name is smaat_unet" if model.name == "smaat_unet" else f"model.freeze is {model.freeze}"
            raise ConfigError(
                f"optim.layer_decay is {self.optim.layer_decay}: no effect, as {why} and no encoder is trained; "
                "leave it out"
            )


TrainingConfig = PretrainConfig | FinetuneConfig
_Config = TypeVar("_Config", PretrainConfig, FinetuneConfig)


def _check_together(config: TrainingConfig) -> None:
    for key, value in _leaves(config):
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ConfigError(f"{key} is {value}; it must be a finite number")
    data = config.data
    if data.global_batch % data.micro:
        sizes = [size for size in range(1, data.global_batch + 1) if data.global_batch % size == 0]
        raise ConfigError(
            f"data.global_batch {data.global_batch} is not a multiple of data.micro_batch {data.micro}; "
            f"micro-batches that work: {', '.join(map(str, sizes))}"
        )
    if config.optim.warmup_steps >= config.run.steps:
        raise ConfigError(
            f"optim.warmup_steps {config.optim.warmup_steps} leaves nothing of run.steps {config.run.steps}; "
            "warm up for fewer steps or run longer"
        )
    waits = {
        "data.deadline_s": data.deadline_s if "://" in data.shards else 0.0,
        "run.push_deadline_s": 0.0 if config.run.checkpoint_url is None else config.run.push_deadline_s,
        "tracking.close_s": config.tracking.close_s if config.tracking.services else 0.0,
    }
    for key, seconds in waits.items():
        if seconds >= config.engine.timeout_s:
            raise ConfigError(
                f"{key} is {seconds:g} and engine.timeout_s {config.engine.timeout_s:g}: who waits so long counts as "
                "standing still and is ended; make engine.timeout_s longer"
            )


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


def _check_files(argv: Sequence[str], cls: type) -> None:
    """Refuse what the parser would take from a file without a word, or refuse without naming it."""
    sections = {key.rpartition(".")[0] for key in dotted_keys(cls)} - {""}
    for position, word in enumerate(argv):
        path = word.partition("=")[2] if word.startswith("--config=") else None
        if word == "--config" and position + 1 < len(argv):
            path = argv[position + 1]
        if not (path and Path(path).is_file()):
            continue
        try:
            _check_bounds(path)
            with Path(path).open(encoding="utf-8") as stream:
                settings = yaml.load(stream, Loader=_UniqueKeyLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not YAML: {error}") from error
        for section in sorted(sections):
            found = settings
            for name in section.split("."):
                found = found.get(name, {}) if isinstance(found, dict) else {}
            if not isinstance(found, dict):
                raise ConfigError(f"{path}: {section} is {found!r}; it holds settings: remove it or list some")


def _check_bounds(path: str) -> None:
    """Refuse what makes a few lines of YAML endless: aliases of aliases, and brackets without an end."""
    depth = 0
    with Path(path).open(encoding="utf-8") as stream:
        for event in yaml.parse(stream, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"{path}: uses an alias (*{event.anchor}); write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_YAML_DEPTH:
                raise ConfigError(f"{path}: nested deeper than {MAX_YAML_DEPTH} levels; settings are not")


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


class _Settings(Protocol):
    """A dataclass of settings."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


_Parsed = TypeVar("_Parsed", bound=_Settings)


def parse_config(argv: Sequence[str], cls: type[_Parsed], *, prog: str) -> _Parsed:
    """Read the command line of an entry point, `--config FILE` and `--key.sub value` overrides, later ones winning.

    Raises:
        ConfigError: An unknown or mistyped setting, named with the nearest valid key, or settings that contradict.
    """
    _check_files(argv, cls)
    # An abbreviation that is taken today is ambiguous when the next setting comes, and a typo that nobody sees.
    parser = ArgumentParser(prog=prog, exit_on_error=False, description=cls.__doc__, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of settings; later options override it")
    parser.add_class_arguments(cls, None)
    try:
        settings = parser.instantiate(parser.parse_args(list(argv)))
    except (ArgumentError, TypeError, ValueError) as error:
        cause = error
        while cause.__cause__ is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__  # type: ignore[assignment]
        text = str(cause if isinstance(cause, ConfigError) else error)
        raise ConfigError(_with_nearest(text, ["config", *dotted_keys(cls)])) from None
    parsed = cls(**{leaf.name: settings[leaf.name] for leaf in dataclasses.fields(cls)})
    _refuse_secrets(parsed)
    return parsed


def _refuse_secrets(config: Any) -> None:
    """Settings are shown, saved in the run's folder and in its checkpoints, and sent to trackers."""
    for key, value in _leaves(config):
        if any(looks_secret(text) for text in _texts(value)):
            raise ConfigError(
                f"{key} holds what looks like a credential: a user, password or query in an address, a signature or a "
                "key. Settings are saved and shown: give the plain address, and the credential in the environment "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, "
                "AZURE_STORAGE_ACCOUNT_KEY; trackers: WANDB_API_KEY and the like)"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(name)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def from_dict(settings: dict[str, Any], cls: type[_Config]) -> _Config:
    """Read a resolved configuration back, as `as_dict` gives it.

    Raises:
        ConfigError: It is not one of this kind; the setting is named.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, None)
    try:
        found = parser.instantiate(parser.parse_object(settings))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_with_nearest(" ".join(str(error).split()), dotted_keys(cls))) from None
    return cls(**{leaf.name: found[leaf.name] for leaf in dataclasses.fields(cls)})


def as_dict(config: TrainingConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain YAML and JSON values."""
    plain: dict[str, Any] = yaml.safe_load(as_yaml(config))
    return plain


def as_yaml(config: TrainingConfig) -> str:
    """Write the resolved configuration as YAML that `--config` reads back to the same run."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
