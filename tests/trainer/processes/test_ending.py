"""Last words to a standard output that is full, closed or was never there."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SAYING = """
import sys
from rainspark.trainer.processes.ending import end_process, say_out
if sys.argv[1] == "closed":
    sys.stdout.close()
say_out("done: 6 steps\\n" * 10000)
end_process(0)
"""


@pytest.mark.parametrize("case", ["full", "closed", "none"])
def test_a_finished_run_that_cannot_say_so_is_finished(case: str) -> None:
    command = [sys.executable, "-c", SAYING, case]
    if case == "none":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command, cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120
        )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
