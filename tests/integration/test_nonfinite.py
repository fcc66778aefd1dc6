"""A value that is no number, on one rank, anywhere: the step is left out on all of them, as if told to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rainspark.models.weights.manifest import step_folders
from tests.distributed import run_ranks
from tests.integration.faults import KINDS, Poison, train_watched
from tests.integration.runs import arguments, equal, metrics, nowcast_arguments, settings, stored

MICRO_STEPS = 3
SETTINGS = settings(
    "data.global_batch=12 data.micro_batch=4 optim.ema_decay=0.8 optim.clip_norm=1.0 run.max_nonfinite=100",
    "run.keep_last=50",
)
HOURS = 5


def random_poisons(seed: int, *, steps: int) -> list[Poison]:
    """A poison at about every second step, each kind and each place in a step at least once where there is room."""
    rng = np.random.default_rng(seed)
    chosen = sorted(int(step) for step in rng.choice(steps, size=steps // 2, replace=False))
    kinds, places = rng.permutation(len(KINDS)), rng.permutation(MICRO_STEPS)
    return [
        Poison(step, int(places[number % MICRO_STEPS]), int(rng.integers(2)), KINDS[kinds[number % len(KINDS)]])
        for number, step in enumerate(chosen)
    ]


def losses(run: Path) -> list[dict[str, Any]]:
    """A run's metrics without those of what was skipped, which may be no numbers, but with the steps."""
    return [line if not line.get("skipped") else {"step": line["step"]} for line in metrics(run)]


def check(runs: list[tuple[Path, list[Poison]]], ranks: list[list[dict[str, Any]]], *, steps: int) -> None:
    """Compare each run that had the poisons with the one that was told to leave their steps out."""
    for number, (folder, poisons) in enumerate(runs):
        bad = sorted({poison.step for poison in poisons})
        assert 0 < len(bad) < steps
        for rank in ranks:
            for found in rank[2 * number : 2 * number + 2]:
                assert found == {"code": 0, "skipped": bad, "unchanged": bad}, (folder, poisons)
        poisoned = stored(folder, best=False, every_step=True)
        assert any("ema" in name for name in poisoned)
        assert all(bool(torch.isfinite(value).all()) for value in poisoned.values()), folder
        assert equal(poisoned, stored(folder.with_name(f"{folder.name} left out"), best=False, every_step=True)), folder
        assert losses(folder) == losses(folder.with_name(f"{folder.name} left out"))
        state = json.loads((step_folders(folder / "checkpoints")[0][1] / "state.json").read_text())
        assert state["step"] == steps
        assert set(state["optimizer_steps"].values()) == {steps - len(bad)}


def pair(argv: list[str], poisons: list[Poison]) -> list[tuple[list[str], list[Poison], bool]]:
    """One run with the poisons, and one beside it that leaves their steps out."""
    place = argv.index("--run.dir") + 1
    beside = [*argv[:place], f"{argv[place]} left out", *argv[place + 1 :]]
    return [(argv, poisons, True), (beside, poisons, False)]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pretraining", "nowcast"])
def test_a_bad_value_on_one_rank_leaves_the_step_out_on_all(shards: Path, tmp_path: Path, task: str) -> None:
    """The first, a middle and the last micro-batch, ZeRO and plain, pretraining and fine-tuning."""
    steps = 5
    poisons = [Poison(1, 0, 1, "input"), Poison(2, 2, 0, "gradient"), Poison(3, 1, 1, "infinite loss")]
    short: dict[str, object] = {**SETTINGS, "run__steps": steps, "run__evaluate_every": steps, "run__save_every": 3}
    partitioned: dict[str, object] = {"engine__zero_stage": 2, "engine__precision": "bf16", "optim__name": "lamb"}
    if task == "pretraining":
        argv = arguments(shards, tmp_path / task, **short, **partitioned)
    else:
        argv = nowcast_arguments(shards, tmp_path / task, **short)
    check([(tmp_path / task, poisons)], run_ranks(train_watched, 2, pair(argv, poisons), timeout_s=600), steps=steps)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bad_values_at_random_steps(shards: Path, tmp_path: Path, precision: str) -> None:
    """Every engine, every kind of fault, at steps, micro-batches and ranks that chance chose."""
    steps = 8
    runs, jobs = [], []
    for number, stage in enumerate(("null", 0, 1, 2, 3)):
        poisons = random_poisons(2 * number + (precision == "bf16"), steps=steps)
        often: dict[str, object] = {"run__steps": steps, "run__evaluate_every": steps, "run__save_every": 5}
        engine = {"engine__zero_stage": stage, "engine__precision": precision}
        jobs += pair(arguments(shards, tmp_path / f"{stage}", **SETTINGS, **often, **engine), poisons)
        runs.append((tmp_path / f"{stage}", poisons))
    check(runs, run_ranks(train_watched, 2, jobs, timeout_s=1800), steps=steps)
