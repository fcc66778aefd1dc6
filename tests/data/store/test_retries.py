"""Retries: how often, how long, how many at once, and when they end."""

import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rainspark.data.errors import DataError
from rainspark.data.store.names import Traffic
from rainspark.data.store.retries import Retries, RetryPolicy, TransientError

QUICK = RetryPolicy(deadline_s=1.0, try_s=0.1, first_wait_s=0.001, longest_wait_s=0.01)


def test_an_attempt_is_repeated_until_it_succeeds() -> None:
    traffic = Traffic()
    retries = Retries(QUICK, traffic, connections=1)

    def attempt(failures: int) -> str:
        if failures < 5:
            raise TransientError("busy", slow_down=failures % 2 == 0)
        return f"after {failures}"

    assert retries.run("a", "read", attempt) == "after 5"
    stats = traffic.stats()
    assert (stats["requests"], stats["retries"]) == (6, 5)
    assert stats["wait_s"] > 0


def test_what_lasts_is_raised_at_once() -> None:
    traffic = Traffic()

    def attempt(_: int) -> None:
        raise DataError("a: no such object")

    with pytest.raises(DataError, match=r"^a: no such object$"):
        Retries(QUICK, traffic, connections=1).run("a", "read", attempt)
    assert traffic.stats()["requests"] == 1


def test_the_deadline_ends_it_with_the_last_reason() -> None:
    def attempt(failures: int) -> None:
        raise TransientError(f"reason {failures} of https://host/x?sig=CANARYCANARY")

    with pytest.raises(DataError, match=r"^a: could not read: reason \d+ of .*; tried \d+ times in .* s") as caught:
        Retries(QUICK, Traffic(), connections=1).run("a", "read", attempt)
    assert "CANARY" not in str(caught.value)


class SteadyRetries(Retries):
    """Retries whose waits are not drawn: the reason of a failure is its wait in seconds."""

    def _wait_s(self, failures: int, error: TransientError) -> float:  # noqa: ARG002
        return float(str(error))


def test_a_dead_store_ends_all_that_wait_for_it_with_the_first() -> None:
    retries = SteadyRetries(QUICK, Traffic(), connections=4)
    tried: list[str] = []
    has_failed_often = threading.Event()

    def fail(name: str, wait_s: float) -> None:
        def attempt(failures: int) -> None:
            tried.append(name)
            if failures == 8:
                has_failed_often.set()
            raise TransientError(str(wait_s))

        with pytest.raises(DataError, match=f"^{name}: could not read: {wait_s}; tried"):
            retries.run(name, "read", attempt)

    retries.run("before", "read", lambda _: None)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(fail, "first", 0.05)
        assert has_failed_often.wait(60)
        # Alone it would wait for its second try until long after the first one's deadline.
        fail("second", 0.85)
        first.result()
    fail("later", 0.01)
    assert tried.count("second") == tried.count("later") == 1
    retries.run("again", "read", lambda _: None)
    fail("alive", 0.01)
    assert tried.count("alive") > 1


def test_an_operation_that_fails_alone_ends_no_other() -> None:
    retries = Retries(QUICK, Traffic(), connections=4)
    stop = threading.Event()
    failed = 0

    def busy(failures: int) -> None:
        nonlocal failed
        if failures % 2 == 0:
            failed += 1
            raise TransientError("busy")

    def others() -> None:
        while not stop.is_set():
            retries.run("others", "read", busy)

    def bad(_: int) -> None:
        raise TransientError("this one is gone")

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(others) for _ in range(2)]
        try:
            for _ in range(2):
                with pytest.raises(DataError, match="this one is gone"):
                    retries.run("gone", "read", bad)
        finally:
            stop.set()
        for other in running:
            other.result()
    assert failed > 10


def test_what_fails_for_a_while_is_warned_of_once_for_all(caplog: pytest.LogCaptureFixture) -> None:
    policy = replace(QUICK, deadline_s=1.5, quiet_s=0.1, silent_s=0.5)
    retries = Retries(policy, Traffic(), connections=4, endpoint="http://user:CANARYCANARY@host:1")

    def fail(_: int) -> None:
        raise TransientError("the connection was refused")

    def give_up(name: str) -> None:
        with pytest.raises(
            DataError, match=r"refused \(endpoint http://.*host:1\); .*longer deadline \(data.deadline_s"
        ):
            retries.run(f"s3://radar/{name}?sig=CANARYCANARY", "read", fail)

    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(4) as threads:
        list(threads.map(give_up, "abcd"))
    # Of 1.4 s, the first 0.1 s are quiet, and then there is a line every 0.5 s at most.
    assert 1 <= len(caplog.messages) <= 3
    line = r"s3://radar/[abcd]\?.* the connection was refused \(endpoint http://.*@host:1\); trying again until "
    assert all(re.fullmatch(line + r"\d\d:\d\d:\d\d UTC", message) for message in caplog.messages)
    assert "CANARY" not in caplog.text


def test_a_short_hiccup_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    def attempt(failures: int) -> None:
        if failures < 20:
            raise TransientError("busy")

    with caplog.at_level(logging.WARNING):
        Retries(QUICK, Traffic(), connections=1).run("a", "read", attempt)
    assert caplog.messages == []


def test_no_more_than_allowed_are_under_way() -> None:
    retries = Retries(RetryPolicy(), Traffic(), connections=3)
    under_way, most, lock = 0, 0, threading.Lock()

    def attempt(_: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.005)
        with lock:
            under_way -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: retries.run("a", "read", attempt), range(40)))
    assert most == 3


def test_a_connection_that_never_becomes_free_is_an_error() -> None:
    retries = Retries(RetryPolicy(deadline_s=0.2, try_s=0.1), Traffic(), connections=1)
    with retries.request("a"), pytest.raises(DataError, match=r"b: none of the connections became free"):
        retries.run("b", "read", lambda _: None)
