"""Extensions are compiled under a lock file that outlives a kill -9: no start waits for one."""

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.fault_server import FaultServer
from tests.integration.faults import train_under
from tests.integration.runs import smallest_arguments
from tests.programs import environment

pytestmark = pytest.mark.slow
HOURS = 3
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
    # The compiler's driver, ninja, is installed beside Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    task = environment(
        "SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_ID=7 SLURM_STEP_TASKS_PER_NODE=1",
        f"SLURM_STEP_ID={step} MASTER_ADDR=localhost MASTER_PORT=29400",
        TMPDIR=tmp_path,
        PATH=path,
    )
    command = [sys.executable, "-m", "rainspark.launch.rank", str(tmp_path / "program.py"), str(tmp_path / "slow.cpp")]
    return subprocess.Popen(
        command, env=task, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.PIPE, text=True
    )


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


def test_a_stale_lock_is_not_waited_for(tmp_path: Path, server: FaultServer, shards: Path) -> None:
    """The lock files of every helper that DeepSpeed could want, as a build of torch before 2.15 leaves them."""
    names = ("deepspeed_shm_comm", "utils", "cpu_adam", "fused_adam", "async_io", "deepspeed_ccl_comm", "quantizer")
    extensions = tmp_path / "extensions"
    for name in names:
        (extensions / name).mkdir(parents=True)
        (extensions / name / "lock").write_bytes(b"")
    before = {path: path.stat().st_mtime_ns for path in extensions.rglob("*")}
    plan = {"environment": {"TORCH_EXTENSIONS_DIR": str(extensions), "DS_ACCELERATOR": "cpu"}}
    for stage in (0, 2, 3):
        argv = smallest_arguments(shards, tmp_path / f"run-{stage}", run__steps=2, engine__zero_stage=stage)
        ended = server.run(train_under, argv, plan, timeout_s=200)
        assert ended.codes == [0], ended
        assert not ended.hung
    assert {path: path.stat().st_mtime_ns for path in extensions.rglob("*")} == before, "nothing is built"
