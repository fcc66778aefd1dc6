"""What a run does on several ranks when one of them cannot read, or has nothing left: nobody waits in vain."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rainspark.data.errors import DataError
from rainspark.data.exit_codes import ExitCode
from rainspark.data.pack.__main__ import main as pack
from rainspark.data.shards.index import load_index
from rainspark.data.store.storage import open_storage
from rainspark.data.stream.stream import Batch
from rainspark.data.units import MISSING_COUNT
from rainspark.trainer.processes.entry import run_entry
from rainspark.trainer.training.pretraining import Pretraining
from tests.distributed import run_ranks
from tests.integration.runs import arguments, make_shards, metrics, train, train_many
from tests.s3_server import S3, s3, s3_server  # noqa: F401


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_shards(tmp_path_factory.mktemp("storms"), hours=3).parent
    pack(["knmi", str(folder / "radar"), "--out", str(folder / "short"), "--frames", "9", "--window", "4"])
    return folder / "short"


def damage(shards: Path, folder: Path, numbers: range) -> Path:
    """Copy an archive with a byte flipped in some of its sequences."""
    index = load_index(open_storage(shards))
    folder.mkdir()
    for path in shards.iterdir():
        data = bytearray(path.read_bytes())
        for entry in [index.sequences[number] for number in numbers]:
            if index.shards[entry.shard].name == path.name:
                data[entry.frames_offset] ^= 1
        (folder / path.name).write_bytes(bytes(data))
    return folder


def reason(_rank: int, argv: list[str]) -> str:
    try:
        train(argv)
    except DataError as error:
        return str(error)
    return "done"


def store_dies(run: Pretraining) -> None:
    """Have the store refuse everything once the run has taken two steps."""
    steps = run.stream.steps
    endpoint = os.environ["AWS_ENDPOINT_URL"]

    def dying(first_step: int, stop_step: int) -> Iterator[list[Batch]]:
        for number, batches in enumerate(steps(first_step, stop_step)):
            if number == 2:
                S3("", endpoint, "").inject([{"match": "GET", "times": -1, "do": "refuse"}])
            yield batches

    vars(run.stream)["steps"] = dying


def exit_code(_rank: int, argv: list[str]) -> int:
    return run_entry(lambda: train(argv, change=store_dies))


@pytest.mark.slow
def test_damage_that_one_rank_meets_ends_all_of_them(shards: Path, tmp_path: Path) -> None:
    archive, run = damage(shards, tmp_path / "damaged", range(1)), tmp_path / "run"
    argv = arguments(archive, run, data__guard_h=0.1, run__steps=12, run__evaluate_every=12)
    texts = run_ranks(reason, 2, argv)
    assert sum(text.startswith("on rank ") for text in texts) == 1
    assert all("shard shard-00000.tar, key " in text and "SHA-256" in text for text in texts)
    assert not list((run / "checkpoints").glob("*"))


@pytest.mark.slow
def test_damage_in_an_evaluation_ends_all_ranks(shards: Path, tmp_path: Path) -> None:
    last = len(load_index(open_storage(shards)).sequences) - 1
    archive = damage(shards, tmp_path / "damaged", range(last, last + 1))
    argv = arguments(
        archive, tmp_path / "run", data__guard_h=0.1, run__steps=2, run__evaluate_every=1, optim__warmup_steps=1,
        data__micro_batch=2, data__evaluation_windows=1000,
    )  # fmt: skip
    texts = run_ranks(reason, 2, argv)
    assert sum(text.startswith("on rank ") for text in texts) <= 1
    assert all("SHA-256" in text for text in texts)


@pytest.mark.slow
def test_a_rank_with_nothing_left_neither_waits_nor_spoils_the_loss(shards: Path, tmp_path: Path) -> None:
    count = len(load_index(open_storage(shards)).sequences)
    archive, run = damage(shards, tmp_path / "damaged", range(1, count)), tmp_path / "run"
    argv = arguments(archive, run, data__guard_h=0.1, run__steps=12, run__evaluate_every=12, data__quarantine=count)
    assert run_ranks(train_many, 2, [(argv, None)]) == [[int(ExitCode.DONE)]] * 2
    lines = metrics(run)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 12
    assert all(isinstance(loss, float) for loss in losses)
    assert all(loss > 0 for loss in losses)
    assert not any(line.get("skipped") for line in lines)


def empty_steps(run: Pretraining, numbers: tuple[int, ...]) -> None:
    """Have the radar see nothing at all in all windows of some steps."""
    steps = run.stream.steps

    def emptied(first_step: int, stop_step: int) -> Iterator[list[Batch]]:
        for number, batches in enumerate(steps(first_step, stop_step)):
            missing = [
                replace(batch, counts_bthw=torch.full_like(batch.counts_bthw, MISSING_COUNT), has_missing=True)
                for batch in batches
            ]
            yield missing if number in numbers else batches

    vars(run.stream)["steps"] = emptied


def empties_a_step(_rank: int, argv: list[str]) -> int:
    return int(train(argv, change=lambda run: empty_steps(run, (1, 3))))


def check_empty_steps_are_skipped(run: Path) -> None:
    """Steps 1 and 3 of 5 left everything as it was, and no loss is told of them."""
    lines = [line for line in metrics(run) if "loss" in line]
    assert [line["skipped"] for line in lines] == [0, 1, 0, 1, 0]
    assert [line["loss"] == "NaN" for line in lines] == [False, True, False, True, False]
    before, after, end = (
        {
            f"{part}.{name}": value
            for part in ("model", "optimizer")
            for name, value in load_file(run / "checkpoints" / f"step-{step:08d}" / f"{part}.safetensors").items()
        }
        for step in (1, 2, 5)
    )
    assert all(before[name].equal(value) for name, value in after.items())
    assert not all(before[name].equal(value) for name, value in end.items())
    assert all(value.isfinite().all() for value in end.values())


def of_five_steps(shards: Path, run: Path, **settings: object) -> list[str]:
    return arguments(
        shards, run, data__guard_h=0.1, run__steps=5, run__evaluate_every=100, run__save_every=1, run__keep_last=5,
        run__max_nonfinite=2, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("loss", ["masked", "all"])
def test_a_step_without_a_valid_pixel_changes_nothing(
    shards: Path, tmp_path: Path, loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    argv = of_five_steps(shards, tmp_path / "run", model__loss=loss)
    assert empties_a_step(0, argv) == ExitCode.DONE
    check_empty_steps_are_skipped(tmp_path / "run")
    told = [record.getMessage() for record in caplog.records if "skipped on all ranks" in record.getMessage()]
    assert [text.split(";")[0] for text in told] == [
        f"step {step} skipped on all ranks: no window of it holds a valid pixel to learn from" for step in (2, 4)
    ]
    assert all("windows of this rank: 2" in text and "lost" not in text for text in told), "names begin with a time"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["null", 0, 1, 2, 3])
def test_no_engine_learns_from_a_step_without_a_valid_pixel(shards: Path, tmp_path: Path, stage: object) -> None:
    argv = of_five_steps(shards, tmp_path / "run", engine__zero_stage=stage)
    assert run_ranks(empties_a_step, 2, argv) == [int(ExitCode.DONE)] * 2
    check_empty_steps_are_skipped(tmp_path / "run")


@pytest.mark.parametrize("steps", [3, 9])
def test_a_run_without_a_valid_pixel_ends_with_the_datas_code(
    shards: Path, tmp_path: Path, steps: int, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    count, run = len(load_index(open_storage(shards)).sequences), tmp_path / "run"
    archive = damage(shards, tmp_path / "damaged", range(count))
    argv = arguments(archive, run, data__guard_h=0.1, run__steps=steps, data__quarantine=count)
    assert run_entry(lambda: train(argv)) == ExitCode.DATA
    told = capsys.readouterr().err
    assert f"data: no window of {min(steps, 5)} steps in a row, up to step {min(steps, 5)}, held a valid" in told
    assert "damaged sequences to data.quarantine" in told
    assert "windows of this rank: 8 lost to data.quarantine" in caplog.text
    assert not list((run / "checkpoints").glob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["null", 2, 3])
def test_all_ranks_end_where_there_is_no_valid_pixel(shards: Path, tmp_path: Path, stage: object) -> None:
    count = len(load_index(open_storage(shards)).sequences)
    archive = damage(shards, tmp_path / "damaged", range(count))
    argv = arguments(
        archive, tmp_path / "run", data__guard_h=0.1, data__quarantine=count, engine__zero_stage=stage
    )  # fmt: skip
    assert all("no window of 5 steps in a row" in text for text in run_ranks(reason, 2, argv))


def test_an_evaluation_without_a_valid_pixel_says_so(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index, run = load_index(open_storage(shards)), tmp_path / "run"
    count = len(index.sequences)
    archive = damage(shards, tmp_path / "damaged", range(count * 3 // 4, count))
    argv = arguments(
        archive, run, data__guard_h=0.1, data__quarantine=count, run__steps=2, run__evaluate_every=2,
        optim__warmup_steps=1,
    )  # fmt: skip
    assert train(argv) == ExitCode.DONE
    assert [line["held_out_loss"] for line in metrics(run) if "held_out_loss" in line] == ["NaN"]
    assert "no valid pixel in any of the 4 held-out windows" in caplog.text


def test_a_store_that_dies_ends_all_ranks_with_the_datas_code(
    shards: Path,
    tmp_path: Path,
    s3: S3,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    storage = open_storage(f"{s3.url}/shards")
    for path in sorted(shards.iterdir()):
        storage.write(path.name, path.read_bytes())
    settings: dict[str, Any] = {
        "data__guard_h": 0.1, "data__deadline_s": 2, "data__prefetch_mb": 0.001, "data__block_mb": 0.001,
        "run__steps": 50, "run__evaluate_every": 50, "data__quarantine": 100,
    }  # fmt: skip
    argv = arguments(Path("SHARDS"), tmp_path / "run", **settings)
    argv[argv.index("SHARDS")] = f"{s3.url}/shards"
    assert run_ranks(exit_code, 2, argv) == [int(ExitCode.DATA)] * 2
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("data: ")]
    assert len(told) == 2
    assert all("shard shard-" in line and "cannot be read" in line and "key" in line for line in told)
