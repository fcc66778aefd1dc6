"""Check files of settings for what a parser would take without a word, or refuse without naming it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml

from ...data.errors import ConfigError

MAX_YAML_DEPTH: Final = 8
"""Settings stand at most three sections deep; the rest is room for lists and tables in them."""


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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error

    # A section without settings (`model:`) reads as null, which is none.
    for section in sorted(sections):
        values = settings
        for name in section.split("."):
            values = values.get(name, {}) if isinstance(values, dict) else {}
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {section} is {values!r}; it holds settings: remove it or list some")


def _check_bounds(path: Path) -> None:
    """Refuse what makes a few lines of YAML endless: aliases of aliases, and brackets without an end."""
    depth = 0
    with path.open(encoding="utf-8") as stream:
        for event in yaml.parse(stream, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"{path}: uses an alias (*{event.anchor}); write the value out")

            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_YAML_DEPTH:
                raise ConfigError(f"{path}: nested deeper than {MAX_YAML_DEPTH} levels; settings are not")
