"""The last output of a process whose standard output is full, closed or was never there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PRINTING = """
import sys
from rainspark.trainer.processes.ending import end_process, write_output
if sys.argv[1] == "closed":
    sys.stdout.close()
write_output("done: 6 steps\\n" * 10000)
end_process(0)
"""


@pytest.mark.parametrize("case", ["full", "closed", "none"])
def test_a_finished_run_that_cannot_print_is_finished(case: str) -> None:
    command = [sys.executable, "-c", PRINTING, case]
    if case == "none":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command, cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120
        )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr


TEARDOWN = """
import atexit, threading, time
from rainspark.trainer.processes.ending import end_process

class Whole:
    def __del__(self):
        print("taken apart")

def work():
    time.sleep(0.2)
    print("thread")

kept = Whole()
atexit.register(print, "held back", end="")
atexit.register(print, "hook")
threading.Thread(target=work).start()
end_process(75)
"""


def test_the_end_waits_for_threads_and_hooks_and_takes_nothing_apart() -> None:
    # What is held back is the point.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", TEARDOWN]
    ended = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (75, "thread\nhook\nheld back", "")
