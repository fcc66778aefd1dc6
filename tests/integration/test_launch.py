"""The commands of the README, as a user gives them: real launchers, real signals, real processes."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rainspark.__main__ import main as rainspark
from rainspark.models.weights.manifest import latest_verified
from tests.conftest import REPOSITORY
from tests.integration.runs import arguments, smallest_arguments
from tests.programs import TIMEOUT_S, environment, launch, run

HOURS = 3


def last_step(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Let programs be interrupted although a shell that runs tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stop_when_running(command: list[str], folder: Path, number: signal.Signals) -> str:
    """Start a run, send the launcher a signal once a step is done, wait until its workers are gone too."""
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while last_step(folder) < 1 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        # The pipe ends when the last process that holds it has ended: launcher and workers.
        try:
            text, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # Its workers stop when it has died; without that this block would wait for ever.
            process.kill()
            raise
    return text


@pytest.mark.parametrize(
    ("num_processes", "number"),
    [
        ("2", signal.SIGINT),
        pytest.param("1", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("2", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_launcher_saves_and_the_same_command_goes_on(
    shards: Path, tmp_path: Path, num_processes: str, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    settings = {"run__evaluate_every": 100_000, "run__save_every": 100_000, "data__validation_share": 0.25}

    def command(steps: int) -> list[str]:
        argv = smallest_arguments(shards, folder, **settings, run__steps=steps)
        return launch(num_processes, argv, "finetune")

    text = stop_when_running(command(100_000), folder, number)
    assert "finishing this step, then saving a checkpoint" in text, text
    saved = sorted((folder / "checkpoints").glob("step-*"))
    assert saved, text
    stopped_at = int(saved[-1].name.removeprefix("step-"))
    state = json.loads((saved[-1] / "state.json").read_text())
    assert state["step"] == stopped_at == last_step(folder)
    more = stopped_at + 2
    done = run(command(more))
    assert done.returncode == 0, done.stderr
    assert f"{stopped_at} of {more} steps are done" in done.stderr
    assert (folder / "pictures" / f"forecast-{more:08d}.png").exists()
    assert last_step(folder) == more
    for name in ("weights", "metrics", "picture"):
        assert name in done.stdout


@pytest.mark.slow
def test_zero_2_on_two_processes(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    short = {"run__steps": 2, "data__validation_share": 0, "optim__warmup_steps": 1, "tracking__tensorboard": "true"}
    argv = arguments(shards, folder, **short, engine__zero_stage=2, engine__precision="bf16")
    done = run(launch("2", argv))
    assert done.returncode == 0, done.stderr
    assert "TensorBoard" in done.stdout
    assert list((folder / "tensorboard").iterdir())
    assert latest_verified(folder / "checkpoints") == folder / "checkpoints" / "step-00000002"


@pytest.mark.slow
def test_an_evaluation_on_two_processes(shards: Path, tmp_path: Path) -> None:
    words = ["--data.shards", str(shards), "--split", "all", "--frames_in", "4", "--frames_out", "2", "--limit", "4"]
    argv = [*words, "--models", "persistence", "--device", "cpu", "--out", str(tmp_path / "scores")]
    done = run(launch("2", argv, "evaluate"))
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stderr


def test_print_config_shows_every_setting_and_can_be_given_back(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(argv: list[str]) -> str:
        with pytest.raises(SystemExit, match="0"):
            rainspark(["pretrain", *argv, "--print_config"])
        return capsys.readouterr().out

    path = tmp_path / "all.yaml"
    path.write_text(printed(arguments(shards, tmp_path / "run")))
    assert "min_lr_share" in path.read_text()
    assert printed(["--config", str(path)]) == path.read_text()
