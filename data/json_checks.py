"""Values that were read from JSON files: which keys, types and ranges they may have; and JSON written one way only."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Final

from .errors import DataError
from .frames import Crop, Grid

# Annotation -> the JSON type it is read from.
JSON_TYPES: Final[Mapping[Any, tuple[type, ...]]] = {
    int: (int,),
    float: (int, float),
    str: (str,),
    Crop: (dict,),
    Grid: (dict,),
}


def canonical(values: Any) -> bytes:
    """Write JSON in one way only: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse_json(data: bytes) -> Any:
    """Read JSON text of finite numbers, every key once; raises ValueError (JSONDecodeError too) or RecursionError."""
    return json.loads(
        data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_distinct
    )


def typed(cls: type, values: Any, where: str) -> dict[str, Any]:
    """Check that `values` is an object with exactly a dataclass's fields, each of the JSON type it is read from.

    Raises:
        DataError: Naming `where` and the key.
    """
    if not isinstance(values, dict):
        raise DataError(f"{where} is of type {type(values).__name__}; expected an object")
    known = {field.name: field.type for field in fields(cls)}
    for name in (*known, *values):
        if name not in values or name not in known:
            raise DataError(f"{where}: key {name!r} is {'missing' if name in known else 'unknown'}")
    checked = {}
    for name, kind in known.items():
        value = values[name]
        expected = JSON_TYPES.get(kind, (dict,) if str(kind).startswith("dict") else (list,))
        if type(value) not in expected:
            raise DataError(f"{where}: key {name!r} is {value!r:.80}; expected {expected[-1].__name__}")
        checked[name] = as_float(value, f"{where}: key {name!r}") if kind is float else value
    return checked


def as_float(value: float, where: str) -> float:
    """Turn a JSON number into a float; raises DataError for one that is beyond every float."""
    try:
        return float(value)
    except OverflowError as error:
        raise DataError(f"{where} is a whole number beyond every measure; copy or pack it again") from error


def demand(holds: bool, key: str, found: Any, expected: str) -> None:
    """Raise DataError, naming the key, unless a value is what it can be."""
    if not holds:
        raise DataError(
            f"key {key} is {shown(found)}; expected {expected}; the index was changed: copy or pack it again"
        )


def demand_distinct(key: str, values: Iterable[str]) -> None:
    """Raise DataError, naming the key, for a value that comes twice."""
    seen: set[str] = set()
    for value in values:
        demand(value not in seen, key, f"{value} twice", "distinct values")
        seen.add(value)


def shown(value: Any) -> str:
    """Write a value of a file for people: never long, and never what would steer a terminal."""
    text = f"{value!s:.80}"
    return text if text.isprintable() else ascii(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.20} is beyond every measure")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands in an object twice")
    return values


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")
