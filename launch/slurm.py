"""Read the batch step's allocation, and ask Slurm for hosts, states, requeueing; choose a free port."""

import logging
import math
import os
import re
import subprocess
import time
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..data.command import read_variable
from ..data.errors import ConfigError
from ..data.json_checks import shown

FIRST_PORT: Final = 15_000
"""Below the ports that Linux gives to outgoing connections (32768 and up), so that chance takes none of ours."""
NUM_PORTS: Final = 15_000
_COMMAND_TIMEOUT_S: Final = 60.0
_ATTEMPTS: Final = 6
_PAUSE_S: Final = 5.0
_LISTENING: Final = "0A"  # /proc/net/tcp, state TCP_LISTEN
_STATES_DOWN: Final = ("DOWN", "FAIL", "NOT_RESPONDING", "NO_RESPOND", "POWER", "REBOOT", "UNKNOWN")
LOG = logging.getLogger(__name__)


class LaunchError(ConfigError):
    """Something about the launch that the user has to change."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The batch step's allocation.

    Attributes:
        job_id: Slurm's number, the same after a requeue.
        restart: How often the job was requeued.
        hosts: Names of the nodes, the batch step's own first.
        gpus_per_node: GPUs allocated on the batch step's node.
        tasks_per_node: What sbatch was asked for, None where it was not.
        cpus_per_node: CPUs allocated on the node that has the fewest.
    """

    job_id: str
    restart: int
    hosts: tuple[str, ...]
    gpus_per_node: int
    tasks_per_node: int | None
    cpus_per_node: int

    def ranks_per_node(self, asked: int | None) -> int:
        """Choose: what was asked for, else one a GPU, else what sbatch was told, else one."""
        return asked or self.gpus_per_node or self.tasks_per_node or 1


def read_allocation(environment: Mapping[str, str]) -> Allocation:
    """Read what Slurm tells a batch step.

    Raises:
        LaunchError: This is no batch step of Slurm.
        ConfigError: A variable holds no number; it is named.
    """
    job_id = environment.get("SLURM_JOB_ID")
    nodes = environment.get("SLURM_JOB_NODELIST")
    if not (job_id and nodes):
        raise LaunchError(
            "SLURM_JOB_ID and SLURM_JOB_NODELIST are not set: this runs as the batch step of a Slurm job; submit it "
            "with `sbatch launch/multinode.sh` or `rainspark submit`"
        )

    cpus = "SLURM_JOB_CPUS_PER_NODE"
    return Allocation(
        job_id=job_id,
        restart=read_variable(environment, "SLURM_RESTART_COUNT", default=0),
        gpus_per_node=read_variable(environment, "SLURM_GPUS_ON_NODE", default=0),
        tasks_per_node=read_variable(environment, "SLURM_NTASKS_PER_NODE", default=0) or None,
        cpus_per_node=min(counts_per_node(environment.get(cpus) or "1", cpus)),
        # Last, as it asks Slurm.
        hosts=expand_hosts(nodes),
    )


def counts_per_node(text: str, name: str = "a variable of Slurm") -> tuple[int, ...]:
    """Read Slurm's counts by node, the text of a variable: `8(x2),4` is (8, 8, 4).

    Raises:
        LaunchError: It is something else.
    """
    counts: list[int] = []
    for count in text.split(","):
        match = re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", count)
        if match is None:
            raise LaunchError(f"{name} is {shown(text)!r}; expected Slurm's counts by node, something like 8(x2),4")
        counts += [int(match.group(1))] * int(match.group(2) or 1)
    return tuple(counts)


def expand_hosts(nodes: str) -> tuple[str, ...]:
    """Have Slurm expand `node[0-3,7]`, in its order.

    Raises:
        LaunchError: Slurm's tools fail.
    """
    hosts = tuple(_ask(["scontrol", "show", "hostnames", nodes]).split())
    if not hosts:
        raise LaunchError(f"scontrol knows no host of {nodes!r}")
    return hosts


def job_record(job_id: str) -> dict[str, str]:
    """Ask for a job's fields, such as JobState, Reason and StdOut; empty where Slurm does not answer."""
    try:
        return fields(_ask(["scontrol", "show", "job", "--oneliner", job_id]))
    except LaunchError as error:
        LOG.warning("%s", error)
        return {}


def may_requeue(record: Mapping[str, str]) -> bool:
    """Tell whether a job is to be queued again by us: it runs, or only its time limit has ended it.

    A job that was cancelled must not come back, and one that was requeued or has lost a node does without us. Where
    Slurm did not answer, the job is taken to run.
    """
    state = record.get("JobState", "RUNNING")
    return state == "RUNNING" or (state in ("COMPLETING", "TIMEOUT") and record.get("Reason") == "TimeLimit")


def fields(line: str) -> dict[str, str]:
    """Read a line of `KEY=value` words; a value may hold spaces."""
    return dict(re.findall(r"(\S+?)=(.*?)(?=\s+[\w:/]+=|\s*$)", line))


def time_left_s(job_id: str) -> float:
    """Ask for the seconds to a job's time limit; infinite where there is none or Slurm does not answer."""
    try:
        return seconds(_ask(["squeue", "--noheader", "--jobs", job_id, "--format", "%L"]).strip())
    except LaunchError as error:
        LOG.warning("%s", error)
        return math.inf


def seconds(text: str) -> float:
    """Read a duration as squeue writes it, `D-HH:MM:SS` or less of it; infinite for UNLIMITED and other words."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return math.inf
    days, hours, minutes, rest = (int(digits or 0) for digits in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def requeue(job_id: str) -> bool:
    """Ask Slurm to stop the job and queue it again; tell whether it took that."""
    try:
        _ask(["scontrol", "requeue", job_id])
    except LaunchError as error:
        LOG.error("%s", error)
        return False
    return True


def nodes_out(hosts: Collection[str]) -> list[str]:
    """Name the nodes that are down or do not answer Slurm; none where Slurm itself does not answer."""
    # One line a node and partition, all of the same state.
    try:
        lines = _ask(["sinfo", "--noheader", "--Node", "--nodes", ",".join(hosts), "--format", "%N %T"]).splitlines()
    except LaunchError as error:
        LOG.warning("%s", error)
        return []
    states = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return sorted(name for name, state in states.items() if is_out(state))


def is_out(state: str) -> bool:
    """Tell whether a node in this state, as sinfo writes it, cannot run a step; `*` marks one that does not answer."""
    return "*" in state or state.upper().startswith(_STATES_DOWN)


def choose_port(job_id: str, attempt: int) -> int:
    """Choose a port on which nothing of this host listens: another one for every job and start.

    Raises:
        LaunchError: There is none.
    """
    # From the job's number and start, so that jobs that share a node do not meet on one port.
    taken = listening_ports(Path("/proc/net"))
    begin = zlib.crc32(f"{job_id}/{attempt}".encode())
    for step in range(NUM_PORTS):
        port = FIRST_PORT + (begin + step) % NUM_PORTS
        if port not in taken:
            return port
    raise LaunchError(f"every port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1} of this host is taken")


def listening_ports(proc_net: Path) -> set[int]:
    """List the TCP ports that somebody listens on, from the kernel's tables; empty where there are none."""
    ports = set()
    for name in ("tcp", "tcp6"):
        path = proc_net / name
        if not path.exists():
            continue

        for line in path.read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            # The local address is HEX:PORT, the state the fourth word.
            if len(words) > 3 and words[3] == _LISTENING:
                ports.add(int(words[1].rpartition(":")[2], 16))
    return ports


def _ask(command: list[str]) -> str:
    """Run one of Slurm's commands; its controller may be away for a moment.

    Raises:
        LaunchError: It failed, with its own words.
    """
    problem = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False, env=os.environ
            )
        except FileNotFoundError:
            raise LaunchError(f"{command[0]} was not found; load Slurm's commands on the batch node (PATH)") from None
        except subprocess.TimeoutExpired:
            problem = f"no answer within {_COMMAND_TIMEOUT_S:g} s"
            continue

        if done.returncode == 0:
            return done.stdout
        problem = done.stderr.strip() or f"exit code {done.returncode}"
        # Only what passes by itself is asked again.
        if not re.search(r"[Uu]nable to contact|[Cc]ommunication|[Tt]imed? ?out|[Tt]emporarily", problem):
            break
    raise LaunchError(f"{' '.join(command)}: {problem}")
