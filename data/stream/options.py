"""State how windows are read: with which threads, in how much memory, and what may be lost."""

from dataclasses import dataclass
from typing import Final

from ..errors import ConfigError

LEAST: Final = {"threads": 1, "readers": 1, "prefetch_steps": 0, "prefetch_mb": 0, "quarantine": 0}


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Threads, memory and tolerated losses of reading. Which windows are read, and in which order, depends on none.

    Attributes:
        threads: Threads that decode and cut.
        readers: Threads that read and verify; None for as many as decode of a folder, 8 of a store.
        decoded_mb: Decoded frames held at most, MiB; shared out equally among the lanes.
        prefetch_mb: Compressed sequences in flight or held that no lane has come to yet, at most, MiB.
        prefetch_steps: Steps made ready ahead of the consumer.
        quarantine: Damaged sequences that may be left out; their windows are delivered as wholly missing, with row -1.
            More of them stop the run. A sequence that was left out is tried again in the next epoch.
        pin_memory: Batches in page-locked memory, for copies to a GPU that nobody waits for.

    Raises:
        ConfigError: For a number that is too small.
    """

    threads: int = 2
    readers: int | None = None
    decoded_mb: float = 1024
    prefetch_mb: float = 512
    prefetch_steps: int = 2
    quarantine: int = 0
    pin_memory: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; expected at least {least}")


ONE_PASS: Final = ReadOptions(decoded_mb=256, prefetch_steps=1)
"""For windows that are read once, in order: neighbours share their frames, so few have to be held."""
