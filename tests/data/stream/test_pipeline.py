"""The webdataset pipeline for other trainers: every window once, in mm/h and with a mask, and nothing unverified."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader

from rainspark.data.errors import ConfigError, DamagedError, DataError
from rainspark.data.sequences import TimeSpan
from rainspark.data.stream.options import ReadOptions
from rainspark.data.stream.pipeline import windows_pipeline
from tests.data.archives import CADENCE_S, FIRST_S, PackedArchive, random_runs
from tests.data.mixed import pack_mixed
from tests.data.stream.streams import COLS, ROWS, WINDOW, flip, pack, table_of
from tests.s3_server import S3, s3, s3_server, upload  # noqa: F401


def keys_of(archive: PackedArchive) -> list[str]:
    table = table_of(archive.index)
    return [table.name(row, archive.index) for row in range(len(table))]


def check_sample(archive: PackedArchive, sample: dict[str, Any], scale_mmh: float = 0.12) -> None:
    """Check a sample against the frames that were packed."""
    key, _, start = sample["__key__"].partition(":")
    first = int(start)
    counts_thw = archive.counts_thw[key][first : first + WINDOW]
    rain_mmh, valid = np.asarray(sample["rain_mmh"]), np.asarray(sample["valid"])
    assert rain_mmh.dtype == np.float32
    assert valid.dtype == bool
    np.testing.assert_array_equal(valid, counts_thw != 65535)
    expected = np.where(counts_thw == 65535, 0, counts_thw).astype(np.float32) * np.float32(scale_mmh)
    np.testing.assert_array_equal(rain_mmh, expected)
    entry = next(entry for entry in archive.index.sequences if entry.key == key)
    assert np.asarray(sample["end_times_s"]).tolist() == [
        entry.start_s + (first + t) * CADENCE_S for t in range(WINDOW)
    ]


def test_every_window_comes_once_in_mmh_with_a_mask(archive: PackedArchive) -> None:
    pipeline = windows_pipeline(archive.folder, window=WINDOW)
    assert isinstance(pipeline, webdataset.DataPipeline)
    samples = list(pipeline)
    assert [sample["__key__"] for sample in samples] == keys_of(archive)
    for sample in samples:
        check_sample(archive, sample)
    assert not all(sample["valid"].all() for sample in samples)


@pytest.mark.parametrize("shuffle_seed", [None, 5])
def test_two_workers_of_a_data_loader_share_the_sequences(archive: PackedArchive, shuffle_seed: int | None) -> None:
    pipeline = windows_pipeline(archive.folder, window=WINDOW, shuffle_seed=shuffle_seed)
    loader = DataLoader(pipeline, batch_size=None, num_workers=2)
    samples = list(loader)
    assert sorted(sample["__key__"] for sample in samples) == sorted(keys_of(archive))
    for sample in samples:
        check_sample(archive, sample)
    batches = list(DataLoader(pipeline.shuffle(20), batch_size=8, num_workers=2))
    assert batches[0]["rain_mmh"].shape == (8, WINDOW, ROWS, COLS)
    assert sorted(key for batch in batches for key in batch["__key__"]) == sorted(keys_of(archive))


def test_ranks_and_workers_get_each_sequence_once(archive: PackedArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = windows_pipeline(archive.folder, window=WINDOW)
    seen: Counter[str] = Counter()
    sequences: Counter[str] = Counter()
    for name, count in (("WORLD_SIZE", 3), ("NUM_WORKERS", 2)):
        monkeypatch.setenv(name, str(count))
    for rank in range(3):
        for worker in range(2):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORKER", str(worker))
            keys = [sample["__key__"] for sample in pipeline]
            seen.update(keys)
            sequences.update({key.partition(":")[0] for key in keys})
    assert seen == Counter(keys_of(archive))
    assert set(sequences.values()) == {1}


def test_shuffled_epochs_differ_and_hold_the_same_windows(archive: PackedArchive) -> None:
    pipeline = windows_pipeline(archive.folder, window=WINDOW, shuffle_seed=1)
    first, second = ([sample["__key__"] for sample in pipeline] for _ in range(2))
    assert first != second
    assert sorted(first) == sorted(second) == sorted(keys_of(archive))
    again = windows_pipeline(archive.folder, window=WINDOW, shuffle_seed=1)
    assert [sample["__key__"] for sample in again] == first


def test_sources_have_their_scales_and_spans_select(tmp_path: Path) -> None:
    scales_mmh = {"Fine": 0.01, "KNMI": 0.12}
    runs = dict(zip(scales_mmh, random_runs([40, 110], 8, 9, missing=True), strict=True))
    archive = pack_mixed(
        tmp_path, runs, scales_mmh=tuple(scales_mmh.values()), window=WINDOW, max_frames=20, num_shards=3
    )
    for sample in windows_pipeline(tmp_path, window=WINDOW):
        check_sample(archive, sample, scales_mmh[sample["__key__"].partition("-")[0]])
    span = TimeSpan(start_s=FIRST_S, stop_s=FIRST_S + 10 * CADENCE_S)
    assert len(list(windows_pipeline(tmp_path, window=WINDOW, sources=["KNMI"], spans=[span]))) == 10 - WINDOW + 1
    with pytest.raises(DataError, match="no windows of 4 frames are selected"):
        windows_pipeline(tmp_path, window=WINDOW, spans=[TimeSpan(start_s=0, stop_s=1)])


def test_what_is_damaged_stops_the_pipeline_or_is_left_out(tmp_path: Path) -> None:
    archive = pack(tmp_path, [40, 20], num_shards=2)
    flip(archive, 2)
    with pytest.raises(DamagedError, match="key s0002: SHA-256"):
        list(windows_pipeline(tmp_path, window=WINDOW))
    with pytest.raises(DamagedError, match="key s0002: SHA-256"):
        list(DataLoader(windows_pipeline(tmp_path, window=WINDOW), batch_size=None, num_workers=2))
    options = ReadOptions(threads=3, quarantine=1)
    keys = [sample["__key__"] for sample in windows_pipeline(tmp_path, window=WINDOW, options=options)]
    assert keys == [key for key in keys_of(archive) if not key.startswith("s0002")]


def test_a_store_gives_what_the_folder_gives(archive: PackedArchive, s3: S3) -> None:  # noqa: F811
    upload(archive.folder, f"{s3.url}/shards")
    pipeline = windows_pipeline(f"{s3.url}/shards", window=WINDOW)
    with pytest.raises(ConfigError, match="a worker that reads shards from a store has to be spawned"):
        next(iter(DataLoader(pipeline, batch_size=None, num_workers=1)))
    samples = list(DataLoader(pipeline, batch_size=None, num_workers=1, multiprocessing_context="spawn"))
    assert sorted(sample["__key__"] for sample in samples) == sorted(keys_of(archive))
    for sample in samples:
        check_sample(archive, sample)
