"""Check the ranges of settings, in one wording."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from ...data.errors import ConfigError

MOST_VALUES: Final = 100
"""A forecast's rain is sorted into classes between thresholds, and a class is a byte."""


def at_least(name: str, value: int, least: int) -> None:
    """Raise ConfigError for a setting below its least value."""
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be {least} or more")


def check_rising(name: str, values: Sequence[float], unit: str) -> None:
    """Raise ConfigError for a list that is empty, too long, not rising, or not of finite numbers above 0."""
    if not values:
        raise ConfigError(f"{name} is empty; give one or more, in {unit}")
    if len(values) > MOST_VALUES:
        raise ConfigError(f"{name} holds {len(values)} values; expected {MOST_VALUES} at most")
    for value in values:
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} holds {value}; expected finite numbers above 0, in {unit}")
    for before, value in pairwise(values):
        if value <= before:
            rising = ", ".join(f"{number:g}" for number in sorted(set(values)))
            raise ConfigError(f"{name} holds {value:g} after {before:g}; expected rising order: {rising}")
