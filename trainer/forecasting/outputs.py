"""A forecast made and written: the NetCDF file, pictures, GeoTIFFs and ODIM_H5 composites."""

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from ...data.errors import ConfigError, DataError
from ...data.exit_codes import ExitCode
from ...data.frames import iso_time, printable
from ...data.pack.places import place_of
from ...data.sequences import TimeSpan
from ...data.sources.files import Place
from ..checkpoint.state import installed_versions
from ..processes.agreement import NonFiniteError
from ..processes.entry import set_up_logging
from ..settings.forecast import PRODUCTS, EnsembleOptions, ensemble_options
from .content import Content, Forecast, Provenance
from .forecaster import RunForecaster, load_forecaster
from .geotiff import require_rasterio, write_cogs
from .grid import site_pixel
from .latest import Area, Latest, read_latest
from .netcdf import write_forecast
from .odim import write_odim
from .probabilities import check_memory, make_ensemble
from .readers import Radar, radars_of

LISTED_S: Final = 2 * 86_400
"""How far back a bucket is searched for the latest frames."""


def make_forecast(
    forecaster: RunForecaster,
    paths: Sequence[Place],
    *,
    radar: Radar | None = None,
    area: Area = "whole",
    allow_missing: int = 0,
    before_s: int | None = None,
    ensemble: EnsembleOptions | None = None,
) -> Forecast:
    """Read the latest files and run the model.

    Args:
        forecaster: The run.
        paths: What the radar's source reads.
        radar: Which of the run's radars; None for its only one.
        area: Which of the files' pixels are forecast, see `trainer.forecasting.latest.read_latest`.
        allow_missing: Frames that may be missing or damaged; they are bridged.
        before_s: Only frames before this time are there, epoch seconds UTC; None for all.
        ensemble: What is made of an ensemble; None for one forecast.

    Raises:
        ConfigError: An ensemble of a run that forecasts none.
        DataError: The input does not fit the run; see `trainer.forecasting.latest.read_latest`.
        NonFiniteError: The model gives no finite number anywhere.
    """
    latest = read_latest(
        paths,
        radar=radar or radars_of(forecaster)[0],
        cadence_s=forecaster.cadence_s,
        frames_in=forecaster.frames_in,
        area=area,
        allow_missing=allow_missing,
        before_s=before_s,
    )

    if ensemble is not None:
        check_memory(ensemble, forecaster.frames_out, latest.grid.rows, latest.grid.cols)

    # Where no radar looked there is no forecast; elsewhere a value that is no number is the model's fault.
    seen_hw: npt.NDArray[np.bool_] = np.any(latest.valid_thw, axis=0)
    members_mthw = _run_model(forecaster, latest, ensemble)
    if ensemble is None:
        made, rain_thw = None, members_mthw[0]
        num_nonfinite = int((~np.isfinite(rain_thw) & seen_hw).sum())
    else:
        pixel_km = latest.grid.pixel_km
        made = make_ensemble(members_mthw, seen_hw, ensemble, cadence_s=forecaster.cadence_s, pixel_km=pixel_km)
        rain_thw, num_nonfinite = made.mean_mmh_thw, made.num_nonfinite

    if not np.isfinite(rain_thw[:, seen_hw]).any():
        raise NonFiniteError(
            f"{forecaster.name}: not one pixel of the forecast is a finite number; nothing was written"
        )
    return Forecast(
        rain_mmh_thw=np.where(seen_hw, rain_thw, np.float32(np.nan)),
        num_nonfinite=num_nonfinite,
        latest=latest,
        cadence_s=forecaster.cadence_s,
        model=forecaster.name,
        ensemble=made,
    )


def _run_model(forecaster: RunForecaster, latest: Latest, ensemble: EnsembleOptions | None) -> npt.NDArray[np.float32]:
    """Forecast from the latest frames: (members, leads, rows, cols) in mm/h; one forecast is one member."""
    # A batch of one window; without missing pixels the model needs no mask.
    rain_bthw = torch.from_numpy(latest.rain_mmh_thw)[None]
    valid_bthw = None if latest.valid_thw.all() else torch.from_numpy(latest.valid_thw)[None]
    if ensemble is None:
        members_mthw = forecaster.forecast(rain_bthw, valid_bthw, forecaster.frames_out)
    else:
        (members_mthw,) = forecaster.forecast_members(
            rain_bthw,
            valid_bthw,
            forecaster.frames_out,
            members=ensemble.members,
            seed=ensemble.seed,
            issue_s_b=latest.end_times_s[-1:],
        )
    rain_mthw: npt.NDArray[np.float32] = members_mthw.float().cpu().numpy()
    return rain_mthw


def write_outputs(
    forecast: Forecast,
    out: Path,
    *,
    command: str,
    institution: str,
    products: Collection[str] = PRODUCTS[:2],
) -> list[Path]:
    """Write a forecast's products.

    Args:
        forecast: What to write.
        out: Folder; made if need be.
        command: Goes into the files' history.
        institution: Goes into the files.
        products: Some of PRODUCTS.

    Returns:
        What was written, in the order of PRODUCTS; a folder stands for its files.

    Raises:
        DataError: Something cannot be written.
        ConfigError: A package that a product needs is not installed.
    """
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    content = Content(
        rain_mmh_thw=forecast.rain_mmh_thw,
        reference_time_s=forecast.reference_time_s,
        cadence_s=forecast.cadence_s,
        grid=forecast.latest.grid,
        provenance=Provenance(
            model=f"{forecast.model} (Rainspark {installed_versions().get('rainspark', 'not installed')})",
            source=forecast.latest.source,
            licence=forecast.latest.licence,
            history=f"{now}: {command}",
            institution=institution,
            note=forecast.note,
        ),
        ensemble=forecast.ensemble,
    )

    # Files are named by the last radar frame: the next forecast does not replace this one.
    written = []
    if "netcdf" in products:
        written.append(out / f"forecast_{forecast.stamp}.nc")
        write_forecast(written[-1], content)
    if "png" in products:
        # A second of imports that a forecast without pictures does not need.
        from .drawing import draw

        written += draw(forecast, out)
    for product, write in (("cog", write_cogs), ("odim", write_odim)):
        if product in products:
            write(out / product, content)
            written.append(out / product)
    return written


def run(options: argparse.Namespace, argv: Sequence[str]) -> ExitCode:
    """Read the latest radar files, forecast, and write the forecast.

    Args:
        options: As `trainer.settings.forecast.make_parser` reads them.
        argv: The command line, for the file's history.
    """
    set_up_logging(0, logging.WARNING)
    ensemble = check_options(options)
    # Settings have been checked: what fails from here on is the run, the radar files, or the disk.
    forecaster = load_forecaster(options.run, name=options.name, device=options.device)
    check_ensemble(forecaster, ensemble)
    radars = radars_of(forecaster, source=options.source, reader=options.reader)
    several = len(radars) > 1
    places = [place_of(text, _span(options.at)) for text in options.input]
    failures: list[DataError] = []
    for radar in radars:
        try:
            forecast = make_forecast(
                forecaster,
                _paths_of(radar, places) if several else places,
                radar=radar,
                area=options.crop,
                allow_missing=options.allow_missing or 0,
                before_s=options.at,
                ensemble=ensemble,
            )
            check_sites(forecast)
        except DataError as error:
            # Of several radars each is forecast for which there is something.
            if not several:
                raise
            failures.append(DataError(f"{radar.name}: {error}"))
            continue
        written = write_outputs(
            forecast,
            options.out / folder_name(radar.name) if several else options.out,
            command=shlex.join(["rainspark", "forecast", *argv]),
            institution=options.institution,
            products=[name for name in options.products if name != "png" or not options.no_pictures],
        )
        if forecast.latest.source != radar.name:
            sys.stderr.write(
                printable(f"note: the run learned from {radar.name}; these are {forecast.latest.source}\n")
            )
        if options.at is not None:
            _note_age(forecast.latest.end_times_s, options.at)
        _report(forecast, written)

    if len(failures) == len(radars):
        raise DataError("none of the run's radars can be forecast: " + "; ".join(map(str, failures)))
    for failure in failures:
        sys.stderr.write(printable(f"not forecast: {failure}\n"))
    return ExitCode.DONE


def _note_age(end_times_s: Sequence[int], before_s: int) -> None:
    """Note that newer frames were due at the time of --at: forecasts of old frames look like those of new ones."""
    cadence_s = end_times_s[-1] - end_times_s[-2] if len(end_times_s) > 1 else 0
    age_s = before_s - 1 - end_times_s[-1]
    if cadence_s and age_s >= cadence_s:
        sys.stderr.write(
            f"note: the newest frame ends at {iso_time(end_times_s[-1])}, {age_s // 60} min before the time of --at\n"
        )


def check_options(options: argparse.Namespace) -> EnsembleOptions | None:
    """Refuse options that cannot be met on this machine, or not together.

    Returns:
        What is made of an ensemble; None for one forecast.

    Raises:
        DataError: --out is a file.
        ConfigError: A device or a package that is not there, or an option that has no effect.
    """
    ensemble = ensemble_options(options)
    if ensemble is not None and ensemble.sites and (options.no_pictures or "png" not in options.products):
        raise ConfigError("--place is drawn, and png is left out of the products; leave out --place, or add png")
    if options.out.exists() and not options.out.is_dir():
        raise DataError(f"--out {options.out} is a file; expected a folder to write to: choose another name")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no CUDA device that torch can use; leave the option out")
    if "cog" in options.products:
        require_rasterio()
    return ensemble


def check_ensemble(forecaster: RunForecaster, ensemble: EnsembleOptions | None) -> None:
    """Refuse members of a run that forecasts none; raises ConfigError."""
    if ensemble is not None and not forecaster.is_ensemble:
        raise ConfigError(
            f"--members {ensemble.members}: {forecaster.name} gives one forecast, and no ensemble; train one with "
            f"rainspark finetune --config finetune_ensemble --init_from {forecaster.path}, or leave --members out"
        )


def check_sites(forecast: Forecast) -> None:
    """Refuse a --place that has no forecast; raises DataError."""
    for site in () if forecast.ensemble is None else forecast.ensemble.options.sites:
        if not np.isfinite(forecast.rain_mmh_thw[:, *site_pixel(site, forecast.latest.grid)]).any():
            raise DataError(f"--place {site}: no radar looked there in any input frame; give a place that one covers")


def _span(before_s: int | None) -> TimeSpan:
    """Give the times whose days are listed of a bucket: the last two days before a forecast."""
    stop_s = int(datetime.now(UTC).timestamp()) + 1 if before_s is None else before_s
    return TimeSpan(start_s=stop_s - LISTED_S, stop_s=stop_s)


def _paths_of(radar: Radar, paths: Sequence[Place]) -> list[Place]:
    """Choose the paths of several radars' files that one radar's source can read; raises DataError for none."""
    readable = []
    problems = []
    for path in paths:
        try:
            radar.source.scan([path])
        except DataError as error:
            problems.append(error)
        else:
            readable.append(path)
    if not readable:
        raise problems[0]
    return readable


def folder_name(source: str) -> str:
    """Turn a product's name into that of a folder."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", source).strip("_.") or "radar"


def _report(forecast: Forecast, written: Sequence[Path]) -> None:
    """Print what was forecast, from what, and where it lies."""
    first_s = forecast.reference_time_s + forecast.cadence_s
    last_s = forecast.reference_time_s + forecast.cadence_s * len(forecast.rain_mmh_thw)
    latest = forecast.latest
    what = "" if forecast.ensemble is None else f"{forecast.ensemble.num_members} members, "
    lines = [
        f"{forecast.model}: {what}{iso_time(first_s)} to {iso_time(last_s)} from {len(latest.frames)} radar files",
        f"  {latest.source}, {latest.grid.rows} x {latest.grid.cols} pixels of {latest.grid.pixel_km:g} km",
    ]
    lines += [f"  {path}" for path in written]
    if forecast.note:
        lines.append(f"warning: {forecast.note}")
    lines += [f"warning: {problem}" for problem in latest.problems]
    # Of members the note says it.
    if forecast.num_nonfinite and forecast.ensemble is None:
        lines.append(
            f"warning: {forecast.num_nonfinite} pixels of the forecast are no finite number: missing in the file, "
            "green in the pictures"
        )
    sys.stdout.write("\n".join(lines) + "\n")
