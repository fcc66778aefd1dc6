"""Packing from a bucket by dates: which objects are listed and read, what is refused, and what it costs."""

import gzip
import re
import tarfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.pack.__main__ import main
from rainspark.data.pack.archive import pack, write_job
from rainspark.data.pack.places import place_of
from rainspark.data.pack.scanning import OBJECTS_AT_ONCE
from rainspark.data.pack.survey import PackOptions, survey
from rainspark.data.sequences import TimeSpan
from rainspark.data.sources.files import find
from rainspark.data.sources.foreign.xarray_source import XarraySource
from rainspark.data.sources.importer import ImporterSource
from rainspark.data.sources.knmi import KnmiSource
from rainspark.data.sources.odim import OdimSource
from rainspark.data.sources.places.buckets import Bucket
from rainspark.data.sources.smaat import SmaatSource
from rainspark.data.store.object_store import open_store
from rainspark.data.store.storage import open_storage
from tests.data.radar_files import (
    FIRST_S,
    digests,
    odim_name,
    rates,
    write_odim_file,
    write_odim_series,
    write_series,
)
from tests.peak_memory import added_bytes
from tests.s3_server import BUCKET, S3, fault_rules, s3, s3_server  # noqa: F401
from tests.web_server import Reply, web_server

OPTIONS = PackOptions(window=3, max_frames=6)
DAY_S = 86_400


def day(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@dataclass
class Folder:
    """A store in memory that counts what it is asked for."""

    objects_of: Mapping[str, bytes]
    url: str = "s3://bucket"
    listed: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def objects(self, prefix: str = "") -> list[tuple[str, int]]:
        self.listed.append(prefix)
        return sorted((name, len(data)) for name, data in self.objects_of.items() if name.startswith(prefix))

    def read_object(self, name: str, limit_bytes: int) -> bytes:
        with self.lock:
            self.asked.append(name)
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
        data = self.objects_of[name]
        assert len(data) <= limit_bytes
        # As long as a store may take: others are asked for meanwhile.
        time.sleep(0.002)
        with self.lock:
            self.in_flight -= 1
        return data

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        self.asked.append(name)
        return self.objects_of[name][start:stop]


def bucket_of(folder: Folder, pattern: str, span: TimeSpan | None = None) -> Bucket:
    return Bucket(address=folder.url, pattern=pattern, span=span, open=lambda _: folder)


def names_of(folder: Folder, pattern: str, span: TimeSpan | None = None) -> list[str]:
    return [str(file.path) for file in find([bucket_of(folder, pattern, span)], (".h5",))]


KEYS = [
    "2019/12/31/OPERA/a_201912312350.h5",
    "2019/12/31/OPERA/b_201912312350.h5",
    "2020/01/01/OPERA/a_202001010000.h5",
    "2020/01/01/OPERA/deep/a_202001010005.h5",
    "2020/01/02/OPERA/a_202001020000.h5",
    "2020/01/02/OPERA/a_202001020000.txt",
    "2020/01/03/OPERA/a_202001030000.h5",
    "flat/RAD_20191231_0000.h5",
    "flat/RAD_20200101_0005.h5",
    "flat/RAD_20200110_0005.h5",
    "flat/._RAD_20200101_0005.h5",
]
TWO_DAYS = TimeSpan(start_s=day("2020-01-01"), stop_s=day("2020-01-03"))


@pytest.mark.parametrize(
    ("pattern", "span", "names", "listed"),
    [
        ("%Y/%m/%d/OPERA/a_*.h5", TWO_DAYS, [2, 4], ["2020/01/01/OPERA/a_", "2020/01/02/OPERA/a_"]),
        ("%Y/%m/%d/*/a_%Y%m%d%H%M.h5", TWO_DAYS, [2, 4], ["2020/01/01/", "2020/01/02/"]),
        ("%Y/%m/%d/", TWO_DAYS, [2, 3, 4], ["2020/01/01/", "2020/01/02/"]),
        ("%Y/%m/%d", TWO_DAYS, [2, 3, 4], ["2020/01/01", "2020/01/02"]),
        ("%Y/%m/%d/**.h5", TWO_DAYS, [2, 3, 4], ["2020/01/01/", "2020/01/02/"]),
        ("flat/RAD_%Y%m%d_????.h5", TWO_DAYS, [8], ["flat/RAD_20200101_", "flat/RAD_20200102_"]),
        ("flat/RAD_%Y%m%d_%H%M.h5", TWO_DAYS, [8], ["flat/RAD_20200101_", "flat/RAD_20200102_"]),
        ("2020/01/*/OPERA/*.h5", None, [2, 4, 6], ["2020/01/"]),
        ("2020/01", None, [2, 3, 4, 6], ["2020/01"]),
        ("flat/", None, [7, 8, 9], ["flat/"]),
        ("", None, [0, 1, 2, 3, 4, 6, 7, 8, 9], [""]),
        ("flat/RAD_20200110_0005.h5", None, [9], ["flat/RAD_20200110_0005.h5"]),
        ("2020/01/02/OPERA/a_", None, [4], ["2020/01/02/OPERA/a_"]),
        ("%Y/%m/%d/OPERA/a_%Y%m%d", TWO_DAYS, [2, 4], ["2020/01/01/OPERA/a_20200101", "2020/01/02/OPERA/a_20200102"]),
        ("flat/RAD_20?", None, [], ["flat/RAD_20"]),
        ("2020/01/02/OPERA/a_202001020000.txt", None, [5], ["2020/01/02/OPERA/a_202001020000.txt"]),
    ],
)
def test_patterns_list_what_is_fixed_of_each_day(
    pattern: str, span: TimeSpan | None, names: list[int], listed: list[str]
) -> None:
    folder = Folder(dict.fromkeys(KEYS, b""))
    assert names_of(folder, pattern, span) == [KEYS[number] for number in names]
    assert folder.listed == listed


def test_a_day_of_the_year_and_a_part_of_a_day() -> None:
    folder = Folder(dict.fromkeys(["y20/366/a.h5", "y20/001/b.h5", "y21/001/c.h5", "100%/d.h5"], b""))
    span = TimeSpan(start_s=day("2020-12-31T22:00"), stop_s=day("2021-01-01T00:00") + 1)
    assert names_of(folder, "y%y/%j/*.h5", span) == ["y20/366/a.h5", "y21/001/c.h5"]
    assert names_of(folder, "100%%/*.h5") == ["100%/d.h5"]


@pytest.mark.parametrize(
    ("pattern", "span", "message"),
    [
        ("%Y/%m/*.h5", None, "its days have to be known; give --from DAY and --to DAY"),
        ("%Y/%m/*.h5", TimeSpan(start_s=-(2**33), stop_s=2**33), "its days have to be known"),
        ("%Y/%b/*.h5", TWO_DAYS, "%b cannot be looked for; expected %Y, %y"),
        ("%Y/%Q", TWO_DAYS, "%Q cannot be looked for"),
    ],
)
def test_patterns_that_name_no_keys_are_refused(pattern: str, span: TimeSpan | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        names_of(Folder({}), pattern, span)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://host/a.h5", "cannot be listed; expected files, folders, or s3://"),
        ("ftp://host/a", "cannot be listed"),
        ("s3:///a", "expected s3://BUCKET/PREFIX-OR-PATTERN"),
        ("s3://user:secret@bucket/a", "without user, password"),
        ("s3://b*/a", "expected s3://BUCKET"),
        ("s3:/bucket/a", "an address is mistyped"),
    ],
)
def test_addresses_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        place_of(text)
    assert "secret" not in str(caught.value)


def test_places_are_paths_and_buckets() -> None:
    assert place_of("a/b*.h5") == Path("a/b*.h5")
    assert place_of("file:///a/b%20c") == Path("/a/b c")
    place = place_of("s3://bucket/%Y/*.h5", TWO_DAYS)
    assert isinstance(place, Bucket)
    assert (str(place), place.span) == ("s3://bucket/%Y/*.h5", TWO_DAYS)


def stored_series(folder: Path, numbers: range) -> dict[str, bytes]:
    """Make the objects of a series, by the folder of their days and by OPERA's names."""
    objects = {}
    for number, path in zip(numbers, write_odim_series(folder, numbers), strict=True):
        time = datetime.fromtimestamp(FIRST_S + 300 * number, UTC)
        objects[f"{time:%Y/%m/%d/OPERA/COMP/OPERA@%Y%m%dT%H%M@0@RATE.h5}"] = path.read_bytes()
    return objects


def test_a_bucket_packs_to_the_bytes_of_its_files(tmp_path: Path) -> None:
    folder = Folder(stored_series(tmp_path / "in", range(12)))
    span = TimeSpan(start_s=FIRST_S, stop_s=FIRST_S + DAY_S)
    pack([bucket_of(folder, "%Y/%m/%d/OPERA/COMP/*@RATE.h5", span)], tmp_path / "remote", OPTIONS, source=OdimSource())
    pack([tmp_path / "in"], tmp_path / "local", OPTIONS, source=OdimSource())
    assert digests(tmp_path / "remote") == digests(tmp_path / "local")
    # One look at the product, one survey a frame, one reading a packed frame (sequences overlap).
    assert len(folder.asked) == 1 + 12 + 16
    assert 1 < folder.most <= OBJECTS_AT_ONCE


def test_memory_is_that_of_a_few_objects(tmp_path: Path) -> None:
    # 40 objects of 2.9 MB, which come from a disk as from a store.
    for number in range(40):
        time_s = FIRST_S + 300 * number
        write_odim_file(tmp_path / odim_name(time_s), rates(number % 3, 600, 600), time_s)

    class Disk(Folder):
        def objects(self, prefix: str = "") -> list[tuple[str, int]]:
            return sorted((path.name, path.stat().st_size) for path in tmp_path.glob(f"{prefix}*.hdf"))

        def read_object(self, name: str, limit_bytes: int) -> bytes:
            data = (tmp_path / name).read_bytes()
            assert len(data) <= limit_bytes
            return data

    place = bucket_of(Disk({}), "")
    options = PackOptions(window=2, max_frames=4)
    survey([place], options, OdimSource())
    assert added_bytes(lambda: survey([place], options, OdimSource()), "cpu") < 2 * OBJECTS_AT_ONCE * 3e6


def test_a_damaged_object_ends_the_survey_where_it_lies(tmp_path: Path) -> None:
    objects = stored_series(tmp_path / "in", range(30))
    damaged = sorted(objects)[11]
    folder = Folder({**objects, damaged: objects[damaged][:300]})
    place = bucket_of(folder, "**@RATE.h5")
    with pytest.raises(DataError, match=f"s3://bucket/{damaged} cannot be read as an ODIM_H5 composite"):
        survey([place], OPTIONS, OdimSource())
    # Those that were asked for meanwhile, and no more.
    assert len(folder.asked) <= 1 + 12 + OBJECTS_AT_ONCE
    job = survey([place], replace(OPTIONS, max_bad=1), OdimSource())
    assert len(job.supplies[0].refs) == 29


def test_an_object_that_changes_between_survey_and_packing_stops_the_pack(tmp_path: Path) -> None:
    objects = stored_series(tmp_path / "in", range(6))
    folder = Folder(objects)
    job = survey([bucket_of(folder, "**")], OPTIONS, OdimSource())
    first, second, *_ = sorted(objects)
    folder.objects_of = {**objects, first: objects[second]}
    with pytest.raises(DataError, match=f"s3://bucket/{first} changed while it was packed"):
        write_job(open_storage(tmp_path / "out"), job)


def test_the_span_chooses_frames_of_folders_too(tmp_path: Path) -> None:
    files = write_series(tmp_path / "in", range(24))
    # Frames end from 23:50 to 01:45; the day of the new year begins with the third.
    command = ["knmi", str(tmp_path / "in"), "--window", "2"]
    assert main([*command, "--from", "2020-01-01", "--to", "2020-01-01T01:00", "--out", str(tmp_path / "a")]) == 0
    (tmp_path / "part").mkdir()
    for file in files[2:15]:
        (tmp_path / "part" / file.name).write_bytes(file.read_bytes())
    assert main(["knmi", str(tmp_path / "part"), "--window", "2", "--out", str(tmp_path / "b")]) == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--from", "2021-01-01"], 4, "no frames of 2021-01-01T00:00:00Z to .*between 2019-12-31T23:50:00Z and"),
        (["--from", "2020-01-02", "--to", "2020-01-01"], 3, "--from and --to name no time"),
        (["--from", "yesterday"], 3, "'yesterday'; expected a day, 2019-01-31"),
    ],
)
def test_spans_without_frames_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    write_series(tmp_path / "in", range(3))
    command = ["knmi", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--window", "2", *options]
    try:
        ended = main(command)
    except SystemExit as error:
        ended = int(str(error.code))
    assert ended == code
    assert re.search(message, capsys.readouterr().err)


def test_sources_of_files_on_disks_say_so() -> None:
    with pytest.raises(DataError, match=r"lies in a store, .* are read from disks only"):
        SmaatSource().scan([bucket_of(Folder({}), "a/")])


def test_importers_read_objects_one_by_one(tmp_path: Path) -> None:
    pytest.importorskip("pysteps")
    objects = stored_series(tmp_path / "odim", range(4))
    for name, data in objects.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    source = ImporterSource(importer="odim_hdf5", time_patterns=("OPERA@%Y%m%dT%H%M@0@RATE.h5",))
    folder = Folder({**objects, "2020/01/01/OPERA/COMP/README": b"not radar"})
    span = TimeSpan(start_s=FIRST_S, stop_s=FIRST_S + DAY_S)
    pack([bucket_of(folder, "%Y/%m/%d/", span)], tmp_path / "remote", OPTIONS, source=source)
    pack([tmp_path / "in"], tmp_path / "local", OPTIONS, source=source)
    assert digests(tmp_path / "remote") == digests(tmp_path / "local")
    assert "2020/01/01/OPERA/COMP/README" not in folder.asked


def test_files_that_xarray_opens_are_read_one_by_one(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    pytest.importorskip("rioxarray")
    objects = {}
    (tmp_path / "in").mkdir()
    for number in range(4):
        path = tmp_path / "in" / f"rain_{datetime.fromtimestamp(FIRST_S + 300 * number, UTC):%Y%m%d%H%M}.tif"
        rain_mmh = np.random.default_rng(number).integers(0, 900, (24, 20)).astype(np.float32) / 100
        shape = {"width": 20, "height": 24, "count": 1, "dtype": "float32", "nodata": -1}
        transform = rasterio.transform.from_origin(3e5, 7e6, 1000, 1000)
        with rasterio.open(path, "w", driver="GTiff", crs="EPSG:3067", transform=transform, **shape) as file:
            file.write(rain_mmh, 1)
        # One of them compressed, as MRMS publishes all of its own.
        name, data = (path.name, path.read_bytes()) if number else (f"{path.name}.gz", gzip.compress(path.read_bytes()))
        objects[f"{path.stem[5:9]}/{name}"] = data
    source = XarraySource(variable="band_data", units="mm/h", period_min=0, time_patterns=("rain_%Y%m%d%H%M.tif*",))
    folder = Folder({**objects, "2020/rain_202001010000.txt": b"not radar", "2021/rain_202101010000.tif": b""})
    span = TimeSpan(start_s=FIRST_S, stop_s=FIRST_S + DAY_S)
    pack([bucket_of(folder, "%Y/*.tif*", span)], tmp_path / "remote", OPTIONS, source=source)
    pack([tmp_path / "in"], tmp_path / "local", OPTIONS, source=source)
    assert digests(tmp_path / "remote") == digests(tmp_path / "local")
    assert set(folder.asked) == set(objects)

    cut = gzip.compress(bytes(9000))[:20]
    with pytest.raises(DataError, match=r"^s3://bucket/rain_202001010000\.tif\.gz cannot be decompressed"):
        survey([bucket_of(Folder({"rain_202001010000.tif.gz": cut}), "*.gz")], OPTIONS, source)
    damaged = bucket_of(Folder({"rain_202001010000.tif": b"II*\0 and no more"}), "*.tif")
    with pytest.raises(DataError, match=r"^s3://bucket/rain_202001010000\.tif cannot be read by the engine rasterio"):
        survey([damaged], OPTIONS, source)


@pytest.mark.parametrize("kind", ["tar", "gnu.tar"])
def test_tars_in_a_bucket_are_read_member_by_member(tmp_path: Path, kind: str) -> None:
    files = write_series(tmp_path / "in", range(12))
    objects = {}
    for number, part in enumerate((files[:5], files[5:])):
        path = tmp_path / f"day{number}.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT if kind == "gnu.tar" else tarfile.PAX_FORMAT) as tar:
            for file in part:
                # Long names: extended headers.
                tar.add(file, arcname=f"{'x' * 90}/{'y' * 90}/{file.name}")
            tar.addfile(tarfile.TarInfo("README"))
        objects[f"knmi/{path.name}"] = path.read_bytes()
    folder = Folder(objects)
    pack([bucket_of(folder, "knmi/")], tmp_path / "remote", OPTIONS, source=KnmiSource())
    pack([tmp_path / "in"], tmp_path / "local", OPTIONS, source=KnmiSource())
    assert digests(tmp_path / "remote") == digests(tmp_path / "local")

    cut = {"knmi/day0.tar": objects["knmi/day0.tar"][:-14_000]}
    with pytest.raises(DataError, match=r"s3://bucket/knmi/day0\.tar"):
        KnmiSource().scan([bucket_of(Folder(cut), "knmi/")])


@pytest.mark.parametrize("name", ["day.zip", "day.tar.gz", "a.h5.bz2"])
def test_archives_in_a_bucket_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"s3://bucket/a/{name} is an archive or compressed.*copy it into a folder"):
        names_of(Folder({f"a/{name}": b""}), "a/")


def test_an_empty_bucket_is_named() -> None:
    with pytest.raises(DataError, match="no radar files in s3://bucket/a/; expected ODIM_H5"):
        OdimSource().scan([bucket_of(Folder({}), "a/")])


# Against a real server behind a proxy that fails on purpose.


def upload(s3: S3, objects: Mapping[str, bytes]) -> None:  # noqa: F811
    storage = open_storage(s3.url)
    for name, data in objects.items():
        storage.write(name, data)


def test_a_faulty_bucket_packs_to_the_bytes_of_its_files(s3: S3, tmp_path: Path) -> None:  # noqa: F811
    objects = stored_series(tmp_path / "in", range(40))
    upload(
        s3,
        {
            **objects,
            "2020/01/02/OPERA/COMP/other@RATE.h5": b"not asked for",
            "2020/01/01/OPERA/COMP/OPERA@20200101T0000@0@RATE.tiff": b"nor this",
        },
    )
    pack([tmp_path / "in"], tmp_path / "local", OPTIONS, source=OdimSource())
    body_bytes = min(map(len, objects.values()))
    s3.inject(fault_rules(0.05, 400, body_bytes))
    command = ["odim", f"{s3.url}/%Y/%m/%d/OPERA/COMP/*@RATE.h5", "--from", "2019-12-31", "--to", "2020-01-01"]
    assert main([*command, "--window", "3", "--frames", "6", "--out", str(tmp_path / "remote")]) == 0
    done = [what for _, _, what in s3.log() if what]
    assert len(done) >= 3, done
    assert digests(tmp_path / "remote") == digests(tmp_path / "local")


def test_knmi_files_are_read_from_a_flat_bucket(s3: S3, tmp_path: Path) -> None:  # noqa: F811
    files = write_series(tmp_path / "in", range(6))
    upload(s3, {f"flat/{file.name}": file.read_bytes() for file in files})
    pattern = f"{s3.url}/flat/RAD_NL25_RAP_5min_%Y%m%d*.h5"
    span = TimeSpan(start_s=day("2020-01-01"), stop_s=day("2020-01-02"))
    s3.inject([])
    job = survey([place_of(pattern, span)], PackOptions(window=2), KnmiSource())
    assert [Path(str(ref)).name for ref in job.supplies[0].refs] == [file.name for file in files[2:]]
    assert not any("201912" in line for line, _, _ in s3.log() if "RAD_NL25" in line.partition("?")[0])


def test_tars_are_read_from_a_faulty_bucket(s3: S3, tmp_path: Path) -> None:  # noqa: F811
    files = write_series(tmp_path / "in", range(10))
    with tarfile.open(tmp_path / "day.tar", "w") as tar:
        for file in files:
            tar.add(file, arcname=file.name)
    upload(s3, {"knmi/day.tar": (tmp_path / "day.tar").read_bytes()})
    pack([tmp_path / "in"], tmp_path / "local", OPTIONS, source=KnmiSource())
    s3.inject([rule for rule in fault_rules(0.1, 100, 400) if rule["do"] != "corrupt"])
    pack([place_of(f"{s3.url}/knmi")], tmp_path / "remote", OPTIONS, source=KnmiSource())
    assert digests(tmp_path / "remote") == digests(tmp_path / "local")


def test_damage_on_the_way_is_read_again_and_damage_in_the_store_is_not(s3: S3) -> None:  # noqa: F811
    upload(s3, {"a": b"radar" * 100})
    store = open_store(s3.url, deadline_s=20)
    s3.inject([{"match": "GET", "times": 2, "do": "corrupt", "at": 7}])
    assert store.read_object("a", 1000) == b"radar" * 100
    assert store.stats()["retries"] == 2
    # What the store itself holds comes back the same: its ETag is then no digest of the bytes.
    s3.inject([{"match": "GET", "times": 9, "do": "corrupt", "at": 7}])
    assert store.read_object("a", 1000) != b"radar" * 100
    with pytest.raises(DataError, match="has 500 bytes; expected at most 499"):
        store.read_object("a", 499)
    store.close()


def test_listing_begins_and_ends_at_the_prefix(s3: S3) -> None:  # noqa: F811
    names = [f"flat/RAD_2020{month:02d}{number:02d}.h5" for month in (1, 2, 12) for number in range(1, 29)]
    upload(s3, dict.fromkeys([*names, "flat/A", "flat/z"], b"x"))
    store = open_store(s3.url, deadline_s=20)
    for prefix in (
        "flat/RAD_202001",
        "flat/RAD_20200210",
        "flat/RAD_2020021",
        "flat/",
        "flat/RAD_20201228.h5",
        "flat/B",
    ):
        expected = [(name, 1) for name in sorted([*names, "flat/A", "flat/z"]) if name.startswith(prefix)]
        assert store.objects(prefix) == expected
    store.close()


def listing(names: Mapping[str, bytes], bucket: str) -> bytes:
    entries = "".join(
        f'<Contents><Key>{name}</Key><LastModified>2020-01-01T00:00:00.000Z</LastModified><ETag>"x"</ETag>'
        f"<Size>{len(data)}</Size></Contents>"
        for name, data in sorted(names.items())
    )
    return (
        f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()
    )


def test_public_buckets_are_asked_without_a_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = stored_series(tmp_path / "in", range(4))
    signed: list[str] = []

    def answer(path: str, headers: dict[str, str]) -> Reply:
        signed.extend(name for name in headers if name in ("authorization", "x-amz-date"))
        parts = urlsplit(path)
        if "list-type" in parse_qs(parts.query):
            prefix = parse_qs(parts.query).get("prefix", [""])[0]
            there = {name: data for name, data in objects.items() if name.startswith(prefix)}
            return Reply(200, {"Content-Type": "application/xml"}, listing(there, "public"))
        data = objects[unquote(parts.path).removeprefix("/public/")]
        first, last = map(int, headers["range"].removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        span = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}", "ETag": '"x"'}
        return Reply(206, {**span, "Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}, part)

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SKIP_SIGNATURE"):
        monkeypatch.delenv(name, raising=False)
    with web_server(answer) as (host, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}")
        span = TimeSpan(start_s=FIRST_S, stop_s=FIRST_S + DAY_S)
        pack([place_of("s3://public/%Y/%m/%d/", span)], tmp_path / "remote", OPTIONS, source=OdimSource())
    pack([tmp_path / "in"], tmp_path / "local", OPTIONS, source=OdimSource())
    assert digests(tmp_path / "remote") == digests(tmp_path / "local")
    assert asked
    assert not signed


def test_a_bucket_that_is_not_public_names_the_credentials(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    upload(s3, {"a/x.h5": b"x"})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(DataError, match=r"the store refuses access: .*set AWS_ACCESS_KEY_ID"):
        OdimSource().scan([place_of(f"s3://{BUCKET}/{s3.prefix}/a/")])
