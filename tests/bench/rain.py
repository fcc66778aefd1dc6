"""Statistics of rain in packed archives, real and made up: `python -m tests.bench.rain SHARDS ... [--every 8]`.

Spectra are of 10 log10(max(R, 0.1) / 0.1), as means over octaves of wavelength. What is kept of a field is its
correlation with the one 5 to 60 minutes later, after the forecaster's own motion has carried it there, of all its
scales and of bands of wavelengths (differences of Gaussian means of 1, 2, 4, 8 and 16 pixels); 20 pixels at every
border, and what comes from there, are left out. Windows that are wet on less than 3% of their pixels are left out.
"""

import argparse
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rainspark.data.stream.pipeline import windows_pipeline
from rainspark.models.nowcasting.motion import _blur, advect, displacements, estimate_motion

DRY_MMH: Final = 0.1
THRESHOLDS_MMH: Final = (0.5, 2.0, 5.0, 10.0, 20.0)
LENGTHS_KM: Final = (64, 32, 16, 8, 4)
DEVIATIONS_PX: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
BANDS: Final = ("4 to 8 km", "8 to 16", "16 to 32", "32 to 64", "all")
LEADS: Final = (1, 3, 6, 12)
PAST: Final = 3
BORDER_PX: Final = 20
LEAST_WET: Final = 0.03

Array = npt.NDArray[np.float64]


@dataclass
class Sums:
    """What is added up over windows: pixels, wet ones and those above thresholds; power; products of fields."""

    windows: int
    rain_mmh: float
    counts: Array
    power: Array
    products: Array
    norms: Array

    def __add__(self, other: "Sums") -> "Sums":
        """Add each sum."""
        return Sums(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


def spectrum(rain_mmh: npt.NDArray[np.float32]) -> Array:
    """Compute the power of a square frame in logarithmic space, by octave of wavelength as in `LENGTHS_KM`."""
    signal = 10 * np.log10(np.maximum(rain_mmh, DRY_MMH) / DRY_MMH)
    size = len(signal)
    taper = np.outer(np.hanning(size), np.hanning(size))
    taper /= np.sqrt((taper**2).mean())
    power = np.abs(np.fft.fft2((signal - signal.mean()) * taper)) ** 2 / signal.size
    waves = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    return np.array([power[np.abs(np.log2(np.maximum(waves, 1e-9) * length)) < 0.25].mean() for length in LENGTHS_KM])


def bands(signal_11hw: Tensor) -> list[Tensor]:
    """Split a field into bands of wavelengths, and itself as the last."""
    smooth = [_blur(signal_11hw, deviation) for deviation in DEVIATIONS_PX]
    return [*(fine - coarse for fine, coarse in pairwise(smooth)), signal_11hw]


def window_sums(rain_mmh: npt.NDArray[np.float32]) -> Sums:
    """Compute the sums of one window of `PAST` frames and those up to the longest lead time."""
    now = rain_mmh[PAST - 1]
    rain = torch.from_numpy(rain_mmh)
    signal = 10 * torch.log10(rain.clamp(min=DRY_MMH) / DRY_MMH)
    steps = displacements(estimate_motion(rain[None, :PAST]), LEADS[-1])
    rows, cols = torch.meshgrid(*map(torch.arange, now.shape), indexing="ij")

    products, norms = np.zeros((2, len(BANDS), len(LEADS)))
    for column, lead in enumerate(LEADS):
        step = steps[lead - 1]
        inside = torch.ones(now.shape, dtype=torch.bool)
        for places in (torch.stack([cols, rows]), torch.stack([cols, rows]) - step[0]):
            last = torch.tensor(now.shape[::-1]).view(2, 1, 1) - BORDER_PX - 1
            inside &= ((places >= BORDER_PX) & (places <= last)).all(0)
        before, after = bands(advect(signal[None, PAST - 1 : PAST], step)), bands(signal[None, None, PAST - 1 + lead])
        for row, pair in enumerate(zip(before, after, strict=True)):
            x, y = (field[0, 0][inside] - field[0, 0][inside].mean() for field in pair)
            products[row, column] = float((x * y).sum())
            norms[row, column] = float(((x * x).sum() * (y * y).sum()).sqrt())

    counts = np.array([(now >= limit).sum() for limit in (0.0, DRY_MMH, *THRESHOLDS_MMH)], float)
    return Sums(1, float(now.sum()), counts, spectrum(now), products, norms)


def table_rows(name: str, total: Sums) -> list[str]:
    """Format the sums as a row of each table of RESULTS.md."""
    shares = total.counts[2:] / total.counts[1]
    power = total.power / total.windows
    cells = [f"{total.counts[1] / total.counts[0]:.2f}", f"{total.rain_mmh / total.counts[0]:.2f}"]
    kept = total.products / total.norms
    return [
        f"| {name} | {total.windows} | {' | '.join(cells)} | {' '.join(f'{share:.4f}' for share in shares)} "
        f"| {' '.join(f'{value:.3g}' for value in power)} |",
        f"| {name} | {' | '.join(' '.join(f'{value:.2f}' for value in band) for band in kept)} |",
    ]


def main() -> None:
    """Measure archives and print their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--every", type=int, default=8, help="take each window that is so many after the last (8)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for shards in arguments.shards:
        total = None
        for sample in islice(windows_pipeline(shards, window=PAST + LEADS[-1]), 0, None, arguments.every):
            rain_mmh = sample["rain_mmh"]
            if (rain_mmh[PAST - 1] >= DRY_MMH).mean() >= LEAST_WET:
                total = window_sums(rain_mmh) if total is None else total + window_sums(rain_mmh)
        print("\n".join(table_rows(shards, total) if total is not None else [f"{shards}: dry"]))


if __name__ == "__main__":
    main()
