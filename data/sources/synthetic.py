"""Make moving storms in KNMI's file format: `rainspark storms --out FOLDER --hours 6`.

For demos and tests, and, with `--event-hours`, to train on before there is much radar of one's own.

A Gaussian field with a power-law spectrum, each wavelength with a lifetime of its own, is carried along by a wind that
turns slowly; what lies above a threshold rains, with log-normal rates that rise smoothly from the border inwards. This
is the recipe of stochastic rain generators: Seed, Pierce and Norman (2013), Formulation and evaluation of a scale
decomposition-based stochastic precipitation nowcast scheme, Water Resour. Res., doi:10.1002/wrcr.20536; Pegram and
Clothier (2001), High resolution space-time modelling of rainfall: the "String of Beads" model, J. Hydrol.,
doi:10.1016/S0022-1694(00)00373-5. The constants were set by eye and by the statistics of real KNMI composites. With
`--convective` cells with life cycles rain besides, and each system draws statistics of its own (storms/regime.py).
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ..command import MOST_SEED, CommandParser, run_command, whole_number
from ..errors import DataError
from ..randomness import generator
from ..units import KNMI_MMH_PER_COUNT, MISSING_COUNT
from .knmi_writer import CADENCE_S, file_name, write_knmi_file
from .storms.cells import Cells
from .storms.regime import LIFETIME_MIN, SPEED_KMH, Event, Weather, regime_of
from .storms.regime import weather as weathers
from .storms.waves import Waves
from .storms.wind import Swirls

FIRST_END_S: Final = 1_590_969_600
"""End time of the first frame: 1 June 2020, 00:00 UTC."""
MAX_SIZE: Final = 4096

TABLE_POINTS: Final = 512
MAX_HOURS: Final = 10 * 366 * 24
"""Longest series, ten years: a million files. More is a slip of the keyboard."""
MAX_IN_RANGE: Final = 10_000.0
"""Highest speed in km/h and longest lifetime in minutes that are taken, for the same reason."""
MAX_CONVECTIVE: Final = 0.9
MAX_GROWTH: Final = 4.0
MAX_SHEAR_KMH: Final = 20.0
"""Beyond it the swirls would fold the rain over itself."""
Range = tuple[float, float]


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
    regime, swirls = regime_of(event), Swirls(event)
    waves = Waves(event, regime, rows, cols)
    share = event.convective or 0.0
    cells = Cells(event, waves.shape)
    for number, (weather, state) in enumerate(zip(weathers(event, regime), waves.frames(), strict=False)):
        hour = number * CADENCE_S / 3600
        period = waves.field(state, weather.carried_km)
        field = swirls.moved(period, rows, cols, hour) if event.shear_kmh else period[:rows, :cols]
        rain_counts = _rain_counts(field, weather)
        if share:
            cells.step(period, weather.mean_mmh * share / (1 - share), weather.carried_km)
            texture = swirls.moved(waves.texture(state, weather.carried_km), rows, cols, hour)
            rain_counts += cells.rain_mmh(texture, swirls, hour) / KNMI_MMH_PER_COUNT
        counts = np.minimum(np.rint(rain_counts), MISSING_COUNT - 2).astype(np.uint16)
        if radar_circle:
            counts[outside] = MISSING_COUNT
        yield counts


def _rain_counts(field: npt.NDArray[np.float64], weather: Weather) -> npt.NDArray[np.float64]:
    """Turn a Gaussian field into rain in counts: log-normal among the wet pixels, and continuous at their border."""
    normal = NormalDist()
    threshold = normal.inv_cdf(1 - weather.wet_share)
    values = np.linspace(threshold, 6.0, TABLE_POINTS)
    # The share of wet pixels that rain more than a pixel of this value does, then the log-normal rate of that rank.
    above = [(1 - normal.cdf(value)) / weather.wet_share for value in values]
    log_rates = [weather.rate_spread * -normal.inv_cdf(min(max(share, 1e-9), 1 - 1e-9)) for share in above]
    rates_mmh = weather.median_rate_mmh * np.exp(np.array(log_rates))
    counts = np.interp(field, values, rates_mmh / KNMI_MMH_PER_COUNT)
    counts[field <= threshold] = 0
    return counts


def _outside_circle(rows: int, cols: int) -> npt.NDArray[np.bool_]:
    """Mark the pixels outside the largest circle of the frame, (rows, cols)."""
    row, col = np.ogrid[:rows, :cols]
    return np.hypot(row - (rows - 1) / 2, col - (cols - 1) / 2) > min(rows, cols) / 2


def events(
    num_frames: int,
    event_frames: int,
    seed: int,
    speeds_kmh: Range,
    lifetimes_min: Range,
    *,
    convective: Range | None = None,
    growths: Range = (1.0, 1.0),
    shears_kmh: Range = (0.0, 0.0),
) -> list[Event]:
    """Divide a series into weather systems that know nothing of each other.

    Between two of them one frame is left out, so that no window holds both. Speed, lifetime and growth are drawn evenly
    on a logarithmic scale, convective share and shear evenly, one each a system; a system's seed is drawn from the
    series' seed.

    Args:
        num_frames: Frames of the series, those left out included.
        event_frames: Frames of a system; 0: one system, with the series' own seed.
        seed: Of the series.
        speeds_kmh: Lowest and highest speed.
        lifetimes_min: Shortest and longest lifetime.
        convective: Lowest and highest share of the rain that falls from cells; None: plain systems.
        growths: Lowest and highest factor by which rain grows in an hour.
        shears_kmh: Lowest and highest deviation of the wind from its mean.
    """
    series = []

    # Each system draws from its own first frame, so that none depends on those before it.
    for first in range(0, num_frames, event_frames + 1 if event_frames else num_frames):
        random = generator(seed, "storm event", first)
        speed_kmh, lifetime_min = (
            math.exp(random.uniform(math.log(low), math.log(high))) if low < high else low
            for low, high in (speeds_kmh, lifetimes_min)
        )

        # A stream of their own: what was drawn before they could be asked for stays.
        kind = generator(seed, "storm kind", first)
        growth, shear_kmh = math.exp(kind.uniform(*np.log(growths))), kind.uniform(*shears_kmh)

        series.append(
            Event(
                first=first,
                num_frames=min(event_frames or num_frames, num_frames - first),
                seed=int(random.integers(2**31)) if event_frames else seed,
                speed_kmh=speed_kmh,
                lifetime_min=lifetime_min,
                convective=None if convective is None else kind.uniform(*convective),
                growth=growth,
                shear_kmh=shear_kmh,
            )
        )
    return series


def _range(least: float, most: float, wanted: str) -> Callable[[str], Range]:
    """Make the reader of "45" or "25:115"."""

    def read(text: str) -> Range:
        try:
            numbers = [float(bound) for bound in text.split(":")]
        except ValueError:
            numbers = []
        # Not a number is in no range.
        if len(numbers) not in (1, 2) or not least <= numbers[0] <= numbers[-1] <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no range; expected a number {wanted} {most:g}, or LOW:HIGH of such"
            )
        return numbers[0], numbers[-1]

    return read


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark storms`."""
    parser = CommandParser(prog="rainspark storms", description="Write moving storms.")

    # The series, and what the radar sees of it.
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    parser.add_argument("--hours", type=float, default=6, help="length of the series (6)")
    seed = whole_number(0, MOST_SEED)
    parser.add_argument("--seed", type=seed, metavar="INT", default=0, help="equal seeds give equal storms (0)")
    parser.add_argument("--size", type=int, default=288, help="rows and columns, 1 km each (288)")
    parser.add_argument("--radar-circle", action="store_true", help="pixels outside the largest circle are missing")
    parser.add_argument("--event-hours", type=float, default=0, help="hours of one weather system; 0: all one (0)")

    # The weather; a range is drawn from once a system.
    positive = _range(sys.float_info.min, MAX_IN_RANGE, "above 0 and up to")
    parser.add_argument("--speed-kmh", type=positive, default=(SPEED_KMH,) * 2, help="speed, or LOW:HIGH (45)")
    parser.add_argument("--lifetime-min", type=positive, default=(LIFETIME_MIN,) * 2, help="life of 10 km waves (20)")
    parser.add_argument(
        "--convective",
        type=_range(0, MAX_CONVECTIVE, "from 0 to"),
        help="share of the rain that falls from cells with life cycles, or LOW:HIGH; spectrum, memory and rates then "
        "vary from system to system as real ones do (all systems of one plain kind, without cells)",
    )

    # What a system does as a whole.
    growth = _range(1 / MAX_GROWTH, MAX_GROWTH, f"from {1 / MAX_GROWTH:g} to")
    growth_help = "factor by which a system's rain grows in an hour, or LOW:HIGH (1)"
    parser.add_argument("--growth", type=growth, default=(1.0, 1.0), help=growth_help)
    shear = _range(0, MAX_SHEAR_KMH, "from 0 to")
    shear_help = "deviation of the wind from its mean over the frame, or LOW:HIGH (0)"
    parser.add_argument("--shear-kmh", type=shear, default=(0.0, 0.0), help=shear_help)
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
    series = events(
        num_frames,
        event_frames,
        arguments.seed,
        arguments.speed_kmh,
        arguments.lifetime_min,
        convective=arguments.convective,
        growths=arguments.growth,
        shears_kmh=arguments.shear_kmh,
    )
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
