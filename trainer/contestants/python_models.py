"""Models of other packages, named on the command line as `package.module:Class`."""

import difflib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from ...data.errors import ConfigError
from ...models.baselines.methods import Gives
from .contestant import AnyForecaster
from .entries import Entry

METHODS: Final[dict[Gives, str]] = {
    "members": "forecast_members",
    "probabilities": "forecast_probabilities",
    "field": "forecast",
}
"""What the three protocols of models.nowcasting.forecasts ask for; the first one that a class has counts."""
assert set(METHODS) == set(get_args(Gives))


@dataclass(frozen=True, kw_only=True, eq=False)
class PythonModel:
    """An object that follows one of the protocols.

    Attributes:
        forecaster: The object.
        gives: Which protocol it follows.
        source: What the user named.
    """

    forecaster: AnyForecaster
    gives: Gives
    source: str


def load_python_model(entry: Entry) -> PythonModel:
    """Import a class, make an object of it without arguments, and check that it follows a protocol.

    Nothing is imported but what the user's command line names; modules in the current folder come last.

    Raises:
        ConfigError: No such module or class, a class that cannot be made, or one that follows no protocol.
    """
    text = entry.python or ""
    module_name, _, class_name = text.partition(":")
    where = f"models: {entry.name}: {text}"
    with _current_folder():
        try:
            module = importlib.import_module(module_name)
        # Whatever runs in a stranger's module may fail.
        except Exception as error:
            raise ConfigError(
                f"{where}: the module {module_name} cannot be imported ({type(error).__name__}: {error}); expected one "
                "that is installed, or a file in this folder"
            ) from error

        # Made here, where modules of the current folder are found: it may import more of them.
        kind = getattr(module, class_name, None)
        if kind is None:
            near = difflib.get_close_matches(class_name, dir(module), n=1, cutoff=0.5)
            hint = f"; the nearest name is {near[0]}" if near else ""
            raise ConfigError(f"{where}: {module_name} has no {class_name}{hint}")
        try:
            forecaster = kind()
        except Exception as error:
            raise ConfigError(
                f"{where}: {class_name}() failed ({type(error).__name__}: {error}); expected a class that needs no "
                "arguments"
            ) from error
    return PythonModel(forecaster=forecaster, gives=_protocol_of(forecaster, where), source=text)


def _protocol_of(forecaster: Any, where: str) -> Gives:
    # What can give members is asked for them, whatever else it can do.
    gives = next((gives for gives, method in METHODS.items() if callable(getattr(forecaster, method, None))), None)
    if gives is None:
        raise ConfigError(f"{where} has none of the methods {', '.join(METHODS.values())}; expected one of them")
    for name in ("frames_in", *(("members",) if gives == "members" else ())):
        number = getattr(forecaster, name, None)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            state = "is missing" if number is None else f"is {number!r}"
            raise ConfigError(f"{where}: its attribute {name} {state}; expected a whole number, 1 or more")
    return gives


@contextmanager
def _current_folder() -> Iterator[None]:
    """Find modules of the current folder too, behind all that is installed."""
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
