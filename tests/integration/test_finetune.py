"""Whole fine-tuning runs on synthetic storms: the same result whatever happens on the way."""

import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rainspark.data.errors import ConfigError
from rainspark.data.exit_codes import ExitCode
from rainspark.data.stream.stream import Batch
from rainspark.models.weights.manifest import CheckpointError, step_folders, write_manifest
from rainspark.trainer.checkpoint.folder import load
from rainspark.trainer.training.finetuning import Finetuning
from rainspark.trainer.training.nowcast_task import NowcastBatch
from tests.distributed import run_ranks
from tests.integration.runs import assert_close, equal, metrics, settings, stored, train, train_many
from tests.integration.runs import nowcast_arguments as arguments

# With everything that a resume has to bring back: averages, layer decay, crop, mask, stochastic depth, motion.
FULL = settings(
    "optim.ema_decay=0.9 optim.layer_decay=0.8 data.crop=32 data.micro_batch=2 model.depth_drop=0.3 model.loss=csi",
    "run.choose_by=mse",
)
# Besides, members: their noise is drawn a window and a step.
ENSEMBLE = {**FULL, **settings("model.head=cascade model.ensemble=true model.loss=crps run.choose_by=loss")}
HOURS = 5


def best_steps(run: Path) -> list[int]:
    return [step for step, _ in step_folders(run / "best" / "checkpoints")]


@pytest.mark.parametrize("kind", [FULL, ENSEMBLE], ids=["one field", "ensemble"])
def test_stop_and_resume_is_bit_for_bit(shards: Path, tmp_path: Path, kind: Mapping[str, object]) -> None:
    """Weights, moments, averages, metrics and the best checkpoint: as if nothing had happened."""
    assert train(arguments(shards, tmp_path / "whole", **kind)) == ExitCode.DONE
    run = tmp_path / "stopped"
    argv = arguments(shards, run, **kind)
    assert train(argv, stop_in_step=4) == ExitCode.REQUEUE
    assert train(argv) == ExitCode.DONE
    assert equal(stored(run), stored(tmp_path / "whole"))
    assert metrics(run) == metrics(tmp_path / "whole")
    assert best_steps(run)[0] == best_steps(tmp_path / "whole")[0]


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(shards: Path, tmp_path: Path) -> None:
    """Stopped in the first step; one process is stopped later."""
    short = {**FULL, "run__steps": 4}
    argv = arguments(shards, tmp_path / "stopped", **short)
    whole = arguments(shards, tmp_path / "whole", **short)
    codes = run_ranks(train_many, 2, [(whole, None), (argv, 1), (argv, None)], timeout_s=240)
    assert codes[0] == codes[1] == [0, 75, 0]
    assert equal(stored(tmp_path / "stopped"), stored(tmp_path / "whole"))
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


@pytest.mark.parametrize(
    "kind", [pytest.param(FULL, id="one field"), pytest.param(ENSEMBLE, id="ensemble", marks=pytest.mark.slow)]
)
def test_two_processes_equal_one(pack_storms: Callable[..., Path], tmp_path: Path, kind: Mapping[str, object]) -> None:
    """In float64 the figures, weights and best checkpoint of one rank.

    With a crop of one patch, two windows make two values for batch statistics: rounding would grow a millionfold.
    """
    wide = pack_storms(HOURS, size=96)
    float64 = {**kind, "engine__precision": "fp64", "data__crop": 64, "run__steps": 2}
    codes = run_ranks(train_many, 2, [(arguments(wide, tmp_path / "two", **float64), None)], timeout_s=240)
    assert codes[0] == codes[1] == [0]
    assert train(arguments(wide, tmp_path / "one", **float64)) == ExitCode.DONE
    assert_close(stored(tmp_path / "one"), stored(tmp_path / "two"), rel=1e-9)
    for one, other in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert other == pytest.approx(one, rel=1e-9, abs=1e-9, nan_ok=True)


def test_a_kill_between_evaluation_and_checkpoint_leaves_no_best_of_an_abandoned_future(
    shards: Path, tmp_path: Path
) -> None:
    """Killed after several new bests and no checkpoint; what was the best at the checkpoint is there still."""
    often = {"run__steps": 6, "run__evaluate_every": 1, "run__save_every": 3, "run__choose_by": "loss"}
    often |= {"model__name": "smaat_unet", "model__smaat_width": 2}

    def falling(finetuning: Finetuning) -> None:
        def evaluated(picture: Path, *, step: int) -> dict[str, float]:
            del picture
            return {"held_out_loss": 1.0 / step}

        finetuning.held_out.evaluate = evaluated  # type: ignore[method-assign]

    def killed_in_step_6(finetuning: Finetuning) -> None:
        falling(finetuning)
        prepare = finetuning.task.prepare

        def prepare_or_die(batch: Batch) -> NowcastBatch:
            if batch.step == 5:
                raise KeyboardInterrupt
            return prepare(batch)

        finetuning.task.prepare = prepare_or_die  # type: ignore[method-assign]

    run = tmp_path / "run"
    argv = arguments(shards, run, **often)
    with pytest.raises(KeyboardInterrupt):
        train(argv, change=killed_in_step_6)
    assert load(run).state.step == 3
    assert best_steps(run) == [5, 4, 3]
    seen: list[Any] = []

    def look(finetuning: Finetuning) -> None:
        seen.append((finetuning.best, best_steps(run)))
        killed_in_step_6(finetuning)
        hold_folder = finetuning._hold_folder

        def look_again() -> None:
            hold_folder()
            seen.append(best_steps(run))

        finetuning._hold_folder = look_again  # type: ignore[method-assign]

    with pytest.raises(KeyboardInterrupt):
        train(argv, change=look)
    # Nothing is removed before the folder is held: another run may be at work in it.
    assert seen == [((3, 1 / 3), [5, 4, 3]), [3]]
    assert train(argv, change=falling) == ExitCode.DONE
    assert best_steps(run) == [6, 5, 4, 3]
    assert train(arguments(shards, tmp_path / "whole", **often), change=falling) == ExitCode.DONE
    assert equal(stored(run), stored(tmp_path / "whole"))


@pytest.fixture(scope="module")
def short_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("short") / "run"
    assert train(arguments(shards, run, run__steps=2)) == ExitCode.DONE
    return run


@pytest.fixture
def finished(short_run: Path, tmp_path: Path) -> Path:
    """A copy of a short run that is done."""
    return Path(shutil.copytree(short_run, tmp_path / "run"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"run__choose_by": "loss"}, r'run\.choose_by: saved "csi", asked "loss"'),
        ({"model__match": "last_frame"}, r'model\.match: saved "none", asked "last_frame"'),
        ({"model__head": "direct"}, r'model\.head: saved "residual", asked "direct"'),
        ({"model__freeze": "encoder"}, r'model\.freeze: saved "none", asked "encoder"'),
        ({"data__crop": 32}, r"data\.crop: saved null, asked 32"),
        ({"data__test_share": 0.15}, r"data\.test_share: saved 0\.0, asked 0\.15"),
        ({"optim__ema_decay": 0.9}, r"optim\.ema_decay: saved null, asked 0\.9"),
        ({"optim__layer_decay": 0.9}, r"optim\.layer_decay: saved 1\.0, asked 0\.9"),
        ({"data__evaluation_windows": 3}, r"chosen on data\.evaluation_windows 6, and 3 are asked for"),
    ],
)
def test_what_may_not_change_on_resume_is_refused_by_name(
    shards: Path, short_run: Path, overrides: dict[str, object], message: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in short_run.rglob("*")}
    with pytest.raises(CheckpointError, match=message):
        train(arguments(shards, short_run, **{"run__steps": 4, **overrides}))
    assert {path: path.stat().st_mtime_ns for path in short_run.rglob("*")} == before


def test_what_may_change_on_resume_is_taken(shards: Path, finished: Path) -> None:
    argv = arguments(shards, finished, run__steps=3, run__evaluate_every=1, model__checkpoint_blocks="true")
    assert train(argv) == ExitCode.DONE
    assert metrics(finished)[-1]["step"] == 3


def rewrite_best(run: Path, change: Any) -> None:
    best = step_folders(run / "best" / "checkpoints")[0][1]
    state = json.loads((best / "state.json").read_text())
    change(state)
    (best / "state.json").write_text(json.dumps(state))
    write_manifest(best)


def test_a_best_checkpoint_that_does_not_say_why_is_refused(shards: Path, finished: Path) -> None:
    rewrite_best(finished, lambda state: state["metrics"].pop("held_out_csi"))
    with pytest.raises(CheckpointError, match=r"does not record held_out_csi.*remove .*best"):
        train(arguments(shards, finished, run__steps=4))


def test_a_damaged_best_checkpoint_is_refused(shards: Path, finished: Path) -> None:
    weights = step_folders(finished / "best" / "checkpoints")[0][1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"best/checkpoints/step-\d+/model\.safetensors: \d+ bytes"):
        train(arguments(shards, finished, run__steps=4))


@pytest.mark.parametrize(("figure", "value"), [("held_out_csi", math.nan), ("held_out_nonfinite", 3.0)])
def test_what_cannot_be_compared_is_never_the_best(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, figure: str, value: float
) -> None:
    def spoil(finetuning: Finetuning) -> None:
        evaluate = finetuning.held_out.evaluate

        def evaluated(picture: Path, *, step: int) -> dict[str, float]:
            return {**evaluate(picture, step=step), figure: value}

        finetuning.held_out.evaluate = evaluated  # type: ignore[method-assign]

    assert train(arguments(shards, tmp_path / "run", run__steps=2), change=spoil) == ExitCode.DONE
    assert not (tmp_path / "run" / "best").exists()
    assert re.search("no rain in the validation part|3 forecast values are no number", caplog.text)


@pytest.mark.parametrize(("test_share", "score_it"), [(0, None), (0.3, "--split test")])
def test_nothing_held_out_chooses_nothing(
    shards: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    test_share: float,
    score_it: str | None,
) -> None:
    """The command that scores the run is printed where a part is left to score."""
    caplog.set_level(logging.INFO)
    shares = {"data__validation_share": 0, "data__test_share": test_share, "data__guard_h": 0}
    assert train(arguments(shards, tmp_path / "run", run__steps=2, **shares)) == ExitCode.DONE
    assert not (tmp_path / "run" / "best").exists()
    assert "nothing is held out" in caplog.text
    printed = capfd.readouterr().out
    assert ("score it" in printed) is (score_it is not None)
    assert score_it is None or score_it in printed


def test_frames_of_any_size_train_with_a_crop(pack_storms: Callable[..., Path], tmp_path: Path) -> None:
    """Whole frames are evaluated, extended to whole patches."""
    odd = pack_storms(4, size=72)
    crop = {"data__crop": 64, "run__steps": 2}
    assert train(arguments(odd, tmp_path / "run", **crop)) == ExitCode.DONE
    assert metrics(tmp_path / "run")[-1]["held_out_mse"] > 0
    for overrides, message in (
        ({}, r"frames of 72 x 72 pixels; expected .* multiples of 32: a crop of 64 or less fits; set data\.crop"),
        ({"data__crop": 96}, r"frames of 72 x 72 pixels are smaller than the crop, 96: a crop of 64 or less fits"),
    ):
        with pytest.raises(ValueError, match=message):
            train(arguments(odd, tmp_path / "none", **overrides))
    with pytest.raises(ConfigError, match=r"mask_ratio 0\.1 hides none of the 2 x 2 patches"):
        train(arguments(odd, tmp_path / "none", data__crop=64, model__mask_ratio=0.1))
    with pytest.raises(ValueError, match=r"windows of 30 frames were asked for.* 1 to 24 frames"):
        train(arguments(odd, tmp_path / "none", data__crop=64, model__frames_in=20, model__frames_out=10))
    assert not (tmp_path / "none").exists()
