"""A rank that is late, dies, fails or is told to stop: all ranks end, with one code, and say which rank it was."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from rainspark.data.exit_codes import ExitCode
from tests.fault_server import Ended, FaultServer
from tests.integration.faults import train_with_deed
from tests.integration.runs import records, smallest_arguments

CRASH, STALLED, REQUEUE, KILLED = int(ExitCode.CRASH), int(ExitCode.STALLED), int(ExitCode.REQUEUE), -9
TIMEOUT_S = 10
HOST = os.uname().nodename


HOURS = 3


def start(
    server: FaultServer, shards: Path, run: Path, plan: dict[str, Any], *, ranks: int, **changes: object
) -> Ended:
    sizes = {2: "8 4 2", 3: "6 6 3"}.get(ranks, "8 4 2").split()
    batches = dict(zip(("data__global_batch", "data__micro_batch", "data__lanes"), sizes, strict=True))
    times = {"engine__timeout_s": TIMEOUT_S, "engine__start_timeout_s": 90}
    saves = {"run__steps": 6, "run__save_every": 100}
    argv = smallest_arguments(shards, run, **{**saves, **batches, **times, **changes})
    ended = server.run(train_with_deed, argv, plan, ranks=ranks, timeout_s=240)
    assert not ended.hung, ended.texts
    return ended


LATE = [
    ("sleep", "read", 1, [STALLED] * 3, "rank 1 (HOST) is late: read data, step 2, for "),
    ("stand still", "forward", 1, [STALLED, None, STALLED], "rank 1 (HOST) is silent for "),
    ("die", "forward", 2, [CRASH, CRASH, KILLED], "rank 2 (HOST) is silent for "),
    ("die", "read", 0, [KILLED, CRASH, CRASH], "which holds the table of all ranks, is gone: it has ended"),
    ("stand still", "forward", 0, [None, STALLED, STALLED], "which holds the table of all ranks, does not answer for "),
]


@pytest.mark.parametrize(
    ("deed", "where", "rank", "codes", "words"),
    [
        pytest.param(*case, id="-".join(map(str, case[:3])), marks=() if place in (0, 2) else pytest.mark.slow)
        for place, case in enumerate(LATE)
    ],
)
def test_a_rank_that_is_late_or_gone_is_named(
    server: FaultServer, shards: Path, tmp_path: Path, deed: str, where: str, rank: int, codes: list[int], words: str
) -> None:
    plan = {"rank": rank, "deed": deed, "where": where, "step": 2}
    ended = start(server, shards, tmp_path / "run", plan, ranks=3)
    assert [code if wanted is not None else None for code, wanted in zip(ended.codes, codes, strict=True)] == codes
    words = words.replace("HOST", HOST)
    doing = f"{'read data' if where == 'read' else 'forward'}, step 2"
    for number, text in enumerate(ended.texts):
        if number != rank:
            assert words in text, text
            assert doing in text, text
    if deed == "stand still" and rank:
        # The early warning too, before the time is up.
        assert re.search(rf"rank 0: no progress for \d s in .*: {re.escape(words)}", ended.texts[0]), ended.texts[0]
    if deed == "sleep":
        assert "rank 1 stands at read data, step 2" in ended.texts[1]
        assert "time.sleep(SLEEP_S)" in ended.texts[1]
        (attempt,) = json.loads((tmp_path / "run" / "usage.json").read_text())
        assert attempt["outcome"] == "stalled"


@pytest.mark.slow
def test_a_process_alone_that_stands_still_ends_too(server: FaultServer, shards: Path, tmp_path: Path) -> None:
    plan = {"rank": 0, "deed": "sleep", "where": "read", "step": 2}
    ended = start(server, shards, tmp_path / "run", plan, ranks=1)
    assert ended.codes == [STALLED]
    assert "rank 0 stands at read data, step 2" in ended.texts[0]
    assert "stalled: no progress for 10 s (engine.timeout_s): this is the only process" in ended.texts[0]


@pytest.mark.slow
def test_a_killed_rank_is_named_under_deepspeed(server: FaultServer, shards: Path, tmp_path: Path) -> None:
    plan = {"rank": 1, "deed": "die", "where": "forward", "step": 2}
    ended = start(server, shards, tmp_path / "run", plan, ranks=2, engine__zero_stage=2, engine__timeout_s=60)
    assert ended.codes == [CRASH, KILLED]
    assert f"rank 1 ({HOST}) is silent for " in ended.texts[0]
    assert "its last operation was: forward, step 2" in ended.texts[0]


@pytest.mark.slow
def test_ranks_that_never_start_are_named(server: FaultServer, shards: Path, tmp_path: Path) -> None:
    plan = {"rank": 2, "deed": "absent", "where": "start"}
    ended = start(server, shards, tmp_path / "run", plan, ranks=3, engine__start_timeout_s=10)
    assert ended.codes == [STALLED, STALLED, 0]
    for text in ended.texts[:2]:
        assert "1 of 3 ranks did not come within 10 s (engine.start_timeout_s): 2;" in text, text
        assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


CAUSES = [
    ("crash", 0, ExitCode.CRASH, "rank 0 (HOST) crashed in: forward, step 2: ZeroDivisionError: a rank that crashes"),
    ("data", 1, ExitCode.DATA, "damage that only this rank meets"),
    ("settings", 1, ExitCode.CONFIG, "a setting that only this rank finds wrong"),
    ("checkpoint", 0, ExitCode.CHECKPOINT, "a checkpoint that only this rank finds wrong"),
    ("crash", 1, ExitCode.CRASH, "rank 1 (HOST) crashed in: forward, step 2: ZeroDivisionError: a rank that crashes"),
]


@pytest.mark.parametrize(
    ("deed", "rank", "code", "words"),
    [
        pytest.param(*case, id=f"{case[0]}-{case[1]}", marks=() if place < 2 else pytest.mark.slow)
        for place, case in enumerate(CAUSES)
    ],
)
def test_what_one_rank_alone_meets_ends_both_with_its_code(
    server: FaultServer, shards: Path, tmp_path: Path, deed: str, rank: int, code: ExitCode, words: str
) -> None:
    plan = {"rank": rank, "deed": deed, "where": "forward", "step": 2}
    ended = start(server, shards, tmp_path / "run", plan, ranks=2)
    assert ended.codes == [code, code]
    other, own = ended.texts[1 - rank], ended.texts[rank]
    assert words.replace("HOST", HOST) in other, other
    assert f"rank {rank} ({HOST})" in other
    assert ("Traceback" in own) == (code == CRASH)
    (attempt,) = json.loads((tmp_path / "run" / "usage.json").read_text())
    assert attempt["outcome"] == code.name.lower()


def steps(run: Path) -> list[int]:
    return [record["step"] for record in records(run) if "loss" in record["metrics"]]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step-*"))


def test_a_stop_before_the_first_step_or_in_a_save_trains_and_saves_no_more(
    server: FaultServer, shards: Path, tmp_path: Path
) -> None:
    """One rank gets both signals; a second run is stopped at once when it resumes."""
    run, settings = tmp_path / "run", {"run__save_every": 2}
    plan = {"rank": 1, "deed": "stop", "where": "open", "step": 2}
    early = start(server, shards, run, plan, ranks=2, **settings)
    assert early.codes == [REQUEUE] * 2
    assert "stopped before the first step; the same command goes on from there" in early.texts[0]
    assert (steps(run), checkpoints(run)) == ([], [])
    saving = start(server, shards, run, {**plan, "where": "save"}, ranks=2, **settings)
    assert saving.codes == [REQUEUE] * 2
    assert saving.texts[1].count("finishing this step") == 1
    again = start(server, shards, run, plan, ranks=2, **settings)
    assert again.codes == [REQUEUE] * 2
    assert "stopped with a checkpoint after step 2 of 6" in again.texts[0]
    assert (steps(run), checkpoints(run)) == ([1, 2], ["step-00000002"])
    outcomes = [attempt["outcome"] for attempt in json.loads((run / "usage.json").read_text())]
    assert outcomes == ["stopped"] * 3


def test_a_killed_attempt_counts_in_the_cost(server: FaultServer, shards: Path, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", {"run__save_every": 2, "run__steps": 3}
    plan = {"rank": 0, "deed": "die", "where": "forward", "step": 3}
    killed = start(server, shards, run, plan, ranks=2, **settings)
    assert killed.codes == [KILLED, CRASH]
    assert "which holds the table of all ranks, is gone: it has ended" in killed.texts[1]
    assert "forward, step 3" in killed.texts[1]
    assert start(server, shards, run, {"rank": None}, ranks=2, **settings).codes == [0, 0]
    first, second = json.loads((run / "usage.json").read_text())
    assert (first["outcome"], second["outcome"]) == ("killed", "done")
    assert (first["first_step"], second["first_step"], second["last_step"]) == (0, 2, 3)
    assert first["processes"] == second["processes"] == 2
    assert min(first["device_hours"], second["device_hours"]) > 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["device_hours"] == pytest.approx(first["device_hours"] + second["device_hours"], abs=2e-6)
    assert summary["attempts"] == 2
