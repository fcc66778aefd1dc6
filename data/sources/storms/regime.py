"""What the rain of one weather system is like: its spectrum, its memory, its rates, and how they drift over hours."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from ...randomness import generator
from ..knmi_writer import CADENCE_S

SPEED_KMH: Final = 45.0
LIFETIME_MIN: Final = 20.0
"""Correlation time of waves 10 km long. 60 minutes ahead at 90 km/h, extrapolation has a CSI of 0.24 at 1 mm/h and 0.32
at 0.5 mm/h with 20 min, 0.33 and 0.38 with 40, 0.36 and 0.41 with 80; on a fast day of real radar 0.31 and 0.41."""
GROWTH_HOURS: Final = 2.0
"""A system grows or decays as asked for at this hour of its life, and less so before and after: within 2 hours its
rain does not change by more than two hours of it."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One weather system of a series.

    Attributes:
        num_frames: Its frames.
        seed: Equal seeds give equal storms; the first frames do not depend on the number of frames.
        speed_kmh: Speed that the wind drifts around, km/h.
        lifetime_min: Minutes after which waves 10 km long are forgotten.
        first: Its first frame, counted from the series' first.
        convective: Share of the rain that falls from cells with life cycles, 0 to below 1; None: the system is of the
            first, plain kind, without cells and with the same spectrum and rates as every other.
        growth: Factor by which its rain grows in an hour.
        shear_kmh: Root mean square of the wind's deviations from its mean over the frame, km/h.
    """

    num_frames: int
    seed: int
    speed_kmh: float = SPEED_KMH
    lifetime_min: float = LIFETIME_MIN
    first: int = 0
    convective: float | None = None
    growth: float = 1.0
    shear_kmh: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Statistics of a system's rain; the defaults are those of every plain system.

    Attributes:
        spectrum_exponent: Power falls with wavenumber to minus this in two dimensions below the outer scale,
        inner_exponent: and with this besides below the inner one.
        band_stretch: Rain areas are longer along one direction than across it by this factor.
        lifetime_exponent: How correlation times grow with the wavelength: about proportionally (Seed et al., 2013).
        order: Of the autoregression that a wave follows, 1 or 2. Real rain is of order 2: it changes little within
            minutes and is forgotten all the quicker afterwards.
        dryness: The logarithm of the odds that a pixel is dry, in the mean over hours.
        median_rate_mmh: Median of the wet rates.
        rate_spread: Standard deviation of the logarithm of wet rates, in the mean over hours.
    """

    spectrum_exponent: float = 2.8
    inner_exponent: float = 1.2
    band_stretch: float = 1.7
    lifetime_exponent: float = 1.0
    order: int = 1
    dryness: float = 0.3
    median_rate_mmh: float = 0.5
    rate_spread: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Weather:
    """The state of a system at one frame.

    Attributes:
        wet_share: Share of a very large area where it rains.
        median_rate_mmh: Median of the wet rates.
        rate_spread: Standard deviation of their logarithm, about 0.85 in even rain, more in showers.
        carried_km: Where the storms have been carried since the first frame, km (east, south).
    """

    wet_share: float
    median_rate_mmh: float
    rate_spread: float
    carried_km: tuple[float, float]

    @property
    def mean_mmh(self) -> float:
        """Mean rain of a very large area, cells aside: that of a log-normal among the wet pixels."""
        return self.wet_share * self.median_rate_mmh * math.exp(self.rate_spread**2 / 2)


def regime_of(event: Event) -> Regime:
    """Draw the regime of a system from its seed, given its convective share: drizzle and bands to lines of cells.

    The ranges were set by the statistics of the real events of tests/bench/RESULTS.md.
    """
    if event.convective is None:
        return Regime()
    random = generator(event.seed, "storm regime")
    return Regime(
        spectrum_exponent=random.uniform(2.4, 3.0),
        inner_exponent=random.uniform(1.0, 2.4),
        band_stretch=random.uniform(1.2, 2.0 + 2.0 * event.convective),
        lifetime_exponent=random.uniform(0.8, 1.1),
        order=2,
        dryness=3.4 * event.convective + 0.5 * random.standard_normal(),
        median_rate_mmh=0.45 * (1 + event.convective) * math.exp(0.4 * random.standard_normal()),
        rate_spread=1.0 + 0.1 * random.standard_normal(),
    )


def weather(event: Event, regime: Regime) -> Iterator[Weather]:
    """Let the wet share, the showeriness and the wind drift smoothly, each over hours, and the system grow or decay."""
    random = generator(event.seed, "storm weather")
    heading = random.uniform(0, 2 * math.pi)
    wetness, showers, turn, speed = (_drift(random) for _ in range(4))
    x_km, y_km = 0.0, 0.0
    for number in range(event.num_frames):
        hour = number * CADENCE_S / 3600
        speed_kmh = event.speed_kmh * math.exp(0.25 * speed(hour))
        direction = heading + 0.5 * turn(hour)

        # Half of what is gained or lost is area, half is rate.
        grown = event.growth ** (GROWTH_HOURS / 2 * math.tanh(hour / GROWTH_HOURS - 1))
        wet_share = 1 / (1 + math.exp(regime.dryness - 0.8 * wetness(hour)) / grown)
        yield Weather(
            wet_share=wet_share,
            median_rate_mmh=regime.median_rate_mmh * grown,
            rate_spread=regime.rate_spread + 0.15 * showers(hour),
            carried_km=(x_km, y_km),
        )
        x_km += speed_kmh * CADENCE_S / 3600 * math.cos(direction)
        y_km += speed_kmh * CADENCE_S / 3600 * math.sin(direction)


def _drift(random: np.random.Generator) -> Callable[[float], float]:
    """Make a smooth function of the hour with mean 0 and variance about 1: three slow waves."""
    periods_h, phases = random.uniform(5, 30, 3), random.uniform(0, 2 * math.pi, 3)

    def at(hour: float) -> float:
        return float(np.sqrt(2 / 3) * np.sin(2 * math.pi * hour / periods_h + phases).sum())

    return at
