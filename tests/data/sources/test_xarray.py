"""What xarray opens: Zarr and NetCDF of five services as xarray itself reads them; what cannot be, refused by name."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rainspark.data.errors import ConfigError, DamagedError, DataError
from rainspark.data.frames import Crop
from rainspark.data.pack.__main__ import main
from rainspark.data.shards.contact_sheet import read_frame
from rainspark.data.shards.index import load_index
from rainspark.data.sources.foreign.keys import Folder
from rainspark.data.sources.foreign.xarray_source import XarraySource
from rainspark.data.sources.source import Header, Reading
from rainspark.data.store.storage import open_storage
from rainspark.data.units import ZR
from tests.data.radar_files import digests, rates, write_odim_file, write_series

xr = pytest.importorskip("xarray", reason="xarray (extra formats) is not installed")
pytest.importorskip("zarr", reason="zarr (extra formats) is not installed")

from tests.data.gridded import COLS, FIRST, ROWS, SERVICES, Service, dataset_of, rain_mmh, write_netcdf, write_zarr  # noqa: E402

HALF: float = 0.005 + 1e-9
FIRST_S = int(FIRST.astype(np.int64) // 10**9)
PLAIN = SERVICES["denmark"]


def read(path: Path, index: int = 0, **options: Any) -> tuple[Header, Reading]:
    """Read one frame of a file or store, whole."""
    source = XarraySource(**{"variable": PLAIN.variable, **options})
    ref = source.scan([path]).refs[index]
    surveyed = source.survey(ref)
    grid = surveyed.header.grid
    reading = source.read(ref, Crop(row0=0, row1=grid.rows, col0=0, col1=grid.cols))
    assert reading.sha256 == surveyed.sha256
    return surveyed.header, reading


@pytest.mark.parametrize("form", ["zarr 2", "zarr 3", "netcdf"])
@pytest.mark.parametrize("name", SERVICES)
def test_services_are_packed_as_xarray_reads_them(tmp_path: Path, name: str, form: str) -> None:
    service = SERVICES[name]
    if form == "netcdf":
        write_netcdf(tmp_path / "in.nc", service, 4)
        path = tmp_path / "in.nc"
        opened = xr.open_dataset(path, engine="h5netcdf")
    else:
        path = tmp_path / "in.zarr"
        write_zarr(path, service, 4, int(form[-1]))
        opened = xr.open_zarr(path, chunks=None, consolidated=form == "zarr 2")
    command = ["xarray", str(path), "--variable", service.variable, "--window", "2", *service.options]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert main([*command, "--out", str(tmp_path / "again")]) == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "again")

    # xarray's own numbers, made rates and turned north up by hand.
    storage = open_storage(tmp_path / "out")
    index = load_index(storage)
    (origin,) = index.origins
    (entry,) = index.sequences
    assert (entry.start_s, entry.num_frames, origin.licence) == (FIRST_S, 4, "CC-BY-4.0")
    for number in range(4):
        values = opened[service.variable].isel(time=number).values.astype(np.float64) / service.factor
        values = values[::-1] if service.is_south_up else values
        np.testing.assert_array_equal(np.isnan(values), np.isnan(rain_mmh(number)))
        counts = read_frame(storage, index, entry, number)
        np.testing.assert_array_equal(counts == 65535, np.isnan(values))
        seen = counts != 65535
        np.testing.assert_allclose(counts[seen] * 0.01, values[seen], atol=HALF)
    if service.crs is None:
        assert (origin.grid.x0_km, origin.grid.y0_km) == pytest.approx(
            (6371 * np.radians(2.0), 6371 * np.radians(43.0)), abs=1e-3
        )
    else:
        assert (origin.grid.pixel_km, origin.grid.x0_km, origin.grid.y0_km) == (1.0, 10.0, -20.0)


def test_parts_and_many_frames_of_one_chunk_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "in.zarr"
    write_zarr(path, PLAIN, 7, 3, chunks=(3, 5, 4))
    source = XarraySource(variable=PLAIN.variable)
    refs = source.scan([path]).refs
    crop = Crop(row0=2, row1=9, col0=3, col1=8)
    for number, ref in enumerate(refs):
        surveyed, reading = source.survey(ref), source.read(ref, crop)
        assert surveyed.sha256 == reading.sha256
        expected_mmh = rain_mmh(number)[2:9, 3:8]
        np.testing.assert_array_equal(reading.counts == 65535, np.isnan(expected_mmh))
        seen = reading.counts != 65535
        np.testing.assert_allclose(reading.counts[seen] * 0.01, expected_mmh[seen], atol=HALF)
    # Shards hold many chunks in one key.
    write_zarr(tmp_path / "shards.zarr", PLAIN, 4, 3, chunks=(1, 6, 5), shards=(2, 12, 10))
    np.testing.assert_array_equal(read(tmp_path / "shards.zarr", 3)[1].counts, read(path, 3)[1].counts)


def test_terabytes_are_not_loaded(tmp_path: Path) -> None:
    import zarr

    write_zarr(tmp_path / "in.zarr", PLAIN, 2, 2)
    big = xr.Dataset(coords={name: dataset_of(PLAIN, 2)[name] for name in ("y", "x")})
    big["time"] = ("time", FIRST + np.arange(200_000) * np.timedelta64(5, "m"), {"standard_name": "time"})
    big.to_zarr(tmp_path / "big.zarr", zarr_format=2, consolidated=False)
    group = zarr.open_group(tmp_path / "big.zarr", mode="a", zarr_format=2)
    # 200,000 x 12 x 10 pixels in one chunk a frame, of which two are stored: 3 PB if a pixel had 128 MB.
    array = group.create_array(
        "rainfall_flux", shape=(200_000, ROWS, COLS), chunks=(1, ROWS, COLS), dtype="f8", fill_value=np.nan
    )
    array.attrs.update({"_ARRAY_DIMENSIONS": ["time", "y", "x"], "units": "mm/h", "grid_mapping": "crs"})
    crs = group.create_array("crs", shape=(), dtype="i8")
    crs.attrs.update({"_ARRAY_DIMENSIONS": [], **dataset_of(PLAIN, 1)["crs"].attrs})
    array[150_000] = rain_mmh(0)[::-1]
    source = XarraySource(variable="rainfall_flux")
    refs = source.scan([tmp_path / "big.zarr"]).refs
    assert len(refs) == 200_000
    whole = Crop(row0=0, row1=ROWS, col0=0, col1=COLS)
    reading = source.read(refs[150_000], whole)
    np.testing.assert_array_equal(reading.counts == 65535, np.isnan(rain_mmh(0)))
    assert reading.sha256 == source.survey(refs[150_000]).sha256 != source.survey(refs[1]).sha256
    # What was never stored is the fill value, which is missing.
    assert set(source.read(refs[1], whole).counts.ravel().tolist()) == {65535}


def netcdf(path: Path, change: Callable[[Any], Any], service: Service = PLAIN, num_frames: int = 2) -> Path:
    """Write a changed data set as NetCDF-4."""
    change(dataset_of(service, num_frames)).to_netcdf(path / "in.nc", engine="h5netcdf")
    return path / "in.nc"


def described(**attributes: Any) -> Callable[[Any], Any]:
    """Change attributes of the variable; None removes one."""

    def change(dataset: Any) -> Any:
        variable = dataset[PLAIN.variable]
        variable.attrs = {name: value for name, value in {**variable.attrs, **attributes}.items() if value is not None}
        return dataset

    return change


def moved(name: str, values: Any, **attributes: Any) -> Callable[[Any], Any]:
    """Change a coordinate."""

    def change(dataset: Any) -> Any:
        return dataset.assign_coords({name: (name, values, {**dataset[name].attrs, **attributes})})

    return change


def mapped(**attributes: str) -> Callable[[Any], Any]:
    """Change the grid mapping."""

    def change(dataset: Any) -> Any:
        dataset["crs"].attrs.update(attributes)
        return dataset

    return change


def uneven_bounds(dataset: Any) -> Any:
    """Let the frames have periods of 5 and of 10 minutes."""
    starts = dataset.time.values - np.array([5, 10]) * np.timedelta64(60, "s")
    dataset["time_bnds"] = (("time", "nv"), np.stack([starts, dataset.time.values], axis=1))
    dataset.time.attrs["bounds"] = "time_bnds"
    return dataset


X = 1000.0 * (10.5 + np.arange(COLS))
Y = 1000.0 * (-20.5 - np.arange(ROWS))[::-1]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (described(units=None), {}, "its units are None, .* state it with --units"),
        (described(units="K"), {}, "units 'K': these are units of no rain"),
        (described(units="mm"), {}, "an amount, and its standard_name is 'rainfall_flux', a rate"),
        (described(standard_name="wind_speed"), {}, "standard_name is 'wind_speed', which is no rain"),
        (described(units="mm", standard_name="rainfall_amount"), {}, "is an amount, and neither bounds"),
        (described(units="dBZ", standard_name=None), {}, "is a reflectivity; .*--zr 200,1.6 is Marshall"),
        (described(), {"zr": ZR(a=200, b=1.6)}, "is rate of rain already; leave --zr away"),
        (described(), {"variable": "rain"}, r"no variable rain; its variables: rainfall_flux \(time, y, x\)"),
        (described(), {"units": "miles"}, "--units 'miles': these are units of no rain"),
        (moved("x", X[::-1]), {}, "x falls from 19500 on; expected columns from west to east"),
        (moved("x", X + 30.0 * (np.arange(COLS) == 3)), {}, "x is unevenly spaced: up to 30 off steps of 1000"),
        (moved("y", Y * 1.5), {}, "pixels of 1 by 1.5 km; expected square ones"),
        (moved("x", X, units="mile"), {}, "x is in mile; expected m, km or degrees"),
        (lambda dataset: dataset.drop_vars("crs"), {}, "its projection cannot be read from no grid_mapping"),
        (mapped(crs_wkt="PROJCRS[", spatial_ref="PROJCRS["), {}, "its projection cannot be read from PROJCRS"),
        (mapped(crs_wkt='X["PROJ4_GRIDS","/etc/x.gsb"]'), {}, "names a file of shifts; expected one that needs none"),
        (mapped(grid_mapping_name="rotated_latitude_longitude"), {}, "x is in degrees of a rotated pole"),
        (mapped(GeoTransform="10000 1001 0 -20000 0 -1000"), {}, "GeoTransform states pixels of 1001 by -1000"),
        (mapped(GeoTransform="10000 1000 5 -20000 0 -1000"), {}, "skewed by 5, 0.* expected the same, and no skew"),
        (uneven_bounds, {}, r"the bounds of its times are 300, 600 s apart; expected one period"),
        (
            lambda dataset: dataset.convert_calendar("noleap"),
            {},
            "time is object; expected times of the usual calendar",
        ),
        (lambda dataset: dataset.drop_vars("x"), {}, "has a coordinate along x; expected one with the standard_name"),
        (
            lambda dataset: dataset.isel(time=0).drop_vars("time"),
            {},
            "states no time of its own; .*give --time-pattern",
        ),
        (lambda dataset: dataset.expand_dims(member=[1, 2, 3]), {}, r"several values along member \(3\)"),
        (moved("time", np.array([FIRST, np.datetime64("NaT", "ns")])), {}, "time holds times that are missing"),
        (moved("time", np.array([FIRST, FIRST])), {}, "two frames of one time: .*time 2024-06-01T00:00:00Z and"),
    ],
)
def test_data_sets_that_are_not_clear_are_refused(
    tmp_path: Path, change: Callable[[Any], Any], options: dict[str, Any], message: str
) -> None:
    path = netcdf(tmp_path, change)
    with pytest.raises(DataError, match=f"{path}.*{message}" if "two frames" not in message else message):
        read(path, **options)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (moved("x", X / 1000, units="km"), {}),
        (lambda dataset: moved("y", Y / 1000, units="kilometre")(moved("x", X / 1000, units="km")(dataset)), {}),
        (lambda dataset: dataset.transpose("x", "y", "time"), {}),
        (lambda dataset: dataset.expand_dims(height=[2.0]), {}),
        (lambda dataset: dataset.rename(x="easting", y="northing"), {}),
        (described(units="kg/m^2/s", standard_name=None), {}),
        (described(units=None, standard_name=None), {"units": "mm/s"}),
        (described(units="nonsense"), {"units": "m s-1 "}),
        (described(_FillValue=-1.0, missing_value=-9.0), {}),
    ],
)
def test_what_differs_in_form_only_reads_the_same(
    tmp_path: Path, change: Callable[[Any], Any], options: dict[str, Any]
) -> None:
    if options.get("units", "").startswith("m "):
        original = change

        def change(dataset: Any) -> Any:
            return original(
                dataset.assign(
                    {PLAIN.variable: dataset[PLAIN.variable].copy(data=dataset[PLAIN.variable].values / 1000)}
                )
            )

    header, reading = read(netcdf(tmp_path, change), 1, **options)
    expected_mmh = rain_mmh(1)
    np.testing.assert_array_equal(reading.counts == 65535, np.isnan(expected_mmh))
    seen = reading.counts != 65535
    np.testing.assert_allclose(reading.counts[seen] * 0.01, expected_mmh[seen], atol=HALF)
    assert (header.grid.pixel_km, header.grid.x0_km, header.grid.y0_km) == (1.0, 10.0, -20.0)


def test_fill_values_and_codes(tmp_path: Path) -> None:
    def code(dataset: Any) -> Any:
        values = dataset[PLAIN.variable].values
        values[:, 0, :2] = -9.0
        values[:, 1, :3] = -1.0
        values[:, 2, 4] = -0.5
        return described(units="mm/h", _FillValue=-9.0, missing_value=-1.0)(dataset)

    _, reading = read(netcdf(tmp_path, code))
    assert reading.rounding.discarded == 1
    counts = reading.counts[::-1]
    assert counts[0, :2].tolist() == [65535] * 2
    assert counts[1, :3].tolist() == [65535] * 3
    assert counts[2, 4] == 65535


def test_a_fill_value_of_no_rain_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = dataset_of(PLAIN, 2)
    dataset[PLAIN.variable] = dataset[PLAIN.variable].fillna(0).assign_attrs(dataset[PLAIN.variable].attrs)
    dataset.to_zarr(tmp_path / "in.zarr", zarr_format=2, encoding={PLAIN.variable: {"_FillValue": 0.0}})
    command = ["xarray", str(tmp_path / "in.zarr"), "--variable", PLAIN.variable, "--window", "2"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "rainfall_flux: its fill value stands for 0, so that pixels of 0 are missing and not dry" in (
        capsys.readouterr().err
    )


def test_netcdf_of_version_3_reads_the_same(tmp_path: Path) -> None:
    pytest.importorskip("netCDF4", reason="netCDF4 is not installed")
    write_netcdf(tmp_path / "in.nc", PLAIN, 2)
    dataset_of(PLAIN, 2).to_netcdf(tmp_path / "old.nc", format="NETCDF3_64BIT", engine="netcdf4")
    new, old = read(tmp_path / "in.nc"), read(tmp_path / "old.nc")
    assert old[0] == new[0]
    np.testing.assert_array_equal(old[1].counts, new[1].counts)


def test_bounds_tell_period_and_end(tmp_path: Path) -> None:
    def bounded(minutes: int) -> Callable[[Any], Any]:
        def change(dataset: Any) -> Any:
            starts = dataset.time.values
            dataset["time_bnds"] = (("time", "nv"), np.stack([starts, starts + np.timedelta64(minutes, "m")], axis=1))
            dataset.time.attrs["bounds"] = "time_bnds"
            dataset[PLAIN.variable] = dataset[PLAIN.variable] * 3600 * minutes / 60
            dataset[PLAIN.variable].attrs = {"units": "kg m-2", "grid_mapping": "crs", "cell_methods": "time: sum"}
            return dataset

        return change

    header, reading = read(netcdf(tmp_path, bounded(5)))
    assert (header.period_s, header.end_time_s) == (300, FIRST_S + 300)
    assert reading.counts[0, 0] in (65535, round(rain_mmh(0)[0, 0] * 100))
    header, _ = read(netcdf(tmp_path, bounded(60)))
    assert (header.period_s, header.end_time_s) == (3600, FIRST_S + 3600)
    # The command refuses hourly sums every five minutes.
    command = ["xarray", str(tmp_path / "in.nc"), "--variable", PLAIN.variable, "--window", "2"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 4
    assert read(netcdf(tmp_path, described(cell_methods="time: point")))[0].period_s == 0
    assert read(netcdf(tmp_path, described()), period_min=5.0)[0].period_s == 300
    assert read(netcdf(tmp_path, described()))[0].period_s is None


def test_reflectivity_becomes_rain(tmp_path: Path) -> None:
    def decibel(dataset: Any) -> Any:
        values = np.full((2, ROWS, COLS), 23.0)
        values[:, 0, 0], values[:, 0, 1], values[:, 0, 2], values[:, 0, 3] = np.nan, -np.inf, -32.0, -9999.0
        dataset[PLAIN.variable] = (dataset[PLAIN.variable].dims, values, {"units": "dBZ", "grid_mapping": "crs"})
        return dataset

    header, reading = read(netcdf(tmp_path, decibel), zr=ZR(a=200, b=1.6))
    assert reading.counts[-1, :5].tolist() == [65535, 0, 0, 65535, 100]
    assert (header.source, reading.rounding.discarded) == (
        "nobody, rainfall_flux by xarray as rain by Z = 200 R**1.6",
        1,
    )


@pytest.mark.parametrize(("step_lon", "step_lat"), [(0.01, 0.01), (0.015, 0.01), (0.0125, 0.008333333)])
@pytest.mark.parametrize("first_lon", [2.0, 232.0])
def test_degrees_are_a_plate_carree_with_square_pixels(
    tmp_path: Path, step_lon: float, step_lat: float, first_lon: float
) -> None:
    import pyproj

    def degrees(dataset: Any) -> Any:
        lon, lat = first_lon + step_lon * np.arange(COLS), 43.0 - step_lat * np.arange(ROWS)
        return moved("lon", lon)(moved("lat", lat)(dataset))

    grid = read(netcdf(tmp_path, degrees, SERVICES["spain"]), variable="rate")[0].grid
    proj = pyproj.Proj(grid.projection)
    lon, lat = proj(
        1000 * (grid.x0_km + np.array([0.5, COLS - 0.5]) * grid.pixel_km),
        1000 * (grid.y0_km - np.array([0.5, ROWS - 0.5]) * grid.pixel_km),
        inverse=True,
    )
    west = first_lon - (360 if first_lon > 180 else 0)
    np.testing.assert_allclose(lon, [west, west + step_lon * (COLS - 1)], atol=2e-5)
    np.testing.assert_allclose(lat, [43.0, 43.0 - step_lat * (ROWS - 1)], atol=2e-5)


def test_files_of_one_frame_with_times_in_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        dataset = dataset_of(PLAIN, 3).isel(time=number).drop_vars("time")
        dataset.to_netcdf(tmp_path / f"rain_2024060102{number}0+0200.nc", engine="h5netcdf")
    (tmp_path / "README.txt").write_text("other")
    command = ["xarray", str(tmp_path), "--variable", PLAIN.variable, "--window", "2", "--cadence-min", "10"]
    assert main([*command, "--time-pattern", "rain_%Y%m%d%H%M%z.nc", "--out", str(tmp_path / "out")]) == 0
    written = capsys.readouterr()
    assert "frames        3 every 10 min, 2024-06-01T00:00:00Z to 2024-06-01T00:20:00Z" in written.out
    assert "1 files are not read, such as" in written.err
    assert main([*command, "--time-pattern", "rain_%m%d%H%M%z.nc", "--out", str(tmp_path / "x")]) == 3
    assert "it has no year" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "x")]) == 4
    assert "states no time of its own" in capsys.readouterr().err


def test_damaged_files_are_left_out_where_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        dataset = dataset_of(PLAIN, 4).isel(time=[number])
        dataset.to_netcdf(tmp_path / f"rain-20240601T00{5 * number:02d}.nc", engine="h5netcdf")
    path = tmp_path / "rain-20240601T0010.nc"
    path.write_bytes(path.read_bytes()[:3000])
    command = ["xarray", str(tmp_path), "--variable", PLAIN.variable, "--window", "2"]
    assert main([*command, "--out", str(tmp_path / "x")]) == 4
    assert "rain-20240601T0010.nc cannot be read by the engine h5netcdf" in capsys.readouterr().err
    assert main([*command, "--max-bad", "1", "--out", str(tmp_path / "out")]) == 0
    written = capsys.readouterr()
    assert "left out: " in written.err
    assert "gaps          1 (1 frames missing)" in written.out


def test_compressed_files_and_stated_numbers(tmp_path: Path) -> None:
    def raw(dataset: Any) -> Any:
        values = np.full((2, ROWS, COLS), 110, np.uint8)
        values[:, 0, :3] = (255, 0, 84)
        dataset[PLAIN.variable] = (dataset[PLAIN.variable].dims, values, {"grid_mapping": "crs"})
        return dataset

    path = netcdf(tmp_path, raw)
    packed = tmp_path / "in.nc.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    options: dict[str, Any] = {"units": "dBZ", "scale": (0.5, -32.0), "missing": (255.0,), "zr": ZR(a=200, b=1.6)}
    for form in (path, packed):
        # 23 dBZ is 1 mm/h by Marshall and Palmer, 10 dBZ 0.15.
        assert read(form, **options)[1].counts[-1, :4].tolist() == [65535, 0, 15, 100]
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"in\.nc\.gz cannot be decompressed .*fetch it again or remove it"):
        read(packed, **options)


def test_hdf5_of_other_kinds_gets_its_sub_command(tmp_path: Path) -> None:
    write_odim_file(tmp_path / "rain.h5", rates(1, ROWS, COLS), FIRST_S)
    with pytest.raises(DataError, match=r"its variables: none \(it looks like an ODIM_H5 .*sub-command odim\)"):
        read(tmp_path / "rain.h5")
    write_series(tmp_path / "knmi", [0])
    with pytest.raises(DataError, match=r"it looks like .*KNMI.*sub-command knmi\)"):
        read(tmp_path / "knmi")


def test_options_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--engine pydap: expected one of h5netcdf"):
        read(tmp_path, engine="pydap")
    with pytest.raises(ConfigError, match="--period-min -5: expected 0"):
        read(tmp_path, period_min=-5.0)
    with pytest.raises(DataError, match=r"nothing of rainfall_flux in .*; expected NetCDF, Zarr"):
        read(tmp_path)


def test_files_of_strangers_lead_nowhere(tmp_path: Path) -> None:
    # A virtual raster names any file or address; GDAL is not let at it.
    raster = tmp_path / "rain.tif"
    raster.write_text("<VRTDataset rasterXSize='1' rasterYSize='1'><SourceFilename>/etc/passwd</SourceFilename>")
    with pytest.raises(DataError, match=r"rain\.tif: its format is not known|rain\.tif: it is a web page"):
        read(raster, engine="rasterio")
    write_netcdf(tmp_path / "in.nc", PLAIN, 2)
    with h5py.File(tmp_path / "in.nc", "a") as file:
        file["outside"] = h5py.ExternalLink("/etc/other.h5", "/rain")
    with pytest.raises(DataError, match=r"in\.nc: outside is a link, perhaps into another file"):
        read(tmp_path / "in.nc")
    # A codec of Zarr unpickles what it decodes.
    write_zarr(tmp_path / "in.zarr", PLAIN, 2, 2)
    for name in (".zmetadata", f"{PLAIN.variable}/.zarray"):
        text = (tmp_path / "in.zarr" / name).read_text()
        (tmp_path / "in.zarr" / name).write_text(text.replace('"filters": null', '"filters": [{"id": "pickle"}]'))
    with pytest.raises(DataError, match=r"in\.zarr.*names the codec 'pickle'; expected one that only computes"):
        read(tmp_path / "in.zarr")


def test_keys_of_a_store_lead_out_of_no_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"1")
    (tmp_path / "in.zarr").mkdir()
    (tmp_path / "in.zarr" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "in.zarr" / "chunk").write_bytes(bytes(100))
    folder = Folder(tmp_path / "in.zarr")
    for name in ("../secret", "/etc/passwd", "link", "a/../../secret"):
        with pytest.raises(DataError, match="leads out of the folder; expected one inside"):
            folder.read_whole(name, 100)
    with pytest.raises(DataError, match="chunk has more than 99 bytes; expected a chunk"):
        folder.read_whole("chunk", 99)
    with pytest.raises(DamagedError, match="nothing is not there"):
        folder.read_whole("nothing", 99)
    assert folder.read_whole("chunk", 100)[1] == folder.version("chunk")


def test_damaged_files_and_stores_are_named(tmp_path: Path) -> None:
    write_netcdf(tmp_path / "in.nc", PLAIN, 2)
    data = (tmp_path / "in.nc").read_bytes()
    (tmp_path / "in.nc").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"in\.nc cannot be read by the engine h5netcdf"):
        read(tmp_path / "in.nc")
    write_zarr(tmp_path / "in.zarr", PLAIN, 2, 3)
    chunk = next(path for path in (tmp_path / "in.zarr" / PLAIN.variable / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"\xff" * 40)
    with pytest.raises(DataError, match=r"in\.zarr, time 2024-06-01T00:0.:00Z.* cannot be read by the engine zarr"):
        read(tmp_path / "in.zarr", int(chunk.relative_to(tmp_path / "in.zarr" / PLAIN.variable / "c").parts[0]))
    (tmp_path / "in.zarr" / "zarr.json").write_text("{")
    with pytest.raises(DataError, match=r"in\.zarr/zarr\.json is no JSON"):
        read(tmp_path / "in.zarr")
