"""Write the help of settings: an overview of all groups on one screen, and every setting of one group in full."""

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from docstring_parser import parse

from ...data.errors import ConfigError
from .recipes import recipe_names

WIDTH: Final = 100
TYPE_WORDS: Final = {int: "int", float: "float", str: "text", bool: "true or false", NoneType: "null"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting as help shows it.

    Attributes:
        key: Its name on the command line, such as "data.window".
        values: Its type in words.
        default: Its default as YAML writes it; None where it must be given.
        text: What it is.
    """

    key: str
    values: str
    default: str | None
    text: str

    @property
    def short(self) -> str:
        """Write name and default, as in "window (12)"."""
        leaf = self.key.rpartition(".")[2]
        return f"{leaf} (must be given)" if self.default is None else f"{leaf} ({self.default})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Settings that stand together, such as "data"; the command's own have the empty name."""

    name: str
    title: str
    settings: Sequence[Setting]


def help_text(cls: type, prog: str, topic: str | None, *, lists: Sequence[str] = ()) -> str:
    """Write the help of a command whose options are the fields of a settings class.

    Args:
        cls: The class.
        prog: Name of the command.
        topic: A group such as "data", or a setting such as "data.window"; None for the overview.
        lists: Settings whose values may follow each other as words.

    Raises:
        ConfigError: There is no such group or setting.
    """
    groups = list(_groups(cls))
    if topic is None:
        return _overview(cls, prog, groups, lists)

    name = topic.removeprefix("--")
    chosen = [item for group in groups for item in group.settings if name in (group.name, item.key)]
    if not chosen:
        names = ", ".join(group.name for group in groups if group.name)
        raise ConfigError(f"--help {topic}: there is no such group or setting; groups are {names}")
    return "\n".join(_in_full(setting) for setting in chosen)


def type_words(kind: Any) -> str:
    """Write a type in words: "float", "one of masked, all", "list of text", "int or null"."""
    if kind in TYPE_WORDS:
        return TYPE_WORDS[kind]

    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin in (Union, UnionType):
        return " or ".join(type_words(argument) for argument in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {type_words(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)} {type_words(arguments[0])}"
    if origin is dict:
        return f"table of {type_words(arguments[0])} to {type_words(arguments[1])}"
    return str(getattr(kind, "__name__", kind))


def _groups(cls: type, name: str = "", title: str = "") -> Iterator[Group]:
    """Give the settings of a class by group: its own first, under the empty name at the top."""
    texts = _field_texts(cls)
    prefix = f"{name}." if name else ""
    own: list[Setting] = []
    nested: list[tuple[type, str, str]] = []
    for item in dataclasses.fields(cls):
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            nested.append((item.type, f"{prefix}{item.name}", texts.get(item.name, "")))
        else:
            text = texts.get(item.name, "")
            setting = Setting(
                key=f"{prefix}{item.name}", values=type_words(item.type), default=_default(item), text=text
            )
            own.append(setting)

    yield Group(name=name, title=title, settings=own)
    for group in nested:
        yield from _groups(*group)


def _field_texts(cls: type) -> dict[str, str]:
    """Read what the docstrings of a class and of those that it extends say of each field."""
    texts: dict[str, str] = {}
    for kind in reversed(cls.__mro__):
        if dataclasses.is_dataclass(kind):
            parameters = parse(kind.__doc__ or "").params
            texts |= {item.arg_name: " ".join((item.description or "").split()) for item in parameters}
    return texts


def _default(item: "dataclasses.Field[Any]") -> str | None:
    if item.default is dataclasses.MISSING:
        return None
    if item.default is None:
        return "null"
    if isinstance(item.default, bool):
        return str(item.default).lower()
    if isinstance(item.default, tuple):
        return ", ".join(str(value) for value in item.default) or "none"
    if isinstance(item.default, float):
        return f"{item.default:g}"
    return str(item.default)


def _overview(cls: type, prog: str, groups: Sequence[Group], lists: Sequence[str]) -> str:
    """Write what must be given, then every group in a paragraph of names and defaults."""
    # The usage line holds what must be given, and nothing else.
    required = [item.key for group in groups for item in group.settings if item.default is None]
    words = " ".join(f"--{key} VALUE{' ...' if key in lists else ''}" for key in required)
    usage = f"usage: {prog} [--config FILE_OR_RECIPE] {words} [--GROUP.SETTING VALUE ...]"
    lines = [
        textwrap.fill(usage, WIDTH, subsequent_indent="           "),
        "",
        (cls.__doc__ or "").partition("\n")[0],
        "",
        _listed("--config", f"file of settings, or a recipe: {', '.join(recipe_names())}; later options override it"),
        _listed("--print_config", "show every setting as resolved, and end"),
        _listed("--help GROUP", f"explain the settings of {', '.join(group.name for group in groups if group.name)}"),
    ]
    for group in groups:
        if not group.name:
            lines += [
                _listed(f"--{item.key}", f"{item.text} ({item.default or 'must be given'})") for item in group.settings
            ]
            continue

        title = group.title[:1].lower() + group.title[1:]
        lines += ["", f"{group.name}: {title}".rstrip(": .")]
        # A name stays beside its default where lines are broken.
        shorts = "   ".join(item.short.replace(" ", "\0") for item in group.settings)
        wrapped = textwrap.wrap(shorts, WIDTH - 2, initial_indent="  ", subsequent_indent="  ")
        lines += [line.replace("\0", " ") for line in wrapped]
    return "\n".join(lines) + "\n"


def _listed(name: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"  {name:<18}", subsequent_indent=" " * 20)


def _in_full(setting: Setting) -> str:
    default = "must be given" if setting.default is None else f"default {setting.default}"
    text = textwrap.fill(setting.text, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"--{setting.key}  {setting.values}; {default}\n{text}\n"
