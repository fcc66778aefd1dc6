"""What a run tells of its steps, its memory and its end."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rainspark.data.exit_codes import ExitCode
from rainspark.trainer.record import run_record
from rainspark.trainer.tracking.trackers import Trackers
from rainspark.trainer.training.pretraining import Pretraining
from tests.integration.runs import arguments, records, tensors, train

PARTS = ("data", "forward_backward", "update", "other")


HOURS = 3


def spoil_step(run: Pretraining, step: int) -> None:
    """Have the loss of one step be no number."""
    compute, heartbeat = run.task.step, run.engine.heartbeat

    def spoilt(model: Any, prepared: Any) -> Any:
        output = compute(model, prepared)
        return replace(output, loss=output.loss * torch.nan) if heartbeat.doing == f"forward, step {step}" else output

    vars(run.task)["step"] = spoilt


def test_steps_memory_and_cost_are_told_and_skipped_steps_add_up(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two attempts with a skipped step each, and a third one that finds nothing to do."""
    run = tmp_path / "run"
    argv = arguments(shards, run, run__steps=6, run__evaluate_every=6)
    assert train(argv, stop_in_step=2, change=lambda made: spoil_step(made, 2)) == ExitCode.REQUEUE
    assert train(argv, change=lambda made: spoil_step(made, 5)) == ExitCode.DONE
    lines = [record["metrics"] for record in records(run)]
    trained = [line for line in lines if "learning_rate" in line]
    assert [line["skipped_steps"] for line in trained] == [0, 1, 1, 1, 2, 2]
    for line in trained:
        assert 10 < line["memory/cpu_mb"] < 100_000
        assert "memory/gpu_peak_mb" not in line
        parts = [line[f"time/{part}_s"] for part in PARTS]
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(line["step_time_s"], rel=1e-6)
    saves = [line for line in lines if "save/write_s" in line]
    (held_out,) = (line for line in lines if "held_out_loss" in line)
    assert len(saves) == 2
    assert all(line.keys() == {"save/gather_s", "save/write_s", "save/bytes"} for line in saves)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["skipped_steps"] == 2
    assert summary["attempts"] == 2
    assert summary["steps"] == 6
    assert summary["parameters"] > 11_000_000
    assert summary["data"]["fingerprint"] == json.loads((shards / "index.json").read_text())["fingerprint"]
    assert summary["metrics"]["held_out_loss"] == held_out["held_out_loss"]
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    assert summary["trackers"] == []
    printed = capsys.readouterr().out
    assert "skipped      2 of 6 steps" in printed
    assert "device hours in 2 attempts (now 1 x cpu)" in printed
    assert all(bool(value.isfinite().all()) for value in tensors(run).values())
    kept = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    monkeypatch.setattr(run_record, "open_trackers", lambda *_, **__: pytest.fail("nothing is left to track"))
    assert train([*argv, "--tracking.services", "[mlflow]"]) == ExitCode.DONE
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == kept


def test_other_ranks_hear_of_a_crash_before_trackers_are_closed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services may take `tracking.close_s` to close, in which the others would wait for this rank."""
    done: list[str] = []
    close = Trackers.close

    def noted(trackers: Trackers) -> None:
        done.append("closed")
        close(trackers)

    monkeypatch.setattr(Trackers, "close", noted)

    def crash_in_forward(run: Pretraining) -> None:
        def crash(*_: object) -> None:
            raise ZeroDivisionError("a step that crashes")

        vars(run.task)["step"] = crash
        vars(run.engine.heartbeat)["declare"] = lambda code, text: done.append(f"told {code}: {text}")

    with pytest.raises(ZeroDivisionError):
        train(arguments(shards, tmp_path / "run"), change=crash_in_forward)
    told, closed = done
    assert told.startswith("told 1: rank 0 (")
    assert told.endswith(" crashed in: forward, step 1: ZeroDivisionError: a step that crashes")
    assert closed == "closed"
    (attempt,) = json.loads((tmp_path / "run" / "usage.json").read_text())
    assert attempt["outcome"] == "crash"
