"""What a user can get wrong when starting a run: a clear text, its own exit code, and nothing lost."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rainspark.data.exit_codes import ExitCode
from rainspark.trainer.processes.entry import run_entry
from rainspark.trainer.training.pretraining import Pretraining
from tests.fault_server import FaultServer
from tests.integration.faults import train_apart
from tests.integration.runs import arguments, equal, metrics, pretrain, tensors, train

HOURS = 3


@pytest.fixture(autouse=True)
def _own_log_handlers() -> Iterator[None]:
    """The entry point sets handlers up for a process of its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def start(argv: list[str]) -> int:
    return run_entry(lambda: pretrain(argv))


def expect(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: ExitCode, *words: str, folder: Path | None = None
) -> None:
    assert start(argv) == code
    text = capsys.readouterr().err
    for word in words:
        assert word in text
    if folder is not None:
        assert not folder.exists()


def test_no_shards_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = arguments(tmp_path / "nothing", tmp_path / "run")
    expect(capsys, argv, ExitCode.DATA, "data:", "nothing", folder=tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data__global_batch": 512, "data__micro_batch": 512}, ["fewer than one global batch of 512"]),
        ({"data__lanes": 3}, ["4 windows", "3 lanes", "1, 2, 4"]),
        ({"data__window": 30}, ["30", "24"]),
        ({"data__min_rain_fraction": 1.0}, ["no window", "rain"]),
        ({"data__guard_h": 50}, ["data.guard_h 50", "the archive spans"]),
        ({"optim__lrr": 1}, ["optim.lrr", "nearest valid key is optim.lr"]),
    ],
)
def test_settings_that_do_not_fit_the_data(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: dict[str, object], words: list[str]
) -> None:
    argv = arguments(shards, tmp_path / "run", **overrides)
    assert start(argv) in (ExitCode.CONFIG, ExitCode.DATA)
    text = capsys.readouterr().err
    assert all(word in text for word in words), text
    assert not (tmp_path / "run").exists()


def test_what_fails_on_one_rank_ends_all_of_them_for_that_cause(
    server: FaultServer, shards: Path, tmp_path: Path
) -> None:
    argvs = [arguments(folder, tmp_path / "run") for folder in (shards, tmp_path / "nothing")]
    assert server.run(train_apart, argvs, None, ranks=2).codes == [ExitCode.DATA] * 2


def test_a_picture_that_fails_does_not_stop_the_run(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "pictures").write_text("in the way")
    assert train(arguments(shards, run, run__steps=2, run__evaluate_every=2, optim__warmup_steps=0)) == ExitCode.DONE
    assert "was not drawn" in caplog.text
    assert metrics(run)[-1]["held_out_loss"] > 0


def test_a_loss_that_stays_nan_stops_the_run_and_keeps_the_last_good_checkpoint(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    argv = arguments(shards, run, run__steps=2, run__evaluate_every=100, optim__warmup_steps=0)
    assert train(argv) == ExitCode.DONE
    good = tensors(run)

    def poison(pretraining: Pretraining) -> None:
        with torch.no_grad():
            next(pretraining.engine.bare_model.parameters()).fill_(float("nan"))

    longer = arguments(shards, run, run__steps=6, run__evaluate_every=100, run__max_nonfinite=2, optim__warmup_steps=0)

    def work() -> ExitCode:
        return train(longer, change=poison)

    assert run_entry(work) == ExitCode.NONFINITE
    assert "step 3 skipped on all ranks" in caplog.text
    assert "step 4 skipped on all ranks" in caplog.text
    assert "windows of this rank" in caplog.text
    assert equal(good, tensors(run))
