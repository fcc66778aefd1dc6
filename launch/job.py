"""Run the batch step of a training job: start all ranks, forward stop signals, requeue, start again after a crash.

`python -m rainspark.launch.job --home REPOSITORY [--entry pretrain] [OPTIONS] -- WORDS OF THE TRAINING PROGRAM`, by
`launch/multinode.sh` and `launch/submit.py`. Needs no torch: in a container only the ranks run.
"""

import argparse
import logging
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .. import check_tree
from ..data.command import CommandParser, whole_number
from ..data.errors import ConfigError
from ..data.exit_codes import ExitCode
from .launches import (
    MAX_CRASHES,
    Ended,
    Launches,
    Verdict,
    crashes_in_a_row,
    decide,
    newest_step,
    next_attempt,
    outcome_of,
    warned_in_a_row,
)
from .slurm import (
    Allocation,
    LaunchError,
    choose_port,
    job_record,
    may_requeue,
    nodes_out,
    read_allocation,
    requeue,
    time_left_s,
)
from .step import StopRequests, run_step
from .words import ENTRIES, complete, configurations, setting, split_words, with_config

LOG = logging.getLogger("launch")
RUNTIMES: Final = ("apptainer", "singularity", "srun")
# What sbatch leaves for srun to take as options: it concerns the batch step's placeholder of one task a node, or keeps
# this step's environment, where the ranks meet included, from the ranks (`sbatch --export=NONE`).
_NOT_INHERITED_TEXT: Final = """
SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK SLURM_DISTRIBUTION
SLURM_GPUS_PER_TASK SLURM_NTASKS_PER_GPU SLURM_GPU_BIND SLURM_CPUS_PER_GPU SLURM_EXPORT_ENV
"""
_NOT_INHERITED: Final = frozenset(_NOT_INHERITED_TEXT.split())
_WHOLE_AGAIN_S: Final = 900.0
_LOOK_S: Final = 5.0
_SETTLE_S: Final = 3.0
_LAST_S: Final = 15.0
"""Before the time limit; ranks that are saving then have Slurm's KillWait besides, 30 s unless a site sets it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to start.

    Attributes:
        home: The repository.
        entry: `pretrain` or `finetune`.
        words: The training program's, complete.
        ranks_per_node: Null: one a GPU, else one.
        python: The ranks' interpreter, seen from where they run.
        container: Image that the ranks run in.
        runtime: What runs the image: apptainer, singularity or srun itself (`--container-image`).
        mounts: `HOST:INSIDE,...` for the container.
    """

    home: Path
    entry: str
    words: tuple[str, ...]
    ranks_per_node: int | None
    python: str
    container: str | None
    runtime: str | None
    mounts: str | None


def make_options(prog: str) -> argparse.ArgumentParser:
    """Describe the options that every way to start a job shares."""
    options = CommandParser(prog=prog)
    ranks_help = "default: one a GPU of the node, else one"
    options.add_argument("--ranks-per-node", type=whole_number(1), metavar="N", help=ranks_help)
    options.add_argument("--container", metavar="IMAGE", help="run the ranks in this image")
    options.add_argument("--container-runtime", choices=RUNTIMES, help="default: apptainer or singularity, as found")
    options.add_argument("--container-python", metavar="PATH", default="python3", help="the interpreter in the image")
    options.add_argument("--mounts", metavar="HOST:INSIDE,...", help="for the container")
    return options


def check_container(asked: argparse.Namespace) -> None:
    """Refuse options of a container where there is none."""
    if asked.container is None and (asked.container_runtime or asked.mounts):
        raise LaunchError("--container-runtime and --mounts need --container IMAGE")


def read_job(argv: Sequence[str]) -> tuple[Job, Allocation]:
    """Read the batch step's command line and its allocation.

    Raises:
        ConfigError: Something is missing or wrong.
    """
    options = make_options("rainspark.launch.job")
    options.add_argument("--home", type=Path, required=True)
    options.add_argument("--entry", choices=ENTRIES, default="pretrain")
    own, words = split_words(argv)
    asked = options.parse_args(own)
    check_container(asked)
    # The ranks run the scripts of this repository with the package of the environment: both have to be one tree.
    check_tree(asked.home)

    allocation = read_allocation(os.environ)
    words = with_config(words, asked.entry)
    LOG.info("%s: recipe %s", asked.entry, ", ".join(configurations(words)))
    name = os.environ.get("SLURM_JOB_NAME", asked.entry)
    job = Job(
        home=asked.home.resolve(),
        entry=asked.entry,
        words=tuple(complete(words, os.environ, f"{name}-{allocation.job_id}")),
        ranks_per_node=asked.ranks_per_node,
        python=asked.container_python if asked.container else sys.executable,
        container=asked.container,
        runtime=choose_runtime(asked.container_runtime) if asked.container else None,
        mounts=asked.mounts,
    )
    return job, allocation


def choose_runtime(asked: str | None) -> str:
    """Choose what runs a container.

    Raises:
        LaunchError: Nothing that could is installed here.
    """
    candidates = [asked] if asked else list(RUNTIMES[:2])
    for name in candidates:
        if name and shutil.which(name):
            return name
    raise LaunchError(
        f"{' and '.join(map(str, candidates))} not found on this node; load the module that has it (--modules), or "
        f"name another --container-runtime: {', '.join(RUNTIMES)}"
    )


def srun_command(job: Job, allocation: Allocation) -> list[str]:
    """Write the one srun of a start: a task a rank, killed together."""
    per_node = allocation.ranks_per_node(job.ranks_per_node)
    num_nodes = len(allocation.hosts)
    # Steps see all GPUs of their node and choose by LOCAL_RANK; bound ones would all be called 0.
    gpus = ["--gpu-bind=none"] if allocation.gpus_per_node else []
    cpus = allocation.cpus_per_node // per_node

    # One step for all ranks, which ends as a whole when one of them fails.
    layout = [f"--nodes={num_nodes}", f"--ntasks={num_nodes * per_node}", f"--ntasks-per-node={per_node}"]
    command = ["srun", *layout, f"--cpus-per-task={cpus}" if cpus else "--overcommit"]
    command += ["--kill-on-bad-exit=1", "--mpi=none", *gpus]

    # In a container only the ranks run; srun itself may have the plugin that runs it.
    inside: list[str] = []
    here = str(Path.cwd())
    if job.container and job.runtime == "srun":
        command += [f"--container-image={job.container}", f"--container-workdir={here}"]
        command += [f"--container-mounts={mounts(job, here)}"]
    elif job.container:
        nv = ["--nv"] if allocation.gpus_per_node else []
        assert job.runtime is not None
        inside = [job.runtime, "exec", *nv, "--pwd", here, "--bind", mounts(job, here), job.container]

    program = str(job.home / "trainer" / f"{job.entry}.py")
    return [*command, *inside, job.python, "-m", "rainspark.launch.rank", program, *job.words]


def mounts(job: Job, here: str) -> str:
    """List what a container must see: the repository, the working directory, and what was asked for."""
    own = dict.fromkeys((f"{job.home}:{job.home}", f"{here}:{here}"))
    return ",".join([*own, *([job.mounts] if job.mounts else [])])


def step_environment(environment: Mapping[str, str], address: str, port: int) -> dict[str, str]:
    """Give srun and its tasks this environment, with where the ranks meet."""
    inherited = {key: value for key, value in environment.items() if key not in _NOT_INHERITED}
    return {**inherited, "MASTER_ADDR": address, "MASTER_PORT": str(port)}


class Supervisor:
    """Starts a job's ranks until they are done, or somebody has to act.

    Args:
        job: What to start.
        allocation: Where.
        stops: Stop signals to the batch step; listening already.
    """

    def __init__(self, job: Job, allocation: Allocation, stops: StopRequests) -> None:
        self.job = job
        self.allocation = allocation
        self.stops = stops
        self.folder = Path(setting(job.words, "run.dir") or ".")
        self._run = shlex.quote(str(self.folder))
        self.launches = Launches(self.folder)
        self.attempt = next_attempt(self.launches.read(allocation.job_id))
        self._requeue_at = math.inf
        self._left_s: float | None = None
        self._has_seen_term = False
        self._is_requeued = False

    def run(self) -> int:
        """Start the ranks, and start them again; return the job's exit code."""
        # A job that Slurm itself has requeued, for a lost batch node, may have crashed often enough already.
        crashes, warned = self._in_vain()
        if max(len(crashes), len(warned)) >= MAX_CRASHES:
            self.attempt -= 1
            self._note("verdict", verdict="give up")
            return self._give_up(crashes, warned)

        while True:
            ended = self._start()
            crashes, warned = self._in_vain()
            verdict = decide(ended, len(crashes), len(warned))
            self._note("verdict", verdict=verdict)
            LOG.info("start %d: %s", self.attempt, _NEXT[verdict])

            if verdict == "again" and not self._wait_until_whole():
                verdict = "requeue"
            if verdict == "again" and not self.stops.names:
                self.attempt += 1
                continue
            if verdict in ("again", "requeue"):
                return self._requeue()
            if verdict == "give up":
                return self._give_up(crashes, warned)
            return ended.code

    def _start(self) -> Ended:
        """Start all ranks once; return how they ended."""
        allocation = self.allocation
        port = choose_port(allocation.job_id, self.attempt)
        command = srun_command(self.job, allocation)
        step = newest_step(self.folder)
        if "--overcommit" in command:
            LOG.warning(
                "%d CPUs a node are fewer than its ranks; ask for more: sbatch --cpus-per-task",
                allocation.cpus_per_node,
            )
        LOG.info(
            "job %s, restart %d, start %d: %s on %s; they meet at %s:%d; %s",
            allocation.job_id,
            allocation.restart,
            self.attempt,
            " ".join(command[1:4]),
            ",".join(allocation.hosts),
            allocation.hosts[0],
            port,
            f"goes on from step {step}" if step >= 0 else "no checkpoint yet",
        )

        self._note("start", restart=allocation.restart, hosts=list(allocation.hosts), port=port, step=step)
        environment = step_environment(os.environ, allocation.hosts[0], port)
        code, detail = run_step(command, environment, self.stops, self._forwarded, self._stopping)

        # Noted before anything is decided: a kill of this process must not lose how the start ended.
        ended = self._ask_slurm(code, detail)
        outcome = outcome_of(ended)
        step = newest_step(self.folder)
        out = list(ended.nodes_out)
        self._note("end", code=code, detail=detail, outcome=outcome, step=step, nodes_out=out, left_s=self._left_s)
        LOG.info("start %d ended: %s, exit code %d: %s", self.attempt, outcome, code, detail)
        return ended

    def _ask_slurm(self, code: int, detail: str) -> Ended:
        """Ask Slurm about an end that was not planned; it may know a moment later than the ranks."""
        if code == 0:
            return Ended(code=code, detail=detail, told=bool(self.stops.names), running=True)
        if code != ExitCode.REQUEUE and not self.stops.names:
            time.sleep(_SETTLE_S)
        running = not self._is_requeued and may_requeue(job_record(self.allocation.job_id))
        out = () if code == ExitCode.REQUEUE else tuple(nodes_out(self.allocation.hosts))
        return Ended(code=code, detail=detail, told=bool(self.stops.names), running=running, nodes_out=out)

    def _forwarded(self, name: str) -> None:
        """Record a stop signal, and the time that it leaves."""
        LOG.info("%s: the ranks are told to save and to stop", name)
        self._note("signal", name=name)
        # Slurm's own TERM says that it has decided already what becomes of the job.
        if name == "SIGUSR2":
            left_s = time_left_s(self.allocation.job_id)
            self._left_s = left_s if math.isfinite(left_s) else None
            self._requeue_at = time.monotonic() + max(0.0, left_s - _LAST_S)

    def _stopping(self) -> None:
        """Have the job requeued when its time limit comes, or is about to, though the ranks have not saved."""
        too_late = time.monotonic() >= self._requeue_at
        if not self._has_seen_term and "SIGTERM" in self.stops.names:
            self._has_seen_term = True
            record = job_record(self.allocation.job_id)
            too_late |= record.get("JobState") != "RUNNING" and may_requeue(record)
        if too_late and not self._is_requeued:
            self._note("late")
            LOG.warning("the time limit is here, and the ranks have not saved yet: raise the seconds of --signal")
            self._requeue()

    def _wait_until_whole(self) -> bool:
        """Wait until all nodes answer; Slurm ends a job that has lost one. False: it took too long."""
        deadline = time.monotonic() + _WHOLE_AGAIN_S
        while out := nodes_out(self.allocation.hosts):
            LOG.warning("waiting for %s: down or not answering", ", ".join(out))
            if time.monotonic() > deadline or self.stops.names:
                return False
            time.sleep(_LOOK_S)
        return True

    def _requeue(self) -> int:
        """Have the job queued again, once."""
        job_id = self.allocation.job_id
        self._requeue_at = math.inf
        record = {} if self._is_requeued else job_record(job_id)
        if self._is_requeued or not may_requeue(record):
            LOG.info("Slurm has ended or requeued the job already")
        elif record.get("Requeue") != "0" and requeue(job_id):
            self._is_requeued = True
            LOG.info("requeued: job %s goes on from the newest checkpoint", job_id)
        else:
            why = ": the job is one of --no-requeue" if record.get("Requeue") == "0" else ""
            LOG.error("not requeued%s; the same command, submitted again with --run.dir %s, goes on", why, self._run)
        return ExitCode.REQUEUE

    def _in_vain(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """List the crashes, and the stops by the time limit's warning, in a row without a newer checkpoint."""
        entries, step = self.launches.read(self.allocation.job_id), newest_step(self.folder)
        return crashes_in_a_row(entries, step), warned_in_a_row(entries, step)

    def _give_up(self, crashes: Sequence[Mapping[str, Any]], warned: Sequence[Mapping[str, Any]]) -> int:
        """Log why, and end the job with the last exit code."""
        if len(crashes) >= MAX_CRASHES:
            row = crashes
            what = "crashes in a row"
            advice = "mend it"
        else:
            row = warned
            what = "starts in a row that the time limit's warning stopped"
            left = f"told {warned[-1]['left_s']:.0f} s before it"
            advice = f"the time limit leaves too little time ({left}): raise --time or lower --signal"

        step = newest_step(self.folder)
        lines = [f"  {start.get('utc')}: exit code {start.get('code')}: {start.get('detail')}" for start in row]
        log = job_record(self.allocation.job_id).get("StdOut", "this job's log")
        LOG.error(
            "%d %s without a newer checkpoint than %s: the job is stopped, not requeued\n%s\n"
            "  what the ranks said stands above, in %s; %s and submit again with --run.dir %s",
            len(row),
            what,
            f"step {step}" if step >= 0 else "none",
            "\n".join(lines),
            log,
            advice,
            self._run,
        )
        # Exit codes of a stop would have Slurm or a script start it again.
        code = row[-1].get("code")
        return code if isinstance(code, int) and code not in (0, ExitCode.REQUEUE) else 1

    def _note(self, event: str, **values: Any) -> None:
        self.launches.append(event, job=self.allocation.job_id, attempt=self.attempt, **values)


_NEXT: Final[dict[Verdict, str]] = {
    "end": "the job ends",
    "requeue": "the job has to be queued again to go on",
    "again": "all ranks start again in this allocation",
    "give up": "the job is stopped",
    "leave": "Slurm has ended or requeued the job",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a job's batch step; return its exit code.

    Args:
        argv: Command line without the program's name.
    """
    stops = StopRequests()
    stops.install()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [launch] %(message)s", datefmt="%H:%M:%S", force=True)
    try:
        job, allocation = read_job(sys.argv[1:] if argv is None else argv)
        return Supervisor(job, allocation, stops).run()
    except ConfigError as error:
        LOG.error("settings: %s", error)
        return ExitCode.CONFIG


def run_submitted(argv: Sequence[str]) -> None:
    """Run a job's batch step for Submitit, which takes a return for success."""
    if code := main(argv):
        sys.exit(code)


if __name__ == "__main__":
    sys.exit(main())
