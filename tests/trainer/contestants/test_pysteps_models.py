"""Forecasts of pysteps in an evaluation: seeds, what is kept and what is not believed, and other processes."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from rainspark.data.errors import DataError
from rainspark.models.baselines.methods import Linda, Method, Sprog, Steps, Window, forecast
from rainspark.trainer.contestants.kept import KeptForecasts, default_folder, key_of
from rainspark.trainer.contestants.pysteps_models import PystepsModel
from rainspark.trainer.contestants.windows import WindowRain
from rainspark.trainer.contestants.workers import Workers
from tests.models.baselines.test_methods import showers, window_of

ISSUE_S = 1_282_780_800


def window_rain() -> WindowRain:
    rain = torch.from_numpy(showers())[None]
    return WindowRain(
        row=0, past_mmh_bthw=rain, past_valid_bthw=None, future_mmh_bthw=rain[:, :3], future_valid_bthw=None
    )


class Idle(Workers):
    """Workers that nobody may ask."""

    def start(self, method: Method, window: Window) -> Callable[[], Any]:  # noqa: ARG002
        raise AssertionError(f"{method} was computed again")


def model_of(method: Method, folder: Path | None, workers: Workers | None = None, seed: int = 0) -> PystepsModel:
    return PystepsModel(
        method=method,
        workers=workers or Workers(1),
        kept=KeptForecasts(folder),
        frames_out=3,
        thresholds_mmh=(0.5, 2.0),
        pixel_km=1.0,
        step_min=5.0,
        seed=seed,
    )


def test_members_follow_from_seed_and_issue_time() -> None:
    def members(seed: int = 0, issue_s: int = ISSUE_S, num: int = 3) -> np.ndarray:
        return model_of(Steps(members=num), None, seed=seed).start(window_rain(), issue_s)()

    first = members()
    np.testing.assert_array_equal(first, members())
    np.testing.assert_array_equal(first[:2], members(num=2))
    for other in (members(seed=1), members(issue_s=ISSUE_S + 300)):
        assert not np.array_equal(first, other, equal_nan=True)


def test_a_second_evaluation_computes_nothing(tmp_path: Path) -> None:
    for method in (Sprog(), Steps(members=2)):
        first = model_of(method, tmp_path).start(window_rain(), ISSUE_S)()
        assert np.isnan(first).any()
        again = model_of(method, tmp_path, Idle(1)).start(window_rain(), ISSUE_S)()
        np.testing.assert_array_equal(first, again)
    assert len(list(tmp_path.rglob("*.forecast"))) == 2
    assert not list(tmp_path.rglob("*.partial"))
    # Without a folder nothing is kept.
    with pytest.raises(AssertionError, match="was computed again"):
        model_of(Sprog(), None, Idle(1)).start(window_rain(), ISSUE_S)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "header"])
def test_what_is_damaged_is_computed_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    first = model_of(Sprog(), tmp_path).start(window_rain(), ISSUE_S)()
    (path,) = tmp_path.rglob("*.forecast")
    data = path.read_bytes()
    at = {"flip": len(data) // 2, "header": 40}.get(damage, 0)
    damaged = {"cut": data[:-9], "empty": b""}.get(damage, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        again = model_of(Sprog(), tmp_path).start(window_rain(), ISSUE_S)()
    np.testing.assert_array_equal(first, again)
    assert f"{path.name} is damaged, and computed again" in caplog.text
    assert path.read_bytes() == data


def test_the_key_changes_with_everything_that_a_forecast_depends_on() -> None:
    window, method = window_of(showers()), Steps(members=2)
    rain, valid = window.rain_mmh_thw.copy(), np.ones(window.rain_mmh_thw.shape, bool)
    rain[-1, 3, 3] += 0.01
    valid[-1, 3, 3] = False
    changes: list[dict[str, Any]] = [
        *({"rain_mmh_thw": rain}, {"valid_thw": valid}, {"issue_s": 5}, {"frames_out": 4}, {"pixel_km": 2.0}),
        *({"step_min": 10.0}, {"seed": 8}),
    ]
    keys = [key_of(method, replace(window, **change)) for change in changes]
    keys += [key_of(method, window), key_of(Steps(members=3), window), key_of(Sprog(), window)]
    assert len(set(keys)) == len(keys)
    # Frames that a method does not take, and a mask that hides nothing, change nothing.
    older = replace(window, rain_mmh_thw=np.concatenate([rain[:1], window.rain_mmh_thw]))
    assert key_of(method, older) == key_of(method, window)
    assert key_of(method, replace(window, valid_thw=np.ones(valid.shape, bool))) == key_of(method, window)


def test_a_folder_that_takes_nothing_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    kept = KeptForecasts(tmp_path / "file")
    for key in ("a" * 64, "b" * 64):
        kept.write(key, np.zeros((1, 2, 2), np.float32))
    assert caplog.text.count("forecasts of pysteps are not kept") == 1


def test_a_full_folder_is_reported_once_and_takes_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    forecast = np.zeros((1, 2, 2), np.float32)
    KeptForecasts(tmp_path).write("a" * 64, forecast)
    (path,) = tmp_path.rglob("*.forecast")
    num_bytes = path.stat().st_size

    # There is room for one more; a folder without a limit takes any number.
    kept = KeptForecasts(tmp_path, 2 * num_bytes)
    for letter in "bcd":
        kept.write(letter * 64, forecast)
    assert [kept.read(letter * 64) is not None for letter in "abcd"] == [True, True, False, False]
    assert caplog.text.count(f"are kept no longer: {tmp_path} holds") == 1
    KeptForecasts(tmp_path).write("c" * 64, forecast)

    # What the log says at the end counts the files of all processes, and nothing is said where none was written.
    with caplog.at_level(logging.INFO):
        KeptForecasts(tmp_path).report()
        assert "for the next time" not in caplog.text
        kept.report()
    assert f"{tmp_path} holds {3 * num_bytes / 1e6:.3g} MB" in caplog.text


def test_the_default_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "rainspark" / "forecasts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_folder() == Path("/home/me/.cache/rainspark/forecasts")


def test_other_processes_give_the_same_bytes_and_say_what_failed() -> None:
    workers = Workers(2)
    try:
        window = window_of(showers())
        waiting = {method: workers.start(method, window) for method in (Sprog(), Steps(members=2), Linda())}
        failing = workers.start(Sprog(), window_of(showers()[:2]))
        for method, wait in waiting.items():
            np.testing.assert_array_equal(wait(), forecast(method, window))
        with pytest.raises(DataError, match=r"^sprog: pysteps failed on the window issued at 2010-08-26T00:00Z"):
            failing()
    finally:
        workers.close()


def test_closing_waits_for_no_work() -> None:
    workers = Workers(2)
    workers.start(Sprog(), window_of(showers()))()
    started = time.monotonic()
    for _ in range(4):
        workers.start(Steps(members=1000), window_of(showers(), frames_out=50))
    assert workers._pool is not None
    processes = list(workers._pool._processes.values())
    workers.close()
    assert time.monotonic() - started < 20
    # Asked of the system: the pool's own thread waits for them too, and one of the two finds nothing to wait for.
    assert not [process.pid for process in processes if process.pid is not None and psutil.pid_exists(process.pid)]


def test_a_process_that_ends_is_reported() -> None:
    workers = Workers(2)
    try:
        workers.start(Sprog(), window_of(showers()))()
        assert workers._pool is not None
        dying = workers._pool.submit(os._exit, 9)
        assert dying.exception() is not None
        with pytest.raises(DataError, match=r"a process that runs pysteps has ended.*--workers"):
            workers.start(Sprog(), window_of(showers()))()
    finally:
        workers.close()


def test_a_worker_counts_one_thread_before_numpy_is_there() -> None:
    code = (
        "import sys; from rainspark.trainer.contestants import workers\n"
        "assert not {'numpy', 'torch'} & set(sys.modules)\n"
        "workers.prepare_process(); import os; assert os.environ['OPENBLAS_NUM_THREADS'] == '1'"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
