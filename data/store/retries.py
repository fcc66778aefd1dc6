"""Send a failed request again: full-jitter back-off until a deadline.

Back-off: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: waits drawn from 0 to the doubled bound keep
many clients from coming back together.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from ..credentials import redact
from ..errors import DataError
from .names import Traffic

_Result = TypeVar("_Result")
_logger = logging.getLogger(__name__)


class TransientError(Exception):
    """A failure that may pass: a busy server, a broken connection, bytes that are missing or damaged.

    Args:
        reason: What happened, for the user.
        slow_down: The server asked for fewer requests (429, 503).
    """

    def __init__(self, reason: str, *, slow_down: bool = False) -> None:
        super().__init__(redact(reason))
        self.slow_down = slow_down


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How stubbornly, and how politely, a storage asks again.

    Attributes:
        deadline_s: Seconds after which an operation that still fails is given up.
        try_s: Seconds that one try may last; none is begun later than that before the deadline.
        first_wait_s: Bound of the first wait; it doubles with every further one.
        slow_down_factor: What the waits grow by after 429 or 503.
        longest_wait_s: Bound of every wait.
        quiet_s: Seconds that an operation may fail before a warning says that it is tried again.
        silent_s: Seconds from one warning of a storage to the next.
    """

    deadline_s: float = 300.0
    try_s: float = 60.0
    first_wait_s: float = 0.1
    slow_down_factor: float = 4.0
    longest_wait_s: float = 10.0
    quiet_s: float = 5.0
    silent_s: float = 30.0


class Retries:
    """Runs the requests of a storage, a bounded number at once, and again where they fail for a while.

    A store that answered nobody for a whole deadline is dead: whoever waits for it gives up with the first who does,
    and whoever comes later after one try, until a request succeeds. So many operations end as soon as one.

    Args:
        policy: Waits and deadline.
        traffic: Counts requests, retries and waits.
        connections: Requests that may be under way at once.
        endpoint: Where the store is asked, for messages; "" where its address says so.
    """

    def __init__(self, policy: RetryPolicy, traffic: Traffic, connections: int, *, endpoint: str = "") -> None:
        self.policy = policy
        self._endpoint = f" (endpoint {redact(endpoint)})" if endpoint else ""
        self._lock = threading.Lock()
        self._warned_at = -math.inf
        self._traffic = traffic
        self._slots = threading.BoundedSemaphore(connections)
        self._succeeded_at = -math.inf
        self._is_dead = threading.Event()
        # The system's random bits: what they decide is when, never what.
        self._jitter = random.SystemRandom()

    def run(self, where: str, action: str, attempt: Callable[[int], _Result], *, more_s: float = 0.0) -> _Result:
        """Send one request until it succeeds; arguments and errors as for `repeat`."""

        def request(failures: int) -> _Result:
            with self.request(where):
                result = attempt(failures)
            self._succeeded_at = time.monotonic()
            self._is_dead.clear()
            return result

        return self.repeat(where, action, request, more_s=more_s)

    def repeat(self, where: str, action: str, attempt: Callable[[int], _Result], *, more_s: float = 0.0) -> _Result:
        """Call `attempt(number of failures so far)` until it ends without a TransientError.

        Args:
            where: The file or object, for messages.
            action: What is being done, as in "could not read".
            attempt: A request, or several.
            more_s: Seconds added to the deadline, for what takes long because it is large.

        Raises:
            DataError: The attempt's own, or that the deadline has come, with the last reason.
        """
        started = time.monotonic()
        last_start = started + self.policy.deadline_s + more_s - self.policy.try_s
        failures = 0
        while True:
            try:
                return attempt(failures)
            except TransientError as error:
                failures += 1
                wait_s = self._wait_s(failures, error)
                now = time.monotonic()

                # Nobody had an answer for a whole deadline: all who wait give up now.
                if now + wait_s > last_start and self._succeeded_at < started:
                    self._is_dead.set()
                if started + self.policy.quiet_s <= now + wait_s <= last_start:
                    self._warn(where, error, last_start - now)
                if now + wait_s > last_start or self._is_dead.wait(wait_s):
                    raise self._given_up(where, action, error, failures, time.monotonic() - started) from None
                self._traffic.add(retries=1, wait_s=time.monotonic() - now)

    @contextmanager
    def request(self, where: str) -> Iterator[None]:
        """Hold one of the connections, and count a request.

        Raises:
            DataError: None became free before the deadline.
        """
        if not self._slots.acquire(timeout=max(0.0, self.policy.deadline_s - self.policy.try_s)):
            raise DataError(
                f"{where}: none of the connections became free within {self.policy.deadline_s:g} s; the store answers "
                "too slowly: check the network, or ask for fewer things at once"
            )
        try:
            self._traffic.add(requests=1)
            yield
        finally:
            self._slots.release()

    def _wait_s(self, failures: int, error: TransientError) -> float:
        policy = self.policy
        # Full jitter: anything between 0 and a bound that doubles.
        # 2**60 is beyond every bound; larger powers leave the floats.
        bound_s = policy.first_wait_s * 2.0 ** min(failures - 1, 60)
        bound_s = min(policy.longest_wait_s, bound_s * (policy.slow_down_factor if error.slow_down else 1.0))
        return self._jitter.uniform(0.0, bound_s)

    def _warn(self, where: str, error: TransientError, left_s: float) -> None:
        """Warn that something fails and is tried again: once for the many operations that may wait for a store."""
        with self._lock:
            now = time.monotonic()
            if self._is_dead.is_set() or now - self._warned_at < self.policy.silent_s:
                return
            self._warned_at = now
        until = datetime.now(UTC) + timedelta(seconds=left_s)
        _logger.warning("%s", redact(f"{where}: {error}{self._endpoint}; trying again until {until:%H:%M:%S} UTC"))

    def _given_up(self, where: str, action: str, error: TransientError, failures: int, seconds: float) -> DataError:
        return DataError(
            f"{where}: could not {action}: {error}{self._endpoint}; tried {failures} times in {seconds:.1f} s and gave "
            f"up before the deadline of {self.policy.deadline_s:g} s: check that the store can be reached and is well, "
            "or allow a longer deadline (data.deadline_s when training)"
        )
