"""Count the sequences of an archive that were lost, and stop the run beyond the number that may be."""

import logging
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
    """Counts lost sequences, each once, in the order in which steps need them.

    Args:
        index: The archive's index.
        budget: Sequences that may be lost.

    Attributes:
        windows: Windows that lost sequences took with them.
    """

    def __init__(self, index: Index, budget: int) -> None:
        self._index, self._budget = index, budget
        self._lost: dict[int, LostSequence] = {}
        self.windows = 0

    def admit(self, sequence: int, error: DamagedError) -> None:
        """Count one window that a lost sequence takes with it, and the sequence with its first one.

        Raises:
            DamagedError: More sequences are lost than may be; it lists those lost before.
        """
        # Further windows of a sequence that is counted already cost nothing.
        if sequence not in self._lost:
            if len(self._lost) >= self._budget:
                raise self._refusal(error) from error
            entry = self._index.sequences[sequence]
            shard = self._index.shards[entry.shard].name
            self._lost[sequence] = LostSequence(shard=shard, key=entry.key, reason=str(error))
            LOG.warning(
                "lost sequence %d of %d that data.quarantine allows, its windows are delivered as missing: %s",
                len(self._lost),
                self._budget,
                error,
            )
        self.windows += 1

    def lost(self) -> tuple[LostSequence, ...]:
        """List what was lost so far, in the order in which steps needed it."""
        return tuple(self._lost.values())

    def _refusal(self, error: DamagedError) -> DamagedError:
        if not self._lost:
            return error
        # The one that is too many, and those before it: all that has to be repaired.
        listed = "".join(f"\n  {lost.reason}" for lost in self._lost.values())
        return DamagedError(
            f"{error}\nthis is sequence {len(self._lost) + 1} lost by this process, and data.quarantine allows "
            f"{self._budget}; repair the archive (rainspark verify names all damage) or allow more; "
            f"lost before:{listed}"
        )
