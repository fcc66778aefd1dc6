"""One start: what srun says is passed on and understood, and stop signals are forwarded.

Real processes stand where srun does.
"""

import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from rainspark.launch.step import FirstExit, StopRequests, run_step


@pytest.mark.parametrize(
    ("said", "code", "detail"),
    [
        ("srun: error: node1: task 3: Exited with exit code 75\n", 75, "node1, rank 3: Exited with exit code 75"),
        ("srun: error: node1: tasks 0-3,7: Exited with exit code 4\n", 4, "node1, rank 0-3,7: Exited with exit code 4"),
        ("srun: error: node1: task 1: Killed\n", 137, "node1, rank 1: Killed"),
        ("srun: error: node1: task 1: Out Of Memory\n", 137, "node1, rank 1: Out Of Memory"),
        ("srun: error: gpu-03: task 1: Segmentation fault (core dumped)\n", 139, "gpu-03, rank 1: Segm"),
        ("srun: error: node0: task 0: User defined signal 2\n", 140, "node0, rank 0: User"),
        ("srun: error: node0: task 0: Terminated\nsrun: error: node1: task 1: Exited with exit code 3\n", 143, "node0"),
        (
            "srun: error: node1: task 1: Exited with exit code 3\nsrun: error: node0: task 0: Killed\n",
            3,
            "node1, rank 1",
        ),
        ("a rank: srun: error: node1: task 1: Exited with exit code 3\n", None, ""),
        ("srun: error: node1: task 1: unknown remark\nsrun: error: Node failure on node1\n", None, ""),
        ("srun: error: node1: task 1: Exited with exit code 3", None, ""),
    ],
)
def test_the_first_bad_exit_is_the_one(said: str, code: int | None, detail: str) -> None:
    for size in (1, 7, 10_000):
        first = FirstExit()
        for begin in range(0, len(said), size):
            first.feed(said[begin : begin + size].encode())
        assert first.code == code
        assert first.detail.startswith(detail)


def test_a_line_without_an_end_is_not_kept() -> None:
    first = FirstExit()
    for _ in range(100):
        first.feed(b"x" * 100_000)
    assert len(first._line) < 10_000
    first.feed(b"\nsrun: error: node1: task 1: Killed\n")
    assert first.code == 137


def program(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, str(path)]


def test_what_the_ranks_say_comes_through_and_the_first_one_decides(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = program(
        tmp_path,
        """
        import os, sys
        os.write(2, b"half a line, ")
        os.write(1, b"out\\n")
        os.write(2, b"and a bar \\r 50 %\\nsrun: error: node1: task 1: Exited with exit code 4\\n")
        os.write(2, os.environ["MASTER_PORT"].encode() + b" bytes \\xff\\nsrun: error: node0: task 0: Killed\\n")
        sys.exit(137)
        """,
    )
    code, detail = run_step(command, {**os.environ, "MASTER_PORT": "15"}, StopRequests(), lambda _: None)
    assert (code, detail) == (4, "node1, rank 1: Exited with exit code 4")
    said = capfd.readouterr()
    assert said.out == "out\n"
    assert "half a line, and a bar \r 50 %\n" in said.err.replace("\r", "\r")
    assert "15 bytes" in said.err


@pytest.mark.parametrize(
    ("text", "expected"), [("pass", 0), ("import sys; sys.exit(2)", 2), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_without_a_rank_that_says_why_it_is_sruns_own_code(tmp_path: Path, text: str, expected: int) -> None:
    code, detail = run_step(program(tmp_path, text), os.environ, StopRequests(), lambda _: None)
    assert code == expected
    assert detail == ("all ranks ended" if code == 0 else f"srun ended with exit code {code} before a rank said why")


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_reaches_the_ranks_as_one_that_srun_forwards(tmp_path: Path, number: signal.Signals) -> None:
    heard: list[str] = []
    command = program(
        tmp_path,
        """
        import signal, sys, time
        def end(number, frame):
            sys.stderr.write("srun: error: node0: task 0: Exited with exit code 75\\n")
            sys.exit(75)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(1))
        signal.signal(signal.SIGUSR2, end)
        open("ready", "w").close()
        time.sleep(60)
        """,
    )
    stops, ready, old = StopRequests(), tmp_path / "ready", {}
    for name in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        old[name] = signal.getsignal(name)

    def send() -> None:
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        stops.install()
        sender = threading.Thread(target=send)
        sender.start()
        code, _ = run_step(command, os.environ, stops, heard.append)
        sender.join()
    finally:
        os.chdir(here)
        for name, handler in old.items():
            signal.signal(name, handler)
    assert (code, heard) == (75, [number.name])


def test_ranks_that_did_not_hear_the_first_signal_get_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rainspark.launch.step._AGAIN_S", 0.2)
    command = program(
        tmp_path,
        """
        import signal, sys
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        for _ in range(3):
            signal.sigwait({signal.SIGUSR2})
        sys.exit(75)
        """,
    )
    stops = StopRequests()
    heard: list[str] = []

    def tell() -> None:
        time.sleep(2)
        stops.names.append("SIGUSR2")

    threading.Thread(target=tell).start()
    assert run_step(command, os.environ, stops, heard.append)[0] == 75
    assert heard == ["SIGUSR2"]
