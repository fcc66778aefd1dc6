"""What a run is: sections of settings, read from YAML and the command line, checked across them."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ...data.errors import ConfigError
from ...data.redaction import looks_secret
from .data import DataConfig, NowcastDataConfig, WindowsConfig
from .experiment import FinetuneConfig, PretrainConfig, TrainingConfig, leaves
from .model import ModelConfig, NowcastConfig, SpaceConfig
from .run import NowcastRunConfig, RunConfig

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


_Config = TypeVar("_Config", PretrainConfig, FinetuneConfig)


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
    for key, value in leaves(config):
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
