"""A periodic Gaussian field: waves of a power-law spectrum, each with a lifetime of its own, carried by the wind."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from ...randomness import generator
from ..knmi_writer import CADENCE_S
from .regime import Event, Regime

# The field repeats itself beyond this many kilometres, further than anything lives to see.
MIN_PERIOD_KM: Final = 320
OUTER_SCALE_KM: Final = 200.0
INNER_SCALE_KM: Final = 12.0
TEXTURE_KM: Final = 40.0
"""Longest waves of the texture of convective cells."""


class Waves:
    """The Gaussian field of a system: unit variance, 1 km a pixel.

    Attributes:
        shape: Rows and columns of its period.
    """

    def __init__(self, event: Event, regime: Regime, rows: int, cols: int) -> None:
        """Give each wave its amplitude and its memory.

        Args:
            event: The weather system.
            regime: Its spectrum and memory.
            rows: Rows of the frame.
            cols: Columns of the frame.
        """
        self.shape = (_period(rows), _period(cols))
        self._seed, self._order = event.seed, regime.order
        self._east, self._south = np.meshgrid(np.fft.rfftfreq(self.shape[1]), np.fft.fftfreq(self.shape[0]))
        power = _power(self._east, self._south, generator(event.seed, "storm bands").uniform(0, math.pi), regime)
        self._amplitude = self._unit(power)
        self._texture = self._unit(np.where(np.hypot(self._east, self._south) > 1 / TEXTURE_KM, power, 0.0))

        # Long waves live longer. Order 2 forgets as (1 + t/s) exp(-t/s) does, whose integral is 2 s.
        length_km = 1 / np.maximum(np.hypot(self._east, self._south), 1e-4)
        memory_min = event.lifetime_min * (length_km / 10) ** regime.lifetime_exponent / regime.order
        self._memory = np.exp(-CADENCE_S / 60 / memory_min)

    def frames(self) -> Iterator[npt.NDArray[np.complex128]]:
        """Yield the waves of frame after frame, without end, in coordinates that move with the rain.

        Each wave keeps some of what it was and takes noise for the rest: an autoregression of order 1, or one of order
        2 whose two roots are equal (Box and Jenkins 1970, Time series analysis, 3.2).
        """
        memory = self._memory
        number, waves = 0, self._noise("storm growth", 0)
        if self._order == 1:
            while True:
                yield waves
                number += 1
                waves = memory * waves + np.sqrt(1 - memory**2) * self._noise("storm growth", number)

        # Both starting frames are of the stationary process: unit variance, correlation 2 m / (1 + m**2).
        correlation = 2 * memory / (1 + memory**2)
        before = self._noise("storm before", 0)
        waves = correlation * before + np.sqrt(1 - correlation**2) * waves
        innovation = np.sqrt((1 - memory**2) ** 3 / (1 + memory**2))
        while True:
            yield waves
            number += 1
            noise = self._noise("storm growth", number)
            before, waves = waves, 2 * memory * waves - memory**2 * before + innovation * noise

    def field(self, waves: npt.NDArray[np.complex128], carried_km: tuple[float, float]) -> npt.NDArray[np.float64]:
        """Turn waves into the field of one period, carried along."""
        return self._carried(waves * self._amplitude, carried_km)

    def texture(self, waves: npt.NDArray[np.complex128], carried_km: tuple[float, float]) -> npt.NDArray[np.float64]:
        """Turn the short ones of the waves into a field of unit variance, carried along."""
        return self._carried(waves * self._texture, carried_km)

    def _carried(self, waves: npt.NDArray[np.complex128], carried_km: tuple[float, float]) -> npt.NDArray[np.float64]:
        """Sum waves over one period; the wind turns their phases."""
        east_km, south_km = carried_km
        carried = np.exp(-2j * math.pi * (self._east * east_km + self._south * south_km))
        return np.fft.irfft2(waves * carried, s=self.shape)

    def _unit(self, power: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Turn powers into amplitudes of a field of unit variance."""
        # irfft2 counts every column but the first and the last twice: the waves of the other half plane.
        twice = np.full(power.shape[1], 2.0)
        twice[[0, -1]] = 1.0
        num_waves = power.shape[0] * (power.shape[1] - 1) * 2
        return np.sqrt(power * num_waves / (power * twice).sum())

    def _noise(self, purpose: str, number: int) -> npt.NDArray[np.complex128]:
        return np.fft.rfft2(generator(self._seed, purpose, number).standard_normal(self.shape))


def _period(size: int) -> int:
    """Choose the period of the field in pixels: at least a third longer than the frame, and quick to transform."""
    period = max(MIN_PERIOD_KM, size * 4 // 3)
    return -(-period // 64) * 64


def _power(
    east: npt.NDArray[np.float64], south: npt.NDArray[np.float64], angle: float, regime: Regime
) -> npt.NDArray[np.float64]:
    """Give each wave's power, up to a factor.

    Args:
        east: Waves a kilometre along the columns, (n, m // 2 + 1).
        south: Waves a kilometre along the rows, the same shape.
        angle: Direction of the rain bands, radians.
        regime: The spectrum.
    """
    along = east * math.cos(angle) + south * math.sin(angle)
    across = south * math.cos(angle) - east * math.sin(angle)
    stretch = math.sqrt(regime.band_stretch)
    # A power law with a bend, in coordinates that are longer along the bands.
    wavenumber = np.hypot(along * stretch, across / stretch)
    power = (wavenumber**2 + OUTER_SCALE_KM**-2) ** (-regime.spectrum_exponent / 2)
    power *= (1 + (wavenumber * INNER_SCALE_KM) ** 2) ** (-regime.inner_exponent / 2)
    power[0, 0] = 0.0
    return power
