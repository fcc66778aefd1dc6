"""What the products of an ensemble cost: `python -m tests.bench.ensemble [--members 20] [--rows 765] [--cols 700]`.

An hour of made members on KNMI's grid, 12 lead times: rounding, mean, quantiles and probabilities; the NetCDF file; the
GeoTIFFs; and all pictures. Processor time stands beside the clock's, which drifts with whoever else uses the machine.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rainspark.data.frames import Grid
from rainspark.data.sources.knmi_writer import KNMI_PROJECTION
from rainspark.trainer.forecasting.content import Content, Forecast, Provenance
from rainspark.trainer.forecasting.drawing import draw
from rainspark.trainer.forecasting.geotiff import write_cogs
from rainspark.trainer.forecasting.latest import Latest
from rainspark.trainer.forecasting.netcdf import write_forecast
from rainspark.trainer.forecasting.probabilities import make_ensemble
from rainspark.trainer.settings.forecast import EnsembleOptions, Site

LEADS = 12


def make_members(members: int, rows: int, cols: int) -> npt.NDArray[np.float32]:
    """Make members whose rain is smooth over some 16 pixels and covers a fifth of the grid."""
    random = np.random.default_rng(0)
    rain = np.empty((members, LEADS, rows, cols), np.float32)
    for field_hw in rain.reshape(-1, rows, cols):
        coarse = random.standard_normal((rows // 16 + 2, cols // 16 + 2)).astype(np.float32)
        smooth = np.kron(coarse, np.ones((16, 16), np.float32))[:rows, :cols]
        texture = random.standard_normal((rows, cols)).astype(np.float32)
        field_hw[...] = np.maximum(3 * np.exp(1.2 * smooth + 0.2 * texture) - 8, 0)
    return rain


def timed(name: str, work: Callable[[], Any]) -> Any:
    """Print what a step takes."""
    clock_s, processor_s = time.perf_counter(), time.process_time()
    result = work()
    clock_s, processor_s = time.perf_counter() - clock_s, time.process_time() - processor_s
    sys.stdout.write(f"{name:<24}{clock_s:8.1f} s  {processor_s:8.1f} s of the processor\n")
    return result


def main() -> None:
    """Print a line a step."""
    parser = argparse.ArgumentParser(description="What the products of an ensemble cost.")
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--rows", type=int, default=765)
    parser.add_argument("--cols", type=int, default=700)
    arguments = parser.parse_args()
    grid = Grid(
        rows=arguments.rows, cols=arguments.cols, pixel_km=1.0, x0_km=0.0, y0_km=-3650.0, projection=KNMI_PROJECTION
    )
    members = make_members(arguments.members, grid.rows, grid.cols)
    seen_thw = np.ones((LEADS, grid.rows, grid.cols), dtype=bool)
    sites = (Site(name="De Bilt", latitude_deg=52.1, longitude_deg=5.18),)
    options = EnsembleOptions(members=arguments.members, sites=sites)

    ensemble = timed(
        "probabilities", lambda: make_ensemble(members, seen_thw[0], options, cadence_s=300, pixel_km=grid.pixel_km)
    )
    latest = Latest(
        rain_mmh_thw=members[0],
        valid_thw=seen_thw,
        end_times_s=tuple(300 * number for number in range(LEADS)),
        grid=grid,
        source="made",
        licence="none",
        frames=(),
    )
    forecast = Forecast(
        rain_mmh_thw=ensemble.mean_mmh_thw,
        num_nonfinite=0,
        latest=latest,
        cadence_s=300,
        model="made",
        ensemble=ensemble,
    )
    content = Content(
        rain_mmh_thw=ensemble.mean_mmh_thw,
        reference_time_s=forecast.reference_time_s,
        cadence_s=300,
        grid=grid,
        provenance=Provenance(model="made", source="made", licence="none", history="made"),
        ensemble=ensemble,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forecast.nc"
        timed("NetCDF", lambda: write_forecast(path, content))
        timed("GeoTIFFs", lambda: write_cogs(Path(folder) / "cog", content))
        timed("pictures", lambda: draw(forecast, Path(folder)))
        sys.stdout.write(f"NetCDF: {path.stat().st_size / 1e6:.0f} MB; {members.nbytes / 1e6:.0f} MB as float32\n")
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    sys.stdout.write(f"peak memory: {peak_gb:.1f} GB, of which the members {2 * members.nbytes / 1e9:.1f}\n")


if __name__ == "__main__":
    main()
