"""Moving storms in KNMI's file format, for demos and tests: `python -m data.sources.synthetic --out FOLDER --hours 6`.

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
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data.frames import DataError
from data.randomness import generator
from data.sources.knmi import MONTHS, SYNTHETIC_GROUP
from data.units import KNMI_MMH_PER_COUNT, MISSING_COUNT

CADENCE_S: Final = 300
FIRST_END_S: Final = 1_590_969_600
"""End time of the first frame: 1 June 2020, 00:00 UTC."""
KNMI_ROWS: Final = 765
KNMI_COLS: Final = 700
KNMI_ROW_OFFSET: Final = 3650
KNMI_PROJECTION: Final = "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"
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
LIFETIME_MIN_AT_10_KM: Final = 20.0
LIFETIME_EXPONENT: Final = 1.0
"""Correlation time of a wavelength, and how it grows with it: about proportionally (Seed et al., 2013)."""
MEDIAN_RATE_MMH: Final = 0.5
TABLE_POINTS: Final = 512
EXIT_BAD_DATA: Final = 4
MAX_HOURS: Final = 10 * 366 * 24
"""Longest series, ten years: a million files. More is a slip of the keyboard."""


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How the rain is at one moment.

    Attributes:
        wet_share: Share of a very large area where it rains.
        rate_spread: Standard deviation of the logarithm of wet rates: about 0.85 in even rain, more in showers.
        shift_km: Where the storms have been carried, (east, south).
    """

    wet_share: float
    rate_spread: float
    shift_km: tuple[float, float]


def storms(num_frames: int, rows: int, cols: int, seed: int, *, radar_circle: bool = False) -> npt.NDArray[np.uint16]:
    """Make a series of frames, 5 minutes and 1 km apart: uint16 (t, rows, cols), 0.12 mm/h a count.

    Args:
        num_frames: Frames.
        rows: Rows.
        cols: Columns.
        seed: Equal seeds give equal storms; the first frames do not depend on the number of frames.
        radar_circle: Whether pixels outside the largest circle are missing (65535).
    """
    return np.stack(list(iterate_storms(num_frames, rows, cols, seed, radar_circle=radar_circle)))


def iterate_storms(
    num_frames: int, rows: int, cols: int, seed: int, *, radar_circle: bool = False
) -> Iterator[npt.NDArray[np.uint16]]:
    """Make the frames of `storms` one after another, uint16 (rows, cols) each.

    Raises:
        DataError: Sizes below 1 or above 4096.
    """
    if num_frames < 1 or not (1 <= rows <= MAX_SIZE and 1 <= cols <= MAX_SIZE):
        raise DataError(
            f"{num_frames} frames of {rows} x {cols} pixels; expected at least 1, and 1 to {MAX_SIZE} pixels"
        )
    outside = _outside_circle(rows, cols)
    shape = (_period(rows), _period(cols))
    east, south = np.meshgrid(np.fft.rfftfreq(shape[1]), np.fft.fftfreq(shape[0]))
    amplitude, memory = _spectrum(east, south, generator(seed, "storm bands").uniform(0, math.pi))
    waves: npt.NDArray[np.complex128] | None = None
    for number, weather in enumerate(_weather(num_frames, seed)):
        noise = np.fft.rfft2(generator(seed, "storm growth", number).standard_normal(shape))
        waves = noise if waves is None else memory * waves + np.sqrt(1 - memory**2) * noise
        carried = np.exp(-2j * math.pi * (east * weather.shift_km[0] + south * weather.shift_km[1]))
        field = np.fft.irfft2(waves * amplitude * carried, s=shape)[:rows, :cols]
        counts = _rain_counts(field, weather)
        if radar_circle:
            counts[outside] = MISSING_COUNT
        yield counts


def write_knmi_file(path: Path, counts: npt.NDArray[np.uint16], end_time_s: int) -> None:
    """Write one frame as KNMI does, with a product name that says it is synthetic.

    The grid is KNMI's 1 km grid, cut or extended around its centre to the frame's size, and the offsets say so.

    Args:
        path: The file, which appears when it is whole.
        counts: uint16 (rows, cols), 0.12 mm/h a count, 65535 missing.
        end_time_s: End of the 5 minutes, epoch seconds UTC.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with h5py.File(temporary, "w") as file:
            _fill(file, counts, end_time_s)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _fill(file: Any, counts: npt.NDArray[np.uint16], end_time_s: int) -> None:
    """Write what a KNMI file holds."""
    rows, cols = counts.shape
    image = file.create_dataset(
        "image1/image_data", data=counts.astype("<u2"), chunks=counts.shape, compression="gzip", compression_opts=6
    )
    _set(image, CLASS="IMAGE", VERSION="1.2")
    _set(
        file["image1"], image_bytes_per_pixel=2, image_geo_parameter="ACCUMULATED_PRECIPITATION_[MM]",
        image_product_name=SYNTHETIC_GROUP, image_size=rows * cols,
    )  # fmt: skip
    _set(
        file.create_group("image1/calibration"), calibration_flag="Y", calibration_formulas="GEO=0.01*PV+0.0",
        calibration_missing_data=MISSING_COUNT, calibration_out_of_image=MISSING_COUNT,
    )  # fmt: skip
    _set(
        file.create_group("geographic"), geo_dim_pixel="KM,KM", geo_number_rows=rows, geo_number_columns=cols,
        geo_par_pixel="X,Y", geo_pixel_def="LU", geo_pixel_size_x=1.0, geo_pixel_size_y=-1.0,
        geo_row_offset=float(KNMI_ROW_OFFSET + (KNMI_ROWS - rows) // 2),
        geo_column_offset=float((KNMI_COLS - cols) // 2),
    )  # fmt: skip
    _set(
        file.create_group("geographic/map_projection"), projection_indication="Y",
        projection_name="STEREOGRAPHIC", projection_proj4_params=KNMI_PROJECTION,
    )  # fmt: skip
    _set(
        file.create_group("overview"), hdftag_version_number="3.5", number_image_groups=1, number_radar_groups=0,
        product_datetime_start=_product_time(end_time_s - CADENCE_S),
        product_datetime_end=_product_time(end_time_s), product_group_name=SYNTHETIC_GROUP, products_missing="NA",
    )  # fmt: skip


def file_name(end_time_s: int) -> str:
    """Name a frame's file as KNMI does, by its end time."""
    return f"RAD_NL25_RAP_5min_{datetime.fromtimestamp(end_time_s, UTC):%Y%m%d%H%M}.h5"


def _period(size: int) -> int:
    """Choose the period of the field in pixels: at least a third longer than the frame, and quick to transform."""
    period = max(MIN_PERIOD_KM, size * 4 // 3)
    return -(-period // 64) * 64


def _spectrum(
    east: npt.NDArray[np.float64], south: npt.NDArray[np.float64], angle: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Give each wave's amplitude, for a field of unit variance, and its memory of the last frame, 0 to 1.

    Args:
        east: Waves a kilometre along the columns, (n, m // 2 + 1).
        south: Waves a kilometre along the rows, the same shape.
        angle: Direction of the rain bands, radians.
    """
    along = east * math.cos(angle) + south * math.sin(angle)
    across = south * math.cos(angle) - east * math.sin(angle)
    stretch = math.sqrt(BAND_STRETCH)
    wavenumber = np.hypot(along * stretch, across / stretch)
    power = (wavenumber**2 + OUTER_SCALE_KM**-2) ** (-SPECTRUM_EXPONENT / 2)
    power *= (1 + (wavenumber * INNER_SCALE_KM) ** 2) ** (-INNER_EXPONENT / 2)
    power[0, 0] = 0.0
    # irfft2 counts every column but the first and the last twice: the waves of the other half plane.
    twice = np.full(east.shape[1], 2.0)
    twice[[0, -1]] = 1.0
    num_waves = east.shape[0] * (east.shape[1] - 1) * 2
    amplitude = np.sqrt(power * num_waves / (power * twice).sum())
    length_km = 1 / np.maximum(np.hypot(east, south), 1e-4)
    lifetime_min = LIFETIME_MIN_AT_10_KM * (length_km / 10) ** LIFETIME_EXPONENT
    return amplitude, np.exp(-CADENCE_S / 60 / lifetime_min)


def _weather(num_frames: int, seed: int) -> Iterator[Weather]:
    """Let the wet share, the showeriness and the wind drift smoothly, each over hours."""
    random = generator(seed, "storm weather")
    heading = random.uniform(0, 2 * math.pi)
    wetness, showers, turn, speed = (_drift(random) for _ in range(4))
    x_km, y_km = 0.0, 0.0
    for number in range(num_frames):
        hour = number * CADENCE_S / 3600
        speed_kmh = 45 * math.exp(0.25 * speed(hour))
        direction = heading + 0.5 * turn(hour)
        yield Weather(
            wet_share=1 / (1 + math.exp(0.3 - 0.8 * wetness(hour))),
            rate_spread=1.0 + 0.15 * showers(hour),
            shift_km=(x_km, y_km),
        )
        x_km += speed_kmh * CADENCE_S / 3600 * math.cos(direction)
        y_km += speed_kmh * CADENCE_S / 3600 * math.sin(direction)


def _drift(random: np.random.Generator) -> Any:
    """Make a smooth function of the hour with mean 0 and variance about 1: three slow waves."""
    periods_h, phases = random.uniform(5, 30, 3), random.uniform(0, 2 * math.pi, 3)

    def at(hour: float) -> float:
        return float(np.sqrt(2 / 3) * np.sin(2 * math.pi * hour / periods_h + phases).sum())

    return at


def _rain_counts(field: npt.NDArray[np.float64], weather: Weather) -> npt.NDArray[np.uint16]:
    """Turn a Gaussian field into rain: log-normal among the wet pixels, and continuous at their border."""
    normal = NormalDist()
    threshold = normal.inv_cdf(1 - weather.wet_share)
    values = np.linspace(threshold, 6.0, TABLE_POINTS)
    # The share of wet pixels that rain more than a pixel of this value does, then the log-normal rate of that rank.
    above = [(1 - normal.cdf(value)) / weather.wet_share for value in values]
    log_rates = [weather.rate_spread * -normal.inv_cdf(min(max(share, 1e-9), 1 - 1e-9)) for share in above]
    rates_mmh = MEDIAN_RATE_MMH * np.exp(np.array(log_rates))
    counts = np.interp(field, values, rates_mmh / KNMI_MMH_PER_COUNT)
    counts[field <= threshold] = 0
    return np.minimum(np.rint(counts), MISSING_COUNT - 2).astype(np.uint16)


def _outside_circle(rows: int, cols: int) -> npt.NDArray[np.bool_]:
    """Mark the pixels outside the largest circle of the frame, (rows, cols)."""
    row, col = np.ogrid[:rows, :cols]
    return np.hypot(row - (rows - 1) / 2, col - (cols - 1) / 2) > min(rows, cols) / 2


def _set(item: Any, **attributes: str | int | float) -> None:
    """Set attributes in the types that KNMI's files have: fixed-length text, int32 and float32 arrays of one value."""
    for name, value in attributes.items():
        if isinstance(value, str):
            item.attrs[name] = np.bytes_(value)
        else:
            item.attrs[name] = np.array([value], dtype=np.int32 if isinstance(value, int) else np.float32)


def _product_time(time_s: int) -> str:
    # Month names by hand: strftime's follow the user's language.
    time = datetime.fromtimestamp(time_s, UTC)
    return f"{time:%d}-{MONTHS[time.month - 1]}-{time:%Y;%H:%M:%S}.000"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 4 for sizes or a folder that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m data.sources.synthetic", description="Write moving storms.")
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    parser.add_argument("--hours", type=float, default=6, help="length of the series (6)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal storms (0)")
    parser.add_argument("--size", type=int, default=288, help="rows and columns, 1 km each (288)")
    parser.add_argument("--radar-circle", action="store_true", help="pixels outside the largest circle are missing")
    arguments = parser.parse_args(argv)
    try:
        _write_folder(arguments.out, arguments.hours, arguments.seed, arguments.size, arguments.radar_circle)
    except DataError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_BAD_DATA
    except OSError as error:
        sys.stderr.write(f"error: {arguments.out}: could not write: {error}\n")
        return EXIT_BAD_DATA
    return 0


def _write_folder(folder: Path, hours: float, seed: int, size: int, radar_circle: bool) -> None:
    # Not a number is in no range.
    if not CADENCE_S <= hours * 3600 <= MAX_HOURS * 3600:
        raise DataError(
            f"--hours is {hours}; expected at least one frame of 5 minutes and at most ten years, {MAX_HOURS} hours"
        )
    times_s = [FIRST_END_S + i * CADENCE_S for i in range(round(hours * 3600 / CADENCE_S))]
    frames = iterate_storms(len(times_s), size, size, seed, radar_circle=radar_circle)
    names = {file_name(time_s) for time_s in times_s}
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(path.name for path in folder.glob("*.h5") if path.name not in names)
    if others:
        raise DataError(f"{folder} holds other radar files ({others[0]}, ...); choose an empty or new folder")
    for time_s, counts in tqdm(zip(times_s, frames, strict=True), total=len(times_s), desc="storms", unit=" frames"):
        write_knmi_file(folder / file_name(time_s), counts, time_s)


if __name__ == "__main__":
    sys.exit(main())
