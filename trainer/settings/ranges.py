"""Check the ranges of settings, in one wording."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from ...data.command import MOST_NUMBER
from ...data.errors import ConfigError

MOST_VALUES: Final = 100
"""A forecast's rain is sorted into classes between thresholds, and a class is a byte."""

MOST_FRAMES: Final = 10_000
"""Frames of a window: a month at five minutes, and more channels than a network of any use has."""


def check_number(
    name: str,
    value: float | None,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Raise ConfigError for a number that is not finite or breaks one of its limits; None is a setting left open."""
    if value is None:
        return

    # A comparison with NaN is false, so each limit is asked for what holds and not for what is broken.
    limits = {
        "finite": -math.inf < value < math.inf,
        f"{least} or more": least is None or value >= least,
        f"above {above}": above is None or value > above,
        f"below {below}": below is None or value < below,
        f"at most {most}": most is None or value <= most,
    }
    broken = [words for words, holds in limits.items() if not holds]
    if broken:
        raise ConfigError(f"{name} is {value}; it must be {' and '.join(broken)}")


def check_rising(name: str, values: Sequence[float], unit: str, *, most: float = MOST_NUMBER) -> None:
    """Raise ConfigError for a list that is empty, too long, not rising, or not of numbers above 0 and up to `most`."""
    if not values:
        raise ConfigError(f"{name} is empty; give one or more, in {unit}")
    if len(values) > MOST_VALUES:
        raise ConfigError(f"{name} holds {len(values)} values; expected {MOST_VALUES} at most")
    for value in values:
        if not 0 < value <= most:
            raise ConfigError(f"{name} holds {value}; expected finite numbers above 0 and up to {most}, in {unit}")
    for before, value in pairwise(values):
        if value <= before:
            rising = ", ".join(f"{number:g}" for number in sorted(set(values)))
            raise ConfigError(f"{name} holds {value:g} after {before:g}; expected rising order: {rising}")
