"""Kill -9 inside a save or anywhere: a verified checkpoint is there, and the run ends as if nothing had happened."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rainspark.data.randomness import generator
from rainspark.models.weights.manifest import latest_verified, step_folders, step_of
from tests.fault_server import AFTER, KILL, TORN, Ended, Fault, FaultServer
from tests.integration.faults import train_under
from tests.integration.runs import arguments, digest, smallest_arguments, tensors

KILLED = -9
STEPS = 4


HOURS = 3


class Case:
    """One kind of run: its end when nothing happens, and its folder after two of its steps.

    Args:
        folder: For its runs.
        server: Starts its ranks.
        shards: What it learns from.
        ranks: Their number.
        settings: Of the run, beside the smallest ones.
        pretraining: Whether it is a pretraining instead.
    """

    def __init__(
        self, folder: Path, server: FaultServer, shards: Path, ranks: int, *, pretraining: bool = False, **settings: Any
    ) -> None:
        self.server, self.ranks, self.folder = server, ranks, folder
        self._shards, self._settings, self._pretraining = shards, settings, pretraining
        self._number = 0
        whole = folder / "whole"
        self.succeed(whole)
        self.expected = ending(whole, ranks)
        self.base = folder / "base"
        assert self.train(self.base, stop_in_step=2).codes == [75] * ranks
        shutil.rmtree(whole)

    def train(self, run: Path, **plan: Any) -> Ended:
        """Train in a folder."""
        build = arguments if self._pretraining else smallest_arguments
        settings = {"data__validation_share": 0, "run__steps": STEPS, "run__save_every": 1, "run__keep_last": 2}
        argv = build(self._shards, run, **(settings | self._settings))
        return self.server.run(train_under, argv, plan, ranks=self.ranks)

    def succeed(self, run: Path) -> None:
        """Train to the end."""
        ended = self.train(run)
        assert ended.codes == [0] * self.ranks, "\n".join(ended.texts)

    def operations(self, step: int) -> list[tuple[str, str]]:
        """List what the main rank asks of the disk in the save of a step: kind and path, temporary names made alike."""
        run, log = self.fresh(step), self.folder / "log"
        assert set(self.train(run, rank=0, step=step, fault={"log": str(log)}).codes) == {0}
        lines = log.read_text().splitlines()
        log.unlink()
        shutil.rmtree(run)
        return [(kind, path) for _, kind, path in (line.split(" ", 2) for line in lines)]

    def collectives(self, step: int) -> int:
        """Count the collectives of a save on rank 1."""
        run, count = self.fresh(step), self.folder / "count"
        assert set(self.train(run, rank=1, step=step, count=str(count)).codes) == {0}
        shutil.rmtree(run)
        return int(count.read_text())

    def fresh(self, step: int) -> Path:
        """Give a folder from which the save of a step comes next: a new one, or one of two steps."""
        self._number += 1
        run = self.folder / f"run-{self._number}"
        if step > 1:
            shutil.copytree(self.base, run)
        return run

    def survives(self, *, step: int, rank: int, fault: Fault | None = None, collective: int = 0) -> None:
        """Kill a rank in the save of a step, and go on: what is found is whole, and the end is the undisturbed one."""
        run = self.fresh(step)
        faults = {"fault": asdict(fault or Fault()), "collective": collective}
        ended = self.train(run, rank=rank, step=step, **faults)
        report = f"step {step}, rank {rank}, {faults}: {ended.codes}\n" + "\n".join(ended.texts)
        assert ended.codes[rank] == KILLED, report
        assert not ended.hung, f"the others did not notice: {report}"
        newest = latest_verified(run / "checkpoints")
        assert (0 if newest is None else step_of(newest.name)) in (step - 1, step), report
        self.succeed(run)
        assert ending(run, self.ranks) == self.expected, report
        assert [number for number, _ in step_folders(run / "checkpoints")] == [STEPS, STEPS - 1], report
        assert not list((run / "checkpoints").glob(".*")), report
        shutil.rmtree(run)


def ending(run: Path, ranks: int) -> dict[str, Any]:
    """Give what a run has come to, bit for bit: weights, buffers and moments as saved, and every rank's buffers."""
    buffers = [json.loads((run / f"buffers-{rank}.json").read_text()) for rank in range(ranks)]
    assert all(buffers)
    return {"saved": digest(tensors(run)), "buffers": buffers}


def faults_at(operations: list[tuple[str, str]]) -> list[Fault]:
    """Give a kill before every operation, and for every write one amid it and one right after it."""
    faults = []
    for number, (kind, _) in enumerate(operations, start=1):
        actions = (KILL, TORN, AFTER) if kind == "write" else (KILL,)
        faults += [Fault(at=number, action=action) for action in actions]
    return faults


def first_of_each_kind(operations: list[tuple[str, str]]) -> list[int]:
    """Give the numbers of the first operation of each kind on each kind of file, counted from 1."""
    numbers: dict[tuple[str, str], int] = {}
    for number, (kind, path) in enumerate(operations, start=1):
        numbers.setdefault((kind, path.split("/")[0].partition("step")[0]), number)
    return sorted(numbers.values())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, server: FaultServer, shards: Path) -> Case:
    return Case(tmp_path_factory.mktemp("alone"), server, shards, 1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, server: FaultServer, shards: Path) -> Case:
    return Case(tmp_path_factory.mktemp("pair"), server, shards, 2)


def test_what_is_written_is_made_durable_before_it_gets_its_name(alone: Case) -> None:
    """What a power cut asks for, read from the calls themselves: contents before names, new names before removals."""
    operations = alone.operations(3)
    named = operations.index(("rename", ".saving-step-00000003"))
    synced = {path for kind, path in operations[:named] if kind == "fsync"}
    files = {"MANIFEST.json", "model.safetensors", "optimizer.safetensors", "state.json"}
    assert synced == {".saving-step-00000003", *(f".saving-step-00000003/{name}" for name in files)}
    for name in files - {"MANIFEST.json"}:
        changes = [number for number, (kind, path) in enumerate(operations) if path.endswith(name) and kind != "fsync"]
        assert max(number for number in changes if number < named) < operations.index(
            ("fsync", f".saving-step-00000003/{name}")
        )
    removed = [number for number, (kind, path) in enumerate(operations) if number > named and "step-00000001" in path]
    assert named < operations.index(("fsync", "."), named) < min(removed)


def test_a_kill_in_a_save_changes_nothing(alone: Case) -> None:
    operations = alone.operations(3)
    manifest = operations.index(("write", ".saving-step-00000003/MANIFEST.json")) + 1
    removed = next(number for number, (kind, _) in enumerate(operations, start=1) if kind == "unlink")
    for fault in (Fault(at=manifest, action=TORN), Fault(at=manifest + 3, action=KILL), Fault(at=removed, action=KILL)):
        alone.survives(step=3, rank=0, fault=fault)


def test_a_kill_of_the_rank_that_does_not_write_changes_nothing(pair: Case) -> None:
    pair.survives(step=3, rank=1, collective=1)


@pytest.mark.slow
def test_a_kill_in_a_pretraining_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, server: FaultServer, shards: Path
) -> None:
    case = Case(tmp_path_factory.mktemp("pretraining"), server, shards, 2, pretraining=True)
    case.survives(step=3, rank=1, collective=1)
    case.survives(step=3, rank=0, fault=Fault(at=10, action=TORN))


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3])
def test_a_kill_at_every_operation_of_a_save_changes_nothing(alone: Case, step: int) -> None:
    """The first save, which makes the folder, and one that removes an older checkpoint."""
    operations = alone.operations(step)
    kinds = {kind for kind, _ in operations}
    removals = {"unlink", "rmdir"} if step == 3 else set()
    assert kinds == {"mkdir", "open", "write", "truncate", "chmod", "fsync", "rename", *removals}
    for fault in faults_at(operations):
        alone.survives(step=step, rank=0, fault=fault)


@pytest.mark.slow
def test_a_kill_of_either_rank_in_a_save_changes_nothing(pair: Case) -> None:
    for number in first_of_each_kind(pair.operations(3)):
        pair.survives(step=3, rank=0, fault=Fault(at=number, action=KILL))
    for collective in range(1, pair.collectives(3) + 1):
        for rank in (0, 1):
            pair.survives(step=3, rank=rank, collective=collective)


@pytest.mark.slow
def test_a_kill_at_the_collectives_of_a_partitioned_save_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, server: FaultServer, shards: Path
) -> None:
    """ZeRO 2 gathers every moment; of its collectives the first, some between and the last ones."""
    case = Case(tmp_path_factory.mktemp("zero"), server, shards, 2, engine__zero_stage=2)
    num = case.collectives(3)
    for number, collective in enumerate(sorted({1, num // 2, num - 1, num})):
        case.survives(step=3, rank=1 - number % 2, collective=collective)


CHAIN_STEPS = 20
KILLS = 10
COLLECTIVES = {0: 50, 2: 200}
"""Collectives a step, roughly, with its share of a save, by ZeRO's stage."""


def train_chained(server: FaultServer, shards: Path, run: Path, stage: int, plan: dict[str, Any]) -> Ended:
    argv = smallest_arguments(shards, run, run__steps=CHAIN_STEPS, engine__zero_stage=stage, run__save_every=2)
    return server.run(train_under, argv, plan, ranks=2, timeout_s=300)


def chain(server: FaultServer, shards: Path, folder: Path, stage: int, num_kills: int) -> None:
    """Kill one rank after another, or amid its collectives or its writing, then compare the ends."""
    assert train_chained(server, shards, folder / "whole", stage, {}).codes == [0, 0]
    run, draws = folder / "run", generator(0, "kills", stage)
    kills, launches, reached = 0, 0, []
    while kills < num_kills:
        launches += 1
        assert launches < 3 * num_kills, f"{kills} kills in {launches} launches: they come too late"
        # Collectives of about two steps and a half and their save, or disk calls of about one save.
        plan: dict[str, Any] = {
            "rank": int(draws.integers(2)),
            "collective": int(draws.integers(1, COLLECTIVES[stage] * 5 // 2)),
        }
        if draws.random() < 0.4:
            fault = Fault(at=int(draws.integers(1, 40)), action=(KILL, TORN, AFTER)[int(draws.integers(3))])
            plan = {"rank": 0, "fault": asdict(fault)}
        ended = train_chained(server, shards, run, stage, plan)
        assert not ended.hung, ended
        if ended.codes == [0, 0]:
            break
        newest = latest_verified(run / "checkpoints")
        reached.append(0 if newest is None else int(newest.name.removeprefix("step-")))
        kills += KILLED in ended.codes
    assert kills == num_kills, f"the run was over after {kills} kills: {reached}"
    assert reached == sorted(reached), "a checkpoint was lost"
    assert train_chained(server, shards, run, stage, {}).codes == [0, 0]
    assert ending(run, 2) == ending(folder / "whole", 2)
    assert len(json.loads((run / "buffers-1.json").read_text())) > 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_ten_kills_in_a_row_change_nothing(tmp_path: Path, server: FaultServer, shards: Path, stage: int) -> None:
    chain(server, shards, tmp_path, stage, KILLS)
