"""What the batch step does from start to end; scripts stand where Slurm's commands do, as tests/slurm.py is slow."""

import logging
import os
import textwrap
import threading
from collections import Counter
from pathlib import Path

import pytest

from rainspark.launch.job import Supervisor, read_job
from rainspark.launch.launches import Launches
from rainspark.launch.step import StopRequests
from tests.checkpoints import make_checkpoint
from tests.conftest import REPOSITORY
from tests.slurm import wait_until

# Each answers with the first line of its file, and drops it where another follows; srun's lines are what it does.
COMMAND = r"""
    #!/bin/bash
    here=${0%/*} name=${0##*/}
    case "$name $1 $2" in
      "scontrol requeue "*) name=requeue ;;
      "scontrol show hostnames") name=hosts ;;
      "scontrol show job") name=record ;;
    esac
    echo "$name" >>"$here/calls"
    if [[ $name == hosts ]]; then printf 'node0\nnode1\n'; exit; fi
    line=$(head -n 1 "$here/$name.txt")
    [[ $(wc -l <"$here/$name.txt") -lt 2 ]] || sed -i 1d "$here/$name.txt"
    if [[ $name == srun || $name == requeue ]]; then eval "$line"; else echo "$line"; fi
"""
RUNNING = "JobId=7 JobState=RUNNING Reason=None StdOut=/logs/rainspark-7.log"
CANCELLED = "JobId=7 JobState=CANCELLED Reason=None"
OUT_OF_TIME = "JobId=7 JobState=COMPLETING Reason=TimeLimit"
KILLED = "echo 'srun: error: node1: task 1: Killed' >&2; exit 137"
SAVED = "echo 'srun: error: node0: task 0: Exited with exit code 75' >&2; exit 75"
BAD_DATA = "echo 'srun: error: node0: task 0: Exited with exit code 4' >&2; exit 137"
WAITS = "touch $here/ready; while :; do sleep 0.1; done"
SAVES_WHEN_TOLD = f"saves() {{ {SAVED}; }}; trap saves USR2; {WAITS}"
SLOW_TO_SAVE = f"trap 'sleep 1; exit 137' USR2; {WAITS}"
KILLED_WHEN_TOLD = f"killed() {{ {KILLED}; }}; trap killed USR2; {WAITS}"


class Slurm:
    """Slurm's commands, and a job of 7 on two nodes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin, self.folder = folder / "bin", folder
        self.bin.mkdir()
        for name in ("scontrol", "squeue", "sinfo", "srun"):
            path = self.bin / name
            path.write_text(textwrap.dedent(COMMAND).lstrip())
            path.chmod(0o755)
        self.says(record=[RUNNING], squeue=["5:00"], sinfo=["node1 allocated"], requeue=["true"], srun=["true"])
        for name in [name for name in os.environ if name.startswith(("SLURM", "RAINSPARK"))]:
            monkeypatch.delenv(name)
        for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
        for name in ("_SETTLE_S", "_LOOK_S"):
            monkeypatch.setattr(f"rainspark.launch.job.{name}", 0.01)
        monkeypatch.setattr("rainspark.launch.step._POLL_S", 0.1)

    def says(self, **lines: list[str]) -> None:
        for name, some in lines.items():
            (self.bin / f"{name}.txt").write_text("\n".join(some) + "\n")

    def run(self, told: str | None = None) -> int:
        """Run the job; told: a stop signal that comes when the ranks listen."""
        words = ["--home", str(REPOSITORY), "--", "--data.shards", "s", "--run.dir", str(self.folder / "run")]
        (self.bin / "ready").unlink(missing_ok=True)
        stops = StopRequests()

        def tell() -> None:
            wait_until(lambda: (self.bin / "ready").exists(), "the ranks listen", timeout_s=60)
            stops.names.append(str(told))

        teller = threading.Thread(target=tell)
        if told is not None:
            teller.start()
        code = Supervisor(*read_job(words), stops).run()
        if told is not None:
            teller.join()
        return code

    def calls(self) -> Counter[str]:
        return Counter((self.bin / "calls").read_text().split())

    def events(self) -> list[str]:
        kept = ("outcome", "verdict", "name")
        entries = Launches(self.folder / "run").read("7")
        return [next((entry[key] for key in kept if key in entry), entry["event"]) for entry in entries]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Slurm:
    caplog.set_level(logging.INFO, "launch")
    return Slurm(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("srun", "code", "events"),
    [
        (["true"], 0, ["start", "done", "end"]),
        ([BAD_DATA, "true"], 4, ["start", "fault", "end"]),
        ([KILLED, "true"], 0, ["start", "crash", "again", "start", "done", "end"]),
        ([KILLED, SAVED, "true"], 75, ["start", "crash", "again", "start", "stopped", "requeue"]),
    ],
)
def test_a_job_ends_starts_again_or_is_requeued_once(
    slurm: Slurm, srun: list[str], code: int, events: list[str]
) -> None:
    slurm.says(srun=srun)
    assert slurm.run() == code
    assert slurm.events() == events
    assert slurm.calls()["srun"] == events.count("start")
    assert slurm.calls()["requeue"] == (code == 75)


def test_the_third_crash_without_progress_ends_the_job(slurm: Slurm, caplog: pytest.LogCaptureFixture) -> None:
    slurm.says(srun=[KILLED])
    assert slurm.run() == 137
    assert slurm.events() == [*["start", "crash", "again"] * 2, "start", "crash", "give up"]
    assert slurm.calls()["requeue"] == 0
    text = "3 crashes in a row without a newer checkpoint than none: the job is stopped, not requeued"
    assert text in caplog.text
    assert "pretrain: recipe pretrain_resnet50" in caplog.text
    assert caplog.text.count(": exit code 137: node1, rank 1: Killed") >= 3
    assert "what the ranks said stands above, in /logs/rainspark-7.log" in caplog.text
    ports = [entry["port"] for entry in Launches(slurm.folder / "run").read("7") if entry["event"] == "start"]
    assert len(set(ports)) == 3


def test_crashes_of_the_batch_step_itself_are_counted_when_slurm_brings_the_job_back(slurm: Slurm) -> None:
    for attempt in (1, 2, 3):
        Launches(slurm.folder / "run").append("start", job="7", attempt=attempt, step=-1)
    assert slurm.run() == 1
    assert slurm.calls()["srun"] == 0
    slurm.says(srun=["true"])
    assert slurm.run() == 0, "requeued by hand, it has three more"


@pytest.mark.parametrize("signal", ["SIGUSR2", "SIGTERM"])
@pytest.mark.parametrize(
    ("srun", "record", "code", "requeues"),
    [(SAVES_WHEN_TOLD, RUNNING, 75, 1), (SAVES_WHEN_TOLD, CANCELLED, 75, 0), (KILLED_WHEN_TOLD, CANCELLED, 137, 0)],
)
def test_told_to_stop_it_requeues_once_unless_cancelled(
    slurm: Slurm, srun: str, record: str, code: int, requeues: int, signal: str
) -> None:
    slurm.says(srun=[srun], record=[record])
    assert slurm.run(signal) == code
    assert slurm.events() == ["start", signal, "stopped", "requeue" if requeues else "leave"]
    assert slurm.calls()["requeue"] == requeues


@pytest.mark.parametrize(("signal", "record"), [("SIGUSR2", RUNNING), ("SIGTERM", OUT_OF_TIME)])
def test_at_the_time_limit_it_requeues_once_though_the_ranks_have_not_saved(
    slurm: Slurm, caplog: pytest.LogCaptureFixture, signal: str, record: str
) -> None:
    slurm.says(srun=[SLOW_TO_SAVE], squeue=["0:10"], record=[record])
    assert slurm.run(signal) == 137
    assert slurm.events() == ["start", signal, "late", "stopped", "leave"]
    assert slurm.calls()["requeue"] == 1
    assert "raise the seconds of --signal" in caplog.text


def test_a_time_limit_that_leaves_no_time_to_train_ends_the_job_at_last(
    slurm: Slurm, caplog: pytest.LogCaptureFixture
) -> None:
    slurm.says(srun=[SAVES_WHEN_TOLD], squeue=["4:00", "3:20", "3:50"])
    assert [slurm.run("SIGUSR2") for _ in range(3)] == [75, 75, 1]
    assert slurm.calls()["requeue"] == 2
    assert slurm.events()[-4:] == ["start", "SIGUSR2", "stopped", "give up"]
    assert "3 starts in a row that the time limit's warning stopped without a newer checkpoint than none" in caplog.text
    assert "the time limit leaves too little time (told 230 s before it): raise --time or lower --signal" in caplog.text
    assert f"submit again with --run.dir {slurm.folder}/run" in caplog.text
    assert slurm.run("SIGUSR2") == 75, "requeued by hand, it has three more"


@pytest.mark.parametrize(("signal", "left"), [("SIGTERM", ["5:00"]), ("SIGUSR2", ["40:00", "20:00", "10:00", "5:00"])])
def test_preemptions_may_come_again_and_again(slurm: Slurm, signal: str, left: list[str]) -> None:
    slurm.says(srun=[SAVES_WHEN_TOLD], squeue=left)
    assert [slurm.run(signal) for _ in range(4)] == [75] * 4
    assert slurm.calls()["requeue"] == 4


def test_a_stop_that_saved_something_starts_the_count_anew(slurm: Slurm) -> None:
    slurm.says(srun=[SAVES_WHEN_TOLD])
    assert [slurm.run("SIGUSR2") for _ in range(2)] == [75, 75]
    make_checkpoint(slurm.folder / "run", 4)
    assert [slurm.run("SIGUSR2") for _ in range(3)] == [75, 75, 1]


def test_warnings_are_counted_too_when_slurm_brings_the_job_back(
    slurm: Slurm, caplog: pytest.LogCaptureFixture
) -> None:
    for attempt in (1, 2, 3):
        Launches(slurm.folder / "run").append("start", job="7", attempt=attempt, step=-1)
        Launches(slurm.folder / "run").append("end", job="7", attempt=attempt, outcome="stopped", code=140, left_s=170)
    assert slurm.run() == 140
    assert slurm.calls()["srun"] == 0
    assert "the time limit leaves too little time" in caplog.text


def test_a_job_of_no_requeue_is_not_said_to_be_queued_again(slurm: Slurm, caplog: pytest.LogCaptureFixture) -> None:
    slurm.says(srun=[SAVES_WHEN_TOLD], record=[f"{RUNNING} Requeue=0"])
    assert slurm.run("SIGUSR2") == 75
    assert slurm.calls()["requeue"] == 0
    assert "start 1: the job has to be queued again to go on" in caplog.text
    assert "not requeued: the job is one of --no-requeue; the same command, submitted again with" in caplog.text


def test_it_waits_for_a_node_that_is_away_and_counts_no_crash(slurm: Slurm, caplog: pytest.LogCaptureFixture) -> None:
    slurm.says(srun=[KILLED, "true"], sinfo=["node1 allocated*", "node1 down", "node1 down*", "node1 idle"])
    assert slurm.run() == 0
    assert slurm.events() == ["start", "taken", "again", "start", "done", "end"]
    assert caplog.text.count("waiting for node1: down or not answering") == 2
    assert slurm.calls()["sinfo"] == 4


def test_a_job_that_is_cancelled_while_a_node_is_away_does_not_come_back(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rainspark.launch.job._WHOLE_AGAIN_S", 0.0)
    slurm.says(srun=[KILLED], sinfo=["node1 down"], record=[RUNNING, CANCELLED])
    assert slurm.run() == 75
    assert slurm.calls() == {"hosts": 1, "srun": 1, "record": 2, "sinfo": 2}
    assert "Slurm has ended or requeued the job already" in caplog.text


def test_a_requeue_that_slurm_refuses_is_said(slurm: Slurm, caplog: pytest.LogCaptureFixture) -> None:
    slurm.says(srun=[SAVED], requeue=["echo 'Requested operation is presently disabled' >&2; exit 1"])
    assert slurm.run() == 75
    assert "Requested operation is presently disabled" in caplog.text
    assert f"not requeued; the same command, submitted again with --run.dir {slurm.folder}/run, goes on" in caplog.text
