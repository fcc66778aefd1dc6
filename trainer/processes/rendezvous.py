"""How the ranks of a run meet in one store, who has not come in time, and why the first of them ended."""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Final

from torch.distributed import DistNetworkError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from ...data.command import read_variable
from ...data.exit_codes import ExitCode
from .table import list_few

_VERDICT: Final = "verdict"
_ARRIVED: Final = "arrived"
NOTIFY_S: Final = 10.0
"""Seconds of waiting for the others after which a line says so; ranks of one launch mostly come within a few."""
LOG = logging.getLogger(__name__)


class RankEndedError(RuntimeError):
    """Ends this rank together with another one, or for want of it.

    Args:
        text: Which rank, and why.
        code: The exit code, the same on every rank.
    """

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The reason why a run ends: the first rank that states one decides for all.

    Attributes:
        rank: Who states it.
        code: The exit code of all ranks.
        text: The reason, with the rank that is at fault.
    """

    rank: int
    code: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a rank looks for the others.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: Ranks that are to come.
        host: MASTER_ADDR.
        port: MASTER_PORT.
        launchers: Whether the launcher (torchrun, accelerate launch) holds the store, and not rank 0.
        attempt: How often the launcher has started these ranks again.
    """

    rank: int
    world_size: int
    host: str
    port: int
    launchers: bool
    attempt: str

    @classmethod
    def read(cls, rank: int, world_size: int, environment: Mapping[str, str]) -> "Address":
        """Read what the launcher left in the environment; MASTER_ADDR and MASTER_PORT are there."""
        return cls(
            rank=rank,
            world_size=world_size,
            host=environment["MASTER_ADDR"],
            port=read_variable(environment, "MASTER_PORT", least=1, most=65_535),
            launchers=environment.get("TORCHELASTIC_USE_AGENT_STORE") == str(True),
            attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )

    @property
    def holder(self) -> str:
        """Name who holds the store."""
        who = "the launcher" if self.launchers else "rank 0"
        return f"{who} at {self.host}:{self.port}"

    def connect(self, timeout_s: float, *, may_host: bool) -> Store:
        """Connect to the store; rank 0 opens it where `may_host` and no launcher has.

        Raises:
            DistNetworkError: Nobody answered in time, or the port is in use.
        """
        store = TCPStore(
            self.host,
            self.port,
            is_master=may_host and self.rank == 0 and not self.launchers,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            multi_tenant=not self.launchers,
        )
        return PrefixStore(f"rainspark/{self.attempt}", store)


def meet(address: Address, timeout_s: float, stop_asked: Callable[[], bool]) -> Store:
    """Wait until all ranks have come to the store.

    Args:
        address: Where they meet.
        timeout_s: Seconds to wait.
        stop_asked: Returns whether this rank was asked to stop; one that was ends the wait of all.

    Returns:
        The store, this rank's connection for the process group.

    Raises:
        RankEndedError: Ranks are missing after that time (they are named), or a rank was asked to stop.
    """
    # Say that this rank is here, under a key that the others can ask for by number.
    deadline_s = time.monotonic() + timeout_s
    store = _connect_in_thread(address, timeout_s, stop_asked)
    store.set(_presence(address.rank), os.uname().nodename)
    num_arrived = store.add(_ARRIVED, 1)

    # Ask quickly at first: most ranks come at the same time.
    pause_s = 0.02
    notify_s = time.monotonic() + NOTIFY_S
    while num_arrived < address.world_size:
        if (verdict := read_verdict(store)) is not None:
            raise RankEndedError(verdict.text, verdict.code)
        if stop_asked():
            text = f"rank {address.rank}: asked to stop before all ranks had come"
            _leave(store, address, text, ExitCode.REQUEUE)
        if time.monotonic() > deadline_s:
            _leave(store, address, _name_missing(store, address, timeout_s), ExitCode.STALLED)
        if time.monotonic() > notify_s:
            notify_s = math.inf
            missing = _missing(store, address)
            # Once, not once a rank: of those that have come, the first one reports.
            if not set(range(address.rank)) - set(missing):
                LOG.warning(
                    "%s", _describe_wait(f"rank {list_few(missing)} of {address.world_size}", address, timeout_s)
                )
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.5)
        num_arrived = store.add(_ARRIVED, 0)
    return store


def _connect_in_thread(address: Address, timeout_s: float, stop_asked: Callable[[], bool]) -> Store:
    """Connect in a thread of its own: a signal handler cannot run while this one sits in the library."""
    stores: list[Store] = []
    failures: list[Exception] = []

    def connect() -> None:
        try:
            stores.append(address.connect(timeout_s, may_host=True))
        except Exception as error:
            failures.append(error)

    # Looked after from here, where signals arrive.
    thread = threading.Thread(target=connect, name="meeting", daemon=True)
    thread.start()
    notify_s = time.monotonic() + NOTIFY_S
    while thread.is_alive():
        thread.join(0.1)
        if time.monotonic() > notify_s and thread.is_alive():
            notify_s = math.inf
            LOG.warning("%s", _describe_wait(address.holder, address, timeout_s))
        if stop_asked() and thread.is_alive():
            raise RankEndedError(f"asked to stop before {address.holder} had answered", ExitCode.REQUEUE)

    if stores:
        return stores[0]
    (failure,) = failures
    if not isinstance(failure, DistNetworkError):
        raise failure
    # Torch has one error for both, and only its text tells them apart.
    if "EADDRINUSE" in str(failure):
        text = (
            f"rank 0 cannot open port {address.port} of MASTER_PORT: it is in use on this machine; choose a free one "
            "(--main_process_port of accelerate launch)"
        )
    else:
        text = (
            f"rank {address.rank}: {address.holder} (MASTER_ADDR:MASTER_PORT) did not answer within {timeout_s:g} s "
            "(engine.start_timeout_s): it was not started, or cannot be reached from this machine"
        )
    raise RankEndedError(text, ExitCode.STALLED) from failure


def _leave(store: Store, address: Address, text: str, code: int) -> None:
    verdict = declare(store, Verdict(rank=address.rank, code=code, text=text))
    if address.rank == 0 and not address.launchers:
        # The store goes with this process; the others read it twice a second.
        time.sleep(2)
    raise RankEndedError(verdict.text, verdict.code)


def _name_missing(store: Store, address: Address, timeout_s: float) -> str:
    missing = _missing(store, address)
    return (
        f"{len(missing)} of {address.world_size} ranks did not come within {timeout_s:g} s (engine.start_timeout_s): "
        f"{list_few(missing)}; their processes were not started, ended before, or cannot reach {address.holder}"
    )


def _missing(store: Store, address: Address) -> list[int]:
    # Asked of the store: a rank that came has left its name there.
    return [rank for rank in range(address.world_size) if not store.check([_presence(rank)])]


def _describe_wait(ranks: str, address: Address, timeout_s: float) -> str:
    """Word what is waited for, and which variables say so: they may be left over from another program."""
    return (
        f"waiting up to {timeout_s:g} s (engine.start_timeout_s) for {ranks}: RANK={address.rank} and "
        f"WORLD_SIZE={address.world_size} in the environment say that this is one of several processes, which meet at "
        f"MASTER_ADDR:MASTER_PORT ({address.host}:{address.port}); if it runs alone, they are left over from another "
        "program: unset RANK WORLD_SIZE LOCAL_RANK"
    )


def _presence(rank: int) -> str:
    return f"present/{rank}"


def read_verdict(store: Store) -> Verdict | None:
    """Read why the run ends; None while it does not."""
    return Verdict(**json.loads(store.get(_VERDICT))) if store.check([_VERDICT]) else None


def declare(store: Store, verdict: Verdict) -> Verdict:
    """State why the run ends unless another rank has, and return the reason that counts."""
    return Verdict(**json.loads(store.compare_set(_VERDICT, "", json.dumps(asdict(verdict)))))
