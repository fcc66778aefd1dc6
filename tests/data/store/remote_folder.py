"""A folder that answers as a remote store does: later, in any order, and with what happens to bytes on the way."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rainspark.data.errors import DataError
from rainspark.data.store.storage import LocalStorage

TRIES = 4


@dataclass
class Damage:
    """What happens to reads that touch a byte: it is flipped, the first `times` times (-1: every time).

    Attributes:
        name: The file.
        place: The byte.
        times: Reads that it happens to.
    """

    name: str
    place: int
    times: int = -1


class RemoteFolder(LocalStorage):
    """A storage without a folder of its own.

    Args:
        root: Where the files lie.
        latency_s: Seconds a read takes.
        damage: What happens on the way.
    """

    def __init__(self, root: Path, *, latency_s: float = 0.0, damage: Sequence[Damage] = ()) -> None:
        super().__init__(root)
        self.latency_s, self.damage = latency_s, damage
        # (file, first byte, one past the last) of every read.
        self.ranges: list[tuple[str, int, int]] = []
        self.is_dead = False
        self.in_flight_peak = self._in_flight = 0
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path | None:
        """None: whoever reads must not look for a path."""
        return None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Read a range, a while later, as the way leaves it."""
        if self.is_dead:
            raise DataError(f"{self.url}/{name}: no answer within 300 s")
        with self._lock:
            self._in_flight += 1
            self.in_flight_peak = max(self.in_flight_peak, self._in_flight)
        try:
            time.sleep(self.latency_s)
            data = super().read(name, start, stop)
        finally:
            with self._lock:
                self._in_flight -= 1
        return self._damaged(name, start, data)

    def read_checked(self, name: str, start: int, stop: int, check: Callable[[bytes], None]) -> bytes:
        """Read a range until the check takes it, a few times."""
        for left in reversed(range(TRIES)):
            data = self.read(name, start, stop)
            try:
                check(data)
            except DataError:
                if not left:
                    raise
                self._traffic.add(retries=1)
            else:
                return data
        raise AssertionError

    def _damaged(self, name: str, start: int, data: bytes) -> bytes:
        with self._lock:
            self.ranges.append((name, start, start + len(data)))
            for damage in self.damage:
                if damage.name == name and start <= damage.place < start + len(data) and damage.times:
                    damage.times -= damage.times > 0
                    place = damage.place - start
                    data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        return data
