"""Check names and ranges of files, word the errors about them, and count what a storage moves."""

import re
import threading
from typing import Final

from ..errors import DamagedError, DataError

_REFUSED: Final = re.compile(r"[\x00-\x1f\x7f\\]")


class Traffic:
    """Counts of what a storage moved since it was opened; safe for threads.

    Args:
        names: What is counted.
    """

    def __init__(self, *names: str) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(names or ("requests", "retries", "bytes_read", "bytes_written", "wait_s"), 0.0)

    def add(self, **counts: float) -> None:
        """Add to some of the counts."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def stats(self) -> dict[str, float]:
        """Give the counts so far."""
        with self._lock:
            return dict(self._counts)


def check_name(url: str, name: str) -> tuple[str, ...]:
    """Split a file's name at its slashes.

    Raises:
        DataError: An absolute name, or one that leads out of the root by its text.
    """
    # The same rules for folders and stores: an index may name its files to either.
    parts = tuple(name.split("/"))
    if not name or _REFUSED.search(name) or any(step in ("", ".", "..") for step in parts):
        raise DataError(f"{url}: the name {name!r} is not allowed; expected one relative path inside the folder")
    return parts


def check_range(where: str, start: int, stop: int | None) -> None:
    """Refuse a range that is none.

    Raises:
        DataError: It begins before the file or ends before it begins.
    """
    if start < 0 or (stop is not None and stop < start):
        raise DataError(f"{where}: bytes {start} to {stop} were asked for; expected 0 <= start <= stop")


def just_before(prefix: str) -> str | None:
    """Give a name behind which all names with a prefix come, and few others; None for one without such a name.

    Stores list from there on, in the order of bytes: a day of a folder that holds years costs one request.
    """
    # The last letter or digit that has one before it: 2024-01-10 is found behind 2024-01-0zzz.
    for length in range(len(prefix), prefix.rfind("/") + 1, -1):
        last = prefix[length - 1]
        before = chr(ord(last) - 1)
        if last.isascii() and last.isalnum() and before.isalnum():
            return f"{prefix[: length - 1]}{before}zzz"
    return None


def beyond_end(where: str, start: int, stop: int, num_bytes: int) -> DataError:
    """Word the error of a range that a file does not hold."""
    return DamagedError(
        f"{where}: bytes {start} to {stop} were asked for, but the file has {num_bytes}; it was cut short, or the "
        "index is not its own: copy or pack it again"
    )


def already_there(where: str) -> DataError:
    """Word the error of a file that was to be new and is not."""
    return DataError(
        f"{where}: is already there and was left as it is; expected a new name: remove it or choose another"
    )
