"""A real two-node Slurm cluster on this machine, for the tests of the launch room.

A test file takes it by `from tests.slurm import start_cluster  # noqa: F401` and the fixture `cluster`, one for the
module under each way of tracking processes: with `cgroup`, as on real clusters, a signal to a step reaches the srun
task only; with `linuxproc` every process of the step.
"""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rainspark.launch.slurm import fields

LOCK = Path(tempfile.gettempdir()) / "rainspark-slurm-tests.lock"
WAIT_S = 240.0


@dataclass(frozen=True)
class Cluster:
    """A running cluster of node0 and node1.

    Attributes:
        folder: Of its state.
        environment: For Slurm's commands and jobs; without what this process' own environment has of Slurm's.
        tracking: `cgroup` or `linuxproc`.
    """

    folder: Path
    environment: dict[str, str]
    tracking: str

    def call(self, *words: str, cwd: Path | None = None, **more: str) -> str:
        """Run a command with the cluster's environment, and more, and return what it says."""
        environment = {**self.environment, **more}
        done = subprocess.run(
            words, env=environment, cwd=cwd, capture_output=True, text=True, timeout=WAIT_S, check=False
        )
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def node(self, action: str, number: int) -> None:
        """Let a node `crash`, come `up`, be `cut` off the network, or `heal`."""
        subprocess.run([self.folder / "node", action, str(number)], env=self.environment, check=True, timeout=60)

    def job(self, job_id: str) -> dict[str, str]:
        """Ask for a job's record."""
        return fields(self.call("scontrol", "show", "job", "--oneliner", job_id))

    def wait_for_state(self, job_id: str, *states: str) -> dict[str, str]:
        """Wait until a job is in one of these states."""
        wait_until(lambda: self.job(job_id)["JobState"] in states, f"job {job_id} is {' or '.join(states)}")
        return self.job(job_id)


def wait_until(condition: Callable[[], bool], what: str, *, timeout_s: float = WAIT_S) -> None:
    """Wait for a condition; the message of the failure says for what."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.2)


def processes_of(mark: str) -> list[str]:
    """List the processes of all nodes whose command line or environment holds a text, but this one and Slurm's own."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
            known = words + (folder / "environ").read_bytes()
        except OSError:
            continue
        if mark.encode() in known:
            found.append(f"{folder.name}: {words.decode(errors='replace')[:200]}")
    return found


def read_environment(path: Path) -> dict[str, str]:
    """Read a file of `export NAME=VALUE` lines."""
    words = shlex.split(path.read_text(encoding="utf-8"))
    return dict(word.split("=", 1) for word in words if "=" in word)


@pytest.fixture(name="cluster", scope="module", params=["cgroup", "linuxproc"])
def start_cluster(request: pytest.FixtureRequest, shared_dir: Path) -> Iterator[Cluster]:
    """Start a cluster, installing Slurm where it is missing."""
    with running(shared_dir / "tools", request.param) as found:
        yield found


@contextmanager
def running(tools: Path, tracking: str) -> Iterator[Cluster]:
    """Run a cluster from here to there; one at a time on a machine, as its bridge has one name.

    Args:
        tools: ../shared/tools.
        tracking: `cgroup` or `linuxproc`.
    """
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("a Slurm cluster of network namespaces needs root on Linux")
    if tracking == "cgroup" and not os.access("/sys/fs/cgroup/freezer", os.W_OK):
        pytest.skip("/sys/fs/cgroup/freezer (cgroup v1) is not writable: no proctrack/cgroup here")
    outer = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "RAINSPARK_"))}
    knobs = {**outer, "PROCTRACK": tracking, "CPUS": "4", "GPUS": "2"}
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = Path(tempfile.mkdtemp(prefix="rainspark-slurm-"))
        try:
            _call(tools / "slurm_up.sh", folder, knobs)
            job = {key: value for key, value in outer.items() if not key.startswith(("MASTER_", "ACCELERATE_"))}
            # One thread a rank: the nodes share this machine's cores.
            more = {**read_environment(folder / "env"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            yield Cluster(folder, {**job, **more}, tracking)
        finally:
            _call(tools / "slurm_down.sh", folder, knobs)
            shutil.rmtree(folder, ignore_errors=True)


def _call(script: Path, folder: Path, environment: dict[str, str]) -> None:
    # A file and no pipe: the daemons that it starts keep its output open.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [script, folder], env=environment, stdout=output, stderr=output, timeout=300, check=False
        )  # fmt: skip
        output.seek(0)
        assert done.returncode == 0, f"{script.name}: {output.read()[-2000:]}"
