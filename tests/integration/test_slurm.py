"""Training on a real two-node Slurm cluster through everything that happens to jobs; it ends as if nothing had."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rainspark.data.exit_codes import ExitCode
from tests.conftest import REPOSITORY
from tests.integration.runs import arguments, equal, tensors
from tests.slurm import Cluster, processes_of, start_cluster, wait_until  # noqa: F401

pytestmark = pytest.mark.slow

STEPS = 30
ENDS_S = 60.0
"""Stated: a job that is cancelled is gone after Slurm's KillWait and what a save takes."""


HOURS = 3


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    job = Job(cluster, shards, folder)
    assert job.wait_for_end()["JobState"] == "COMPLETED", job.log()
    assert [entry["code"] for entry in job.launches("end")] == [0]
    return job.run


class Job:
    """A job of `sbatch launch/multinode.sh`, with its run's folder and log."""

    def __init__(self, cluster: Cluster, shards: Path, folder: Path, *options: str, **overrides: object) -> None:
        self.cluster, self.folder, self.run = cluster, folder, folder / "run"
        folder.mkdir(exist_ok=True)
        overrides = {"run__steps": STEPS, "run__save_every": 4, "run__evaluate_every": 1000, **overrides}
        # Without one it would be the default recipe.
        (folder / "tiny.yaml").write_text("run: {log_every: 1}\n")
        self.words = [str(folder / "tiny.yaml"), *arguments(shards, self.run, **overrides)]
        self.options = ["--nodes=2", f"--output={folder}/%x-%j.log", *options]
        self.id = ""
        self.submit()

    def submit(self) -> None:
        script = [str(REPOSITORY / "launch" / "multinode.sh"), "--python", sys.executable]
        words = ["sbatch", "--parsable", *self.options, *script, *self.words]
        self.id = self.cluster.call(*words, cwd=self.folder, RAINSPARK_HOME=str(REPOSITORY)).strip()

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def launches(self, event: str) -> list[dict[str, Any]]:
        path = self.run / "launches.jsonl"
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [entry for entry in entries if entry["event"] == event and entry["job"] == self.id]

    def last_step(self) -> int:
        path = self.run / "metrics.jsonl"
        text = path.read_text(errors="replace") if path.exists() else ""
        return max((int(number) for number in re.findall(r'"step": (\d+),', text)), default=0)

    def wait_for_step(self, step: int) -> None:
        def there() -> bool:
            state = self.cluster.job(self.id)["JobState"]
            assert state not in ("FAILED", "CANCELLED", "TIMEOUT"), self.log()
            return self.last_step() >= step

        wait_until(there, f"step {step}:\n{self.log()[-3000:]}")

    def wait_for_end(self) -> dict[str, str]:
        found = self.cluster.wait_for_state(self.id, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_until(lambda: not processes_of(str(self.run)), "no process of the run is left", timeout_s=ENDS_S)
        return found

    def ranks(self) -> list[int]:
        """Process numbers of the ranks, seen from this machine."""
        lines = [line for line in processes_of(str(self.run)) if "trainer/pretrain.py" in line]
        return [int(line.partition(":")[0]) for line in lines if "launch" not in line and "srun" not in line]

    def checkpoints(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in (self.run / "checkpoints").glob("step-*"))

    def ends_like(self, undisturbed: Path) -> None:
        assert self.wait_for_end()["JobState"] == "COMPLETED", self.log()
        assert self.last_step() == STEPS
        assert equal(tensors(undisturbed), tensors(self.run))
        shutil.rmtree(self.run)


@contextmanager
def listening(node: str, port: int) -> Iterator[None]:
    """Take a port of a node."""
    code = "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); sys.stdin.read()"
    command = ["ip", "netns", "exec", f"st-{node}", sys.executable, "-c", code, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield
        finally:
            process.communicate(timeout=30)


class Submitted(Job):
    """A job of `rainspark submit`, with a GPU (a stand-in) on each node."""

    def submit(self) -> None:
        options = ["--nodes", "2", "--gpus", "1", "--time", "1:00", "--signal-s", "30", "--partition", "gpu"]
        command = [
            sys.executable,
            "-m",
            "rainspark.launch.submit",
            "pretrain",
            *options,
            "--folder",
            str(self.folder / "jobs"),
        ]
        said = self.cluster.call(*command, "--", *self.words, cwd=self.folder, PYTHONPATH=str(REPOSITORY))
        self.id = re.findall(r"^job +(\d+)$", said, re.MULTILINE)[0]
        assert f"run     {self.run}" in said
        assert f"log     {self.log_path()}" in said

    def log_path(self) -> Path:
        return self.folder / "jobs" / f"{self.id}_0_log.out"

    def log(self) -> str:
        return self.log_path().read_text(errors="replace") if self.log_path().exists() else ""


def test_warned_requeued_and_cancelled(
    cluster: Cluster,
    shards: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    job = Job(cluster, shards, tmp_path)
    job.wait_for_step(3)
    # What `--signal=B:USR2@180` sends before the time limit.
    cluster.call("scancel", "--batch", "--signal=USR2", job.id)
    wait_until(lambda: bool(job.launches("verdict")), "the first start has ended")
    assert job.launches("end")[0]["outcome"] == "stopped", job.log()
    saved = job.checkpoints()[-1]
    assert saved >= 3
    job.wait_for_step(saved + 3)
    assert cluster.job(job.id)["Restarts"] == "1"
    cluster.call("scontrol", "requeue", job.id)
    wait_until(lambda: len(job.launches("start")) == 3, "the third start")
    assert [entry["name"] for entry in job.launches("signal")] == ["SIGUSR2", "SIGTERM"], job.log()
    saved, before = job.launches("start")[2]["step"], saved
    assert saved >= before + 3, "saved on the way out"
    job.wait_for_step(saved + 3)
    assert cluster.job(job.id)["Restarts"] == "2"
    cancelled_at = time.monotonic()
    cluster.call("scancel", job.id)
    assert job.wait_for_end()["JobState"] == "CANCELLED"
    assert time.monotonic() - cancelled_at < ENDS_S
    assert cluster.job(job.id)["Restarts"] == "2"
    assert "requeued: job" in job.log()
    job.submit()
    wait_until(lambda: bool(job.launches("start")), "the start of the job that goes on")
    assert job.launches("start")[0]["step"] > saved, "saved on the way out"
    job.ends_like(undisturbed)


def test_crashes_cuts_and_lost_nodes(
    cluster: Cluster,
    shards: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    job = Job(cluster, shards, tmp_path)
    wait_until(lambda: bool(job.launches("start")), "the first start")
    with listening("node0", job.launches("start")[0]["port"]):
        wait_until(lambda: len(job.launches("start")) == 2, "started again with another port")
    assert job.launches("start")[1]["port"] != job.launches("start")[0]["port"]
    job.wait_for_step(5)
    os.kill(job.ranks()[-1], signal.SIGKILL)
    wait_until(lambda: len(job.launches("start")) == 3, "started again in the same allocation")
    assert [entry["code"] for entry in job.launches("end")] == [ExitCode.STALLED, 128 + signal.SIGKILL], job.log()
    assert cluster.job(job.id)["Restarts"] == "0"
    assert job.launches("start")[2]["step"] >= 4
    job.wait_for_step(job.launches("start")[2]["step"] + 3)
    cluster.node("cut", 1)
    time.sleep(8)
    cluster.node("heal", 1)
    job.wait_for_step(job.last_step() + 4)
    assert len(job.launches("start")) == 3, "a short cut is waited for"
    # The batch step runs on node 0.
    lost = 0 if cluster.tracking == "linuxproc" else 1
    cluster.node("crash", lost)
    cluster.wait_for_state(job.id, "PENDING")
    cluster.node("up", lost)
    wait_until(lambda: len(job.launches("start")) == 4, "started after the crash of a node")
    job.wait_for_step(job.launches("start")[3]["step"] + 3)
    cluster.node("cut", 1)
    cluster.wait_for_state(job.id, "PENDING")
    cluster.node("heal", 1)
    job.ends_like(undisturbed)
    assert cluster.job(job.id)["Restarts"] == "2"


def test_three_crashes_without_progress_stop_the_job(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    job = Job(cluster, shards, tmp_path, run__save_every=1000)
    for attempt in range(1, 4):
        wait_until(lambda: len(job.launches("start")) == attempt and len(job.ranks()) == 2, f"start {attempt}")  # noqa: B023
        os.kill(job.ranks()[0], signal.SIGKILL)
        wait_until(lambda: len(job.launches("verdict")) >= attempt, f"the end of start {attempt}")  # noqa: B023
    assert job.wait_for_end()["JobState"] == "FAILED"
    assert [entry["code"] for entry in job.launches("end")] == [137, 137, 137]
    text = job.log()
    assert "3 crashes in a row without a newer checkpoint than none: the job is stopped, not requeued" in text
    assert len(re.findall(r"exit code 137: node\d, rank \d: Killed\n", text)) >= 3
    record = cluster.job(job.id)
    assert record["Restarts"] == "0"
    assert record["ExitCode"] == "137:0"
    assert record["StdOut"] in text


def minutes_run(job: Job) -> int:
    """Whole minutes that a job has run for; Slurm's time limits are such."""
    return int(job.cluster.job(job.id)["RunTime"].split(":")[1])


def relax(job: Job) -> None:
    """Give the next start time enough; a job that is just being requeued takes no change."""
    job.cluster.wait_for_state(job.id, "PENDING", "RUNNING")
    job.cluster.call("scontrol", "update", f"JobId={job.id}", "TimeLimit=60")


def test_time_limits_of_submitit_and_of_sbatch(
    cluster: Cluster,
    shards: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("submitit")
    warned = Submitted(cluster, shards, tmp_path / "warned")
    # Its limit is lowered to what has passed already: the warning comes with the end.
    ended = Job(cluster, shards, tmp_path / "ended")
    for job in (warned, ended):
        job.wait_for_step(3)
        # What a long step is to the batch step: nothing moves until Slurm has spoken.
        assert len(job.ranks()) == 2
        for rank in job.ranks():
            os.kill(rank, signal.SIGSTOP)
    cluster.call("scontrol", "update", f"JobId={warned.id}", f"TimeLimit={minutes_run(warned) + 2}")
    wait_until(lambda: minutes_run(ended) >= 1, "a minute")
    cluster.call("scontrol", "update", f"JobId={ended.id}", "TimeLimit=1")
    wait_until(lambda: bool(ended.launches("late")), "requeued at the time limit")
    relax(ended)
    wait_until(lambda: bool(warned.launches("signal")), "the warning before the time limit")
    assert warned.launches("signal")[0]["name"] == "SIGUSR2"
    saves_in_time = cluster.tracking == "cgroup"
    if saves_in_time:
        relax(warned)
        for rank in warned.ranks():
            os.kill(rank, signal.SIGCONT)
    else:
        wait_until(lambda: bool(warned.launches("late")), "requeued without a save")
        relax(warned)
    wait_until(lambda: len(warned.launches("start")) == 2, "started again after the time limit")
    assert bool(warned.launches("late")) != saves_in_time
    if saves_in_time:
        assert warned.launches("end")[0]["outcome"] == "stopped"
        assert warned.launches("start")[1]["step"] >= 3
    for job in (warned, ended):
        job.ends_like(undisturbed)
        assert cluster.job(job.id)["Restarts"] == "1"
