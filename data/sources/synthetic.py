"""Make moving storms in KNMI's file format: `rainspark storms --out FOLDER --hours 6`.

For demos and tests, and, with `--event-hours`, to train on before there is much radar of one's own.

A Gaussian field with a power-law spectrum, each wavelength with a lifetime of its own, is carried along by a wind that
turns slowly; what lies above a threshold rains, with log-normal rates that rise smoothly from the border inwards. This
is the recipe of stochastic rain generators: Seed, Pierce and Norman (2013), Formulation and evaluation of a scale
decomposition-based stochastic precipitation nowcast scheme, Water Resour. Res., doi:10.1002/wrcr.20536; Pegram and
Clothier (2001), High resolution space-time modelling of rainfall: the "String of Beads" model, J. Hydrol.,
doi:10.1016/S0022-1694(00)00373-5. The constants were set by eye and by the statistics of real KNMI composites.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ..command import MOST_SEED, CommandParser, run_command, whole_number
from ..errors import DataError
from ..randomness import generator
from ..units import KNMI_MMH_PER_COUNT, MISSING_COUNT
from .knmi_writer import CADENCE_S, file_name, write_knmi_file

FIRST_END_S: Final = 1_590_969_600
"""End time of the first frame: 1 June 2020, 00:00 UTC."""
MAX_SIZE: Final = 4096

# The field repeats itself beyond this many kilometres, further than anything lives to see.
MIN_PERIOD_KM: Final = 320
OUTER_SCALE_KM: Final = 200.0
SPECTRUM_EXPONENT: Final = 2.8
INNER_SCALE_KM: Final = 12.0
INNER_EXPONENT: Final = 1.2
"""Power falls with wavenumber**-2.8 in two dimensions below the outer scale, with another **-1.2 below the inner."""
BAND_STRETCH: Final = 1.7
"""Rain areas are longer along one direction than across it by this factor."""
LIFETIME_MIN: Final = 20.0
"""Correlation time of waves 10 km long. 60 minutes ahead at 90 km/h, extrapolation has a CSI of 0.24 at 1 mm/h and 0.32
at 0.5 mm/h with 20 min, 0.33 and 0.38 with 40, 0.36 and 0.41 with 80; on a fast day of real radar 0.31 and 0.41."""
SPEED_KMH: Final = 45.0
LIFETIME_EXPONENT: Final = 1.0
"""How correlation times grow with the wavelength: about proportionally (Seed et al., 2013)."""
MEDIAN_RATE_MMH: Final = 0.5
TABLE_POINTS: Final = 512
MAX_HOURS: Final = 10 * 366 * 24
"""Longest series, ten years: a million files. More is a slip of the keyboard."""
MAX_IN_RANGE: Final = 10_000.0
"""Highest speed in km/h and longest lifetime in minutes that are taken, for the same reason."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One weather system of a series.

    Attributes:
        num_frames: Its frames.
        seed: Equal seeds give equal storms; the first frames do not depend on the number of frames.
        speed_kmh: Speed that the wind drifts around, km/h.
        lifetime_min: Minutes after which waves 10 km long are forgotten.
        first: Its first frame, counted from the series' first.
    """

    num_frames: int
    seed: int
    speed_kmh: float = SPEED_KMH
    lifetime_min: float = LIFETIME_MIN
    first: int = 0


def iterate_storms(
    event: Event, rows: int, cols: int, *, radar_circle: bool = False
) -> Iterator[npt.NDArray[np.uint16]]:
    """Make the frames of a weather system, 5 minutes and 1 km apart: uint16 (rows, cols), 0.12 mm/h a count.

    Args:
        event: The weather system.
        rows: Rows.
        cols: Columns.
        radar_circle: Whether pixels outside the largest circle are missing (65535).

    Raises:
        DataError: No frame, or sizes below 1 or above 4096.
    """
    if event.num_frames < 1 or not (1 <= rows <= MAX_SIZE and 1 <= cols <= MAX_SIZE):
        raise DataError(
            f"{event.num_frames} frames of {rows} x {cols} pixels; expected at least 1, and 1 to {MAX_SIZE} pixels"
        )

    outside = _outside_circle(rows, cols)
    shape = (_period(rows), _period(cols))
    east, south = np.meshgrid(np.fft.rfftfreq(shape[1]), np.fft.fftfreq(shape[0]))
    amplitude, memory = _spectrum(
        east, south, generator(event.seed, "storm bands").uniform(0, math.pi), event.lifetime_min
    )

    # Each wave keeps some of what it was and takes noise for the rest; the wind turns its phase.
    waves: npt.NDArray[np.complex128] | None = None
    for number, (wet_share, rate_spread, (east_km, south_km)) in enumerate(_weather(event)):
        noise = np.fft.rfft2(generator(event.seed, "storm growth", number).standard_normal(shape))
        waves = noise if waves is None else memory * waves + np.sqrt(1 - memory**2) * noise
        carried = np.exp(-2j * math.pi * (east * east_km + south * south_km))
        field = np.fft.irfft2(waves * amplitude * carried, s=shape)[:rows, :cols]
        counts = _rain_counts(field, wet_share, rate_spread)
        if radar_circle:
            counts[outside] = MISSING_COUNT
        yield counts


def _period(size: int) -> int:
    """Choose the period of the field in pixels: at least a third longer than the frame, and quick to transform."""
    period = max(MIN_PERIOD_KM, size * 4 // 3)
    return -(-period // 64) * 64


def _spectrum(
    east: npt.NDArray[np.float64], south: npt.NDArray[np.float64], angle: float, lifetime_min: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Give each wave's amplitude, for a field of unit variance, and its memory of the last frame, 0 to 1.

    Args:
        east: Waves a kilometre along the columns, (n, m // 2 + 1).
        south: Waves a kilometre along the rows, the same shape.
        angle: Direction of the rain bands, radians.
        lifetime_min: Minutes after which waves 10 km long are forgotten.
    """
    along = east * math.cos(angle) + south * math.sin(angle)
    across = south * math.cos(angle) - east * math.sin(angle)
    stretch = math.sqrt(BAND_STRETCH)
    # A power law with a bend, in coordinates that are longer along the bands.
    wavenumber = np.hypot(along * stretch, across / stretch)
    power = (wavenumber**2 + OUTER_SCALE_KM**-2) ** (-SPECTRUM_EXPONENT / 2)
    power *= (1 + (wavenumber * INNER_SCALE_KM) ** 2) ** (-INNER_EXPONENT / 2)
    power[0, 0] = 0.0
    # irfft2 counts every column but the first and the last twice: the waves of the other half plane.
    twice = np.full(east.shape[1], 2.0)
    twice[[0, -1]] = 1.0
    num_waves = east.shape[0] * (east.shape[1] - 1) * 2
    amplitude = np.sqrt(power * num_waves / (power * twice).sum())

    # Long waves live longer.
    length_km = 1 / np.maximum(np.hypot(east, south), 1e-4)
    memory_min = lifetime_min * (length_km / 10) ** LIFETIME_EXPONENT
    return amplitude, np.exp(-CADENCE_S / 60 / memory_min)


def _weather(event: Event) -> Iterator[tuple[float, float, tuple[float, float]]]:
    """Let the wet share, the showeriness and the wind drift smoothly, each over hours.

    Yields:
        For each frame the share of a very large area where it rains; the standard deviation of the logarithm of wet
        rates, about 0.85 in even rain, more in showers; and where the storms have been carried, km (east, south).
    """
    random = generator(event.seed, "storm weather")
    heading = random.uniform(0, 2 * math.pi)
    wetness, showers, turn, speed = (_drift(random) for _ in range(4))
    x_km, y_km = 0.0, 0.0
    for number in range(event.num_frames):
        hour = number * CADENCE_S / 3600
        speed_kmh = event.speed_kmh * math.exp(0.25 * speed(hour))
        direction = heading + 0.5 * turn(hour)
        wet_share = 1 / (1 + math.exp(0.3 - 0.8 * wetness(hour)))
        yield wet_share, 1.0 + 0.15 * showers(hour), (x_km, y_km)
        x_km += speed_kmh * CADENCE_S / 3600 * math.cos(direction)
        y_km += speed_kmh * CADENCE_S / 3600 * math.sin(direction)


def _drift(random: np.random.Generator) -> Any:
    """Make a smooth function of the hour with mean 0 and variance about 1: three slow waves."""
    periods_h, phases = random.uniform(5, 30, 3), random.uniform(0, 2 * math.pi, 3)

    def at(hour: float) -> float:
        return float(np.sqrt(2 / 3) * np.sin(2 * math.pi * hour / periods_h + phases).sum())

    return at


def _rain_counts(field: npt.NDArray[np.float64], wet_share: float, rate_spread: float) -> npt.NDArray[np.uint16]:
    """Turn a Gaussian field into rain: log-normal among the wet pixels, and continuous at their border."""
    normal = NormalDist()
    threshold = normal.inv_cdf(1 - wet_share)
    values = np.linspace(threshold, 6.0, TABLE_POINTS)
    # The share of wet pixels that rain more than a pixel of this value does, then the log-normal rate of that rank.
    above = [(1 - normal.cdf(value)) / wet_share for value in values]
    log_rates = [rate_spread * -normal.inv_cdf(min(max(share, 1e-9), 1 - 1e-9)) for share in above]
    rates_mmh = MEDIAN_RATE_MMH * np.exp(np.array(log_rates))
    counts = np.interp(field, values, rates_mmh / KNMI_MMH_PER_COUNT)
    counts[field <= threshold] = 0
    return np.minimum(np.rint(counts), MISSING_COUNT - 2).astype(np.uint16)


def _outside_circle(rows: int, cols: int) -> npt.NDArray[np.bool_]:
    """Mark the pixels outside the largest circle of the frame, (rows, cols)."""
    row, col = np.ogrid[:rows, :cols]
    return np.hypot(row - (rows - 1) / 2, col - (cols - 1) / 2) > min(rows, cols) / 2


def events(
    num_frames: int, event_frames: int, seed: int, speeds_kmh: tuple[float, float], lifetimes_min: tuple[float, float]
) -> list[Event]:
    """Divide a series into weather systems that know nothing of each other.

    Between two of them one frame is left out, so that no window holds both. Speed and lifetime are drawn evenly on a
    logarithmic scale, one each a system; a system's seed is drawn from the series' seed.

    Args:
        num_frames: Frames of the series, those left out included.
        event_frames: Frames of a system; 0: one system, with the series' own seed.
        seed: Of the series.
        speeds_kmh: Lowest and highest speed.
        lifetimes_min: Shortest and longest lifetime.
    """
    series = []
    for first in range(0, num_frames, event_frames + 1 if event_frames else num_frames):
        random = generator(seed, "storm event", first)
        speed_kmh, lifetime_min = (
            math.exp(random.uniform(math.log(low), math.log(high))) if low < high else low
            for low, high in (speeds_kmh, lifetimes_min)
        )
        series.append(
            Event(
                first=first,
                num_frames=min(event_frames or num_frames, num_frames - first),
                seed=int(random.integers(2**31)) if event_frames else seed,
                speed_kmh=speed_kmh,
                lifetime_min=lifetime_min,
            )
        )
    return series


def _range(text: str) -> tuple[float, float]:
    """Read "45" or "25:115"."""
    try:
        numbers = [float(bound) for bound in text.split(":")]
    except ValueError:
        numbers = []
    # Not a number is in no range.
    if len(numbers) not in (1, 2) or not 0 < numbers[0] <= numbers[-1] <= MAX_IN_RANGE:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no range; expected a number above 0 and up to {MAX_IN_RANGE:g}, or LOW:HIGH of such"
        )
    return numbers[0], numbers[-1]


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark storms`."""
    parser = CommandParser(prog="rainspark storms", description="Write moving storms.")
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    parser.add_argument("--hours", type=float, default=6, help="length of the series (6)")
    seed = whole_number(0, MOST_SEED)
    parser.add_argument("--seed", type=seed, metavar="INT", default=0, help="equal seeds give equal storms (0)")
    parser.add_argument("--size", type=int, default=288, help="rows and columns, 1 km each (288)")
    parser.add_argument("--radar-circle", action="store_true", help="pixels outside the largest circle are missing")
    parser.add_argument("--event-hours", type=float, default=0, help="hours of one weather system; 0: all one (0)")
    parser.add_argument("--speed-kmh", type=_range, default=(SPEED_KMH,) * 2, help="speed, or LOW:HIGH (45)")
    parser.add_argument("--lifetime-min", type=_range, default=(LIFETIME_MIN,) * 2, help="life of 10 km waves (20)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 3 wrong options, 4 sizes or a folder that cannot be."""
    return run_command(lambda: _write_folder(make_parser().parse_args(argv)))


def _write_folder(arguments: argparse.Namespace) -> int:
    hours, event_hours = arguments.hours, arguments.event_hours
    # Not a number is in no range.
    if not CADENCE_S <= hours * 3600 <= MAX_HOURS * 3600:
        raise DataError(
            f"--hours is {hours}; expected at least one frame of 5 minutes and at most ten years, {MAX_HOURS} hours"
        )
    if not (event_hours == 0 or CADENCE_S <= event_hours * 3600 <= hours * 3600):
        raise DataError(
            f"--event-hours is {event_hours}; expected 0, or from one frame of 5 minutes to --hours {hours}"
        )

    # All times are known before the first frame is made.
    num_frames, event_frames = (round(length * 3600 / CADENCE_S) for length in (hours, event_hours))
    series = events(num_frames, event_frames, arguments.seed, arguments.speed_kmh, arguments.lifetime_min)
    times_s = [FIRST_END_S + (event.first + i) * CADENCE_S for event in series for i in range(event.num_frames)]
    names = [file_name(time_s) for time_s in times_s]
    size, radar_circle = arguments.size, arguments.radar_circle
    frames = chain.from_iterable(iterate_storms(event, size, size, radar_circle=radar_circle) for event in series)

    folder: Path = arguments.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted({path.name for path in folder.glob("*.h5")} - set(names))
        if others:
            raise DataError(f"{folder} holds other radar files ({others[0]}, ...); choose an empty or new folder")
        bar = tqdm(zip(names, times_s, frames, strict=True), total=len(names), desc="storms", unit=" frames")
        for name, time_s, counts in bar:
            write_knmi_file(folder / name, counts, time_s)
    except OSError as error:
        raise DataError(f"{folder}: could not write: {error}") from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
