"""Radially averaged power spectral density: how much a field varies at each wavelength."""

import math
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import fft

from .fss import BoolArray, FloatArray

WAVELENGTH_EDGES_PX: Final = tuple(2 ** (1 + half / 2) for half in range(19))
"""Bounds of the wavelength bands in pixels, two an octave: from 2 (the shortest that pixels can hold) to 1024."""

FLOOR_MMH: Final = 0.1
FLOOR_DBR: Final = -15.0
"""Rain below FLOOR_MMH is set to FLOOR_DBR: pysteps.utils.transformation.dB_transform as its examples call it."""
MAX_MISSING: Final = 0.05


def to_dbr(rain_mmh: FloatArray) -> FloatArray:
    """Compute 10 log10 of rain in mm/h less FLOOR_DBR: 0 where it is dry, so that a window function makes no rain."""
    dbr = np.log(np.maximum(rain_mmh, FLOOR_MMH))
    dbr *= 10 / math.log(10)
    dbr -= FLOOR_DBR
    dbr *= rain_mmh >= FLOOR_MMH
    return dbr


def can_be_taken(valid_hw: BoolArray | None) -> bool:
    """Tell whether missing pixels carry at most MAX_MISSING of the squared weights of the window function.

    They are set to dry in all fields, which a few pixels near the border survive: the weights vanish there.
    """
    if valid_hw is None:
        return True
    squared_hw = np.square(_hann(*valid_hw.shape))
    return float(squared_hw[~valid_hw].sum()) <= MAX_MISSING * float(squared_hw.sum())


def band_density(*fields_hw: FloatArray) -> FloatArray:
    """Compute the mean power spectral density of fields in each wavelength band, (bands,); 0 where it has no ring.

    Density: |DFT of the field times a Hann window|^2 over the sum of the window's squares; averaged over rings of whole
    wave numbers as pysteps.utils.spectral.rapsd does (of a rectangle by wavelength, not by row and column), then over
    the rings of a band. The window keeps the step from one border to the other, which the DFT sees, out of the short
    wavelengths.

    Args:
        fields_hw: In any unit, (rows, cols); the density is in its square, a square pixel.
    """
    shape = fields_hw[0].shape
    window_hw = _hann(*shape)
    power = np.zeros((shape[0], 2 * (shape[1] // 2 + 1)))
    weighted_hw = np.empty(shape)
    for field_hw in fields_hw:
        # Real and imaginary parts side by side: squares of both are added up in one go.
        np.multiply(field_hw, window_hw, out=weighted_hw)
        parts = fft.rfft2(weighted_hw).view(np.float64)
        power += np.square(parts, out=parts)
    band_c, weight_c, _ = _rings(*shape)
    num_bands = len(WAVELENGTH_EDGES_PX) - 1
    of_coefficient = (power[:, ::2] + power[:, 1::2]).ravel() * weight_c
    return np.bincount(band_c, weights=of_coefficient, minlength=num_bands + 1)[:num_bands] / len(fields_hw)


def bands_of(rows: int, cols: int) -> npt.NDArray[np.int64]:
    """Mark the bands that hold a ring in a domain of this size with 1, others with 0."""
    return _rings(rows, cols)[2]


@lru_cache(maxsize=4)
def _hann(rows: int, cols: int) -> FloatArray:
    """Make the product of two Hann windows."""
    sides = [np.square(np.sin(np.pi * (np.arange(length) + 0.5) / length)) for length in (rows, cols)]
    return np.outer(sides[0], sides[1])


@lru_cache(maxsize=4)
def _rings(rows: int, cols: int) -> tuple[npt.NDArray[np.intp], FloatArray, npt.NDArray[np.int64]]:
    """Number the band of every coefficient of a real DFT, give its weight, and mark the bands that hold a ring."""
    length = max(rows, cols)
    wave_number = length * np.hypot(fft.fftfreq(rows)[:, None], fft.rfftfreq(cols)[None, :])
    ring_c = np.round(wave_number).astype(np.intp).ravel()

    # A real DFT leaves out the mirror images of all columns but the first and, where their number is even, the last.
    times_c = np.full((rows, cols // 2 + 1), 2.0)
    times_c[:, 0] = 1
    if cols % 2 == 0:
        times_c[:, -1] = 1
    coefficients = np.bincount(ring_c, weights=times_c.ravel())

    # Ring 0 is the mean; from half the length on rings are not whole.
    numbers = np.arange(1, (length + 1) // 2)
    num_bands = len(WAVELENGTH_EDGES_PX) - 1
    band_of_ring = np.full(len(coefficients), num_bands)
    bands = np.searchsorted(WAVELENGTH_EDGES_PX, length / numbers, side="right") - 1
    band_of_ring[numbers] = np.where(bands < 0, num_bands, np.minimum(bands, num_bands))
    rings = np.bincount(band_of_ring, minlength=num_bands + 1)
    band_c = band_of_ring[ring_c]
    weight_c = times_c.ravel() / coefficients[ring_c] / rings[band_c] / np.square(_hann(rows, cols)).sum()
    return band_c, weight_c, (rings[:num_bands] > 0).astype(np.int64)
