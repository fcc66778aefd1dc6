"""What a check of `rainspark doctor` says: one line a finding, and the exit code that a run would end with for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from ...trainer.settings.experiment import TrainingConfig

SETTINGS: Final = 3
DATA: Final = 4
CHECKPOINT: Final = 6
"""The trainer's own exit codes (trainer/processes/entry.py): settings and the machine, data, where checkpoints go."""
MIB: Final = 2**20
GIB: Final = 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "ok"; "warn": a run starts, and may not go as wished; "FAIL": a run would fail.
        what: What was looked at.
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


def ok(what: str, found: str) -> Finding:
    """Say that something is right."""
    return Finding(level="ok", what=what, found=found)


def warn(what: str, found: str, *, expected: str = "", advice: str = "") -> Finding:
    """Say that something may not go as wished."""
    return Finding(level="warn", what=what, found=found, expected=expected, advice=advice)


def fail(what: str, found: str, code: int, *, expected: str = "", advice: str = "") -> Finding:
    """Say that a run would fail."""
    return Finding(level="FAIL", what=what, found=found, expected=expected, advice=advice, code=code)


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


def number(count: int, noun: str) -> str:
    """Write a number with what it counts, whose plural ends with "s"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def guarded(what: str, code: int, work: Callable[[], list[Finding]]) -> list[Finding]:
    """Do a check; what it raises is its finding, without secrets."""
    from ...data.credentials import redact

    try:
        return work()
    except Exception as error:
        text = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
        return [fail(what, redact(text), code)]


def as_json(finding: Finding) -> dict[str, Any]:
    """Give a finding as plain JSON values."""
    return dict(vars(finding))
