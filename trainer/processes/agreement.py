"""Agree with all ranks on why a run ends: one cause, one exit code."""

import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import torch.distributed as dist

from ...data.errors import ConfigError, DataError
from ...data.exit_codes import ExitCode
from ...models.weights.manifest import CheckpointError
from ...models.weights.transfer import WeightsError
from .ending import say
from .heartbeat import Heartbeat
from .rendezvous import RankEndedError

_Result = TypeVar("_Result")


class Ranks(Protocol):
    """The ranks of a run, as one of them sees them: what the engine offers for agreeing on an end."""

    heartbeat: Heartbeat

    @property
    def rank(self) -> int:
        """Number of this rank."""

    def gather_objects(self, value: Any, /) -> list[Any]:
        """Give every rank's value to all, by rank."""


class NonFiniteError(ArithmeticError):
    """The loss or its gradients were not finite for too many steps in a row."""


CAUSES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (ConfigError, ExitCode.CONFIG),
    (DataError, ExitCode.DATA),
    (NonFiniteError, ExitCode.NONFINITE),
    (CheckpointError, ExitCode.CHECKPOINT),
    (WeightsError, ExitCode.CHECKPOINT),
)


def on_all_ranks(engine: Ranks, work: Callable[[], _Result]) -> _Result:
    """Do something on every rank; what fails on one of them for a known cause ends all of them for that cause."""
    result: _Result | None = None
    failure: tuple[int, str] | None = None
    try:
        result = work()
    except Exception as error:
        known = [number for number, (kind, _) in enumerate(CAUSES) if isinstance(error, kind)]
        if not known:
            raise
        failure = (known[0], str(error))
    for rank, found in enumerate(engine.gather_objects(failure)):
        if found is not None:
            number, text = found
            raise CAUSES[number][0](text if rank == engine.rank or failure == found else f"on rank {rank}: {text}")
    return cast(_Result, result)


def code_of(error: Exception) -> int | None:
    """Give the exit code of what ends an entry point, None for what nobody foresaw."""
    if isinstance(error, RankEndedError):
        return error.code
    return next((int(code) for kind, code in CAUSES if isinstance(error, kind)), None)


def outcome_of(error: Exception) -> str:
    """Name what ends a run, for the record of its attempts."""
    return ExitCode(code_of(error) or ExitCode.CRASH).name.lower()


def settle(engine: Ranks, error: Exception) -> None:
    """End this rank's part in the run: tell the others, and leave, the rank that holds their table last.

    Args:
        engine: Of this rank.
        error: What ends it, which the caller raises again.

    Raises:
        RankEndedError: See `tell_ranks`.
    """
    try:
        tell_ranks(engine, error)
    finally:
        engine.heartbeat.leave()


def tell_ranks(engine: Ranks, error: Exception) -> None:
    """Tell the other ranks why this one ends; or find out which of them has ended, where that is why. Only once.

    Args:
        engine: Of this rank.
        error: What ends it, which the caller raises again.

    Raises:
        RankEndedError: Another rank's reason, and its exit code, in the error's place.
    """
    heartbeat = engine.heartbeat
    me = f"rank {engine.rank} ({os.uname().nodename})"
    if heartbeat.is_settling:
        return
    if (code := code_of(error)) is not None:
        heartbeat.declare(code, f"{me}: {error}")
    elif not _is_lost_contact(error):
        heartbeat.declare(ExitCode.CRASH, f"{me} crashed in: {heartbeat.doing}: {type(error).__name__}: {error}")
    elif (verdict := heartbeat.find_cause()) is None:
        heartbeat.declare(ExitCode.CRASH, f"{me} lost the others in: {heartbeat.doing}; none of them is silent")
    elif verdict.code == ExitCode.CRASH:
        say(f"{ENDED_WITH}: {verdict.text}\n{me} was in: {heartbeat.doing}\n")
    else:
        raise RankEndedError(verdict.text, verdict.code) from error


def _is_lost_contact(error: Exception) -> bool:
    """Tell whether a collective failed, which says nothing about the rank on which it did."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS_OF_LOST_CONTACT)
    )


ENDED_WITH = "ended with the other ranks"


_WORDS_OF_LOST_CONTACT = ("gloo", "NCCL", "closed by peer", "reset by peer", "Broken pipe", "ProcessGroup")
