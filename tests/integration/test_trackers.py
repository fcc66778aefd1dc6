"""Services that are absent, slow, hang or fail: the run ends as it would have, and the other sinks have everything."""

import base64
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rainspark.data.exit_codes import ExitCode
from tests.conftest import REPOSITORY
from tests.integration.runs import arguments, metrics, nowcast_arguments, records, settings
from tests.programs import environment, free_port
from tests.tracker_server import tracker_server
from tests.trainer.tracking.tracked import read_back

SHORT = settings("run.steps=6 run.evaluate_every=3 optim.warmup_steps=1 tracking.tensorboard=true run.progress=lines")
NAMES = {"neptune": "Neptune", "trackio": "trackio", "mlflow": "MLflow", "wandb": "W&B"}
TIMES = ("time/", "memory/", "windows_per_s", "step_time_s", "data_wait_share", "save/", "data/")
"""Beginnings of the names of what differs from run to run."""


OF_SERVICES = ("WANDB", "MLFLOW", "NEPTUNE", "TRACKIO", "HF_")
"""Beginnings of the names of variables that services read."""


def _start(argv: list[str], folder: Path, script: str = "pretrain", **variables: str) -> "subprocess.Popen[str]":
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(REPOSITORY / "trainer" / f"{script}.py"), *argv]
    pipe, kept = subprocess.PIPE, environment(without=OF_SERVICES, PYTHONPATH=REPOSITORY, **variables)
    return subprocess.Popen(command, cwd=folder, env=kept, stdout=pipe, stderr=pipe, text=True)


def _run(argv: list[str], folder: Path, script: str = "pretrain", **variables: str) -> str:
    """Train in a process of its own; return what it prints."""
    process = _start(argv, folder, script, **variables)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == ExitCode.DONE, errors[-3000:]
    assert _processes_with(str(process.pid)) == []
    return output + errors


def _processes_with(word: str) -> list[str]:
    """Command lines that hold a word of their own: a service's helper names the process that it serves."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if word in words:
            found.append(" ".join(words))
    return found


def _scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        name: [(point.step, point.value) for point in events.Scalars(name)]
        for name in events.Tags()["scalars"]
        if not name.startswith(TIMES)
    }


def _lines(run: Path) -> list[dict[str, Any]]:
    lines = [{key: value for key, value in line.items() if not key.startswith(TIMES)} for line in metrics(run)]
    return [line for line in lines if len(line) > 1]


def _all_points(run: Path) -> dict[str, list[list[float]]]:
    """Everything that metrics.jsonl holds, times too, by name."""
    points: dict[str, list[list[float]]] = {}
    for record in records(run):
        for name, value in record["metrics"].items():
            points.setdefault(name, []).append([record["step"], float(value)])
    return points


@contextmanager
def _broken(fault: str) -> Iterator[Mapping[str, str]]:
    """Give the environment in which every service has a server, and it is absent, slow, hangs or answers 500."""
    with tracker_server("none" if fault == "absent" else fault) as server:  # type: ignore[arg-type]
        url = f"http://127.0.0.1:{free_port()}" if fault == "absent" else server.url
        token = base64.b64encode(json.dumps({"api_address": url, "api_url": url}).encode()).decode()
        urls = ("MLFLOW_TRACKING_URI", "WANDB_BASE_URL", "TRACKIO_SERVER_URL")
        keys = {"WANDB_API_KEY": "0123456789" * 4, "TRACKIO_WRITE_TOKEN": "a-token-of-trackio"}
        neptune = {"NEPTUNE_MODE": "async", "NEPTUNE_API_TOKEN": token, "NEPTUNE_PROJECT": "someone/rainspark"}
        yield {**dict.fromkeys(urls, url), **keys, **neptune}
        assert fault == "absent" or len(server.requests) > 0, "nobody asked the broken server"


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without services, in a process of its own like the others: the last bits may differ in this one."""
    folder = tmp_path_factory.mktemp("undisturbed")
    _run(arguments(shards, folder / "run", **SHORT), folder)
    return folder / "run"


def _assert_undisturbed(run: Path, undisturbed: Path) -> None:
    assert _lines(run) == _lines(undisturbed)
    assert len(_lines(run)) >= 6
    assert _scalars(run) == _scalars(undisturbed)


@pytest.mark.slow
def test_a_server_that_hangs_costs_nothing_and_does_not_keep_the_process(
    shards: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """Without a limit MLflow would wait two minutes for each of eight tries; the other service has all under its names.

    So tracking.services, tracking.project, tracking.run_name and tracking.close_s have their effect.
    """
    run = tmp_path / "run"
    services = {"tracking__services": '["mlflow", "trackio"]', "tracking__close_s": 3}
    services |= {"tracking__project": "rain 2", "tracking__run_name": "storm 7"}
    with tracker_server("hangs") as server:
        said = _run(arguments(shards, run, **SHORT, **services), tmp_path / "cwd", MLFLOW_TRACKING_URI=server.url)
        assert len(server.requests) > 0
    assert "Not complete: MLflow was left behind, as it had not finished within tracking.close_s" in said
    assert "trackio was" not in said
    _assert_undisturbed(run, undisturbed)
    kept = read_back(run, "rain 2")["trackio"]
    assert kept["names"] == ["storm 7"]
    assert kept["metrics"] == _all_points(run)
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["absent", "slow", "hangs", "500"])
def test_all_services_broken_at_once(shards: Path, tmp_path: Path, undisturbed: Path, fault: str) -> None:
    run = tmp_path / "run"
    services = {"tracking__services": json.dumps(list(NAMES)), "tracking__close_s": 5}
    with _broken(fault) as variables:
        said = _run(arguments(shards, run, **SHORT, **services), tmp_path / "cwd", **variables)
    _assert_undisturbed(run, undisturbed)
    assert list((tmp_path / "cwd").iterdir()) == []
    for name in ("W&B", "Neptune") if fault == "slow" else NAMES.values():
        assert f"Not complete: {name} was" in said or f"{name} cannot be reached" in said or name == "trackio", name


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["mlflow", "wandb"])
def test_one_that_is_broken_costs_the_other_services_nothing(
    shards: Path, tmp_path: Path, undisturbed: Path, broken: str
) -> None:
    run = tmp_path / "run"
    services = {"tracking__services": json.dumps(list(NAMES)), "tracking__close_s": 60}
    with _broken("500") as variables:
        prefix = "MLFLOW" if broken == "mlflow" else "WANDB"
        only = {key: value for key, value in variables.items() if key.startswith(prefix)}
        said = _run(arguments(shards, run, **SHORT, **services), tmp_path / "cwd", **only)
    _assert_undisturbed(run, undisturbed)
    expected = _all_points(run)
    found = read_back(run)
    for name in set(NAMES) - {broken}:
        assert f"{NAMES[name]} was" not in said
        kept = found[name]["metrics"]
        assert {key: values for key, values in kept.items() if key in expected} == expected, name
        assert len(found[name]["pictures"]) >= 1, name


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["absent", "hangs", "500"])
def test_what_wandb_cannot_send_lies_in_the_run(shards: Path, tmp_path: Path, fault: str) -> None:
    """A short run whose server is not there or of no use."""
    run = tmp_path / "run"
    with _broken(fault) as variables:
        only = {key: value for key, value in variables.items() if key.startswith("WANDB")}
        argv = arguments(shards, run, **SHORT, tracking__services='["wandb"]', tracking__close_s=60)
        said = _run(argv, tmp_path / "cwd", **only)
    assert f"its data go into {run / 'wandb'}, for `wandb sync`" in said
    assert "W&B was" not in said
    assert f"wandb sync {run}/wandb/offline-run-*" in said
    kept = read_back(run)["wandb"]["metrics"]
    expected = _all_points(run)
    assert {key: values for key, values in kept.items() if key in expected} == expected


@pytest.mark.slow
def test_a_slow_server_gets_everything(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    services = {"tracking__services": '["mlflow"]', "tracking__close_s": 120}
    with tracker_server("slow") as server:
        said = _run(arguments(shards, run, **SHORT, **services), tmp_path / "cwd", MLFLOW_TRACKING_URI=server.url)
        assert "MLflow was" not in said
        points: dict[str, list[list[float]]] = {}
        for name, step, value in server.metrics:
            points.setdefault(name, []).append([step, value])
    assert points == _all_points(run)


@pytest.mark.slow
def test_a_stop_signal_ends_a_run_whose_services_hang(shards: Path, tmp_path: Path) -> None:
    """It saves first, and waits for services afterwards, no longer than it was told."""
    run = tmp_path / "run"
    settings = {**SHORT, "run__steps": 100_000, "run__evaluate_every": 100_000, "tracking__close_s": 3}
    with _broken("hangs") as variables:
        argv = arguments(shards, run, **settings, tracking__services=json.dumps(list(NAMES)))
        process = _start(argv, tmp_path / "cwd", **variables)
        while process.poll() is None and not (run / "metrics.jsonl").exists():
            time.sleep(0.2)
        time.sleep(5)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        _, errors = process.communicate(timeout=300)
        took = time.monotonic() - asked
    assert process.returncode == ExitCode.REQUEUE, errors[-3000:]
    assert "MLflow was left behind" in errors
    assert len(list((run / "checkpoints").iterdir())) == 1
    assert took < 120, "libraries would wait for minutes"
    assert _processes_with(str(process.pid)) == []


@pytest.mark.slow
def test_names_of_a_nowcasters_metrics_suit_every_service(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    services = {"tracking__services": json.dumps(list(NAMES)), "tracking__close_s": 120}
    short = {"run__steps": 2, "run__evaluate_every": 2, "optim__warmup_steps": 0}
    said = _run(nowcast_arguments(shards, run, **short, **services), tmp_path, "finetune")
    assert "Not complete" not in said
    expected = _all_points(run)
    points = sorted((step, value) for values in expected.values() for step, value in values)
    for name, kept in read_back(run).items():
        assert len(kept["metrics"]) == len(expected), name
        assert sorted((step, value) for values in kept["metrics"].values() for step, value in values) == points, name
