"""Run a command of `data` and turn its errors into one line and an exit code."""

import sys
from collections.abc import Callable
from typing import Final

from .errors import DataError
from .exit_codes import ExitCode
from .frames import printable

GOES_ON: Final = "; the same command goes on where it stopped"


def run_command(work: Callable[[], int], *, interrupted: str = "") -> int:
    """Run a command and turn its errors into a line on standard error and an exit code.

    Args:
        work: The command; returns its exit code.
        interrupted: What an interruption means for the user; printed after "interrupted".

    Returns:
        The command's own code, 4 for a DataError, 130 for an interruption.
    """
    try:
        return work()
    except DataError as error:
        sys.stderr.write(printable(f"error: {error}\n"))
        return ExitCode.DATA
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted{interrupted}\n")
        return ExitCode.INTERRUPTED
