"""Convective cells: born along bands of heavy rain, they grow, decay more slowly, and leave the mean motion.

Each cell's rain is a hill that falls off exponentially with the distance from its rounded top (Capsoni et al. 1987,
Data and theory for a new model of the horizontal structure of rain cells, Radio Sci., doi:10.1029/RS022i003p00395),
and rises and sinks once. The constants were set by the statistics of real composites.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from ...randomness import generator
from ..knmi_writer import CADENCE_S
from .regime import Event
from .wind import Swirls

LIFE_MIN: Final = (20.0, 60.0)
"""Shortest and longest life, drawn evenly on a logarithmic scale."""
PEAK_MMH: Final = 4.5
PEAK_SPREAD: Final = 0.6
"""Median of the cells' highest rates, and the standard deviation of their logarithm."""
RADIUS_KM: Final = 2.5
RADIUS_SPREAD: Final = 0.35
"""Median and spread, likewise, of the distance over which the rate falls by a factor e."""
RISE: Final = 0.6
"""The life cycle is sin(pi u**0.6) of the age u as a share of the life: highest at 31% of it."""
CLUSTERING: Final = 1.0
"""Where the Gaussian field is x, cells that have no parent are born with a density proportional to exp(x)."""
DAUGHTERS: Final = 0.9
DAUGHTER_KM: Final = 5.0
"""Share of the cells that are born near a living one, and the spread of their distance from it, a component: so
clusters live for hours, and their cells for tens of minutes."""
TURN_SPREAD: Final = 0.25
SLOWEST: Final = 0.8
"""All cells of a system move to one side of the wind by an angle of this spread, radians, at 0.8 to 1 of its speed."""
DRIFT_SPREAD_KMH: Final = 4.0
"""Spread of each cell's own motion besides, a component."""
STRETCH: Final = 1.8
"""Cells are longer than wide by this factor, in all directions."""
ROUGHNESS: Final = 0.7
"""Spread of the logarithm of the cells' rain about the hills."""
START_FRAMES: Final = 24
"""Frames that cells are let be born and die before the first one."""
REACH: Final = 5.0
FOOT: Final = math.exp(1 - REACH)
"""Radii beyond which a cell does not rain, and what it would rain there as a share of its height."""


@dataclass(frozen=True)
class Cell:
    """One cell, in the coordinates of the field's period."""

    east_km: float
    south_km: float
    drift_east_kmh: float
    drift_south_kmh: float
    age_min: float
    life_min: float
    peak_mmh: float
    radius_km: float
    angle: float

    @property
    def height_mmh(self) -> float:
        """Rate in its middle at its age."""
        return self.peak_mmh * float(life_cycle(self.age_min / self.life_min))


def life_cycle(share: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Give the height of a cell as a share of its highest, by its age as a share of its life, 0 to 1."""
    return np.sin(math.pi * np.asarray(share) ** RISE)


class Cells:
    """The cells of a system that live at one frame."""

    def __init__(self, event: Event, shape: tuple[int, int]) -> None:
        """Start without cells.

        Args:
            event: The weather system.
            shape: Rows and columns of the field's period.
        """
        self.living: list[Cell] = []
        self._seed, self._shape = event.seed, shape
        self._number, self._carried_km = 0, (0.0, 0.0)
        random = generator(event.seed, "storm cells")
        angle, share = random.normal(0, TURN_SPREAD), random.uniform(SLOWEST, 1.0)
        self._own_east, self._own_south = share * math.cos(angle) - 1, share * math.sin(angle)

    def step(self, field: npt.NDArray[np.float64], mean_mmh: float, carried_km: tuple[float, float]) -> None:
        """Age and move the cells by a frame, and let new ones be born.

        Args:
            field: The Gaussian field of the period, which says where cells are born.
            mean_mmh: Rain of the cells in the mean over the period and over time.
            carried_km: Where the wind has carried the storms, km (east, south).
        """
        # The wind, then what all cells of the system deviate from it, turned by one angle.
        east_km, south_km = (now - then for now, then in zip(carried_km, self._carried_km, strict=True))
        self._carried_km = carried_km
        step_east_km = east_km + self._own_east * east_km - self._own_south * south_km
        step_south_km = south_km + self._own_south * east_km + self._own_east * south_km

        # The first frame sees the cells and clusters that have come to be in the hours before.
        random = generator(self._seed, "storm births", self._number)
        births = mean_mmh * self._shape[0] * self._shape[1] * CADENCE_S / 60 / _rain_of_a_cell()
        for _ in range(1 if self._number else START_FRAMES):
            self._age(step_east_km, step_south_km)
            self.living += self._born(random, field, int(random.poisson(births)))
        self._number += 1

    def _age(self, east_km: float, south_km: float) -> None:
        """Make the cells older by a frame, carry them along, and drop those whose life is over."""
        hours = CADENCE_S / 3600
        self.living = [
            replace(
                cell,
                east_km=cell.east_km + east_km + cell.drift_east_kmh * hours,
                south_km=cell.south_km + south_km + cell.drift_south_kmh * hours,
                age_min=cell.age_min + 60 * hours,
            )
            for cell in self.living
            if cell.age_min + 60 * hours < cell.life_min
        ]

    def _born(self, random: np.random.Generator, field: npt.NDArray[np.float64], count: int) -> list[Cell]:
        """Draw cells: most near a living one, the others where the field is high."""
        density = np.cumsum(np.exp(CLUSTERING * field).ravel())
        pixels = np.searchsorted(density, random.uniform(0, density[-1], count))
        places_km = np.stack(np.unravel_index(pixels, field.shape)[::-1]).astype(float)
        if self.living:
            mothers = np.array([(cell.east_km, cell.south_km) for cell in self.living])
            near_km = mothers[random.integers(len(mothers), size=count)].T
            near_km = near_km + random.normal(0, DAUGHTER_KM, (2, count))
            places_km = np.where(random.uniform(size=count) < DAUGHTERS, near_km, places_km)

        drifts_kmh = random.normal(0, DRIFT_SPREAD_KMH, (2, count))
        ages_min = random.uniform(0, CADENCE_S / 60, count)
        lives_min = np.exp(random.uniform(math.log(LIFE_MIN[0]), math.log(LIFE_MIN[1]), count))
        peaks_mmh = PEAK_MMH * np.exp(random.normal(0, PEAK_SPREAD, count))
        radii_km = RADIUS_KM * np.exp(random.normal(0, RADIUS_SPREAD, count))
        angles = random.uniform(0, math.pi, count)
        columns = (*places_km, *drifts_kmh, ages_min, lives_min, peaks_mmh, radii_km, angles)
        return [Cell(*map(float, values)) for values in zip(*columns, strict=True)]

    def rain_mmh(self, texture: npt.NDArray[np.float64], swirls: Swirls, hour: float) -> npt.NDArray[np.float64]:
        """Let the cells rain on a frame, where the swirls have moved them by this hour.

        Args:
            texture: Gaussian field of unit variance that roughens the rain, (rows, cols).
            swirls: What moves the cells besides the wind.
            hour: Since the first frame.
        """
        rows, cols = texture.shape
        rain = np.zeros((rows, cols))
        places_km = np.array([(cell.east_km, cell.south_km) for cell in self.living]).reshape(-1, 2)
        moved_km = swirls.displacement_km(places_km[:, 0], places_km[:, 1], hour)
        for cell, (east_km, south_km) in zip(self.living, places_km + np.stack(moved_km, axis=1), strict=True):
            # In the period that the frame is the corner of, such that a cell across the upper left border is on it.
            reach = REACH * math.sqrt(STRETCH) * cell.radius_km
            x = (east_km + reach) % self._shape[1] - reach
            y = (south_km + reach) % self._shape[0] - reach
            left, right = max(0, math.ceil(x - reach)), min(cols, math.floor(x + reach) + 1)
            top, bottom = max(0, math.ceil(y - reach)), min(rows, math.floor(y + reach) + 1)
            if left < right and top < bottom:
                hill = _hill(cell, np.arange(left, right) - x, np.arange(top, bottom)[:, None] - y)
                rain[top:bottom, left:right] += cell.height_mmh * hill
        return rain * np.exp(ROUGHNESS * texture - ROUGHNESS**2 / 2)


def _hill(cell: Cell, east_km: npt.NDArray[np.float64], south_km: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute a cell's rain as a share of that in its middle, at distances from there."""
    along = east_km * math.cos(cell.angle) + south_km * math.sin(cell.angle)
    across = south_km * math.cos(cell.angle) - east_km * math.sin(cell.angle)
    radii = np.sqrt((along**2 / STRETCH + across**2 * STRETCH) / cell.radius_km**2 + 1)
    return (np.exp(1 - radii) - FOOT).clip(min=0) / (1 - FOOT)


def _rain_of_a_cell() -> float:
    """Compute what a cell rains in its life in the mean, mm/h km2 min.

    With s = sqrt(d**2 / r**2 + 1) the hill is (exp(1 - s) - FOOT) / (1 - FOOT) up to s = REACH, and its volume the
    integral of 2 pi r**2 s times that.
    """
    hill = 2 - FOOT * (REACH + 1) - FOOT * (REACH**2 - 1) / 2
    volume = 2 * math.pi * RADIUS_KM**2 * math.exp(2 * RADIUS_SPREAD**2) * hill / (1 - FOOT)
    shortest, longest = LIFE_MIN
    mean_min = (longest - shortest) / math.log(longest / shortest)
    return (
        PEAK_MMH
        * math.exp(PEAK_SPREAD**2 / 2)
        * volume
        * mean_min
        * float(life_cycle((np.arange(1000) + 0.5) / 1000).mean())
    )
