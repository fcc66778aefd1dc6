"""What a run does with data that cannot be read, on any number of ranks, and what its metrics say of its reading."""

import io
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rainspark.data.errors import DataError
from rainspark.data.exit_codes import ExitCode
from rainspark.data.pack.__main__ import main as pack
from rainspark.data.shards.index import load_index
from rainspark.data.store.storage import open_storage
from rainspark.data.stream.stream import Batch
from rainspark.data.units import MISSING_COUNT
from rainspark.trainer.processes.entry import run_entry
from rainspark.trainer.training.pretraining import Pretraining
from rainspark.trainer.training.step_costs import READ_COUNTS
from tests.distributed import run_ranks
from tests.integration.runs import arguments, metrics, records, settings, stored, train, train_many
from tests.s3_server import S3, s3, s3_server, upload  # noqa: F401

HOURS = 3
NOT_THERE = {"cache_hits", "cache_misses", "cache_evictions"}
"""Counts that only a cache has."""


@pytest.fixture(scope="module")
def short(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sequences of nine frames."""
    out = tmp_path_factory.mktemp("short") / "shards"
    pack(["knmi", str(shards.parent / "radar"), "--out", str(out), "--frames", "9", "--window", "4"])
    return out


@pytest.fixture
def damaged(short: Path, tmp_path: Path) -> Callable[[Collection[int]], Path]:
    """Return a copy of that archive with a byte flipped in some of its sequences."""

    def damage(numbers: Collection[int]) -> Path:
        folder = Path(shutil.copytree(short, tmp_path / f"damaged {min(numbers)} {len(numbers)}"))
        index = load_index(open_storage(short))
        for number in numbers:
            entry = index.sequences[number]
            path = folder / index.shards[entry.shard].name
            data = bytearray(path.read_bytes())
            data[entry.frames_offset] ^= 1
            path.write_bytes(bytes(data))
        return folder

    return damage


def of_short(archive: Path | str, run: Path, *changes: str, **more: object) -> list[str]:
    """Build the command line of a run on short sequences."""
    return arguments(archive, run, data__guard_h=0.1, **settings(*changes), **more)


def num_sequences(archive: Path) -> int:
    return len(load_index(open_storage(archive)).sequences)


def reasons(_rank: int, *argvs: list[str]) -> list[str]:
    """Train several runs one after another on the same ranks; return the error that ended each."""
    texts = []
    for argv in argvs:
        try:
            train(argv)
            texts.append("done")
        except DataError as error:
            texts.append(str(error))
    return texts


Damaged = Callable[[Collection[int]], Path]


@pytest.mark.slow
def test_damage_that_one_rank_meets_ends_all_of_them(short: Path, damaged: Damaged, tmp_path: Path) -> None:
    """In a training step, and in an evaluation, where both ranks may meet it."""
    last = num_sequences(short) - 1
    trains, evaluates = tmp_path / "trains", tmp_path / "evaluates"
    sizes = "data.micro_batch=2 data.evaluation_windows=1000 optim.warmup_steps=1"
    argvs = [
        of_short(damaged([0]), trains, "run.steps=12 run.evaluate_every=12"),
        of_short(damaged([last]), evaluates, "run.steps=2 run.evaluate_every=1", sizes),
    ]
    in_steps, in_evaluations = zip(*run_ranks(reasons, 2, *argvs), strict=True)
    assert sum(text.startswith("on rank ") for text in in_steps) == 1
    assert sum(text.startswith("on rank ") for text in in_evaluations) <= 1
    assert all("shard shard-00000.tar, key " in text and "SHA-256" in text for text in in_steps)
    assert all("SHA-256" in text for text in in_evaluations)
    assert not list((trains / "checkpoints").glob("*"))


@pytest.mark.slow
def test_a_rank_with_nothing_left_neither_waits_nor_spoils_the_loss(
    short: Path, damaged: Damaged, tmp_path: Path
) -> None:
    count, run = num_sequences(short), tmp_path / "run"
    argv = of_short(damaged(range(1, count)), run, f"run.steps=12 run.evaluate_every=12 data.quarantine={count}")
    assert run_ranks(train_many, 2, [(argv, None)]) == [[int(ExitCode.DONE)]] * 2
    lines = metrics(run)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 12
    assert all(isinstance(loss, float) and loss > 0 for loss in losses)
    assert not any(line.get("skipped") for line in lines)


def train_with_empty_steps(_rank: int, *argvs: list[str]) -> list[int]:
    """Train several runs one after another on the same ranks; in steps 1 and 3 of each the radar sees nothing."""

    def empty(run: Pretraining) -> None:
        steps = run.stream.steps

        def emptied(first_step: int, stop_step: int) -> Iterator[list[Batch]]:
            for number, batches in enumerate(steps(first_step, stop_step)):
                nothing = [torch.full_like(batch.counts_bthw, MISSING_COUNT) for batch in batches]
                missing = [
                    replace(batch, counts_bthw=counts_bthw, has_missing=True)
                    for batch, counts_bthw in zip(batches, nothing, strict=True)
                ]
                yield missing if number in (1, 3) else batches

        vars(run.stream)["steps"] = emptied

    return [int(train(argv, change=empty)) for argv in argvs]


FIVE_STEPS = "run.steps=5 run.evaluate_every=100 run.save_every=1 run.keep_last=5 run.max_nonfinite=2"


def check_empty_steps_are_skipped(run: Path) -> None:
    """Check that steps 1 and 3 of 5 left everything as it was, and that no loss is reported of them."""
    lines = [line for line in metrics(run) if "loss" in line]
    assert [line["skipped"] for line in lines] == [0, 1, 0, 1, 0]
    assert [line["loss"] == "NaN" for line in lines] == [False, True, False, True, False]
    tensors = stored(run, best=False, every_step=True)
    for name, end in tensors.items():
        assert bool(end.isfinite().all())
        if "step-00000002" in name:
            assert end.equal(tensors[name.replace("step-00000002", "step-00000001")])
    assert not all(end.equal(tensors[name.replace("00005", "00001")]) for name, end in tensors.items())


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["masked", "all"])
def test_a_step_without_a_valid_pixel_changes_nothing(
    short: Path, tmp_path: Path, loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    argv = of_short(short, tmp_path / "run", FIVE_STEPS, model__loss=loss)
    assert train_with_empty_steps(0, argv) == [ExitCode.DONE]
    check_empty_steps_are_skipped(tmp_path / "run")
    warnings = [text for record in caplog.records if "skipped on all ranks" in (text := record.getMessage())]
    assert [text.split(";")[0] for text in warnings] == [
        f"step {step} skipped on all ranks: no window of it holds a valid pixel to learn from" for step in (2, 4)
    ]
    assert all("windows of this rank: 2" in text and "lost" not in text for text in warnings), "names begin with a time"


@pytest.mark.slow
def test_no_engine_learns_from_a_step_without_a_valid_pixel(short: Path, tmp_path: Path) -> None:
    stages = ("null", 0, 1, 2, 3)
    argvs = [of_short(short, tmp_path / f"{stage}", FIVE_STEPS, engine__zero_stage=stage) for stage in stages]
    assert run_ranks(train_with_empty_steps, 2, *argvs, timeout_s=300) == [[int(ExitCode.DONE)] * len(stages)] * 2
    for stage in stages:
        check_empty_steps_are_skipped(tmp_path / f"{stage}")


@pytest.mark.parametrize("steps", [3, pytest.param(9, marks=pytest.mark.slow)])
def test_a_run_without_a_valid_pixel_ends_with_the_datas_code(
    short: Path,
    damaged: Damaged,
    tmp_path: Path,
    steps: int,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    count, run = num_sequences(short), tmp_path / "run"
    argv = of_short(damaged(range(count)), run, f"run.steps={steps} data.quarantine={count}")
    assert run_entry(lambda: train(argv)) == ExitCode.DATA
    text = capsys.readouterr().err
    assert f"data: no window of {min(steps, 5)} steps in a row, up to step {min(steps, 5)}, held a valid" in text
    assert "repair it where sequences are damaged (rainspark verify names all damage)" in text
    assert "windows of this rank: 8 lost to data.quarantine" in caplog.text
    assert not list((run / "checkpoints").glob("*"))


def test_an_evaluation_without_a_valid_pixel_says_so(
    short: Path, damaged: Damaged, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    count, run = num_sequences(short), tmp_path / "run"
    archive = damaged(range(count * 3 // 4, count))
    assert train(of_short(archive, run, f"{TWO_STEPS} data.quarantine={count}")) == ExitCode.DONE
    assert [line["held_out_loss"] for line in metrics(run) if "held_out_loss" in line] == ["NaN"]
    assert "no valid pixel in any of the 4 held-out windows" in caplog.text


TWO_STEPS = "run.steps=2 run.evaluate_every=2 optim.warmup_steps=1"


def train_until_the_store_dies(_rank: int, argv: list[str]) -> tuple[int, str]:
    """Train; the store refuses everything once the run has taken two steps. Return the exit code and what was said."""

    def change(run: Pretraining) -> None:
        steps = run.stream.steps

        def dying(first_step: int, stop_step: int) -> Iterator[list[Batch]]:
            for number, batches in enumerate(steps(first_step, stop_step)):
                if number == 2:
                    S3("", os.environ["AWS_ENDPOINT_URL"], "").inject([{"match": "GET", "times": -1, "do": "refuse"}])
                yield batches

        vars(run.stream)["steps"] = dying

    with redirect_stderr(io.StringIO()) as output:
        code = run_entry(lambda: train(argv, change=change))
    return int(code), output.getvalue()


def test_a_store_that_dies_ends_all_ranks_with_the_datas_code(
    short: Path,
    tmp_path: Path,
    s3: S3,  # noqa: F811
) -> None:
    upload(short, f"{s3.url}/shards")
    small = "data.deadline_s=2 data.prefetch_mb=0.001 data.block_mb=0.001 data.quarantine=100"
    argv = of_short(f"{s3.url}/shards", tmp_path / "run", small, "run.steps=50 run.evaluate_every=50")
    codes, outputs = zip(*run_ranks(train_until_the_store_dies, 2, argv), strict=True)
    assert codes == (ExitCode.DATA, ExitCode.DATA)
    lines = [line for output in outputs for line in output.splitlines() if line.startswith("data: ")]
    assert len(lines) == 2
    assert all("shard shard-" in line and "cannot be read" in line and "key" in line for line in lines)


STEPS = 8


def data_lines(run: Path) -> dict[int, dict[str, Any]]:
    """Read what the metrics say of the data, by finished steps."""
    lines = [(record["step"], record["metrics"]) for record in records(run)]
    reading = [(step, line) for step, line in lines if "data/epoch_requests" in line]
    assert len({step for step, _ in reading}) == len(reading)
    assert all(key.startswith("data/") for _, line in reading for key in line)
    return {step: {key.removeprefix("data/"): value for key, value in line.items()} for step, line in reading}


def steps_an_epoch(run: Path) -> int:
    """Count the steps before the first one of the second epoch in the metrics."""
    epochs = {record["step"]: record["metrics"]["epoch"] for record in records(run) if "epoch" in record["metrics"]}
    return min(step for step, epoch in epochs.items() if epoch == 1) - 1


def test_each_epoch_logs_what_it_read(shards: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert train(arguments(shards, whole, run__steps=STEPS)) == ExitCode.DONE
    lines, epoch = data_lines(whole), steps_an_epoch(whole)
    assert list(lines) == [step for step in range(1, STEPS + 1) if step % epoch == 0 or step == STEPS]
    counts = {f"epoch_{name}" for name in READ_COUNTS if name not in NOT_THERE}
    for line in lines.values():
        assert set(line) == counts | {"held_bytes_peak", "decoded_bytes_peak"}
        assert line["epoch_quarantined"] == line["epoch_windows_lost"] == line["epoch_retries"] == 0
        assert line["epoch_stall_s"] >= 0
        assert line["held_bytes_peak"] > 0
    assert min(lines[epoch]["epoch_requests"], lines[epoch]["epoch_bytes_read"]) > 0
    # The evaluation in between reads from the same storage, but not through the stream.
    totals = [sum(line[name] for line in lines.values()) for name in ("epoch_store_requests", "epoch_requests")]
    assert totals[0] >= totals[1]


@pytest.mark.slow
def test_a_resumed_run_logs_what_it_read_itself(shards: Path, tmp_path: Path) -> None:
    whole, stopped = (tmp_path / name for name in ("whole", "stopped"))
    assert train(arguments(shards, whole, run__steps=STEPS)) == ExitCode.DONE
    argv = arguments(shards, stopped, run__steps=STEPS)
    assert train(argv, stop_in_step=2) == ExitCode.REQUEUE
    assert all(step <= 4 for step in data_lines(stopped))
    assert train(argv) == ExitCode.DONE
    lines = data_lines(stopped)
    assert list(lines) == list(data_lines(whole))
    assert all(line["epoch_requests"] >= 0 for line in lines.values())
    assert lines[STEPS]["held_bytes_peak"] > 0
    assert steps_an_epoch(whole) > 1


@pytest.mark.slow
def test_what_ranks_read_is_added_up(shards: Path, tmp_path: Path) -> None:
    one, two = (arguments(shards, tmp_path / name, run__steps=STEPS, data__prefetch_steps=1) for name in "12")
    assert train(one) == ExitCode.DONE
    assert run_ranks(train_many, 2, [(two, None)]) == [[0], [0]]
    first, second = (data_lines(tmp_path / name) for name in "12")
    assert list(first) == list(second)
    totals = [sum(line["epoch_bytes_read"] for line in lines.values()) for lines in (first, second)]
    # Both lanes, one a rank, read the archive's one sequence.
    assert totals[1] == 2 * totals[0] > 0


def test_a_run_goes_on_without_what_is_damaged_and_logs_it(short: Path, damaged: Damaged, tmp_path: Path) -> None:
    """The first sequence, which is trained on, and the last one, which is not."""
    archive, run = damaged([0, num_sequences(short) - 1]), tmp_path / "run"
    changes = "run.steps=6 data.evaluation_windows=1000"
    with pytest.raises(DataError, match=r"shard shard-00000.tar, key \S+: SHA-256"):
        train(of_short(archive, run, changes))
    shutil.rmtree(run)
    assert train(of_short(archive, run, changes, "data.quarantine=1")) == ExitCode.DONE
    reading = data_lines(run).values()
    assert sum(line["epoch_quarantined"] for line in reading) == 1
    assert sum(line["epoch_windows_lost"] for line in reading) > 0
    lines = [record["metrics"] for record in records(run)]
    # Of the last sequence's six windows, those that lie in the held-out part as a whole.
    assert [line["held_out_windows_lost"] for line in lines if "held_out_loss" in line] == [3]
    assert all(isinstance(line["loss"], float) for line in lines if "loss" in line)
