"""What every rank of a run does, as one of them reads it: who is late, and who has fallen silent."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

_SHOWN_RANKS: Final = 8


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a rank's training thread began last.

    Attributes:
        operation: In words.
        step: Number of the step, from 1, as the log counts them; None before training.
        count: Beats in this step before this one: ranks do the same in the same order, so that it tells who is late.
        waits: Whether the rank waits for rank 0, which is as far as it then.
        at_s: When, on this process' monotonic clock.
    """

    operation: str
    step: int | None
    count: int
    waits: bool
    at_s: float

    @property
    def order(self) -> tuple[int, int, bool]:
        """How far the rank is: less is earlier."""
        return (-1 if self.step is None else self.step, self.count, self.waits)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What another rank published last, as this one read it.

    Attributes:
        rank: Whose.
        host: Its machine.
        operation: Its last operation.
        step: Of the operation; None before training.
        order: How far it is.
        since_s: Seconds from that operation's beginning to the publication.
        published: How many times it had published.
        read_s: When this rank first read that publication, on its monotonic clock.
    """

    rank: int
    host: str
    operation: str
    step: int | None
    order: tuple[int, int, bool]
    since_s: float
    published: int
    read_s: float

    @property
    def where(self) -> str:
        """Name its last operation, with the step."""
        return where_in(self.operation, self.step)

    def told(self, now_s: float, *, silent: bool) -> str:
        """Say what it does, or did last."""
        since_s = self.since_s + now_s - self.read_s
        if silent:
            return (
                f"rank {self.rank} ({self.host}) is silent for {now_s - self.read_s:.0f} s: its process has ended or "
                f"is stopped, or its machine is gone; its last operation was: {self.where}"
            )
        return f"rank {self.rank} ({self.host}) is late: {self.where}, for {since_s:.0f} s"


def silent_ranks(table: Sequence[Seen], read_s: float, silence_s: float) -> list[Seen]:
    """Choose the ranks that have published nothing for some time.

    Args:
        table: All ranks.
        read_s: When the table was read last, on this process' monotonic clock.
        silence_s: For how many seconds.
    """
    return [seen for seen in table if read_s - seen.read_s > silence_s]


def name_late(table: Sequence[Seen], silent: Sequence[Seen], now_s: float) -> str:
    """Say which ranks the others wait for: those that are silent, else those that are behind.

    Args:
        table: All ranks.
        silent: Those of them that are silent.
        now_s: This process' monotonic clock.
    """
    late = list(silent)
    if not silent:
        last = min(seen.order for seen in table)
        late = [seen for seen in table if seen.order == last]
        if len(late) == len(table):
            return f"no rank is behind: all are at {late[0].where}, which does not come to an end"
    told = [seen.told(now_s, silent=bool(silent)) for seen in late[:_SHOWN_RANKS]]
    return "; ".join([*told, *([f"{len(late) - _SHOWN_RANKS} more"] if len(late) > _SHOWN_RANKS else [])])


def where_in(operation: str, step: int | None) -> str:
    """Name an operation with its step."""
    return operation if step is None else f"{operation}, step {step}"


def seen_now(rank: int, record: dict[str, Any]) -> Seen:
    """Read what a rank published, just now."""
    return Seen(**{**record, "order": tuple(record["order"])}, rank=rank, read_s=time.monotonic())


def older_of(table: Sequence[Seen], seen: Seen) -> Seen:
    """Keep what was read of a rank before where it has published nothing since: silence counts from then."""
    before = table[seen.rank] if table else None
    return before if before is not None and before.published == seen.published else seen
