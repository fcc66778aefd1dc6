"""Translate Slurm's variables to torch's, and run the training program in place of this process.

`srun python -m rainspark.launch.rank PROGRAM ARGUMENTS...`. The program takes the process over, so that the srun task
is the rank: signals reach it without a launcher in between.
"""

import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..data.command import read_variable
from ..data.errors import ConfigError
from ..data.exit_codes import ExitCode
from .slurm import LaunchError, counts_per_node

# Longer than a start runs where sites limit jobs to a week; what it has built it has loaded long before.
_KEPT_S: Final = 14 * 24 * 3600.0


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Give RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, and OMP_NUM_THREADS where it is not set.

    Args:
        environment: An srun task's, with MASTER_ADDR and MASTER_PORT from the batch step.

    Raises:
        ConfigError: Something is missing, or holds no number.
    """
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID", "MASTER_ADDR", "MASTER_PORT")
    if absent := [name for name in names if not environment.get(name)]:
        raise LaunchError(f"{', '.join(absent)} not set: a rank is a task of srun, started by launch/multinode.sh")
    # The step's own where srun states them, else the job's.
    counts = [name for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") if environment.get(name)]
    if not counts:
        raise LaunchError("SLURM_TASKS_PER_NODE not set: a rank is a task of srun, started by launch/multinode.sh")
    tasks = counts_per_node(environment[counts[0]], counts[0])
    node = read_variable(environment, "SLURM_NODEID", most=len(tasks) - 1)
    variables = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks[node]),
    }
    if not environment.get("OMP_NUM_THREADS"):
        variables["OMP_NUM_THREADS"] = environment.get("SLURM_CPUS_PER_TASK") or "1"
    return variables


def extensions_folder(environment: Mapping[str, str]) -> Path:
    """Make the folder that this start builds torch extensions in, on this node alone.

    Whoever compiles holds a lock: another start, or one that hangs; and with torch before 2.15 a kill leaves a lock
    file on which every later build in the folder waits for ever. Code is loaded from there, so the folder must be this
    user's own.

    Raises:
        LaunchError: Somebody else holds the name.
    """
    own = Path(tempfile.gettempdir()) / f"rainspark-extensions-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    status = own.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise LaunchError(f"{own}: not a folder that only this user writes to; remove it, or set TORCH_EXTENSIONS_DIR")

    start = "-".join(environment.get(f"SLURM_{name}") or "0" for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))
    # The folder may lie on a disk that the nodes share.
    folder = own / f"{start}-{os.uname().nodename}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if environment.get("SLURM_LOCALID") == "0":
        _remove_old(own)
    return folder


def _remove_old(own: Path) -> None:
    """Remove what starts of two weeks ago and before have built: nobody else does, as a rank ends as the program."""
    before = time.time() - _KEPT_S
    with suppress(OSError):
        for folder in list(own.iterdir()):
            if folder.lstat().st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program as this rank, in place of this process.

    Args:
        argv: The program, a Python file, and its arguments.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        environment = {**os.environ, **rank_environment(os.environ)}
        if not environment.get("TORCH_EXTENSIONS_DIR"):
            environment["TORCH_EXTENSIONS_DIR"] = str(extensions_folder(environment))
    except ConfigError as error:
        sys.stderr.write(f"launch: {error}\n")
        sys.exit(ExitCode.CONFIG)
    # In place of this process: signals of srun reach the rank itself.
    os.execve(sys.executable, [sys.executable, *words], environment)


if __name__ == "__main__":
    main()
