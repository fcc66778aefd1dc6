"""What tests need to start programs as a user does: an environment, a launcher, a free port."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TIMEOUT_S = 300

_OF_LAUNCHERS = ("ACCELERATE_", "MASTER_", "SLURM", "TORCH")


def environment(*pairs: str, without: Iterable[str] = (), **more: object) -> dict[str, str]:
    """Give this process' environment for a program of ours, on one thread and without a GPU.

    Args:
        pairs: Variables to set, as `NAME=value` with blanks between them.
        without: Beginnings of the names of variables to leave out, beside those that a launcher sets.
        more: Variables to set, with values of any text.
    """
    hidden = (*_OF_LAUNCHERS, *without)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    stated = dict(pair.split("=", 1) for line in pairs for pair in line.split())
    return kept | own | stated | {name: str(value) for name, value in more.items()}


def launch(num_processes: str, argv: list[str], script: str = "pretrain") -> list[str]:
    """Build the command line that starts a script with `accelerate launch`."""
    tool = str(Path(sys.executable).parent / "accelerate")
    fixed = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [tool, "launch", *fixed, "--num_processes", num_processes, f"trainer/{script}.py", *argv]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program of ours to its end."""
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def free_port() -> int:
    """Find a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
