"""A checkpoint serves any number of processes and any engine: the same tensors, and the windows go on in order."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rainspark.trainer.settings.experiment import PretrainConfig
from rainspark.trainer.settings.parse import parse_config
from rainspark.trainer.training.windows import open_stream, open_windows
from tests.distributed import run_ranks
from tests.integration.runs import arguments, equal, settings, tensors
from tests.integration.takeovers import Seen, both, in_order, note_windows, saved_hashes

STEPS, STOP = 5, 3
# The loop reads a stop one step after it came.
TOLD = STOP - 1
TIMEOUT_S = 1800
Job = tuple[list[str], int | None]
SOURCES = {
    "plain": {},
    "zero 2": settings("engine.zero_stage=2 engine.precision=bf16 optim.name=lamb"),
    "zero 3": settings("engine.zero_stage=3 optim.name=sgd"),
}
TARGETS = {
    "plain": settings("engine.zero_stage=null engine.precision=bf16"),
    "zero 0": settings("engine.zero_stage=0 engine.precision=fp32"),
    "zero 1": settings("engine.zero_stage=1 engine.precision=fp16"),
    "zero 2": settings("engine.zero_stage=2 engine.precision=fp32"),
    "zero 3": settings("engine.zero_stage=3 engine.precision=bf16"),
}


def command(shards: Path, run: Path, *changes: Mapping[str, object]) -> list[str]:
    """Batches that go into 1, 2, 3 and 4 parts, in two micro-batches a step; the steps span two epochs."""
    sizes = settings(
        f"data.global_batch=24 data.micro_batch=12 run.steps={STEPS} run.evaluate_every={STEPS} optim.ema_decay=0.8",
        "data.evaluation_windows=4",
    )
    merged = dict(sizes)
    for more in changes:
        merged |= more
    return arguments(shards, run, **merged)


def planned(argv: list[str]) -> dict[int, list[int]]:
    """The windows of every step as one process reads them, without training."""
    config = parse_config(argv, PretrainConfig, prog="test")
    windows = open_windows(config.data, config.data.window)
    stream = open_stream(windows, config.data, seed=config.seed, rank=0, world_size=1, pin=False)
    assert stream.steps_per_epoch < STOP, "a resume in a later epoch than the first"
    seen: Seen = {}
    for batches in stream.steps(0, config.run.steps):
        note_windows(seen, batches)
    return in_order([seen])


def start(shards: Path, folder: Path, names: list[str]) -> None:
    """Train on two processes to a stop."""
    jobs: list[Job] = [(command(shards, folder / name, SOURCES[name]), TOLD) for name in names]
    ranks = run_ranks(both, 2, jobs, [], timeout_s=TIMEOUT_S)
    assert [found["code"] for rank in ranks for found in rank["trained"]] == [75] * (2 * len(names))


def on(
    world_size: int, shards: Path, folder: Path, taken: list[tuple[str, str]], trained: list[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Take runs up on so many processes, (source, target), check what is there, and train copies of some to the end."""
    commands = [command(shards, folder / source, SOURCES[source], TARGETS[target]) for source, target in taken]
    jobs: list[Job] = []
    for source, target in trained:
        copy = folder / f"{source} to {target} on {world_size}"
        shutil.copytree(folder / source, copy)
        jobs.append((command(shards, copy, SOURCES[source], TARGETS[target]), None))
    ranks = run_ranks(both, world_size, jobs, commands, timeout_s=TIMEOUT_S)
    for number, (source, target) in enumerate(taken):
        found = ranks[0]["taken up"][number]
        assert found["step"] == STOP, (source, target)
        assert found["taken_up"] == saved_hashes(folder / source), (source, target)
        assert found["steps_done"] == ([] if source == "zero 3" else [STOP]), "sgd counts none"
    whole = planned(command(shards, folder / "whole"))
    for number, (source, _) in enumerate(trained):
        found = ranks[0]["trained"][number]
        assert found["code"] == 0
        assert found["taken_up"] == saved_hashes(folder / source)
        assert in_order([rank["trained"][number]["seen"] for rank in ranks]) == {
            step: whole[step] for step in range(STOP, STEPS)
        }
    return ranks


def test_two_processes_under_zero_go_on_as_one_without(shards: Path, tmp_path: Path) -> None:
    start(shards, tmp_path, ["zero 2"])
    on(1, shards, tmp_path, [], [("zero 2", "plain")])


@pytest.mark.slow
def test_every_engine_takes_up_every_other_on_any_number_of_processes(shards: Path, tmp_path: Path) -> None:
    start(shards, tmp_path, list(SOURCES))
    pairs = [(source, target) for source in SOURCES for target in TARGETS]
    # Every pair on two of the four: each number of processes meets every source and every target.
    for world_size, taken, trained in (
        (1, pairs[0::2], [("zero 3", "zero 2")]),
        (3, pairs[1::2], [("plain", "zero 3")]),
        (4, pairs[0::2], [("zero 2", "plain"), ("zero 3", "zero 1")]),
        (2, pairs[1::2], [("zero 2", "zero 1")]),
    ):
        on(world_size, shards, tmp_path, taken, trained)


@pytest.mark.slow
def test_there_and_back_is_the_same_end(shards: Path, tmp_path: Path) -> None:
    """Taken up and saved by 3, then 4 processes, nothing trained in between: the run ends as if it had never left."""
    argv = command(shards, tmp_path / "run", SOURCES["plain"])
    whole = command(shards, tmp_path / "whole", SOURCES["plain"])
    ranks = run_ranks(both, 2, [(argv, TOLD), (whole, None)], [], timeout_s=TIMEOUT_S)
    assert [found["code"] for found in ranks[0]["trained"]] == [75, 0]
    name = "run"
    for world_size, target in ((3, "zero 3"), (4, "zero 1")):
        commands, after = [command(shards, tmp_path / name, TARGETS[target])], f"{name} by {world_size}"
        run_ranks(both, world_size, [], commands, after, timeout_s=TIMEOUT_S)
        assert saved_hashes(tmp_path / name) == saved_hashes(tmp_path / after)
        name = after
    back = command(shards, tmp_path / name, SOURCES["plain"])
    assert run_ranks(both, 2, [(back, None)], [], timeout_s=TIMEOUT_S)[0]["trained"][0]["code"] == 0
    assert equal(tensors(tmp_path / name), tensors(tmp_path / "whole"))
