"""A wind that is not the same everywhere: vortices and shear that move rain against its mean motion."""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from ...randomness import generator
from .regime import Event

NUM_SWIRLS: Final = 3
LENGTHS_KM: Final = (250.0, 700.0)
PERIODS_H: Final = (3.0, 6.0)
"""Wavelengths and periods of the swirls. A swirl that turned one way for ever would tear the rain apart."""


class Swirls:
    """Displacements that change slowly in space and time: waves across their own direction, without divergence.

    Their velocities over a large area have the root mean square of the event's `shear_kmh`.
    """

    def __init__(self, event: Event) -> None:
        """Draw the waves from the event's seed."""
        random = generator(event.seed, "storm swirls")
        angles = random.uniform(0, 2 * math.pi, NUM_SWIRLS)
        self._wavenumbers = 2 * math.pi / random.uniform(*LENGTHS_KM, NUM_SWIRLS)
        self._directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        self._phases = random.uniform(0, 2 * math.pi, (2, NUM_SWIRLS))
        self._frequencies = 2 * math.pi / random.uniform(*PERIODS_H, NUM_SWIRLS)
        # The product of a cosine in space and one in time has a mean square of a quarter.
        self._amplitudes_km = 2 * event.shear_kmh / math.sqrt(NUM_SWIRLS) / self._frequencies

    def displacement_km(
        self, east_km: npt.NDArray[np.float64], south_km: npt.NDArray[np.float64], hour: float
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Tell how far the swirls have moved what is at these places at this hour, km (east, south), of their shape."""
        moved_east = moved_south = np.zeros(np.broadcast_shapes(east_km.shape, south_km.shape))
        of_hour = self._amplitudes_km * np.sin(self._frequencies * hour + self._phases[1])
        for (x, y), wavenumber, phase, amplitude in zip(
            self._directions, self._wavenumbers, self._phases[0], of_hour, strict=True
        ):
            wave = amplitude * np.cos(wavenumber * (x * east_km + y * south_km) + phase)
            moved_east, moved_south = moved_east - y * wave, moved_south + x * wave
        return moved_east, moved_south

    def moved(self, field: npt.NDArray[np.float64], rows: int, cols: int, hour: float) -> npt.NDArray[np.float64]:
        """Take a frame from a periodic field that the swirls have moved: bilinear, (rows, cols)."""
        south_km, east_km = np.meshgrid(np.arange(rows, dtype=float), np.arange(cols, dtype=float), indexing="ij")
        moved_east, moved_south = self.displacement_km(east_km, south_km, hour)
        x, y = east_km - moved_east, south_km - moved_south

        # The four pixels around each source; beyond the last one comes the first.
        left, top = np.floor(x).astype(int), np.floor(y).astype(int)
        right_share, lower_share = x - left, y - top
        columns = [(left + step) % field.shape[1] for step in (0, 1)]
        lines = [(top + step) % field.shape[0] for step in (0, 1)]
        upper, lower = (
            field[line, columns[0]] * (1 - right_share) + field[line, columns[1]] * right_share for line in lines
        )
        return upper * (1 - lower_share) + lower * lower_share
