"""Which sequences of an archive were lost, and how many may be before a run stops."""

import logging
import threading
from dataclasses import dataclass

from ..errors import DamagedError
from ..shards.index import Index

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LostSequence:
    """A sequence that failed its checks, could not be decoded, or is not there.

    Attributes:
        shard: Name of its shard.
        key: Its key.
        reason: What was expected and what was found.
    """

    shard: str
    key: str
    reason: str


class Quarantine:
    """Counts lost sequences, each once, in the order in which steps need them; safe for threads.

    Args:
        index: The archive's index.
        budget: Sequences that may be lost.
    """

    def __init__(self, index: Index, budget: int) -> None:
        self._index, self._budget = index, budget
        self._lost: dict[int, LostSequence] = {}
        self._lock = threading.Lock()
        self.windows = 0

    def admit(self, sequence: int, error: DamagedError) -> None:
        """Count one window that a lost sequence takes with it, and the sequence with its first one.

        Raises:
            DamagedError: More sequences are lost than may be; it lists those lost before.
        """
        with self._lock:
            before = list(self._lost.values())
            known = sequence in self._lost
            if not known and len(before) >= self._budget:
                raise self._refusal(error, before) from error
            self.windows += 1
            if known:
                return
            entry = self._index.sequences[sequence]
            self._lost[sequence] = LostSequence(
                shard=self._index.shards[entry.shard].name, key=entry.key, reason=str(error)
            )
        LOG.warning(
            "lost sequence %d of %d that data.quarantine allows, its windows are delivered as missing: %s",
            len(before) + 1, self._budget, error,
        )  # fmt: skip

    def lost(self) -> tuple[LostSequence, ...]:
        """List what was lost so far, in the order in which steps needed it."""
        with self._lock:
            return tuple(self._lost.values())

    def _refusal(self, error: DamagedError, before: list[LostSequence]) -> DamagedError:
        if not before:
            return error
        listed = "".join(f"\n  {one.reason}" for one in before)
        return DamagedError(
            f"{error}\nthis is sequence {len(before) + 1} lost by this process, and data.quarantine allows "
            f"{self._budget}; repair the archive (rainspark verify names all damage) or allow more; "
            f"lost before:{listed}"
        )
