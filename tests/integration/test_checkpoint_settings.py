"""The settings of saving have their effect, and a run tells apart what it goes on from and what it starts from."""

import logging
from functools import partial
from pathlib import Path

import pytest

from rainspark.data.exit_codes import ExitCode
from rainspark.models.weights.manifest import MANIFEST_NAME, step_folders
from rainspark.trainer.checkpoint.folder import load
from rainspark.trainer.processes.entry import run_entry
from tests.integration.runs import equal, records, tensors, train
from tests.integration.runs import smallest_arguments as arguments

HOURS = 3


def steps(place: Path) -> list[int]:
    """List the finished checkpoints of a run's folder or of a store; a store leaves empty folders behind."""
    return [step for step, folder in step_folders(place / "checkpoints") if (folder / MANIFEST_NAME).exists()]


def test_keep_every_and_push_deadline(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run, store = tmp_path / "run", tmp_path / "store"
    settings = {"run__checkpoint_url": store, "run__keep_every": 2, "run__steps": 6}
    caplog.set_level(logging.INFO)
    assert train(arguments(shards, run, **settings)) == ExitCode.DONE
    assert steps(run) == steps(store) == [6, 5, 4, 2]
    saves = [record for record in records(run) if "save/write_s" in record["metrics"]]
    assert [line["step"] for line in saves] == [1, 2, 3, 4, 5, 6]
    size = sum(file.stat().st_size for file in (run / "checkpoints" / "step-00000006").iterdir())
    assert saves[-1]["metrics"]["save/bytes"] == size
    assert all(saves[-1]["metrics"][f"save/{name}_s"] > 0 for name in ("gather", "write", "push"))
    # No process starts in no time, so that nothing is ever copied: the settings are wrong, and no whole day is lost.
    argv = arguments(shards, tmp_path / "late", run__checkpoint_url=tmp_path / "new", run__push_deadline_s=1e-3)
    assert run_entry(lambda: train(argv)) == ExitCode.CHECKPOINT
    assert "cut off after 0.001 s (run.push_deadline_s)" in capsys.readouterr().err
    assert steps(tmp_path / "late") == [1]
    # A place that has taken one before: the run goes on.
    caplog.clear()
    assert train(arguments(shards, run, **settings | {"run__steps": 7, "run__push_deadline_s": 1e-3})) == ExitCode.DONE
    assert "step-00000007: not copied to" in caplog.text
    assert (steps(run), steps(store)) == ([7, 6, 4, 2], [6, 5, 4, 2])


def test_milestones_are_saves(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"run__keep_every": 3, "run__save_every": 2}, "run.keep_every is 3 and run.save_every 2"),
        ({"run__keep_every": 0}, "run.keep_every is 0"),
        ({"run__push_deadline_s": 0}, "run.push_deadline_s is 0"),
    ]
    for settings, message in cases:
        argv = arguments(shards, tmp_path / "run", **settings)
        assert run_entry(partial(train, argv)) == ExitCode.CONFIG
        assert message in capsys.readouterr().err


def test_a_run_goes_on_from_its_folder_and_starts_from_init_from_only_when_that_is_empty(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    caplog.set_level(logging.INFO)
    assert train(arguments(shards, first, run__steps=2)) == ExitCode.DONE
    assert train(arguments(shards, second, init_from=first, run__steps=2, seed=1)) == ExitCode.DONE
    assert "init_from: " in caplog.text
    assert "resumed from" not in caplog.text
    assert load(second).state.step == 2, "weights only: its steps begin anew"
    before = tensors(second)
    caplog.clear()
    assert train(arguments(shards, second, init_from=first, run__steps=2, seed=1)) == ExitCode.DONE
    assert f"resumed from {second / 'checkpoints' / 'step-00000002'}: 2 of 2 steps are done" in caplog.text
    assert "init_from: " not in caplog.text
    assert equal(before, tensors(second))


def test_nothing_to_start_from_is_told_and_leaves_no_run(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(shards, tmp_path / "run", init_from=tmp_path / "nothing")
    assert run_entry(lambda: train(argv)) in (ExitCode.CHECKPOINT, ExitCode.CONFIG)
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "names",
    [
        ("model.safetensors",),
        pytest.param(("MANIFEST.json", "optimizer.safetensors", "state.json"), marks=pytest.mark.slow),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over_and_learned_again(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, ...]
) -> None:
    """Of every file one bit, then its end: the run goes on from the one before, and ends as it would have."""
    run = tmp_path / "run"
    assert train(arguments(shards, run)) == ExitCode.DONE
    expected = tensors(run)
    newest = run / "checkpoints" / "step-00000004"
    for name in names:
        whole = (newest / name).read_bytes()
        middle = len(whole) // 2
        for damaged in (whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :], whole[:-1]):
            (newest / name).write_bytes(damaged)
            caplog.clear()
            with caplog.at_level(logging.INFO):
                assert train(arguments(shards, run)) == ExitCode.DONE
            assert f"passed over: {newest}" in caplog.text
            assert name in caplog.text
            assert "step-00000003: 3 of 4 steps are done" in caplog.text
            assert equal(tensors(run), expected)
