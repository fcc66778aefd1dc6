"""Agree with all ranks on a result, on a stop, or on why a run ends: one cause, one exit code."""

import logging
import os
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar, cast

import torch.distributed as dist

from ...data.errors import ConfigError, DataError
from ...data.exit_codes import ExitCode
from ...models.weights.manifest import CheckpointError
from .ending import write_error
from .heartbeat import ENDED_WITH, WAITING, Heartbeat
from .rendezvous import RankEndedError

LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Ranks(Protocol):
    """The ranks of a run, as one of them sees them: what the engine offers for agreeing on something."""

    heartbeat: Heartbeat
    is_main: bool

    @property
    def rank(self) -> int:
        """Number of this rank."""

    def gather_objects(self, value: Any, /) -> list[Any]:
        """Give every rank's value to all, by rank."""

    def broadcast_object(self, value: Any, /) -> Any:
        """Give rank 0's value to all."""


class NonFiniteError(ArithmeticError):
    """The loss or its gradients were not finite for too many steps in a row."""


CAUSES: Final[tuple[tuple[type[Exception], ExitCode], ...]] = (
    (ConfigError, ExitCode.CONFIG),
    (DataError, ExitCode.DATA),
    (NonFiniteError, ExitCode.NONFINITE),
    (CheckpointError, ExitCode.CHECKPOINT),
)
# How libraries word a collective that failed because another rank is gone.
_LOST_CONTACT: Final = ("gloo", "NCCL", "closed by peer", "reset by peer", "Broken pipe", "ProcessGroup")


def on_all_ranks(engine: Ranks, work: Callable[[], _Result]) -> _Result:
    """Do something on every rank; what fails on one of them for a known cause ends all of them for that cause."""
    result: _Result | None = None
    failure: tuple[int, str] | None = None
    try:
        result = work()
    except Exception as error:
        # A cause that nobody foresaw keeps its traceback, and the heartbeat tells the others.
        known = [number for number, (kind, _) in enumerate(CAUSES) if isinstance(error, kind)]
        if not known:
            raise
        failure = (known[0], str(error))

    for rank, other in enumerate(engine.gather_objects(failure)):
        if other is not None:
            number, text = other
            raise CAUSES[number][0](text if rank == engine.rank or failure == other else f"on rank {rank}: {text}")
    return cast(_Result, result)


def on_main(engine: Ranks, work: Callable[[], _Result]) -> _Result:
    """Do something on the main rank and give its result to all; where it fails, it fails on all of them.

    Raises:
        CheckpointError: In place of what the work raised.
    """
    engine.heartbeat.again(None if engine.is_main else WAITING, waits=not engine.is_main)
    result: _Result | None = None
    failure: str | None = None
    if engine.is_main:
        try:
            result = work()
        except (CheckpointError, OSError) as error:
            failure = describe(error)
        except Exception as error:
            LOG.exception("rank 0 failed where the others wait for it")
            failure = f"{type(error).__name__}: {error}"

    result, failure = engine.broadcast_object((result, failure))
    if failure is not None:
        raise CheckpointError(failure)
    return cast(_Result, result)


def any_rank(engine: Ranks, flag: bool) -> bool:
    """Return whether a flag is set on any rank; a collective."""
    return any(engine.gather_objects(flag))


def describe(error: Exception) -> str:
    """Give an error's text, without the number where the system raised it."""
    if not (isinstance(error, OSError) and error.strerror):
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def code_of(error: Exception) -> int | None:
    """Look up the exit code of what ends an entry point; None for what nobody foresaw."""
    if isinstance(error, RankEndedError):
        return error.code
    return next((int(code) for kind, code in CAUSES if isinstance(error, kind)), None)


def outcome_of(error: Exception) -> str:
    """Name what ends a run, for the record of its attempts."""
    return ExitCode(code_of(error) or ExitCode.CRASH).name.lower()


def settle(engine: Ranks, error: Exception) -> None:
    """End this rank's part in the run: notify the others, then leave, the rank that holds the store last.

    Args:
        engine: Of this rank.
        error: What ends it, which the caller raises again.

    Raises:
        RankEndedError: See `notify_ranks`.
    """
    try:
        notify_ranks(engine, error)
    finally:
        engine.heartbeat.leave()


def notify_ranks(engine: Ranks, error: Exception) -> None:
    """State to the other ranks why this one ends; or find out which of them has ended, where that is why. Only once.

    Args:
        engine: Of this rank.
        error: What ends it, which the caller raises again.

    Raises:
        RankEndedError: Another rank's reason, and its exit code, in the error's place.
    """
    heartbeat = engine.heartbeat
    if heartbeat.is_settling:
        return
    me = f"rank {engine.rank} ({os.uname().nodename})"

    # This rank is the cause.
    if (code := code_of(error)) is not None:
        heartbeat.declare(code, f"{me}: {error}")
    elif not _is_lost_contact(error):
        heartbeat.declare(ExitCode.CRASH, f"{me} crashed in: {heartbeat.doing}: {type(error).__name__}: {error}")

    # A collective failed, which says nothing about the rank on which it did.
    elif (verdict := heartbeat.find_cause()) is None:
        heartbeat.declare(ExitCode.CRASH, f"{me} lost the others in: {heartbeat.doing}; none of them is silent")
    elif verdict.code == ExitCode.CRASH:
        write_error(f"{ENDED_WITH}: {verdict.text}\n{me} was in: {heartbeat.doing}\n")
    else:
        raise RankEndedError(verdict.text, verdict.code) from error


def _is_lost_contact(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST_CONTACT)
    )
