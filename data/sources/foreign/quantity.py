"""Tell from units and standard names what a variable is: a rain rate, an amount of rain, or a reflectivity."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ...json_checks import shown
from ..hdf5 import ChoiceError

MILLIMETRES: Final[Mapping[str, float]] = {
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 10.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1000.0),
    **dict.fromkeys(("in", "inch", "inches"), 25.4),
}
SECONDS: Final[Mapping[str, float]] = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}
HOUR_S: Final = 3600.0
REFLECTIVITY: Final = "equivalent_reflectivity_factor"
RAIN_WORDS: Final = ("rain", "precipitation", "snowfall")
"""What the standard names of rain rates and amounts hold (CF standard name table)."""
_NUMBER: Final = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_FACTOR: Final = re.compile(rf"\s*(/?)\s*({_NUMBER})?\s*([a-z]+)\^?([+-]?\d)?(?![\d.])\s*")
"""A line, a number, a symbol and its power, of which units are made: "0.1 mm", "kg m-2 s-1", "mm/5min", "kg/m^2"."""
_BETWEEN: Final = re.compile(r"(?<=[a-z])\s+|(?<=[a-z^]\d)\s+")
"""The space between two symbols below one line: "kg/(m2 s)"."""
EXPECTED: Final = "expected a rate (mm/h, kg m-2 s-1, m s-1), an amount (mm, kg m-2) or dBZ: state it with --units"

Kind = Literal["rate", "amount", "reflectivity"]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What a variable's numbers are.

    Attributes:
        kind: A rate, an amount or a reflectivity.
        factor: What makes mm/h of a rate, mm of an amount, dBZ of a reflectivity.
    """

    kind: Kind
    factor: float = 1.0


def quantity_of(attributes: Mapping[str, Any], units: str | None) -> Quantity:
    """Tell what a variable is.

    Args:
        attributes: The variable's, as CF has them: `units` (or `unit`) and `standard_name`.
        units: Units that count in their place; None for the variable's own.

    Raises:
        ChoiceError: They are missing, none of rain, or contradict each other.
    """
    stated = attributes.get("units", attributes.get("unit", attributes.get("GRIB_UNIT")))
    standard_name = str(attributes.get("standard_name", "")).lower()
    if units is not None:
        return _parsed(units, f"--units {units!r}")
    if stated is None or not str(stated).strip() or str(stated).lower() in ("unknown", "1"):
        raise ChoiceError(f"its units are {shown(stated)}, its standard_name {shown(standard_name)!r}; {EXPECTED}")

    # A name of the standard has to be one of rain, and of the same kind as the units.
    quantity = _parsed(str(stated), f"units {shown(stated)!r}", is_reflectivity=standard_name == REFLECTIVITY)
    named = _kind_of_name(standard_name)
    if standard_name not in ("", "unknown") and named is None:
        raise ChoiceError(f"its standard_name is {shown(standard_name)!r}, which is no rain; {EXPECTED}")
    if named not in (None, quantity.kind):
        raise ChoiceError(
            f"its units are {shown(stated)!r}, {_article(quantity.kind)}, and its standard_name is "
            f"{shown(standard_name)!r}, {_article(named)}; {EXPECTED}"
        )
    return quantity


def _kind_of_name(standard_name: str) -> Kind | None:
    if standard_name == REFLECTIVITY:
        return "reflectivity"
    if any(word in standard_name for word in RAIN_WORDS):
        return "rate" if standard_name.endswith(("_flux", "_rate", "intensity")) else "amount"
    return None


def _article(kind: str | None) -> str:
    return {"rate": "a rate", "amount": "an amount"}.get(kind or "", "a reflectivity")


def _parsed(units: str, where: str, *, is_reflectivity: bool = False) -> Quantity:
    """Parse units: depths of water, or kilograms on a square metre, with or without a time below the line."""
    # One way of writing for "[mm/hr]", "mm.h-1", "kg m**-2" and "mm per hour".
    text = units.strip().lower().replace(" per ", "/")
    text = re.sub(r"/\s*\(([^()/]*)\)", lambda below: "/" + _BETWEEN.sub("/", below[1].strip()), text)
    text = re.sub(r"[\[\]()·]|(?<=[a-z])\.", " ", text).replace("**", "^")
    if text.strip() == "dbz" or (is_reflectivity and text.strip() in ("db", "decibel")):
        return Quantity(kind="reflectivity")
    factors = list(_FACTOR.finditer(text))
    if "".join(match[0] for match in factors) != text:
        raise _refusal(where)

    factor = 1.0
    powers: Counter[str] = Counter()
    for below, number, symbol, exponent in (match.groups() for match in factors):
        sign = -1 if below else 1
        power = sign * int(exponent or 1)
        factor *= float(number or 1) ** sign
        if symbol in SECONDS:
            factor *= SECONDS[symbol] ** power
            powers["time"] += power
        elif symbol in MILLIMETRES and power == 1:
            factor *= MILLIMETRES[symbol]
            powers["water"] += 1
        else:
            powers[symbol] += power

    # A kilogram of water on a square metre is a millimetre.
    if powers["kg"] == 1 and powers["m"] == -2:
        powers.update(water=1, kg=-1, m=2)
    time = powers.pop("time", 0)
    if {symbol: power for symbol, power in powers.items() if power} != {"water": 1} or not factor > 0:
        raise _refusal(where)
    if time not in (0, -1):
        raise _refusal(where)
    return Quantity(kind="rate", factor=factor * HOUR_S) if time else Quantity(kind="amount", factor=factor)


def _refusal(where: str) -> ChoiceError:
    return ChoiceError(f"{where}: these are units of no rain; {EXPECTED}")
