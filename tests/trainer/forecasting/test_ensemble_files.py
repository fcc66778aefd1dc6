"""The files of an ensemble, read back by other libraries: members, probabilities, and what CF asks for."""

import contextlib
import io
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest

from rainspark.trainer.contestants.entries import Entry
from rainspark.trainer.contestants.external import External, scan_forecasts
from rainspark.trainer.forecasting.geotiff import write_cogs
from rainspark.trainer.forecasting.netcdf import read_rain, write_forecast
from rainspark.trainer.forecasting.odim import write_odim
from rainspark.trainer.forecasting.probabilities import Ensemble, make_ensemble
from rainspark.trainer.settings.forecast import EnsembleOptions
from tests.trainer.forecasting.members import GRID, OPTIONS, REFERENCE_S, content_of, make_small


def _written(tmp_path: Path, ensemble: Ensemble, **changes: Any) -> Path:
    path = tmp_path / "forecast.nc"
    write_forecast(path, content_of(ensemble, **changes))
    return path


def _pysteps_io() -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return pytest.importorskip("pysteps.io")


@pytest.mark.parametrize("failing", [False, True])
def test_xarray_reads_members_and_counting_them_gives_the_probabilities(tmp_path: Path, failing: bool) -> None:
    xarray = pytest.importorskip("xarray")
    ensemble = make_small(failing=failing)
    with xarray.open_dataset(_written(tmp_path, ensemble), decode_timedelta=True) as data:
        rain = data["rainfall_rate"]
        assert rain.dims == ("realization", "time", "y", "x")
        assert rain.dtype == np.float32
        np.testing.assert_array_equal(rain, ensemble.members_mmh_mthw)
        np.testing.assert_array_equal(data["precip_intensity"], rain)
        np.testing.assert_array_equal(data["rainfall_rate_mean"], ensemble.mean_mmh_thw)
        np.testing.assert_array_equal(data["rainfall_rate_quantile"], ensemble.quantiles_mmh_qthw)

        # By labels, as users count.
        known = rain.notnull()
        share = ((rain > 1.0) & known).sum("realization") / known.sum("realization")
        ours = data["probability"].sel(threshold=1.0, radius=0.0)
        np.testing.assert_allclose(ours, share, rtol=1e-6)
        hour = (rain.sum("time", skipna=False) * 0.25).isel(y=slice(3, None))
        share = (hour > 2.0).sum("realization") / hour.notnull().sum("realization")
        ours = data["probability_of_sum"].sel(sum_threshold=2.0).isel(hour=0, y=slice(3, None))
        np.testing.assert_allclose(ours, share, rtol=1e-6)
        assert data["hour"].values[0] == np.datetime64("2010-08-26T01:00")
        assert (data["probability"] <= 1).where(data["probability"].notnull(), True).all()
        assert data["probability"].sel(threshold=0.1, radius=4.5).isel(time=0, y=0, x=0).isnull()


def test_every_variable_of_an_ensemble_says_what_cf_asks_for(tmp_path: Path) -> None:
    with netCDF4.Dataset(_written(tmp_path, make_small(failing=True))) as file:
        # Unsigned bytes came with CF 1.9.
        assert file.Conventions == "CF-1.9"
        assert file.ensemble == "5 members, equally likely, of seed 3"
        assert "An ensemble of 5 members of seed 3; where there is one field, it is their mean." in file.comment
        assert file["realization"][:].tolist() == [0, 1, 2, 3, 4]
        assert (file["realization"].standard_name, file["realization"].units) == ("realization", "1")
        assert file["rainfall_rate"].num_not_finite == 5
        assert (file["threshold"].standard_name, file["threshold"].units) == ("rainfall_rate", "mm h-1")
        assert file["threshold"][:].tolist() == [0.1, 1.0, 5.0]
        assert (file["radius"].units, file["radius"][:].tolist()) == ("km", [0, 2, 4.5])
        assert file["quantile"][:].tolist() == list(OPTIONS.quantiles)
        assert file["hour_bounds"][:].tolist() == [[0, 3600]]
        for name, variable in file.variables.items():
            if variable.ndim > 2:
                assert variable.long_name
                assert variable.units == ("1" if name.startswith("probability") else "mm h-1")
                assert variable.grid_mapping == "crs"
                assert "realization" in variable.cell_methods or variable.cell_methods == "time: mean"
                assert all(other in file.variables for other in variable.coordinates.split())
                assert variable.filters()["zlib"]
                assert variable.chunking() == [1] * (variable.ndim - 2) + [GRID.rows, GRID.cols]


def test_what_is_packed_takes_few_bytes_and_reads_back_exactly(tmp_path: Path) -> None:
    ensemble = make_small()
    with netCDF4.Dataset(_written(tmp_path, ensemble)) as file:
        stored = {name: str(variable.dtype) for name, variable in file.variables.items() if variable.ndim > 2}
        assert stored == {
            "rainfall_rate": "uint16",
            "precip_intensity": "uint16",
            "rainfall_rate_quantile": "uint16",
            "rainfall_rate_mean": "float32",
            "probability": "uint8",
            "probability_of_sum": "uint8",
        }
        np.testing.assert_array_equal(file["rainfall_rate"][:].filled(np.nan), ensemble.members_mmh_mthw)
        assert file["probability"][:].max() <= 1
    # Where members are left out at single pixels, shares are of several numbers.
    with netCDF4.Dataset(_written(tmp_path, make_small(failing=True))) as file:
        assert file["probability"].dtype == np.float32


def test_one_field_of_an_ensembles_file_is_its_mean(tmp_path: Path) -> None:
    ensemble = make_small()
    np.testing.assert_array_equal(read_rain(_written(tmp_path, ensemble)), ensemble.mean_mmh_thw)


def test_the_evaluation_takes_the_file_as_a_forecast_made_elsewhere(tmp_path: Path) -> None:
    ensemble = make_small(failing=True)
    _written(tmp_path, ensemble)
    forecasts = scan_forecasts(Entry(name="elsewhere", kind="netcdf", folder=tmp_path))
    forecasts.check_grid(GRID)
    assert (list(forecasts.by_issue), forecasts.members) == ([REFERENCE_S], 5)
    (held,) = forecasts.by_issue.values()
    read = External(forecasts=forecasts, frames_out=4, cadence_s=900)._read(held)
    np.testing.assert_array_equal(read, ensemble.members_mmh_mthw)


def test_pysteps_reads_members_and_times(tmp_path: Path) -> None:
    ensemble = make_small(failing=True)
    field, metadata = _pysteps_io().import_netcdf_pysteps(str(_written(tmp_path, ensemble)), onerror="raise")
    np.testing.assert_array_equal(field, ensemble.members_mmh_mthw)
    assert (metadata["unit"], metadata["transform"], metadata["accutime"]) == ("mm/h", None, 15)
    assert list(metadata["leadtimes"]) == [15, 30, 45, 60]
    assert (metadata["x1"], metadata["y2"]) == (225_000, -3_934_000)


def test_pysteps_blends_the_file_as_an_external_nowcast(tmp_path: Path) -> None:
    pysteps_io = _pysteps_io()
    blending = pytest.importorskip("pysteps.blending.steps")
    utils = pytest.importorskip("pysteps.utils")
    size, leads = 64, 3
    grid = type(GRID)(**(GRID.to_json() | {"rows": size, "cols": size}))
    random = np.random.default_rng(0)
    rows, cols = np.mgrid[:size, :size]
    rain = np.stack([
        [9 * np.exp(-((rows - 30 + 2 * random.normal()) ** 2 + (cols - 20 - 2 * step) ** 2) / 150) for step in range(6)]
        for _ in range(3)
    ]).astype(np.float32)  # fmt: skip
    options = EnsembleOptions(members=3)
    ensemble = make_ensemble(rain[:, 3:], np.ones((size, size), bool), options, cadence_s=300, pixel_km=grid.pixel_km)
    nowcast, metadata = pysteps_io.import_netcdf_pysteps(
        str(_written(tmp_path, ensemble, grid=grid, cadence_s=300)), onerror="raise"
    )

    def in_db(field: Any) -> Any:
        about = metadata | {"zerovalue": 0.0, "threshold": 0.1}
        return utils.transformation.dB_transform(field, about, threshold=0.1, zerovalue=-15.0)[0]

    velocity = np.stack([np.full((size, size), 2.0), np.zeros((size, size))])
    weather = in_db(np.roll(rain[:1, 2:], 7, axis=2))
    with contextlib.redirect_stdout(io.StringIO()):
        blended = blending.forecast(
            precip=in_db(rain[0, :3]),
            precip_models=weather,
            # Its time 0 is the last radar frame; the members carry the noise.
            precip_nowcast=in_db(np.concatenate([np.broadcast_to(rain[0, 2], (3, 1, size, size)), nowcast], axis=1)),
            nowcasting_method="external_nowcast",
            noise_method=None,
            velocity=velocity,
            velocity_models=np.broadcast_to(velocity, (1, leads + 1, *velocity.shape)).copy(),
            timesteps=leads,
            timestep=5,
            issuetime=datetime.fromtimestamp(REFERENCE_S, UTC).replace(tzinfo=None),
            n_ens_members=3,
            n_cascade_levels=4,
            precip_thr=-10.0,
            kmperpixel=grid.pixel_km,
            vel_pert_method=None,
            outdir_path_skill=str(tmp_path),
            seed=1,
        )
    assert blended.shape == (3, leads, size, size)
    assert np.isfinite(blended).any()
    # It rains where the nowcast rains, and not where the weather model alone does.
    where = np.unravel_index(np.nanargmax(blended[:, 0].mean(axis=0)), (size, size))
    assert ensemble.mean_mmh_thw[0][where] > 5


def test_geotiffs_hold_the_mean_and_a_band_a_probability(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    ensemble = make_small(failing=True)
    paths = write_cogs(tmp_path, content_of(ensemble))
    stem = "forecast_201008260000"
    names = [f"{stem}_{minutes:03d}min{end}.tif" for minutes in (15, 30, 45, 60) for end in ("", "_probability")]
    names += [f"{stem}_060min_sum_060min.tif", f"{stem}_060min_sum_060min_probability.tif"]
    assert [path.name for path in paths] == names
    with rasterio.open(paths[0]) as file:
        np.testing.assert_array_equal(file.read(1), ensemble.mean_mmh_thw[0])
        assert "5 members of seed 3" in file.tags()["comment"]
    with rasterio.open(paths[5]) as file:
        assert file.units == ("1",) * 3
        assert file.descriptions[1] == "probability of rainfall_rate above 1 mm h-1"
        for band in range(3):
            np.testing.assert_array_equal(file.read(band + 1), ensemble.exceeding.probability(band, 0, 2))
    with rasterio.open(paths[-1]) as file:
        assert file.descriptions == (
            "probability of rainfall_amount above 0.5 mm",
            "probability of rainfall_amount above 2 mm",
        )
        np.testing.assert_array_equal(file.read(2), ensemble.sums_exceeding.probability(1, 0))

    # The smallest radius that is asked for: here none is 0.
    nearby = replace(OPTIONS, radii_km=(2.0, 5.0), thresholds_mmh=(1.0,))
    seen_hw = np.isfinite(ensemble.mean_mmh_thw[1])
    again = make_ensemble(ensemble.members_mmh_mthw, seen_hw, nearby, cadence_s=900, pixel_km=1.0)
    with rasterio.open(write_cogs(tmp_path, content_of(again))[3]) as file:
        assert file.descriptions == ("probability of rainfall_rate above 1 mm h-1 within 2 km",)
        np.testing.assert_array_equal(file.read(1), again.exceeding.probability(0, 0, 1))


def test_odim_holds_the_mean_and_says_so(tmp_path: Path) -> None:
    ensemble = make_small()
    paths = write_odim(tmp_path, content_of(ensemble))
    assert len(paths) == 4
    with h5py.File(paths[1]) as file:
        assert (
            b"An ensemble of 5 members of seed 3; where there is one field, it is their mean."
            in (file["how"].attrs["comment"])
        )
        stored = file["dataset1/data1/data"][...]
    mean = ensemble.mean_mmh_thw[1]
    np.testing.assert_array_equal(stored, np.where(np.isnan(mean), np.float32(-9_999_000), mean))
