"""Check arguments for an importer of pysteps against its signature and its docstring, and give them their types.

Importers take any keyword and drop those that they do not know; required ones and their types stand in the numpydoc
section "Parameters" of their docstrings.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...errors import ConfigError

FIXED: Final[Mapping[str, Any]] = {"window_size": 1}
"""Arguments whose defaults change the data, and the values that leave it alone: mrms_grib averages 4 x 4 pixels."""
NOT_PASSED: Final[Mapping[str, str]] = {
    "extent": "it moves the grid; --crop cuts",
    "fillna": "it makes missing pixels a measurement",
    "dtype": "it rounds the data",
}
"""Arguments of importers that are refused, and why."""
PARAMETER: Final = re.compile(r"^(\w+)[ \t]*:[ \t]*(.*)$", re.MULTILINE)
"""A line of numpydoc's section of parameters: name and type."""
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """An argument that an importer takes.

    Attributes:
        name: Its name.
        kind: Its type as the docstring says it; "" where it says nothing.
        default: Its default, or ours; inspect.Parameter.empty where it is required.
    """

    name: str
    kind: str
    default: Any

    @property
    def is_required(self) -> bool:
        """Whether the importer cannot do without."""
        return self.default is inspect.Parameter.empty

    @property
    def choices(self) -> list[str]:
        """The values that the docstring lists; none where it lists none."""
        return re.findall(r"['\"]([^'\"]+)['\"]", self.kind) if self.kind.startswith("{") else []

    def __str__(self) -> str:
        """Describe it as messages do."""
        expected = " or ".join(self.choices) or self.kind or "a value"
        return f"{self.name} ({expected}{'; required' if self.is_required else f'; {self.default} by default'})"


def parameters_of(importer: Callable[..., Any]) -> dict[str, Parameter]:
    """List the arguments that an importer takes besides the file's name, by name, without those that are refused."""
    # pysteps' decorator formats the docstring, by which lists in braces vanish; the function below it keeps them.
    documentation = inspect.getdoc(inspect.unwrap(importer)) or ""
    section = re.split(r"\n(?:Other Parameters|Returns|Notes)\n-+\n", documentation.partition("Parameters\n---")[2])[0]
    kinds = dict(PARAMETER.findall(section))

    named = list(inspect.signature(importer).parameters.values())[1:]
    return {
        parameter.name: Parameter(
            name=parameter.name,
            kind=kinds.get(parameter.name, "").strip(),
            default=FIXED.get(parameter.name, parameter.default),
        )
        for parameter in named
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in NOT_PASSED
    }


def check_arguments(name: str, importer: Callable[..., Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """Give all arguments that an importer is called with: those stated, typed, and the values that leave data alone.

    Args:
        name: The importer's name.
        importer: The importer.
        stated: Arguments by name, as texts or as values of their types.

    Raises:
        ConfigError: A name that the importer does not take, with those that it does; a value of another type or not
            among the listed ones; a required one that is missing.
    """
    parameters = parameters_of(importer)
    listed = ", ".join(map(str, parameters.values())) or "none"
    for argument in stated:
        if argument not in parameters:
            why = f" ({NOT_PASSED[argument]})" if argument in NOT_PASSED else ""
            raise ConfigError(f"--argument {argument}: not one of {name}{why}; expected one of: {listed}")

    missing = [parameter.name for parameter in parameters.values() if parameter.is_required]
    missing = [argument for argument in missing if argument not in stated]
    if missing:
        options = " ".join(f"--argument {argument}=..." for argument in missing)
        raise ConfigError(f"{name} needs {options}; it takes: {listed}")

    fixed = {argument: value for argument, value in FIXED.items() if argument in parameters}
    return fixed | {argument: _typed(parameters[argument], value) for argument, value in stated.items()}


def effective(importer: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Describe all arguments that an importer runs with, its own defaults too; "" where it takes none."""
    parameters = parameters_of(importer)
    values = {parameter.name: arguments.get(parameter.name, parameter.default) for parameter in parameters.values()}
    return ", ".join(f"{argument}={value!r}" for argument, value in values.items())


def _typed(parameter: Parameter, value: Any) -> Any:
    """Turn a text into the type of its parameter; a value that has a type already is checked as its text."""
    text = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value).strip()
    if parameter.choices:
        listed = {choice.lower(): choice for choice in parameter.choices}
        if text.lower() in listed:
            return listed[text.lower()]
        raise ConfigError(f"--argument {parameter.name}={text}: expected {parameter}")

    # What the default is, or what the docstring says in words.
    kind = parameter.kind.lower()
    is_bool = isinstance(parameter.default, bool) or "bool" in kind
    is_text = isinstance(parameter.default, str) or "str" in kind
    is_float = (isinstance(parameter.default, float) and not parameter.is_required) or "float" in kind
    takes_many = any(word in kind for word in ("array", "tuple", "list", "sequence", "scalars"))
    if text.lower() == "none" and (parameter.default is None or "none" in kind):
        return None
    if is_bool and text.lower() in (*TRUE, *FALSE):
        return text.lower() in TRUE
    if is_text:
        return text

    numbers = [_number(piece, is_float=is_float) for piece in text.strip("()[]").split(",") if piece.strip()]
    knows_numbers = is_float or takes_many or "int" in kind or isinstance(parameter.default, int)
    if not is_bool and numbers and None not in numbers:
        if takes_many and len(numbers) > 1:
            return tuple(numbers)
        if len(numbers) == 1 and (knows_numbers or not kind):
            return numbers[0]
    if knows_numbers or is_bool:
        raise ConfigError(f"--argument {parameter.name}={text}: expected {parameter}")
    return text


def _number(text: str, *, is_float: bool) -> int | float | None:
    """Parse a whole number, or any finite one where a float is wanted; None for other text."""
    try:
        number = float(text) if is_float else int(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
