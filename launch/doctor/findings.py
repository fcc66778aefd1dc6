"""Report what a check found: one line a finding, and the exit code that a run would end with for it."""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Final, Literal, ParamSpec

from ...data.errors import ConfigError
from ...data.exit_codes import ExitCode

if TYPE_CHECKING:
    from ...trainer.settings.experiment import TrainingConfig
    from ...trainer.training.windows import Windows
    from .memory_formula import ModelSize

MIB: Final = 2**20
GIB: Final = 2**30
_NOT_WRITABLE: Final = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG)
"""What a folder answers that nothing can be written to; the check of run.dir fails there."""

_Arguments = ParamSpec("_Arguments")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was checked.

    Attributes:
        level: "ok"; "warn": a run starts, and may not go as wished; "FAIL": a run would fail.
        what: What was checked.
        found: What was found.
        expected: What would be right; "" where that was found.
        advice: What to do; "" where there is nothing to do.
        code: Exit code of a run that fails for this; 0 for the other levels.
    """

    level: Literal["ok", "warn", "FAIL"]
    what: str
    found: str
    expected: str = ""
    advice: str = ""
    code: int = 0

    def __str__(self) -> str:
        """Write it as one line."""
        expected = f"; expected {self.expected}" if self.expected else ""
        advice = f"; {self.advice}" if self.advice else ""
        return " ".join(f"{self.level:<4}  {self.what}: {self.found}{expected}{advice}".split("\n"))


@dataclass(frozen=True, kw_only=True)
class Job:
    """The run that is asked about, and how it shall be started.

    Attributes:
        config: Its settings.
        world_size: Ranks.
        ranks_per_node: Ranks of one node.
        lead_s: Seconds between the stop signal and the end of the job.
        sample: Sequences that are read.
        device_memory_gb: Memory of a rank's GPU where there is none here, GB; None: unknown.
    """

    config: "TrainingConfig"
    world_size: int
    ranks_per_node: int
    lead_s: float
    sample: int
    device_memory_gb: float | None


@dataclass(kw_only=True)
class Known:
    """What earlier checks have learned, and later ones need; None where a check failed."""

    windows: "Windows | None" = None
    size: "ModelSize | None" = None


def ok(what: str, found: str) -> Finding:
    """Report that something is right."""
    return Finding(level="ok", what=what, found=found)


def warn(what: str, found: str, *, expected: str = "", advice: str = "") -> Finding:
    """Report that something may not go as wished."""
    return Finding(level="warn", what=what, found=found, expected=expected, advice=advice)


def fail(what: str, found: str, code: ExitCode, *, expected: str = "", advice: str = "") -> Finding:
    """Report that a run would fail."""
    return Finding(level="FAIL", what=what, found=found, expected=expected, advice=advice, code=code)


def number(count: int, noun: str) -> str:
    """Write a number with what it counts, whose plural ends with "s"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def checked(
    what: str, code: ExitCode, *, writes: bool = False
) -> Callable[[Callable[_Arguments, Iterator[Finding]]], Callable[_Arguments, list[Finding]]]:
    """Make a check of a generator of findings; what it raises is one more finding, without secrets.

    Args:
        what: What is checked.
        code: Exit code of a failure that it raises; that of a ConfigError is known.
        writes: It writes to the run's folder; where nothing can be written there, that is no second failure.
    """

    def decorate(check: Callable[_Arguments, Iterator[Finding]]) -> Callable[_Arguments, list[Finding]]:
        @wraps(check)
        def run(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> list[Finding]:
            from ...data.credentials import redact

            findings: list[Finding] = []
            try:
                findings.extend(check(*arguments, **options))
            except Exception as error:
                # The folder of the run is a finding of its own already.
                if writes and isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
                    findings.append(warn(what, "not checked: run.dir cannot be written"))
                else:
                    # Errors of ours and of the system read as sentences; of others the kind says what they are about.
                    is_plain = isinstance(error, ValueError | OSError)
                    text = str(error) if is_plain else f"{type(error).__name__}: {error}"
                    ending = ExitCode.CONFIG if isinstance(error, ConfigError) else code
                    findings.append(fail(what, redact(text), ending))
            return findings

        return run

    return decorate
