"""Send a failed request again: full-jitter back-off, a budget of retries, a deadline.

Back-off: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: waits drawn from 0 to the doubled bound keep
many clients from coming back together. Budget: retries are paid from a bucket that successes refill, as in the standard
mode of the AWS SDKs, but an empty bucket slows them down instead of ending them: a minute's outage must not end a run.
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
        burst: Retries that may follow each other without a success.
        per_success: Retries that a success pays for: above 1, a store that fails half the time is still worked through.
        per_s: Retries a second that time pays for: what a dead store gets in all.
        quiet_s: Seconds that an operation may fail before a warning says that it is tried again.
        silent_s: Seconds from one warning of a storage to the next.
    """

    deadline_s: float = 300.0
    try_s: float = 60.0
    first_wait_s: float = 0.1
    slow_down_factor: float = 4.0
    longest_wait_s: float = 10.0
    burst: float = 50.0
    per_success: float = 1.5
    per_s: float = 1.0
    quiet_s: float = 5.0
    silent_s: float = 30.0


class RetryBudget:
    """A bucket of retries, shared by all operations of a storage; safe for threads.

    Args:
        policy: How it is filled.
        clock: Gives monotonic seconds.
    """

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = policy.burst
        self._filled_at = clock()

    def succeeded(self) -> None:
        """Fill in what a success pays for."""
        with self._lock:
            self._fill()
            self._tokens = min(self._policy.burst, self._tokens + self._policy.per_success)

    def take(self) -> float:
        """Take one retry; returns the seconds until it is paid for, 0 while the bucket holds some."""
        # The bucket may owe: whoever takes next waits for longer.
        with self._lock:
            self._fill()
            self._tokens -= 1
            return max(0.0, -self._tokens / self._policy.per_s)

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._policy.burst, self._tokens + (now - self._filled_at) * self._policy.per_s)
        self._filled_at = now


class Retries:
    """Runs the requests of a storage, a bounded number at once, and again where they fail for a while.

    A store that answered nobody for a whole deadline is dead: whoever waits for it gives up with the first who does,
    and whoever comes later after one try, until a request succeeds. So many operations end as soon as one.

    Args:
        policy: Waits, budget, deadline.
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
        self._budget = RetryBudget(policy)
        self._succeeded_at = -math.inf
        self._is_dead = threading.Event()
        # The system's random bits: what they decide is when, never what.
        self._jitter = random.SystemRandom()

    def run(self, where: str, action: str, attempt: Callable[[int], _Result], *, more_s: float = 0.0) -> _Result:
        """Send one request until it succeeds; arguments and errors as for `repeat`."""

        def request(failures: int) -> _Result:
            with self.request(where):
                result = attempt(failures)
            self._budget.succeeded()
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
        return max(self._jitter.uniform(0.0, bound_s), self._budget.take())

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
