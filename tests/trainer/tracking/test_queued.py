"""Services behind queues: whoever logs never waits, one that hangs or fails costs the others nothing."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from rainspark.data.errors import ConfigError
from rainspark.trainer.settings.tracking import TrackingConfig
from rainspark.trainer.tracking.queued import QueuedTracker, Tracker
from rainspark.trainer.tracking.trackers import Trackers
from tests.trainer.tracking.tracked import Remembers, run_python


class _Hangs(Remembers):
    """A sink that hangs in one of its calls until it is let go."""

    def __init__(self, where: str, hung: threading.Event, let_go: threading.Event) -> None:
        super().__init__("hangs")
        self.where, self.hung, self.let_go = where, hung, let_go
        self._at("build")

    def _at(self, where: str) -> None:
        if where == self.where:
            self.hung.set()
            self.let_go.wait()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._at("log")
        super().log(step, metrics)

    def close(self) -> None:
        self._at("close")
        super().close()


@pytest.fixture
def let_go() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def _raise(error: BaseException) -> Callable[[], Tracker]:
    def build() -> Tracker:
        raise error

    return build


def test_everything_arrives_in_order_in_another_thread() -> None:
    kept = Remembers()
    trackers = Trackers([], close_s=60)
    trackers.open_service("kept", lambda: kept)
    metrics = {"loss": 0.5}
    for step in range(1, 4):
        trackers.log(step, metrics)
    metrics["loss"] = 9.0
    trackers.image(3, "picture", Path("a.png"))
    trackers.close()
    trackers.close()
    assert kept.calls == [*((step, {"loss": 0.5}) for step in range(1, 4)), (3, "picture", Path("a.png")), "closed"]
    assert kept.threads == {"tracker kept"}
    assert trackers.problems == []


@pytest.mark.parametrize("where", ["build", "log", "close"])
def test_one_that_hangs_is_left_behind_and_costs_the_others_nothing(
    where: str, let_go: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """Logging five times as much as the queue takes returns, which is the test: one that waited never would."""
    hung = threading.Event()
    local, service = Remembers(), Remembers()
    trackers = Trackers([local], close_s=0.3)
    trackers.open_service("hanging", lambda: _Hangs(where, hung, let_go))
    trackers.open_service("other", lambda: service)
    if where == "build":
        hung.wait()
    for step in range(20_000):
        trackers.log(step, {"loss": 1.0})
        if step == 0 and where == "log":
            hung.wait()
        if step % 1000 == 0:
            _wait_until_taken(service, step)
    _wait_until_taken(service, 19_999)
    with caplog.at_level(logging.WARNING):
        trackers.close()
    expected = [(step, {"loss": 1.0}) for step in range(20_000)]
    assert local.calls == service.calls == [*expected, "closed"]
    left = [problem for problem in trackers.problems if "left behind" in problem]
    assert len(left) == 1
    assert left[0].startswith("hanging was left behind, as it had not finished within tracking.close_s")
    if where != "close":
        assert "4096 entries were not taken" in left[0]
        assert any("entries were dropped, oldest first" in problem for problem in trackers.problems)


def _wait_until_taken(sink: Remembers, step: int) -> None:
    """Let a thread that works catch up, so that what it drops is not the machine's doing."""
    while not (sink.calls and sink.calls[-1] == (step, {"loss": 1.0})):
        threading.Event().wait(0.001)


def test_a_full_queue_drops_the_oldest_and_counts_them(let_go: threading.Event) -> None:
    hung = threading.Event()
    sink: list[_Hangs] = []
    reports: list[str] = []

    def build() -> Tracker:
        sink.append(_Hangs("log", hung, let_go))
        return sink[0]

    queued = QueuedTracker("slow", build, reports.append, capacity=3)
    queued.log(1, {})
    hung.wait()
    for step in range(2, 9):
        queued.log(step, {})
    let_go.set()
    queued.close()
    queued.log(9, {})
    queued.wait(60)
    assert sink[0].calls == [(1, {}), (6, {}), (7, {}), (8, {}), "closed"]
    assert reports == ["slow was too slow: 4 of 8 entries were dropped, oldest first"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("the server is gone"), "OSError: the server is gone"),
        (SystemExit(3), "SystemExit: 3"),
        (RuntimeError("POST https://me:s3cr3t@host/x?sig=abc\nfailed"), "RuntimeError: POST https://[hidden]@host/x?"),
        (ValueError("x" * 5000), "ValueError: " + "x" * 400 + "..."),
        (KeyError(), "KeyError; it has nothing"),
    ],
)
def test_what_fails_is_switched_off_alone_with_one_warning(
    error: BaseException, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = Remembers()
    trackers = Trackers([], close_s=60)
    with caplog.at_level(logging.WARNING):
        trackers.open_service("bad", _raise(error))
        trackers.open_service("good", lambda: good)
        for step in range(100):
            trackers.log(step, {})
        end = time.monotonic() + 60
        while not trackers.problems and time.monotonic() < end:
            time.sleep(0.01)
        trackers.close()
    assert len(good.calls) == 101
    assert len(trackers.problems) == 1
    assert trackers.problems[0].startswith(f"bad was switched off after {words}")
    assert trackers.problems[0].endswith("it has nothing")
    assert "\n" not in trackers.problems[0]
    assert "s3cr3t" not in caplog.text
    assert "abc" not in caplog.text
    assert [message for message in caplog.messages if "The run goes on" in message] == [
        f"{trackers.problems[0]}. The run goes on without it."
    ]


def test_how_far_one_came_that_failed_is_reported() -> None:
    trackers = Trackers([], close_s=60)
    trackers.open_service("mortal", lambda: Remembers(fails_at=30))
    for step in range(0, 100, 10):
        trackers.log(step, {})
    trackers.close()
    (problem,) = trackers.problems
    assert problem == (
        "mortal was switched off after ConnectionError: the server is gone; it has nothing after step 20"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"services": ("wand",)}, "'wand'; there are mlflow, neptune, trackio, wandb; the nearest is wandb"),
        ({"services": ("MLFlow",)}, "the nearest is mlflow"),
        ({"services": ("smoke signals",)}, "there are mlflow, neptune, trackio, wandb"),
        ({"services": ("wandb", "wandb")}, "names one twice"),
        ({"project": "a' OR 'b"}, "tracking.project is \"a' OR 'b\""),
        ({"run_name": "../x"}, "tracking.run_name is '../x'"),
        ({"close_s": -1.0}, "tracking.close_s is -1.0"),
    ],
)
def test_settings_that_no_service_takes_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrackingConfig(**settings)  # type: ignore[arg-type]
    assert words in str(error.value)


ENDING = """
import atexit, sys, threading, time
from rainspark.trainer.processes.ending import end_process
from rainspark.trainer.tracking.trackers import Trackers
print("printed before the end")
case = sys.argv[1]
if case == "service":
    trackers = Trackers([], close_s=0.1)
    trackers.open_service("hangs", lambda: time.sleep(1000))
    trackers.log(1, {})
    trackers.close()
elif case == "hook":
    from rainspark.trainer.processes import ending
    ending.LEAVE_S = 1.0
    atexit.register(time.sleep, 1000)
elif case == "thread":
    from rainspark.trainer.processes import ending
    ending.LEAVE_S = 1.0
    threading.Thread(target=time.sleep, args=(1000,), name="of a library").start()
end_process(75)
"""


@pytest.mark.parametrize("case", ["nothing", "service", "hook", "thread"])
def test_a_process_ends_whatever_hangs(case: str) -> None:
    """A hanging service, exit hook or thread of a library would keep it for a thousand seconds."""
    ended = run_python(["-c", ENDING, case])
    assert ended.returncode == 75, ended.stderr
    assert ended.stdout == "printed before the end\n"
    if case == "thread":
        assert "ended with code 75 after 1 s of waiting for: of a library" in ended.stderr
