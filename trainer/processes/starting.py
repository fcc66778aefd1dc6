"""Replace a process by torchrun where accelerate did not start all ranks; free of torch, whose import takes seconds."""

import os
import signal
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from .ending import end_with_parent


def start_other_processes(environment: Mapping[str, str]) -> None:
    """Become torchrun where `accelerate launch --num_processes N` on a machine without GPUs has started one process.

    Accelerate 1.15 starts several processes of this kind through mpirun only (`simple_launcher`), and leaves what was
    asked for in nothing but its own command line. Returns where there is nothing to do.
    """
    if not (launched_by_accelerate() and "MASTER_PORT" in environment and "RANK" not in environment):
        return
    # `--num_processes 2`, `--num-processes=2`: the last one counts.
    words = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").replace("=", "\0").split("\0")
    numbers = [number for word, number in pairwise(words) if word.replace("-", "_") == "__num_processes"]
    if not (numbers and numbers[-1].isdigit() and int(numbers[-1]) > 1):
        return

    end_with_parent(signal.SIGTERM)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", numbers[-1]]
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv])


def launched_by_accelerate() -> bool:
    """Tell whether `accelerate launch` started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ and sys.platform == "linux"
