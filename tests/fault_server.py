"""Ranks that can be made to fail: processes forked from one that has imported everything, each disk call counted.

`python -m tests.fault_server MODULE ...` is that process; a test starts it through `FaultServer`. It has one thread
when it forks, so that its children are sound, and starting a rank takes milliseconds instead of seconds.
"""

import ctypes
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.programs import environment, free_port

REPOSITORY = Path(__file__).resolve().parents[1]
COUNT, KILL, TORN, SHORT, FAIL, AFTER = range(6)
"""What the shim does at an operation: pass; kill before it; kill amid a write; write half; fail; kill after a write.

Where it is no write, TORN and AFTER kill before it."""

_GRACE_S = 45.0
"""Seconds in which the other ranks must notice that one has died."""


@dataclass(frozen=True)
class Fault:
    """What happens at which operation below a folder.

    Attributes:
        at: Number of the operation, from 1; 0: none, count only.
        action: One of the names above.
        errno: Of FAIL.
        repeat: Operations that it happens to; 0: all from `at` on.
        log: File that every operation is written to.
    """

    at: int = 0
    action: int = COUNT
    errno: int = 0
    repeat: int = 1
    log: str = ""

    def arm(self, folder: Path) -> None:
        """Let it wait for this process."""
        shim = ctypes.CDLL(None)
        shim.fault_arm(
            os.fsencode(folder), os.fsencode(self.log), ctypes.c_long(self.at), ctypes.c_long(self.repeat),
            self.action, self.errno,
        )  # fmt: skip


def disarm() -> int:
    """Let this process' operations pass again; give how many there were."""
    shim = ctypes.CDLL(None)
    shim.fault_disarm()
    shim.fault_counted.restype = ctypes.c_long
    return int(shim.fault_counted())


@dataclass(frozen=True)
class Ended:
    """How ranks ended: their exit statuses (-9: killed) and output by rank, and whether one had to be killed by us."""

    codes: list[int]
    texts: list[str]
    hung: bool


class FaultServer:
    """The process that forks ranks, seen from the test.

    Args:
        folder: For the shim, and for what ranks write.
        modules: What it imports before it forks; a rank's function lies in one of them.
    """

    def __init__(self, folder: Path, modules: Sequence[str]) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler: the shim that counts disk calls cannot be built")
        self._folder = folder
        shim = folder / "fault_shim.so"
        source = REPOSITORY / "tests" / "fault_shim.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
        variables = environment("OPENBLAS_NUM_THREADS=1 NUMEXPR_MAX_THREADS=1", LD_PRELOAD=shim, PYTHONPATH=REPOSITORY)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.fault_server", *modules],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables, text=True,
        )  # fmt: skip
        self._number = 0

    def run(self, function: Callable[..., object], *args: object, ranks: int = 1, timeout_s: float = 120.0) -> Ended:
        """Call `function(rank, *args)` on forked ranks; the arguments must survive JSON."""
        self._number += 1
        folder = self._folder / f"call-{self._number}"
        folder.mkdir()
        order = {
            "function": [function.__module__, function.__name__], "args": args, "ranks": ranks, "folder": str(folder),
            "timeout_s": timeout_s,
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        texts = [(folder / f"rank-{rank}.log").read_text(errors="replace") for rank in range(ranks)]
        shutil.rmtree(folder)
        return Ended(answer["codes"], texts, answer["hung"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def fault_server(folder: Path, *modules: str) -> Iterator[FaultServer]:
    """Start a server and end it."""
    server = FaultServer(folder, modules)
    try:
        yield server
    finally:
        server.close()


def _serve(modules: Sequence[str]) -> None:
    for module in (*modules, "tests.forked"):
        importlib.import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        sys.stdout.write(json.dumps(_run(order)) + "\n")
        sys.stdout.flush()


def _run(order: dict[str, Any]) -> dict[str, Any]:
    port = free_port()
    children = {_fork(order, rank, port): rank for rank in range(order["ranks"])}
    codes: list[int] = [0] * order["ranks"]
    deadline, hung = time.monotonic() + order["timeout_s"], False
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in children:
            code = os.waitstatus_to_exitcode(status)
            codes[children.pop(pid)] = code
            if code:
                deadline = min(deadline, time.monotonic() + _GRACE_S)
        elif time.monotonic() > deadline:
            hung = True
            for child in children:
                os.kill(child, signal.SIGKILL)
        else:
            time.sleep(0.005)
    return {"codes": codes, "hung": hung}


def _fork(order: dict[str, Any], rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(f"{order['folder']}/rank-{rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if order["ranks"] > 1:
            os.environ.update(
                RANK=str(rank), WORLD_SIZE=str(order["ranks"]), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port), LOCAL_WORLD_SIZE=str(order["ranks"]),
            )  # fmt: skip
        module, name = order["function"]
        code = int(getattr(sys.modules[module], name)(rank, *order["args"]) or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1:])
