"""The exit codes of every command, one a cause."""

from enum import IntEnum


class ExitCode(IntEnum):
    """One exit code a cause, the same on every rank."""

    DONE = 0
    CRASH = 1
    CONFIG = 3
    DATA = 4
    NONFINITE = 5
    CHECKPOINT = 6
    STALLED = 7
    # EX_TEMPFAIL of sysexits.h: "try again later", which is what a stopped run asks for.
    REQUEUE = 75
    # What shells report of a process that Ctrl-C has ended: 128 and the number of SIGINT.
    INTERRUPTED = 130
