"""A run of two processes that is killed again and again, at moments drawn at random, ends as an undisturbed one."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rainspark.data.randomness import generator
from rainspark.models.weights.manifest import latest_verified
from tests.fault_server import AFTER, KILL, TORN, Ended, Fault, FaultServer
from tests.integration.fault_tasks import arguments, train_under
from tests.integration.runs import make_shards
from tests.integration.test_kill_saves import KILLED, ending

STEPS = 32
KILLS = 20


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("storms"), hours=3)


def train(server: FaultServer, shards: Path, run: Path, stage: int, plan: dict[str, Any]) -> Ended:
    argv = arguments(shards, run, run__steps=STEPS, engine__zero_stage=stage, run__save_every=2)
    return server.run(train_under, argv, plan, ranks=2, timeout_s=300)


def chain(server: FaultServer, shards: Path, folder: Path, stage: int, num_kills: int) -> None:
    """Kill one rank after another, or amid its collectives or its writing, then compare the ends."""
    assert train(server, shards, folder / "whole", stage, {}).codes == [0, 0]
    run, draws = folder / "run", generator(0, "kills", stage)
    kills, launches, reached = 0, 0, []
    while kills < num_kills:
        launches += 1
        assert launches < 3 * num_kills, f"{kills} kills in {launches} launches: they come too late"
        # Collectives of about two steps and a half and their save, or disk calls of about one save.
        plan: dict[str, Any] = {
            "rank": int(draws.integers(2)),
            "collective": int(draws.integers(1, PER_STEP[stage] * 5 // 2)),
        }
        if draws.random() < 0.4:
            fault = Fault(at=int(draws.integers(1, 40)), action=(KILL, TORN, AFTER)[int(draws.integers(3))])
            plan = {"rank": 0, "fault": asdict(fault)}
        ended = train(server, shards, run, stage, plan)
        assert not ended.hung, ended
        if ended.codes == [0, 0]:
            break
        newest = latest_verified(run / "checkpoints")
        reached.append(0 if newest is None else int(newest.name.removeprefix("step-")))
        kills += KILLED in ended.codes
    assert kills == num_kills, f"the run was over after {kills} kills: {reached}"
    assert reached == sorted(reached), "a checkpoint was lost"
    assert train(server, shards, run, stage, {}).codes == [0, 0]
    assert ending(run, 2) == ending(folder / "whole", 2)
    assert len(json.loads((run / "buffers-1.json").read_text())) > 0


PER_STEP = {0: 50, 2: 200}
"""Collectives a step, roughly, with its share of a save."""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_twenty_kills_in_a_row_change_nothing(tmp_path: Path, server: FaultServer, shards: Path, stage: int) -> None:
    chain(server, shards, tmp_path, stage, KILLS)
