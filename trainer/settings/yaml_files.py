"""Check files of settings for what a parser would take without a word, or refuse without naming it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml

from ...data.command import MOST_NUMBER
from ...data.errors import ConfigError
from ...data.json_checks import shown

MAX_YAML_DEPTH: Final = 8
"""Settings stand at most three sections deep; the rest is room for lists and tables in them."""

# As YAML writes whole numbers: decimal, base 60, hexadecimal, binary.
_LONG_NUMBER: Final = re.compile(r"(?<![\w.])(?:[0-9][0-9_:]{39,}|0x[0-9a-fA-F_]{39,}|0b[01_]{39,})(?![\w.])", re.ASCII)


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        line = f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            raise ConfigError(f"{line}: {shown(key)} is no name of a setting; put it in quotes if it is a name")
        if key in seen:
            raise ConfigError(f"{line}: {key} is set twice")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def check_yaml_file(path: Path, sections: Iterable[str]) -> None:
    """Refuse a file of settings that is no plain YAML, or that holds a value where a section is expected.

    Args:
        path: The file.
        sections: Dotted names of the sections, such as "model.space".

    Raises:
        ConfigError: The file, and what is wrong in it.
    """
    try:
        _check_bounds(path)
        with path.open(encoding="utf-8") as stream:
            settings = yaml.load(stream, Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ConfigError:
        raise
    # A date that there is not is a plain ValueError.
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error

    if settings in (None, {}):
        raise ConfigError(f"{path} holds no settings; list some, such as run: {{steps: 1000}}, or leave it out")
    if not isinstance(settings, dict):
        kind = "a list" if isinstance(settings, list) else f"the value {shown(settings)}"
        raise ConfigError(f"{path} holds {kind}; expected sections of settings, such as run: {{steps: 1000}}")

    # A section without settings (`model:`) reads as null, which is none.
    for section in sorted(sections):
        values = settings
        for name in section.split("."):
            values = values.get(name, {}) if isinstance(values, dict) else {}
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {section} is {values!r}; it holds settings: remove it or list some")


def long_number(text: str) -> str | None:
    """Find a whole number in a text that takes long to read, or cannot be, and word what is wrong; None without one."""
    match = _LONG_NUMBER.search(text)
    if match is None:
        return None
    digits = match.group()
    return f"{digits[:20]}..., a number of {len(digits)} digits; expected one from {-MOST_NUMBER} to {MOST_NUMBER}"


def _check_bounds(path: Path) -> None:
    """Refuse what makes a few lines of YAML endless: aliases of aliases, brackets without an end, huge numbers."""
    depth = 0
    with path.open(encoding="utf-8") as stream:
        for event in yaml.parse(stream, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and (text := long_number(event.value)):
                raise ConfigError(f"{path}, line {event.start_mark.line + 1 if event.start_mark else 1}: {text}")
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"{path}: uses an alias (*{event.anchor}); write the value out")

            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_YAML_DEPTH:
                raise ConfigError(f"{path}: nested deeper than {MAX_YAML_DEPTH} levels; settings are not")
