"""What a run does on several ranks when one of them cannot read, or has nothing left: nobody waits in vain."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.frames import DataError
from data.pack import main as pack
from data.shards import load_index
from data.storage import open_storage
from data.stream import Batch
from tests.distributed import run_ranks
from tests.integration.runs import arguments, make_shards, metrics, tensors, train, train_many
from tests.s3_server import S3, s3, s3_server  # noqa: F401
from trainer.entry import ExitCode, run_entry
from trainer.pretrain import Pretraining


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


def test_a_run_with_nothing_left_at_all_stands_still(shards: Path, tmp_path: Path) -> None:
    count = len(load_index(open_storage(shards)).sequences)
    archive, run = damage(shards, tmp_path / "damaged", range(count)), tmp_path / "run"
    argv = arguments(archive, run, data__guard_h=0.1, run__steps=4, run__evaluate_every=4, data__quarantine=count)
    assert train(argv) == ExitCode.DONE
    assert [line["loss"] for line in metrics(run) if "loss" in line] == [0.0] * 4
    assert all(tensor.isfinite().all() for tensor in tensors(run).values())


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
