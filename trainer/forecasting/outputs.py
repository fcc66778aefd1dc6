"""A forecast made and written: the NetCDF file, a picture a lead time, and the animation."""

import argparse
import io
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ...data.errors import ConfigError, DataError
from ...data.exit_codes import ExitCode
from ...data.frames import Grid, iso_time
from ...data.store.storage import open_storage
from ..checkpoint.state import installed_versions
from ..processes.agreement import NonFiniteError
from ..processes.entry import set_up_logging
from .forecaster import RunForecaster, load_forecaster
from .latest import Latest, read_latest
from .netcdf import Provenance, write_forecast

FRAMES_FOLDER = "frames"
ANIMATION_NAME = "forecast.gif"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A forecast and what it was made from.

    Attributes:
        rain_mmh_thw: Rain in mm/h, float32 (leads, rows, cols); NaN where no radar saw the pixel in any input frame.
        num_nonfinite: Pixels that the radar saw and the model gave no finite number for, over all leads.
        latest: The radar frames.
        cadence_s: Seconds between leads.
        model: The model's name.
    """

    rain_mmh_thw: npt.NDArray[np.float32]
    num_nonfinite: int
    latest: Latest
    cadence_s: int
    model: str

    @property
    def reference_time_s(self) -> int:
        """End of the last radar frame, epoch seconds UTC."""
        return self.latest.end_times_s[-1]


def make_forecast(forecaster: RunForecaster, paths: Sequence[Path]) -> Forecast:
    """Read the latest files and run the model.

    Raises:
        DataError: The input does not fit the run; see `trainer.forecasting.latest.read_latest`.
        NonFiniteError: The model gives no finite number anywhere.
    """
    cadence_s = forecaster.data.get("cadence_s")
    if not isinstance(cadence_s, int):
        raise DataError(f"{forecaster.name}: the run records no cadence_s ({cadence_s!r}); train it again")
    latest = read_latest(paths, grid=forecaster.grid, cadence_s=cadence_s, frames_in=forecaster.frames_in)

    # A batch of one window; without missing pixels the model needs no mask.
    rain_bthw = torch.from_numpy(latest.rain_mmh_thw)[None]
    valid_bthw = None if latest.valid_thw.all() else torch.from_numpy(latest.valid_thw)[None]
    output_bthw = forecaster.forecast(rain_bthw, valid_bthw, forecaster.frames_out)
    rain_thw: npt.NDArray[np.float32] = output_bthw[0].float().cpu().numpy()

    # Where no radar looked there is no forecast; elsewhere a value that is no number is the model's fault.
    seen_hw = latest.valid_thw.any(axis=0)
    bad_thw = ~np.isfinite(rain_thw) & seen_hw
    if bad_thw[:, seen_hw].all():
        raise NonFiniteError(
            f"{forecaster.name}: not one pixel of the forecast is a finite number; nothing was written"
        )

    return Forecast(
        rain_mmh_thw=np.where(seen_hw, rain_thw, np.float32(np.nan)),
        num_nonfinite=int(bad_thw.sum()),
        latest=latest,
        cadence_s=cadence_s,
        model=forecaster.name,
    )


def write_outputs(
    forecast: Forecast, out: Path, *, grid: Grid, command: str, institution: str, pictures: bool = True
) -> list[Path]:
    """Write the NetCDF file, then the frames and the animation.

    Args:
        forecast: What to write.
        out: Folder; made if need be.
        grid: Where the pixels lie.
        command: Goes into the file's history.
        institution: Goes into the file.
        pictures: Also draw.

    Returns:
        What was written, in that order; the folder of the frames stands for them.

    Raises:
        DataError: Something cannot be written.
    """
    # Files are named by the last radar frame: the next forecast does not replace this one.
    stamp = datetime.fromtimestamp(forecast.reference_time_s, UTC).strftime("%Y%m%d%H%M")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    netcdf = out / f"forecast_{stamp}.nc"
    provenance = Provenance(
        model=f"{forecast.model} (Rainspark {installed_versions().get('rainspark', 'not installed')})",
        source=forecast.latest.source,
        licence=forecast.latest.licence,
        history=f"{now}: {command}",
        institution=institution,
    )
    write_forecast(
        netcdf,
        rain_mmh_thw=forecast.rain_mmh_thw,
        reference_time_s=forecast.reference_time_s,
        cadence_s=forecast.cadence_s,
        grid=grid,
        provenance=provenance,
    )
    return [netcdf, *(_draw(forecast, out, stamp, grid.pixel_km) if pictures else [])]


def _draw(forecast: Forecast, out: Path, stamp: str, pixel_km: float) -> list[Path]:
    # A second of imports that a forecast without pictures does not need.
    from PIL import Image

    from ..pictures.animation import write_animation
    from ..pictures.forecasts import Case, forecast_frames

    case = Case(
        radar_mmh_thw=forecast.latest.rain_mmh_thw,
        radar_valid_thw=forecast.latest.valid_thw,
        forecasts_mmh={forecast.model: forecast.rain_mmh_thw},
        reference_time_s=forecast.reference_time_s,
        cadence_s=forecast.cadence_s,
        pixel_km=pixel_km,
    )
    # A still picture a lead time for whoever needs one, and all of them in motion.
    title = f"{forecast.model}: forecast from {case.clock(0)}"

    storage = open_storage(out / FRAMES_FOLDER)
    for lead, picture in enumerate(forecast_frames(case, forecast.model, title), start=1):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        storage.write(f"forecast_{stamp}_{lead * forecast.cadence_s // 60:03d}min.png", buffer.getvalue())

    write_animation(out / ANIMATION_NAME, case, title)
    return [out / FRAMES_FOLDER, out / ANIMATION_NAME]


def run(options: argparse.Namespace, argv: Sequence[str]) -> ExitCode:
    """Read the latest radar files, forecast, and write the forecast.

    Args:
        options: As `trainer.settings.forecast.make_parser` reads them.
        argv: The command line, for the file's history.
    """
    set_up_logging(0, logging.WARNING)
    if options.out.exists() and not options.out.is_dir():
        raise DataError(f"--out {options.out} is a file; expected a folder to write to: choose another name")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no CUDA device that torch can use; leave the option out")

    # Settings have been checked: what fails from here on is the run, the radar files, or the disk.
    forecaster = load_forecaster(options.run, name=options.name, device=options.device)
    forecast = make_forecast(forecaster, options.input)
    written = write_outputs(
        forecast,
        options.out,
        grid=forecaster.grid,
        command=shlex.join(["rainspark", "forecast", *argv]),
        institution=options.institution,
        pictures=not options.no_pictures,
    )
    _report(forecast, written)
    return ExitCode.DONE


def _report(forecast: Forecast, written: Sequence[Path]) -> None:
    """Print what was forecast, from what, and where it lies."""
    first_s = forecast.reference_time_s + forecast.cadence_s
    last_s = forecast.reference_time_s + forecast.cadence_s * len(forecast.rain_mmh_thw)
    num_files = len(forecast.latest.files)
    lines = [f"{forecast.model}: {iso_time(first_s)} to {iso_time(last_s)} from {num_files} radar files"]
    lines += [f"  {path}" for path in written]
    if forecast.num_nonfinite:
        lines.append(
            f"warning: {forecast.num_nonfinite} pixels of the forecast are no finite number: missing in the file, "
            "green in the pictures"
        )
    sys.stdout.write("\n".join(lines) + "\n")
