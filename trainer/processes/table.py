"""What every rank of a run does, as one of them reads it: who is late, and who has fallen silent."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

_NUM_SHOWN: Final = 8


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a rank's training thread began last.

    Attributes:
        operation: In words.
        step: Number of the step, from 1, as the log counts them; None before training.
        count: Beats in this step before this one: ranks do the same in the same order, so that it shows who is late.
        waits: Whether the rank waits for rank 0, which is as far as it then.
        at_s: When it began, on the monotonic clock of the process that reads it.
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

    def __str__(self) -> str:
        """Name the operation with its step."""
        return self.operation if self.step is None else f"{self.operation}, step {self.step}"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What another rank published last, as this one read it.

    Attributes:
        rank: Whose.
        host: Its machine.
        beat: What it did then.
        published: How many times it had published.
        read_s: When this rank first read that publication, on its monotonic clock.
    """

    rank: int
    host: str
    beat: Beat
    published: int
    read_s: float

    @classmethod
    def read(cls, rank: int, record: dict[str, Any]) -> Self:
        """Read what a rank has just published, see `publication`."""
        # Ages travel, for clocks differ: turned back into times of this process.
        now_s = time.monotonic()
        age_s = record.pop("age_s")
        host, published = record.pop("host"), record.pop("published")
        return cls(rank=rank, host=host, published=published, beat=Beat(at_s=now_s - age_s, **record), read_s=now_s)

    def describe(self, now_s: float, *, silent: bool) -> str:
        """Describe what the rank does, or did last."""
        if silent:
            return (
                f"rank {self.rank} ({self.host}) is silent for {now_s - self.read_s:.0f} s: its process has ended or "
                f"is stopped, or its machine is gone; its last operation was: {self.beat}"
            )
        return f"rank {self.rank} ({self.host}) is late: {self.beat}, for {now_s - self.beat.at_s:.0f} s"


def publication(beat: Beat, host: str, published: int) -> dict[str, Any]:
    """Write a rank's state as plain JSON; ages travel instead of times, for every machine has its own clock."""
    record = asdict(beat)
    age_s = time.monotonic() - record.pop("at_s")
    return record | {"host": host, "published": published, "age_s": age_s}


def silent_ranks(table: Sequence[Seen], read_s: float, silence_s: float) -> list[Seen]:
    """Choose the ranks that have published nothing for some time.

    Args:
        table: All ranks.
        read_s: When the table was read last, on this process' monotonic clock.
        silence_s: For how many seconds.
    """
    return [seen for seen in table if read_s - seen.read_s > silence_s]


def name_late(table: Sequence[Seen], silent: Sequence[Seen], now_s: float) -> str:
    """Name the ranks that the others wait for: those that are silent, else those that are behind.

    Args:
        table: All ranks.
        silent: Those of them that are silent.
        now_s: This process' monotonic clock.
    """
    # Silence explains lateness: who is late besides only waits for the silent ones.
    late = list(silent)
    if not silent:
        earliest = min(seen.beat.order for seen in table)
        late = [seen for seen in table if seen.beat.order == earliest]
        if len(late) == len(table):
            return f"no rank is behind: all are at {late[0].beat}, which does not come to an end"
    return list_few([seen.describe(now_s, silent=bool(silent)) for seen in late], "; ")


def list_few(words: Sequence[object], separator: str = ", ") -> str:
    """List the first words, and count the rest where there are many."""
    rest = [f"{len(words) - _NUM_SHOWN} more"] if len(words) > _NUM_SHOWN else []
    return separator.join([*map(str, words[:_NUM_SHOWN]), *rest])


def keep_older(table: Sequence[Seen], seen: Seen) -> Seen:
    """Keep what was read of a rank before where it has published nothing since: silence counts from then."""
    before = table[seen.rank] if table else None
    return before if before is not None and before.published == seen.published else seen
