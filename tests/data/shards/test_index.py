"""The index: written and read back, and every kind of damage refused by the name of its key."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rainspark.data.errors import DataError
from rainspark.data.frames import Crop, Grid
from rainspark.data.shards.index import (
    Index,
    SequenceEntry,
    ShardEntry,
    check_shard_sizes,
    dump_index,
    load_index,
    signed,
    verify_sequence_bytes,
)
from rainspark.data.shards.origins import Origin
from rainspark.data.shards.totals import RainTotals
from rainspark.data.sources.source import Recipe
from rainspark.data.store.storage import open_storage


def small_index() -> Index:
    """Make an index of one shard and two sequences of two frames of 2 x 3 pixels."""

    def entry(key: str, origin: int, offset: int, start_s: int) -> SequenceEntry:
        return SequenceEntry(
            key=key,
            origin=origin,
            shard=0,
            start_s=start_s,
            num_frames=2,
            num_starts=2,
            offset=offset,
            num_bytes=2048,
            sha256="a" * 64,
            json_offset=offset + 512,
            json_bytes=10,
            frames_offset=offset + 1536,
            frames_bytes=30,
            frame_ends=(10, 30),
            rain_fraction=(0.0, 0.5),
            missing=(0, 6),
            rain_after=0.25,
            frame_digests="0123456789abcdef" * 2,
            wetness_1mmh=(0.0, 0.25),
            wetness_5mmh=(0.0, 0.125),
        )

    def origin(row0: int, source: str, scale_mmh: float) -> Origin:
        grid = Grid(rows=4, cols=3, pixel_km=1.0, projection="+proj=stere", x0_km=0.0, y0_km=0.0)
        crop = Crop(row0=row0, row1=row0 + 2, col0=0, col1=3)
        recipe = Recipe(kind="odim", options={"quantity": "RATE"})
        shared: dict[str, Any] = {
            "source": source,
            "licence": "none",
            "scale_mmh": scale_mmh,
            "grid": grid,
            "crop": crop,
        }
        return Origin(**shared, period_s=0, recipe=recipe)

    return signed(
        Index(
            schema_version=3,
            variables=("rainfall_rate",),
            cadence_s=300,
            rows=2,
            cols=3,
            missing_count=65535,
            window=2,
            max_frames=2,
            origins=(origin(0, "test", 0.12), origin(1, "test", 0.12), origin(0, "other", 0.5)),
            shards=(ShardEntry(name="shard-00000.tar", num_bytes=5120, sha256="b" * 64),),
            sequences=(entry("a", 0, 0, 0), entry("b", 2, 2048, 9000)),
            statistics={"test": RainTotals(frames=2), "other": RainTotals(frames=2)},
        )
    )


def test_an_index_is_read_as_it_was_written(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    index = small_index()
    storage.write("index.json", dump_index(index))
    assert load_index(storage) == index
    assert dump_index(load_index(storage)) == dump_index(index)


def without_news(values: dict[str, Any]) -> dict[str, Any]:
    """Take out of an index's JSON what schema 2 did not have."""
    for origin in values["origins"]:
        del origin["period_s"], origin["recipe"]
    for entry in values["sequences"]:
        del entry["frame_digests"], entry["wetness_1mmh"], entry["wetness_5mmh"]
    del values["variables"]
    return values | {"schema_version": 2}


def test_an_index_of_schema_2_is_read_as_it_is(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write("index.json", _signed_json(without_news(json.loads(dump_index(small_index())))))
    index = load_index(storage)
    assert (index.schema_version, index.variables, index.origins[0].recipe) == (2, None, None)
    assert index.sequences[1].frame_digest(1) is None
    # Its fingerprint, by which runs know it, stays.
    assert dump_index(signed(index)) == dump_index(index)
    assert index.fingerprint == json.loads(storage.read("index.json"))["fingerprint"]


def leaves(value: Any, holder: Any = None, key: Any = None) -> Iterator[tuple[Any, Any]]:
    """Walk over all plain values of JSON: what holds each, and where."""
    if isinstance(value, dict | list):
        for inner in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[inner], value, inner)
    else:
        yield holder, key


def test_the_fingerprint_covers_every_value(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    values = json.loads(dump_index(small_index()))
    for holder, key in leaves(values):
        before = holder[key]
        match before:
            case str():
                holder[key] = before[::-1] + "-"
            case int():
                holder[key] = before + 1
            case _:
                holder[key] = before / 2 or 1
        # Whatever its own limits let through is found by the fingerprint.
        storage.write("index.json", json.dumps(values).encode())
        with pytest.raises(DataError, match=r"index\.json: (key|fingerprint is .* but the content's is) "):
            load_index(storage)
        holder[key] = before


def edit_top(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.__setitem__(key, value)


def edit_sequence(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values["sequences"][1].__setitem__(key, value)


def edit_origin(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values["origins"][2].__setitem__(key, value)


def edit_shard(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values["shards"][0].__setitem__(key, value)


DAMAGE = [
    # Types, keys and limits, by pydantic.
    (
        edit_top("schema_version", 1),
        "key schema_version is 1; expected 2 or 3; .*another version.*pack the archive again",
    ),
    (edit_top("cadence_s", 0), "key cadence_s is 0; expected greater than or equal to 1"),
    (edit_top("cadence_s", 300.0), "key cadence_s is 300.0; expected a valid integer"),
    (edit_top("cadence_s", 86401), "key cadence_s is 86401; expected less than or equal to 86400"),
    (edit_top("cadence_s", 10**25), "key cadence_s is 10{25}"),
    (edit_top("missing_count", 0), "key missing_count is 0; expected 65535"),
    (edit_top("packed_from", "a pack"), "key packed_from is a pack; expected to match pattern"),
    (edit_top("surprise", 1), "key surprise is unknown"),
    (edit_top("\x1b[2J", 1), r"key '\\x1b\[2J' is unknown"),
    (edit_top("origins", [7]), r"key origins\[0\] is 7; expected an object"),
    (lambda values: values["origins"][0].pop("licence"), r"key origins\[0\]\.licence is missing"),
    (edit_origin("crop", None), r"key origins\[2\]\.crop is None; expected an object"),
    (edit_origin("crop", {}), r"key origins\[2\]\.crop\.row0 is missing"),
    (edit_origin("crop", {"row0": 2, "row1": 2, "col0": 0, "col1": 3}), r"key origins\[2\]\.crop: .*holds no pixels"),
    (edit_origin("scale_mmh", 10**400), r"key origins\[2\]\.scale_mmh is 10+; expected a finite number"),
    (lambda values: values["origins"][0]["grid"].update(x0_km=10**400), r"key origins\[0\]\.grid\.x0_km is 10+; exp"),
    (edit_shard("name", "../shard.tar"), r"key shards\[0\].name is ../shard.tar"),
    (edit_shard("name", "\x1b.tar"), r"key shards\[0\].name is '\\x1b.tar'; expected to match"),
    (edit_shard("sha256", "B" * 64), r"key shards\[0\].sha256 is B{64}"),
    (edit_top("sequences", [7]), r"key sequences\[0\] is 7; expected an object"),
    (edit_sequence("key", "b.x"), r"key sequences\[1\].key is b.x"),
    (edit_sequence("key", "\x1b[2J"), r"key sequences\[1\].key is '\\x1b\[2J'; expected to match"),
    (edit_sequence("origin", -1), r"\.origin is -1; expected greater"),
    (edit_sequence("shard", -1), r"\.shard is -1"),
    (edit_sequence("offset", -1), r"\.offset is -1"),
    (edit_sequence("frame_ends", ["10", 30]), r"frame_ends\[0\] is 10; expected a valid integer"),
    (edit_sequence("rain_fraction", [0.0, 1.5]), r"\.rain_fraction\[1\] is 1.5; expected less than or equal to 1"),
    (edit_sequence("rain_fraction", [0, 10**400]), r"\.rain_fraction\[1\] is 10+; expected a finite number"),
    (edit_sequence("missing", [0, True]), r"\.missing\[1\] is True; expected a valid integer"),
    (edit_sequence("rain_after", 1.5), r"\.rain_after is 1.5; expected less than or equal to 1"),
    (edit_sequence("rain_after", None), r"\.rain_after is None; expected a valid number"),
    (edit_top("statistics", {"test": {"wet": -1}}), r"key statistics\.test\.wet is -1; expected greater"),
    (edit_top("statistics", {"test": {"rounding": {"clamped": 0.5}}}), r"statistics\.test\.rounding\.clamped is 0.5"),
    (edit_top("statistics", {"test": "x"}), r"statistics\.test is x; expected an object"),
    # What hangs together, by hand.
    (edit_top("window", 3), "key window is 3"),
    (edit_top("rows", 3), r"key rows, cols is .3, 3.; expected .2, 3., those of origins\[0\]\.crop"),
    (edit_origin("crop", {"row0": 0, "row1": 3, "col0": 0, "col1": 3}), r"expected .3, 3., those of origins\[2\]\."),
    (edit_origin("crop", {"row0": 0, "row1": 2, "col0": 1, "col1": 4}), "outside the grid of 4 rows and 3 columns"),
    (edit_origin("scale_mmh", -1.0), r"key origins\[2\]\.scale_mmh is -1.0"),
    (edit_origin("scale_mmh", 1e99), r"key origins\[2\]\.scale_mmh is 1e\+99; expected 1e-06 to 100 mm/h"),
    (edit_origin("source", "test"), r"key origins\[2\]\.scale_mmh is 0.5; expected 0.12, as in the source's other"),
    (edit_origin("source", "\x1b[2J"), r"key origins\[2\]\.source is '\\x1b\[2J'; expected printable"),
    (edit_origin("licence", "a\nb"), r"key origins\[2\]\.licence is 'a\\nb'"),
    (lambda values: values["origins"][0]["grid"].update(projection="\x9b2J"), r"\.grid\.projection is '\\x9b2J'"),
    (lambda values: values["origins"].__setitem__(1, values["origins"][0]), r"key origins\[1\] is one that came"),
    (edit_top("origins", []), "key origins is empty"),
    (edit_top("sequences", []), "key sequences is empty"),
    (edit_shard("num_bytes", 4000), r"key sequences\[1\] \(b\).offset is bytes 2048 to 4096.*inside the shard's 4000"),
    (edit_sequence("key", "a"), r"key sequences\[\].key is a 2 times"),
    (edit_sequence("origin", 3), r"\.origin is 3; expected 0 to 2"),
    (edit_sequence("shard", 1), r"\.shard is 1; expected 0 to 0"),
    (edit_sequence("num_frames", 3), r"\.num_frames is 3"),
    (edit_sequence("num_starts", 0), r"\.num_starts is 0"),
    (edit_sequence("frames_bytes", 3000), r"\.frames_offset is bytes 3584 to 6584"),
    (edit_sequence("frame_ends", [10, 31]), r"\.frame_ends is up to 31"),
    (edit_sequence("frame_ends", [30, 30]), r"\.frame_ends"),
    (edit_sequence("frame_ends", [30]), r"\.frame_ends is 1 values; expected 2"),
    (edit_sequence("missing", [0, 7]), r"\.missing is 7; expected 0 to 6"),
    (edit_top("variables", ["snowfall"]), "key variables is .'snowfall',.; expected .'rainfall_rate',"),
    (edit_origin("period_s", -1), r"key origins\[2\]\.period_s is -1; expected greater"),
    (edit_origin("recipe", {"kind": 7}), r"key origins\[2\]\.recipe\.kind is 7; expected a valid string"),
    (lambda values: values["origins"][1].update(period_s=600), r"origins\[1\]\.period_s is 600; expected 0, as in the"),
    (edit_sequence("frame_digests", "0123"), r"\.frame_digests is 4 digits; expected 16 a frame"),
    (edit_sequence("frame_digests", "0x" * 16), r"\.frame_digests is 0x0x.*; expected to match pattern"),
    (edit_sequence("wetness_1mmh", [0.5]), r"\.wetness_1mmh is 1 values; expected 2"),
    (edit_sequence("wetness_5mmh", [0.5, 1.5]), r"\.wetness_5mmh\[1\] is 1.5; expected less"),
    (edit_sequence("rain_after", -0.5), r"\.rain_after is -0.5; expected 0 to 1, or -1"),
    (edit_sequence("start_s", 10**18), r"\.start_s is 10{18}, .*years 1900 to 2199"),
    (edit_sequence("start_s", -(10**10)), r"\.start_s is -10{10}"),
    (edit_sequence("start_s", 7_258_118_400 - 300), r"\.start_s is 7258118100, the last frame's 7258118400"),
]


@pytest.mark.parametrize(("edit", "message"), DAMAGE)
def test_a_wrong_value_is_refused_by_its_key(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    values = json.loads(dump_index(small_index()))
    edit(values)
    # Signed again where that is possible: the checks must hold without the fingerprint's help.
    storage = open_storage(tmp_path)
    storage.write("index.json", _signed_json(values))
    with pytest.raises(DataError, match=message) as caught:
        load_index(storage)
    assert "index.json" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def _signed_json(values: dict[str, Any]) -> bytes:
    rest = {key: value for key, value in values.items() if key != "fingerprint"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(values | {"fingerprint": hashlib.sha256(canonical).hexdigest()}).encode()


def test_grids_that_differ_are_told_in_words() -> None:
    index = small_index()
    moved = replace(index.origins[2], grid=replace(index.origins[2].grid, x0_km=7.5))
    mixed = replace(index, origins=(*index.origins[:2], moved))
    with pytest.raises(
        DataError, match=r"grid: .* such as 4 x 3 pixels from x 0 km, y 0 km and 4 x 3 pixels from x 7.5 km"
    ):
        _ = mixed.grid


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    data = dump_index(small_index()).replace(b'"cadence_s":300', b'"cadence_s":600,"cadence_s":300')
    open_storage(tmp_path).write("index.json", data)
    with pytest.raises(DataError, match="a key stands in an object twice"):
        load_index(open_storage(tmp_path))


def test_statistics_nested_without_end_are_refused(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    for depth in (400, 900, 5000, 100_000):
        nested = b'"statistics":{"a":' + b"[" * depth + b"]" * depth + b"}"
        data = re.sub(rb'"statistics":\{.*\}\}?,"variables', nested + b',"variables', dump_index(small_index()))
        assert nested in data
        storage.write("index.json", data)
        with pytest.raises(DataError, match=r"index\.json"):
            load_index(storage)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[NaN]", b"[" * 100_000, b"[]", b"null", b'"\\ud800"'])
def test_what_is_no_index_is_refused(tmp_path: Path, content: bytes) -> None:
    storage = open_storage(tmp_path)
    storage.write("index.json", content)
    with pytest.raises(DataError, match=r"index\.json"):
        load_index(storage)


def test_a_missing_index_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index\.json is missing.*rainspark pack"):
        load_index(open_storage(tmp_path))


def test_shards_that_are_missing_or_cut_are_named(tmp_path: Path) -> None:
    storage, index = open_storage(tmp_path), small_index()
    with pytest.raises(DataError, match=r"shard-00000\.tar is missing"):
        check_shard_sizes(storage, index)
    storage.write("shard-00000.tar", bytes(5000))
    with pytest.raises(DataError, match="has 5000 bytes, expected 5120"):
        check_shard_sizes(storage, index)
    storage.write("shard-00000.tar", bytes(5120))
    check_shard_sizes(storage, index)


def test_sequence_bytes_are_verified_by_shard_and_key() -> None:
    index = small_index()
    with pytest.raises(DataError, match=r"shard shard-00000\.tar, key a: 5 bytes, expected 2048"):
        verify_sequence_bytes(index, index.sequences[0], b"12345")
    with pytest.raises(DataError, match=r"key a: SHA-256 of its bytes is .*, expected aaaa"):
        verify_sequence_bytes(index, index.sequences[0], bytes(2048))
