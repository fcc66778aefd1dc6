"""Zarr in a bucket, on the real S3 server behind the proxy that fails: the folder's frames, in one request a chunk."""

import gzip
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.frames import Crop
from rainspark.data.pack.__main__ import main
from rainspark.data.pack.places import place_of
from rainspark.data.sources.foreign.xarray_source import XarraySource
from rainspark.data.store.storage import open_storage
from tests.data.pack.test_resume import signal_when, start_pack
from tests.data.radar_files import digests
from tests.peak_memory import added_bytes
from tests.s3_server import S3, fault_rules, s3, s3_server  # noqa: F401

pytest.importorskip("zarr", reason="zarr (extra formats) is not installed")

from tests.data.gridded import COLS, ROWS, SERVICES, dataset_of, write_zarr

FRAMES = 140
SERVICE = SERVICES["denmark"]
WHOLE = Crop(row0=0, row1=ROWS, col0=0, col1=COLS)


def upload(folder: Path, url: str) -> None:
    """Copy a Zarr store into the bucket."""
    storage = open_storage(url, deadline_s=60)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.write(path.relative_to(folder).as_posix(), path.read_bytes())


def shards(folder: Path) -> dict[str, str]:
    """Digest an archive's shards; its index also states what the frames were read from."""
    return {name: digest for name, digest in digests(folder).items() if name.endswith(".tar")}


@pytest.mark.parametrize("version", [2, 3])
def test_a_store_is_packed_under_faults_as_from_a_folder(
    tmp_path: Path,
    s3: S3,  # noqa: F811
    version: int,
) -> None:
    write_zarr(tmp_path / "in.zarr", SERVICE, FRAMES, version)
    upload(tmp_path / "in.zarr", f"{s3.url}/in.zarr")
    command = ["xarray", "--variable", SERVICE.variable, "--window", "2", "--out"]
    assert main([*command, str(tmp_path / "folder"), str(tmp_path / "in.zarr")]) == 0

    sizes = [path.stat().st_size for path in (tmp_path / "in.zarr" / SERVICE.variable).rglob("*") if path.is_file()]
    s3.inject(fault_rules(0.05, 3 * FRAMES, min(sizes)))
    assert main([*command, str(tmp_path / "bucket"), f"{s3.url}/in.zarr"]) == 0
    assert shards(tmp_path / "bucket") == shards(tmp_path / "folder")

    # Each chunk once, but for what failed.
    log = s3.log()
    lines = Counter(line.partition("?")[0] for line, _, _ in log if "list-type" not in line)
    chunks = {line: count for line, count in lines.items() if f"/{SERVICE.variable}/" in line and line[-1].isdigit()}
    failed = sum(done not in ("", "stall") for line, _, done in log if line.partition("?")[0] in chunks)
    assert len(chunks) == FRAMES
    assert sum(chunks.values()) <= FRAMES + failed
    assert 1 <= failed <= 0.05 * FRAMES
    # Beside them the metadata, the coordinates and the listing.
    assert len(log) - sum(chunks.values()) <= 25
    # Again without faults: the same archive, index and all.
    s3.inject([])
    assert main([*command, str(tmp_path / "again"), f"{s3.url}/in.zarr"]) == 0
    assert digests(tmp_path / "again") == digests(tmp_path / "bucket")


def test_files_of_a_bucket_are_packed_as_from_a_folder(tmp_path: Path, s3: S3) -> None:  # noqa: F811
    (tmp_path / "in" / "day").mkdir(parents=True)
    for number in range(6):
        name = f"rain_2024060100{number}0.nc"
        dataset = dataset_of(SERVICE, 6).isel(time=number).drop_vars("time")
        dataset.to_netcdf(tmp_path / "in" / "day" / name, engine="h5netcdf")
        # Some services compress the files as a whole.
        data = gzip.compress((tmp_path / "in" / "day" / name).read_bytes(), mtime=0)
        (tmp_path / "in" / "day" / name).rename(tmp_path / "in" / "day" / f"{name}.gz")
        (tmp_path / "in" / "day" / f"{name}.gz").write_bytes(data)
    upload(tmp_path / "in", f"{s3.url}/in")
    command = ["xarray", "--variable", SERVICE.variable, "--window", "2", "--cadence-min", "10"]
    command += ["--time-pattern", "rain_%Y%m%d%H%M.nc.gz", "--out"]
    assert main([*command, str(tmp_path / "folder"), str(tmp_path / "in")]) == 0
    s3.inject(fault_rules(0.1, 60, 5000))
    assert main([*command, str(tmp_path / "bucket"), f"{s3.url}/in/d?y/*.nc.gz"]) == 0
    assert digests(tmp_path / "bucket") == digests(tmp_path / "folder")
    assert main([*command, str(tmp_path / "prefix"), f"{s3.url}/in"]) == 0
    assert digests(tmp_path / "prefix") == digests(tmp_path / "folder")


def test_a_killed_pack_of_a_bucket_goes_on_to_the_same_bytes(tmp_path: Path, s3: S3) -> None:  # noqa: F811
    write_zarr(tmp_path / "in.zarr", SERVICE, FRAMES, 2)
    upload(tmp_path / "in.zarr", f"{s3.url}/in.zarr")
    command = [
        "xarray",
        f"{s3.url}/in.zarr",
        "--variable",
        SERVICE.variable,
        "--window",
        "2",
        "--frames",
        "10",
        "--out",
    ]
    assert main([*command, str(tmp_path / "whole")]) == 0
    process = start_pack(*command, str(tmp_path / "out"))
    signal_when(process, tmp_path / "out" / ".packing" / "shard-00003.json", signal.SIGKILL)
    assert process.returncode in (0, -signal.SIGKILL)
    s3.inject([])
    assert main([*command, str(tmp_path / "out")]) == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    # What was packed before was not read again.
    if process.returncode:
        assert sum(f"/{SERVICE.variable}/" in line for line, _, _ in s3.log()) < FRAMES


def test_a_chunk_that_changes_is_found_out(tmp_path: Path, s3: S3) -> None:  # noqa: F811
    write_zarr(tmp_path / "in.zarr", SERVICE, 3, 2)
    url = f"{s3.url}/in.zarr"
    upload(tmp_path / "in.zarr", url)
    source = XarraySource(variable=SERVICE.variable)
    refs = source.scan([place_of(url)]).refs
    surveyed = [source.survey(ref) for ref in refs]
    storage = open_storage(url)
    storage.write(f"{SERVICE.variable}/1.0.0", storage.read(f"{SERVICE.variable}/2.0.0"))
    digests_read = [source.read(ref, WHOLE).sha256 for ref in refs]
    changed = [one.sha256 != digest for one, digest in zip(surveyed, digests_read, strict=True)]
    assert changed == [False, True, False]


def test_memory_does_not_grow_with_the_store(tmp_path: Path, s3: S3) -> None:  # noqa: F811
    import zarr

    write_zarr(tmp_path / "in.zarr", SERVICE, 4, 2)
    group = zarr.open_group(tmp_path / "in.zarr", mode="a")
    rows = cols = 700
    array = group.create_array("big", shape=(40, rows, cols), chunks=(1, rows, cols), dtype="f4", compressors=None)
    del array
    random = np.random.default_rng(0)
    url = f"{s3.url}/in.zarr"
    upload(tmp_path / "in.zarr", url)
    storage = open_storage(url)
    for number in range(40):
        storage.write(f"big/{number}.0.0", random.random((rows, cols), np.float32).tobytes())
    from rainspark.data.sources.foreign.zarr_store import CACHE_BYTES, ZarrStorage
    from rainspark.data.store.object_store import open_store

    store = ZarrStorage(open_store(url, deadline_s=60))
    one = rows * cols * 4

    def read_all() -> None:
        opened = zarr.open_array(store, path="big", mode="r", zarr_format=2)
        for number in range(40):
            assert np.asarray(opened[number]).shape == (rows, cols)

    assert added_bytes(read_all, "cpu") < CACHE_BYTES + 12 * one


@pytest.mark.parametrize(
    ("suffix", "error", "message"),
    [
        ("/nothing.zarr", DataError, "nothing.zarr"),
        ("/*.zarr", ConfigError, r"holds Zarr .*; expected the prefix of one store, without wildcards"),
    ],
)
def test_what_is_no_zarr_is_refused(s3: S3, suffix: str, error: type[Exception], message: str) -> None:  # noqa: F811
    open_storage(s3.url).write("in.zarr/zarr.json", b"{}")
    with pytest.raises(error, match=message):
        XarraySource(variable="rain").scan([place_of(s3.url + suffix)])
