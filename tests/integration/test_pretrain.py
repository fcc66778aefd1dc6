"""Whole pretraining runs on synthetic storms: the same result whatever happens on the way."""

from pathlib import Path

import pytest

from rainspark.data.exit_codes import ExitCode
from tests.distributed import run_ranks
from tests.integration.runs import arguments, assert_close, equal, metrics, tensors, train, train_many

HOURS = 5


def test_stop_and_resume_is_bit_for_bit(shards: Path, tmp_path: Path) -> None:
    """Stopped inside an accumulation window, in a later epoch than the first: as if nothing had happened."""
    whole, run = tmp_path / "whole", tmp_path / "stopped"
    assert train(arguments(shards, whole)) == ExitCode.DONE
    assert train(arguments(shards, run), stop_in_step=5) == ExitCode.REQUEUE
    assert train(arguments(shards, run)) == ExitCode.DONE
    assert equal(tensors(run), tensors(whole))
    assert metrics(run) == metrics(whole)


def test_a_stop_right_before_an_evaluation_owes_it(shards: Path, tmp_path: Path) -> None:
    """The checkpoint comes first, the launcher's patience being short; the evaluation is made good on resume."""
    often = {"run__evaluate_every": 2, "run__steps": 4}
    assert train(arguments(shards, tmp_path / "whole", **often)) == ExitCode.DONE
    argv = arguments(shards, tmp_path / "stopped", **often)
    assert train(argv, stop_in_step=2) == ExitCode.REQUEUE
    assert not (tmp_path / "stopped" / "pictures").exists()
    assert train(argv) == ExitCode.DONE
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    pictures = [sorted(path.name for path in (tmp_path / run / "pictures").iterdir()) for run in ("whole", "stopped")]
    assert pictures[0] == pictures[1]


@pytest.mark.slow
def test_compiled_runs_learn_the_same(shards: Path, tmp_path: Path) -> None:
    for compiled in ("false", "true"):
        argv = arguments(shards, tmp_path / compiled, run__steps=3, run__evaluate_every=3, engine__compile=compiled)
        assert train(argv) == ExitCode.DONE
    for plain, fast in zip(metrics(tmp_path / "false"), metrics(tmp_path / "true"), strict=True):
        # Fused kernels round otherwise; in float32 that moves a gradient norm by up to 5e-3, a loss by less than 1e-3.
        assert fast.pop("grad_norm", 0) == pytest.approx(plain.pop("grad_norm", 0), rel=5e-3)
        assert fast == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_two_processes_resume_bit_for_bit(shards: Path, tmp_path: Path, precision: str) -> None:
    """Stopped in the first epoch."""
    settings = {"engine__precision": precision, "run__steps": 3, "run__evaluate_every": 3}
    whole, stopped = (arguments(shards, tmp_path / name, **settings) for name in ("whole", "stopped"))
    codes = run_ranks(train_many, 2, [(whole, None), (stopped, 1), (stopped, None)], timeout_s=240)
    assert codes[0] == codes[1] == [0, 75, 0]
    assert equal(tensors(tmp_path / "stopped"), tensors(tmp_path / "whole"))
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_two_processes_equal_one(shards: Path, tmp_path: Path, steps: int) -> None:
    """In float64: the same losses, weights and buffers."""
    float64 = {"engine__precision": "fp64", "run__steps": steps, "run__evaluate_every": steps}
    run_ranks(train_many, 2, [(arguments(shards, tmp_path / "two", **float64), None)], timeout_s=240)
    train(arguments(shards, tmp_path / "one", **float64))
    assert_close(tensors(tmp_path / "one"), tensors(tmp_path / "two"), rel=1e-9)
    for first, second in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert second == pytest.approx(first, rel=1e-9, abs=1e-9)
