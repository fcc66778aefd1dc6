"""What a run tells of its reading: a line of metrics at the end of each epoch and of the run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rainspark.data.errors import DataError
from rainspark.data.exit_codes import ExitCode
from rainspark.data.pack.__main__ import main as pack
from rainspark.data.shards.index import load_index
from rainspark.data.store.storage import open_storage
from tests.distributed import run_ranks
from tests.integration.runs import arguments, make_shards, train, train_many

COUNTS = {"bytes_read", "requests", "store_bytes_read", "store_requests", "retries", "wait_s", "stall_s"}
LOST = {"quarantined", "windows_lost"}
STEPS = 8


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("storms"), hours=3)


def data_lines(run: Path) -> dict[int, dict[str, Any]]:
    """Read what the metrics tell of the data, by finished steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [(line["step"], line["metrics"]) for line in lines if "data/epoch_requests" in line.get("metrics", {})]
    assert len({step for step, _ in told}) == len(told)
    assert all(key.startswith("data/") for _, metrics in told for key in metrics)
    return {step: {key.removeprefix("data/"): value for key, value in metrics.items()} for step, metrics in told}


def steps_an_epoch(run: Path) -> int:
    """Find the first step of the second epoch in the metrics."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = {line["step"]: line["metrics"]["epoch"] for line in lines if "epoch" in line.get("metrics", {})}
    return min(step for step, epoch in epochs.items() if epoch == 1) - 1


def test_each_epoch_tells_what_it_read(shards: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert train(arguments(shards, whole, run__steps=STEPS)) == ExitCode.DONE
    told, epoch = data_lines(whole), steps_an_epoch(whole)
    assert list(told) == [step for step in range(1, STEPS + 1) if step % epoch == 0 or step == STEPS]
    for line in told.values():
        assert set(line) == {f"epoch_{name}" for name in COUNTS | LOST} | {"held_bytes_peak", "decoded_bytes_peak"}
        assert line["epoch_quarantined"] == line["epoch_windows_lost"] == line["epoch_retries"] == 0
        assert line["epoch_stall_s"] >= 0
        assert line["held_bytes_peak"] > 0
    first = told[epoch]
    assert first["epoch_requests"] > 0
    assert first["epoch_bytes_read"] > 0
    # The evaluation in between reads from the same storage, but not through the stream.
    assert sum(line["epoch_store_requests"] for line in told.values()) >= sum(
        line["epoch_requests"] for line in told.values()
    )


@pytest.mark.slow
def test_a_resumed_run_tells_what_it_read_itself(shards: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(arguments(shards, whole, run__steps=STEPS)) == ExitCode.DONE
    argv, epoch = arguments(shards, stopped, run__steps=STEPS), steps_an_epoch(whole)
    assert train(argv, stop_in_step=2) == ExitCode.REQUEUE
    assert all(step <= 4 for step in data_lines(stopped))
    assert train(argv) == ExitCode.DONE
    told = data_lines(stopped)
    assert list(told) == list(data_lines(whole))
    for line in told.values():
        assert line["epoch_requests"] >= 0
    assert told[STEPS]["held_bytes_peak"] > 0
    assert epoch > 1


@pytest.mark.slow
def test_ranks_are_added_up(shards: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(arguments(shards, one, run__steps=STEPS, data__prefetch_steps=1)) == ExitCode.DONE
    argv = arguments(shards, two, run__steps=STEPS, data__prefetch_steps=1)
    assert run_ranks(train_many, 2, [(argv, None)]) == [[0], [0]]
    first, second = data_lines(one), data_lines(two)
    assert list(first) == list(second)
    totals = [sum(line["epoch_bytes_read"] for line in lines.values()) for lines in (first, second)]
    # Both lanes, one a rank, read the archive's one sequence.
    assert totals[1] == 2 * totals[0] > 0


def damaged(shards: Path, folder: Path) -> Path:
    """Pack short sequences, and flip a byte in the first one, which is trained on, and in the last, which is not."""
    pack(["knmi", str(shards.parent / "radar"), "--out", str(folder), "--frames", "9", "--window", "4"])
    index = load_index(open_storage(folder))
    for entry in (index.sequences[0], index.sequences[-1]):
        path = folder / index.shards[entry.shard].name
        data = bytearray(path.read_bytes())
        data[entry.frames_offset] ^= 1
        path.write_bytes(bytes(data))
    return folder


def test_a_run_goes_on_without_what_is_damaged_and_tells(shards: Path, tmp_path: Path) -> None:
    archive, run = damaged(shards, tmp_path / "shards"), tmp_path / "run"
    changes: dict[str, Any] = {"run__steps": 6, "data__guard_h": 0.1, "data__evaluation_windows": 1000}
    with pytest.raises(DataError, match=r"shard shard-00000.tar, key \S+: SHA-256"):
        train(arguments(archive, run, **changes))
    shutil.rmtree(run)
    assert train(arguments(archive, run, data__quarantine=1, **changes)) == ExitCode.DONE
    told = data_lines(run).values()
    assert sum(line["epoch_quarantined"] for line in told) == 1
    assert sum(line["epoch_windows_lost"] for line in told) > 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [line["metrics"] for line in lines if "metrics" in line]
    # Of the last sequence's six windows, those that lie in the held-out part as a whole.
    assert [line["held_out_windows_lost"] for line in metrics if "held_out_loss" in line] == [3]
    assert all(isinstance(line["loss"], float) for line in metrics if "loss" in line)
