"""DeepSpeed compiles helpers under a lock file that outlives a kill -9: no start of ours waits for one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.fault_server import FaultServer
from tests.integration.fault_tasks import arguments, train_under
from tests.integration.runs import make_shards

BUILD = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load(verbose=False)"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("storms"), hours=3)


def start_beside(server: FaultServer, shards: Path, folder: Path, extensions: Path, ranks: int) -> None:
    """Train with ZeRO in the presence of what a build has left; nothing is built, so nothing is waited for."""
    before = {path: path.stat().st_mtime_ns for path in extensions.rglob("*")}
    plan = {"environment": {"TORCH_EXTENSIONS_DIR": str(extensions), "DS_ACCELERATOR": "cpu"}}
    for stage in (2,) if ranks == 1 else (2, 0, 3):
        argv = arguments(shards, folder / f"run-{stage}", run__steps=2, engine__zero_stage=stage)
        ended = server.run(train_under, argv, plan, ranks=ranks, timeout_s=200)
        assert ended.codes == [0] * ranks, ended
        assert not ended.hung
    assert {path: path.stat().st_mtime_ns for path in extensions.rglob("*")} == before


def test_a_stale_lock_is_not_waited_for(tmp_path: Path, server: FaultServer, shards: Path) -> None:
    """The lock files of every helper that DeepSpeed could want, as a build of torch before 2.15 leaves them."""
    names = ("deepspeed_shm_comm", "utils", "cpu_adam", "fused_adam", "async_io", "deepspeed_ccl_comm", "quantizer")
    extensions = tmp_path / "extensions"
    for name in names:
        (extensions / name).mkdir(parents=True)
        (extensions / name / "lock").write_bytes(b"")
    start_beside(server, shards, tmp_path, extensions, 1)


@pytest.mark.slow
def test_a_build_that_was_killed_is_not_waited_for(tmp_path: Path, server: FaultServer, shards: Path) -> None:
    extensions = tmp_path / "extensions"
    environment = {
        **os.environ, "TORCH_EXTENSIONS_DIR": str(extensions), "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", BUILD], env=environment, start_new_session=True, stderr=subprocess.PIPE
    ) as build:
        deadline = time.monotonic() + 120
        while not list(extensions.rglob("lock")):
            assert build.poll() is None, build.stderr and build.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.5)
        os.killpg(build.pid, signal.SIGKILL)
    assert list(extensions.rglob("lock")), "its lock outlives it"
    start_beside(server, shards, tmp_path, extensions, 2)
