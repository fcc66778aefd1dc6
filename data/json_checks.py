"""Records as JSON: written in one way only, and read back with every key, type and range checked."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from functools import cache, reduce
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, TypeVar, cast

from .errors import DataError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

_Item = TypeVar("_Item")
_Record = TypeVar("_Record", bound="JsonRecord")

MOST_KEYS: Final = 1000
"""Keys of one object; each that is wrong costs memory."""


class JsonRecord:
    """A frozen dataclass that JSON is read into: exact types, finite numbers, and no keys but its fields."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}


class Limits:
    """What a field of a `JsonRecord` may hold beyond its type, in pydantic's words."""

    def __init__(self, **limits: Any) -> None:
        """Take the limits, such as `ge=0`."""
        self._limits = limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Add the limits to what pydantic checks of the field."""
        return {**handler(source), **self._limits}


# The first wrong item of an array is enough: millions of errors would take gigabytes.
Listed = Annotated[tuple[_Item, ...], Limits(fail_fast=True)]
Count = Annotated[int, Limits(ge=0)]
Share = Annotated[float, Limits(ge=0, le=1)]
Digest = Annotated[str, Limits(pattern="^[0-9a-f]{64}$")]


def canonical(value: Any) -> bytes:
    """Write JSON in one way only: sorted keys, no spaces, ASCII, no NaN; a dataclass's fields unless they are None."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_filled_fields)
    return text.encode("ascii")


def read_json(cls: type[_Record], data: bytes) -> _Record:
    """Read JSON text, UTF-8, into a record.

    Raises:
        DataError: It is no JSON, a key stands in an object twice, or a key or value is not as the class declares it;
            names the key, and quotes the value in 80 characters at most.
    """
    import pydantic

    # pydantic takes the last one of equal keys in silence, and quotes a whole object for every key that it lacks.
    try:
        keys = json.loads(data, object_pairs_hook=_distinct_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is no JSON ({error})") from error
    if not isinstance(keys, frozenset):
        raise DataError(f"it is {shown(keys)}; expected an object")
    for field in fields(cast(Any, cls)):
        if field.name not in keys and field.default is field.default_factory is MISSING:
            raise DataError(f"key {field.name} is missing")

    try:
        record: _Record = _adapter(cast(Any, cls)).validate_json(data)
    except pydantic.ValidationError as error:
        raise DataError(_first_problem(error, data)) from error
    return record


def demand(holds: bool, key: str, found: Any, expected: str) -> None:
    """Raise DataError, naming the key, unless a value is what it can be."""
    if not holds:
        raise DataError(f"key {key} is {shown(found)}; expected {expected}")


def demand_distinct(key: str, values: Iterable[str]) -> None:
    """Raise DataError, naming the key, for a value that comes several times; there is at least one value."""
    value, times = Counter(values).most_common(1)[0]
    demand(times == 1, key, f"{value} {times} times", "distinct values")


def shown(value: Any) -> str:
    """Write a value of a file for people: never long, and never what would steer a terminal."""
    text = f"{value!s:.80}"
    return text if text.isprintable() else ascii(text)


@cache
def _adapter(cls: type["JsonRecord"]) -> "TypeAdapter[Any]":
    # Imported where JSON is read: a command's --help does without.
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _first_problem(error: "ValidationError", data: bytes) -> str:
    """Format the first of a record's errors."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    steps = problem["loc"]
    path = shown("".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix("."))

    # Say in our words what is about the key itself, and in pydantic's what is about the value.
    match problem["type"]:
        case "json_invalid":
            return f"it is no JSON ({problem['msg']})"
        case "missing":
            return f"key {path} is missing"
        case "unexpected_keyword_argument":
            return f"key {path} is unknown"
        case "value_error":
            # What the record's own check says.
            return f"key {path}: {problem['msg'].removeprefix('Value error, ')}"
    value = reduce(lambda values, step: values[step], steps, json.loads(data))
    expected = problem["msg"].replace("Input should be", "expected").replace("String should", "expected to")
    return f"key {path} is {shown(value)}; {expected}"


def _filled_fields(record: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if value is not None}


def _distinct_keys(pairs: list[tuple[str, Any]]) -> frozenset[str]:
    keys = frozenset(key for key, _ in pairs)
    if len(keys) < len(pairs):
        raise ValueError("a key stands in an object twice")
    if len(keys) > MOST_KEYS:
        raise ValueError(f"an object holds {len(keys)} keys")
    return keys
