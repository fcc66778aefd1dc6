"""Read settings from YAML files and the command line, strictly, and write them so that they read back."""

import dataclasses
import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Protocol, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ...data.command import MOST_NUMBER, MOST_SEED, expand_home
from ...data.credentials import looks_secret, redact
from ...data.errors import ConfigError
from .experiment import FinetuneConfig, PretrainConfig, TrainingConfig, flatten
from .help import help_text, type_words
from .recipes import find_config
from .yaml_files import check_yaml_file, long_number

PATHS: Final = ("run.dir", "run.checkpoint_url", "data.shards", "data.cache_dir", "init_from", "out", "report")
"""Settings that hold a path or an address; a leading ~ is the home folder."""
_Config = TypeVar("_Config", PretrainConfig, FinetuneConfig)


class _Settings(Protocol):
    """A dataclass of settings."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


_Parsed = TypeVar("_Parsed", bound=_Settings)


def parse_config(argv: Sequence[str], cls: type[_Parsed], *, prog: str, lists: Sequence[str] = ()) -> _Parsed:
    """Read a command line: `--config FILE_OR_RECIPE` and `--key.sub value` overrides, later ones winning.

    `--help`, alone or before a group or a setting, prints the help and ends the process.

    Args:
        argv: Command line without the program's name.
        cls: The class of its settings.
        prog: Name of the command.
        lists: Settings whose values may follow each other as words: `--models RUN_A RUN_B persistence`.

    Raises:
        ConfigError: An unknown or mistyped setting, named with the nearest valid key, or settings that contradict.
    """
    words = _with_files(_with_lists(argv, lists, cls), cls)
    _show_help(words, cls, prog, lists)

    # An abbreviation that is taken today is ambiguous when the next setting comes, and a typo that nobody sees.
    parser = ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parsed = _build(cls, parser, lambda: parser.parse_args(words), ["config", *dotted_keys(cls)])
    _refuse_secrets(parsed)
    return parsed


def from_dict(settings: dict[str, Any], cls: type[_Config]) -> _Config:
    """Read a resolved configuration back, as `as_dict` gives it.

    Raises:
        ConfigError: It is not one of this kind; the setting is named.
    """
    parser = ArgumentParser(exit_on_error=False)
    return _build(cls, parser, lambda: parser.parse_object(settings), dotted_keys(cls))


def _build(cls: type[_Parsed], parser: ArgumentParser, read: Callable[[], Namespace], keys: Sequence[str]) -> _Parsed:
    """Read settings of a class and build it; what is wrong is named, with the nearest of the valid keys."""
    parser.add_class_arguments(cls, None)
    try:
        values = read()
        # Before the settings' own checks, which compute with them.
        for key, value in flatten(values.as_dict()).items():
            _check_bounds(key, value)
            if key == "models":
                values[key] = tuple(map(_with_home, value or ()))
            elif key in PATHS and value is not None:
                values[key] = expand_home(value)
        values = parser.instantiate(values)
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_with_nearest(_plain_union(" ".join(_cause(error).split()), cls), keys)) from None
    return cls(**{leaf.name: values[leaf.name] for leaf in dataclasses.fields(cls)})


def _check_bounds(key: str, value: Any) -> None:
    """Raise ConfigError for a number that is out of every setting's range; each setting checks that it is finite."""
    bound = MOST_SEED if key == "seed" else MOST_NUMBER
    for number in value if isinstance(value, list | tuple) else (value,):
        if isinstance(number, int | float) and bound < abs(number) < math.inf:
            text = f"{number:g}" if isinstance(number, float) else str(number)
            raise ConfigError(f"{key} is {text}; expected a number from {-bound} to {bound}")


def _with_home(model: str) -> str:
    """Put the home folder in the place of a leading ~ of a run, RUN or NAME=RUN."""
    name, between, path = model.partition("=")
    return f"{name}={expand_home(path)}" if between else expand_home(model)


def as_dict(config: TrainingConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain YAML and JSON values."""
    # Tuples become lists, which YAML and JSON have.
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def as_yaml(config: TrainingConfig) -> str:
    """Write the resolved configuration as YAML that `--config` reads back to the same run."""
    return yaml.safe_dump(as_dict(config), sort_keys=False)


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


def _with_lists(argv: Sequence[str], lists: Sequence[str], cls: type) -> list[str]:
    """Write `--models a b` as `--models=["a", "b"]`, which the parser takes; other words stay as they are."""
    # Words of text are quoted for YAML, and numbers are not.
    of_text = {item.name for item in dataclasses.fields(cls) if "text" in type_words(item.type)}
    words: list[str] = []
    name: str | None = None
    values: list[str] = []
    for word in [*argv, "--"]:
        if name is not None and not word.startswith("--"):
            values.append(word)
            continue

        if name is not None:
            words.append(f"--{name}={_list_text(values, quoted=name in of_text)}")
        name = word[2:] if word.startswith("--") and word[2:] in lists else None
        values = []
        if name is None:
            words.append(word)
    return words[:-1]


def _list_text(values: Sequence[str], *, quoted: bool) -> str:
    """Write words as a YAML list; what is one already stays it."""
    if len(values) == 1 and values[0].startswith("["):
        return values[0]
    if not quoted:
        return f"[{', '.join(values)}]"
    # Every word in quotes: the parser takes more of them for numbers than YAML does.
    return yaml.safe_dump(list(values), default_flow_style=True, default_style='"', width=sys.maxsize).strip()


def _with_files(words: Sequence[str], cls: type) -> list[str]:
    """Put the path of a recipe in its name's place, and check every file of settings."""
    # Words and files are checked before the parser reads them: its own errors do not name the option or the line.
    for position, word in enumerate(words):
        if text := long_number(word):
            option = word if word.startswith("--") else words[max(position - 1, 0)]
            raise ConfigError(f"{option.partition('=')[0]} is {text}")
    sections = {key.rpartition(".")[0] for key in dotted_keys(cls)} - {""}
    complete: list[str] = []
    for position, word in enumerate(words):
        option, is_joined, value = word.partition("=")
        if option == "--config" and is_joined:
            path = find_config(value)
            complete.append(f"--config={path}")
        elif position > 0 and words[position - 1] == "--config":
            path = find_config(word)
            complete.append(str(path))
        else:
            complete.append(word)
            continue
        check_yaml_file(path, sections)
    return complete


def _show_help(words: Sequence[str], cls: type, prog: str, lists: Sequence[str]) -> None:
    """Print the help that is asked for and end the process; do nothing where none is."""
    asked = [position for position, word in enumerate(words) if word in ("-h", "--help")]
    if asked:
        topic = next(iter(words[asked[0] + 1 :]), None)
        sys.stdout.write(help_text(cls, prog, topic, lists=lists))
        raise SystemExit(0)


def _cause(error: Exception) -> str:
    """Write what a setting's own check said, or else what the parser said."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, ConfigError):
        cause = cause.__cause__
    text = str(cause if isinstance(cause, ConfigError) else error)
    # The parser writes types as Python does.
    text = re.sub(r"a typing\.Literal\[([^\]]*)\]", r"one of \1", text)
    return re.sub(r"(?:a )?<class '(\w+)'>", r"\1", text)


def _plain_union(message: str, cls: type) -> str:
    """Write in a few words what the parser says of a value that fits none of a setting's types."""
    match = re.fullmatch(r'(Parser key "(.+?)": )Does not validate .* Given value: (.*?)\s*', message)
    if match is None:
        return message
    # Follow the dotted key through the sections to the setting's type.
    kind: Any = cls
    for name in match[2].split("."):
        kind = next((leaf.type for leaf in dataclasses.fields(kind) if leaf.name == name), None)
        if kind is None:
            return message
    return f"{match[1]}Expected {type_words(kind)}. Got value: {match[3]}"


def _with_nearest(message: str, keys: Sequence[str]) -> str:
    """Add the valid key that an unknown one, as the parser quotes it, is nearest to."""
    # A value that does not fit is no key, and no other key would take it.
    if message.startswith("Parser key "):
        return message
    # Nearest as it was written, else by its last word alone.
    leaf_keys = {key.rpartition(".")[2]: key for key in keys}
    for asked in re.findall(r"(?:--|')([\w.]+)", message):
        if asked in keys:
            continue
        for pool in (list(keys), list(leaf_keys)):
            if near := difflib.get_close_matches(asked, pool, n=1, cutoff=0.75):
                return f"{message}; the nearest valid key is {leaf_keys.get(near[0], near[0])}"
    return message


def _refuse_secrets(config: Any) -> None:
    """Refuse credentials: settings are shown, saved in the run's folder and its checkpoints, and sent to trackers."""
    for key, value in flatten(dataclasses.asdict(config)).items():
        # A key may hold one too, as the name of a source.
        texts = (key, *value) if isinstance(value, tuple) else (key, value)
        if any(looks_secret(str(text)) for text in texts):
            raise ConfigError(
                f"{redact(key)} holds what looks like a credential: a user, password or query in an address, a "
                "signature or a key. Settings are saved and shown: give the plain address, and the credential in the "
                "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, "
                "AZURE_STORAGE_ACCOUNT_KEY; trackers: WANDB_API_KEY and the like)"
            )
