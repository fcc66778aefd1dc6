"""The words of `--models`: runs, baselines with options, folders of forecasts, and classes of other packages."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from ...data.errors import ConfigError
from ...models.baselines.methods import METHODS, Method
from ..comparison.products import MEAN
from ..comparison.scored import BEST_PRODUCT

UNFITTED: Final = ("persistence", "advection", "extrapolation")
"""Baselines that learn nothing."""

FITTED: Final = ("training_mean", "damped_extrapolation")
"""Baselines that learn from the training part."""

BASELINES: Final = (*UNFITTED, *FITTED, *METHODS)
NETCDF: Final = "*.nc"
"""How the files of forecasts made elsewhere are called."""
_FILE_NAME: Final = re.compile(r"[^./\\][^/\\]*")
_PRODUCT: Final = re.compile(rf" ({MEAN}|{BEST_PRODUCT}|p>.*)")
_CLASS: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""`package.module:Class`."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One of the models that the user named.

    Attributes:
        name: For tables, pictures and files.
        kind: A baseline's own name; "run", "netcdf" (forecasts made elsewhere) or "python" (a class).
        folder: Of a run, or of forecasts.
        method: Of pysteps, with its options.
        python: A class as `package.module:Class`.
    """

    name: str
    kind: str
    folder: Path | None = None
    method: Method | None = None
    python: str | None = None

    @property
    def model(self) -> str:
        """Name what the user pointed to: a folder, a class, or a baseline."""
        return str(self.folder or self.python or self.kind)


def read_entries(words: Sequence[str]) -> list[Entry]:
    """Read MODEL and NAME=MODEL: a run's folder, a folder of NetCDF files, KIND, KIND:option=value, or a class.

    Raises:
        ConfigError: Two models of one name, a name that cannot be a file's, an option that there is not or a value that
            it does not take, or a word that is no model.
    """
    entries: dict[str, Entry] = {}
    for word in words:
        entry = _entry(word)

        # Files are called by the name: file systems take 255 bytes at most.
        if not _FILE_NAME.fullmatch(entry.name) or not entry.name.isprintable() or len(entry.name.encode()) > 100:
            raise ConfigError(
                f"models: the name {entry.name!r} cannot be a file's (1 to 100 bytes, no slash, no dot in front); give "
                f"another, as NAME={word}"
            )

        # A baseline's name stands for that baseline in tables and references.
        if entry.name in BASELINES and entry.kind != entry.name:
            raise ConfigError(
                f"models: {entry.name!r} is the name of a baseline, and {entry.model} is not that one; give "
                f"another, as NAME={entry.model}"
            )
        if other := entries.get(entry.name):
            both = f"{other.model} and {entry.model}"
            raise ConfigError(f"models: two of them are called {entry.name!r} ({both}); name one, as NAME={word}")
        entries[entry.name] = entry
    _check_products(list(entries))
    return list(entries.values())


def _check_products(names: Sequence[str]) -> None:
    """Refuse the name of what is made of an ensemble; raises ConfigError."""
    for name in names:
        for other in names:
            product = _PRODUCT.fullmatch(name.removeprefix(other)) if name.startswith(other) else None
            if product is not None:
                raise ConfigError(
                    f"models: {name!r} is what the {product[1]} of {other} is called in tables; give it another name"
                )


def _entry(word: str) -> Entry:
    name, equals, model = word.partition("=")
    # A folder's own name may hold an equals sign, and so do a baseline's options.
    is_folder = not _is_baseline(model) and not Path(model).is_dir() and Path(word).is_dir()
    is_model = _is_baseline(model) or Path(model).is_dir()
    has_options = ":" in name and (_is_baseline(name) or not is_model)
    if not equals or "/" in name or has_options or is_folder:
        name = ""
        model = word
    if _is_baseline(model):
        kind, _, options = model.partition(":")
        return Entry(name=name or kind, kind=kind, method=_method(kind, options, word))

    folder = Path(model)
    if folder.is_dir():
        return Entry(name=name or folder.resolve().name, kind=_kind_of_folder(folder), folder=folder)
    if _CLASS.fullmatch(model):
        return Entry(name=name or model.rpartition(":")[2], kind="python", python=model)

    # What is no folder and no class has to be a mistyped baseline.
    message = f"models: {model!r} is neither the folder of a run nor a baseline ({', '.join(BASELINES)})"
    near = difflib.get_close_matches(model.partition(":")[0], BASELINES, n=1, cutoff=0.6)
    raise ConfigError(f"{message}; the nearest baseline is {near[0]}" if near else message)


def _is_baseline(text: str) -> bool:
    return text.partition(":")[0] in BASELINES


def _kind_of_folder(folder: Path) -> str:
    """Tell forecasts from a run, in whose folder NetCDF files may lie besides."""
    is_run = any(folder.glob("*.safetensors")) or any(folder.glob("*.yaml")) or any(folder.glob("*/*.safetensors"))
    return "netcdf" if not is_run and any(folder.glob(NETCDF)) else "run"


def _method(kind: str, text: str, word: str) -> Method | None:
    """Read the options of a method of pysteps; None for other baselines.

    Raises:
        ConfigError: An option that there is not, a value that it does not take, or one for a baseline without options.
    """
    if kind not in METHODS:
        if text:
            raise ConfigError(f"models: {word}: {kind} has no options; leave {text!r} away")
        return None

    types = {field.name: field.type for field in fields(METHODS[kind])}
    options: dict[str, Any] = {}
    for option in text.split(",") if text else []:
        key, equals, value = option.partition("=")
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1, cutoff=0.5)
            hint = f"; the nearest one is {near[0]}" if near else ""
            raise ConfigError(f"models: {word}: {kind} has no option {key!r}; it has {', '.join(types)}{hint}")
        if key in options:
            raise ConfigError(f"models: {word}: {key} is stated twice; state it once")
        options[key] = _number(value, types[key], f"models: {word}: {key}{equals}{value}")
    try:
        return METHODS[kind](**options)
    except ValueError as error:
        raise ConfigError(f"models: {word}: {error}") from error


def _number(text: str, kind: Any, where: str) -> float:
    try:
        return int(text) if kind is int else float(text)
    except ValueError as error:
        words = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{where}: expected {words}, such as KIND:option=16") from error
