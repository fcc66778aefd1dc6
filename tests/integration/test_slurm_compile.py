"""A rank that is killed while it compiles an extension leaves a lock behind; the next start does not wait for it."""

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from tests.conftest import REPOSITORY

TIMEOUT_S = 300.0
# As DeepSpeed builds its own, through torch's loader and its lock.
PROGRAM = """
    import sys
    from torch.utils.cpp_extension import load
    load("slow", [sys.argv[1]], is_python_module=False)
    print("loaded")
"""
SLOW_TO_COMPILE = """
    #include <iostream>
    #include <regex>
    extern "C" bool is_word(const char* text) { return std::regex_match(text, std::regex("[a-z]+")); }
"""


def start(step: int, tmp_path: Path) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "TORCH", "MASTER"))}
    task = {
        "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "7",
        "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_STEP_ID": str(step), "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29400", "TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "",
        # The compiler's driver, ninja, is installed beside Python.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }  # fmt: skip
    command = [sys.executable, "-m", "rainspark.launch.rank", str(tmp_path / "program.py"), str(tmp_path / "slow.cpp")]
    return subprocess.Popen(
        command, env={**kept, **task}, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.PIPE, text=True
    )  # fmt: skip


def test_a_kill_during_a_compilation_does_not_stop_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "slow.cpp").write_text(textwrap.dedent(SLOW_TO_COMPILE))
    first = start(0, tmp_path)
    deadline = time.monotonic() + TIMEOUT_S
    while not (locks := list(tmp_path.glob("rainspark-extensions-*/*/*/lock"))):
        assert first.poll() is None, "it ended without compiling"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    # The file alone is what builds of torch before 2.15 wait for; later ones wait for whoever holds it.
    with locks[0].open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = start(1, tmp_path)
        try:
            text, _ = second.communicate(timeout=TIMEOUT_S)
        finally:
            second.kill()
    assert (second.returncode, text) == (0, "loaded\n")
