"""A replay of radar files that come late, never, twice, damaged or of the future, while the watch is killed."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import netCDF4
import numpy as np
import pytest

from rainspark.trainer.watching.publishing import stamp_of
from tests.conftest import REPOSITORY
from tests.trainer.watching.tiny import CADENCE_S, FRAMES_IN, FRAMES_OUT, counts_of, make_run, radar_bytes, radar_name
from tests.trainer.watching.tiny import time_of as seconds_of

SCRIPT = REPOSITORY / "tests" / "trainer" / "watching" / "replayed.py"
WITHIN_S = 60.0
KINDS = ("on time", "on time", "on time", "late", "never", "twice", "damaged", "half", "future")


@dataclass
class Replay:
    """A watch in a process of its own, and what is seen of its folder.

    Attributes:
        folder: Holds radar/, out/ and the clock.
        seen: By stamp, when its cycle.json was written: no cycle may be written again.
        latest: Where `latest` led to, each time that it changed.
    """

    folder: Path
    run: Path
    seen: dict[str, int] = field(default_factory=dict)
    latest: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def set_clock(self, number: int) -> None:
        making = self.folder / "clock.new"
        making.write_text(str(seconds_of(number) + 60))
        making.replace(self.folder / "clock")

    def start(self) -> None:
        places = ["--run", str(self.run), "--input", str(self.folder / "radar"), "--out", str(self.out)]
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT, self.folder / "clock", "--watch", "--no-pictures", *places],
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
        )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def deliver(self, name: str, data: bytes) -> None:
        making = self.folder / "radar" / f".{name}"
        making.write_bytes(data)
        making.replace(self.folder / "radar" / name)

    def look(self) -> None:
        """Check what must hold at any moment."""
        stamps = [path.name for path in self.out.glob("2*")]
        for stamp in stamps:
            about = self.out / stamp / "cycle.json"
            written_ns = about.stat().st_mtime_ns
            if stamp not in self.seen:
                with netCDF4.Dataset(self.out / stamp / f"forecast_{stamp}.nc") as file:
                    assert file["rainfall_rate"].shape[0] == FRAMES_OUT
            assert self.seen.setdefault(stamp, written_ns) == written_ns, f"{stamp} was published twice"
        link = self.out / "latest"
        if link.is_symlink():
            newest = link.resolve().name
            assert (link / "cycle.json").exists()
            if not self.latest or self.latest[-1] != newest:
                assert not self.latest or self.latest[-1] < newest, "latest leads back"
                self.latest.append(newest)

    def wait_for(self, is_done: Callable[[], bool], what: str) -> float:
        started = time.monotonic()
        while not is_done():
            self.look()
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < started + WITHIN_S, f"{what}: {(self.folder / 'log').read_text()}"
            time.sleep(0.03)
        return time.monotonic() - started

    def is_published(self, number: int) -> bool:
        return (self.out / stamp_of(seconds_of(number)) / "cycle.json").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def replay(run: Path, tmp_path: Path) -> Iterator[Replay]:
    (tmp_path / "radar").mkdir()
    (tmp_path / "scratch").mkdir()
    started = Replay(tmp_path, run)
    started.set_clock(0)
    yield started
    if started.process is not None:
        started.kill()


def files_of(replay: Replay, num_frames: int) -> list[bytes]:
    return [
        radar_bytes(replay.folder / "scratch", counts_hw, number)
        for number, counts_hw in enumerate(counts_of(num_frames))
    ]


def follow(replay: Replay, kinds: list[str], kill_before: set[int], rng: random.Random) -> list[float]:
    """Deliver a frame a cycle, each in its way, and wait for its forecast; gives the seconds that each took."""
    data = files_of(replay, len(kinds))
    took_s: list[float] = []
    late: dict[int, list[int]] = {}
    for number in range(FRAMES_IN - 1):
        replay.deliver(radar_name(number), data[number])
    replay.start()

    for number in range(FRAMES_IN - 1, len(kinds)):
        replay.set_clock(number)
        name = radar_name(number)
        kind = kinds[number]
        if number in kill_before:
            # In the middle of something, or not: its next cycle may be half written.
            time.sleep(rng.random() * 0.3)
            replay.kill()
            replay.look()
            replay.start()

        if kind == "half":
            (replay.folder / "radar" / name).write_bytes(data[number][:2000])
            time.sleep(0.3)
            assert not replay.is_published(number)
        if kind == "damaged":
            replay.deliver(name, data[number][: len(data[number]) // 2])
        if kind == "future":
            replay.deliver(radar_name(number + 100 + number), data[number])
        if kind == "twice":
            replay.deliver(name.replace("RAP", "RAX"), data[number])
        if kind in ("late", "damaged"):
            late.setdefault(number + 2, []).append(number)
        elif kind != "never":
            replay.deliver(name, data[number])
            took_s.append(replay.wait_for(lambda: replay.is_published(number), f"{kind} cycle {number}"))  # noqa: B023

        # What comes later is published later, and `latest` does not lead back.
        for other in late.pop(number, []):
            replay.deliver(radar_name(other), data[other])
            took_s.append(replay.wait_for(lambda: replay.is_published(other), f"late cycle {other}"))  # noqa: B023
        replay.look()
    return took_s


def finish(replay: Replay) -> dict[str, object]:
    """End the watch by SIGTERM, check that nothing is left over, and give its last status."""
    assert replay.process is not None
    replay.process.send_signal(signal.SIGTERM)
    assert replay.process.wait(60) == 0, (replay.folder / "log").read_text()
    replay.look()
    assert not [path.name for path in replay.out.iterdir() if path.name.startswith(".")]
    assert "Traceback" not in (replay.folder / "log").read_text()
    status: dict[str, object] = json.loads((replay.out / "status.json").read_text())["radars"][0]
    return status


def test_cycles_are_published_whole_and_once_whatever_comes(replay: Replay) -> None:
    kinds = ["on time"] * FRAMES_IN + ["late", "twice", "damaged", "half", "never", "future", *["on time"] * 4]
    follow(replay, kinds, {6}, random.Random(1))
    last = len(kinds) - 1
    # The scores of the last cycle whose hour has passed come when nothing else is to do.
    scored = replay.out / "scores" / f"{stamp_of(seconds_of(last - FRAMES_OUT))}-forecast.npz"
    replay.wait_for(scored.exists, "scores")
    replay.wait_for(lambda: "CSI" in (replay.out / "status.html").read_text(), "the status page")

    status = finish(replay)
    published = {number for number in range(len(kinds)) if replay.is_published(number)}
    assert published == set(range(FRAMES_IN - 1, len(kinds))) - {kinds.index("never")}
    assert replay.latest[-1] == stamp_of(seconds_of(last))
    assert status["latest"] == "2020-01-01T01:00:00Z"
    assert status["is_stale"] is False
    assert status["missing"] == ["2020-01-01T00:35:00Z"]
    assert len(status["future"]) == 1  # type: ignore[arg-type]
    assert len(status["several_of_one_time"]) == 1  # type: ignore[arg-type]
    bridged = json.loads((replay.out / stamp_of(seconds_of(8)) / "cycle.json").read_text())
    assert bridged["bridged"] == ["2020-01-01T00:35:00Z"]
    assert "were bridged" in bridged["note"]


@pytest.mark.slow
def test_a_day_of_cycles_is_published_in_time(replay: Replay) -> None:
    rng = random.Random(24)
    num_cycles = 24 * 3600 // CADENCE_S
    kinds = ["on time"] * FRAMES_IN + [rng.choice(KINDS) for _ in range(num_cycles)]
    # Of three frames in a row no two may be missing: nothing can be forecast then.
    for number in range(1, len(kinds)):
        if {kinds[number - 1], kinds[number]} <= {"never", "late", "damaged"}:
            kinds[number] = "on time"
    kills = set(rng.sample(range(FRAMES_IN, len(kinds)), 12))
    took_s = follow(replay, kinds, kills, rng)
    finish(replay)

    expected = [number for number in range(FRAMES_IN - 1, len(kinds) - 2) if kinds[number] != "never"]
    assert np.mean([replay.is_published(number) for number in expected]) >= 0.99
    assert np.mean(np.array(took_s) <= WITHIN_S) >= 0.99
