"""A value that is no number, on one rank, anywhere: the step is left out on all of them, as if told to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rainspark.models.weights.manifest import step_folders
from tests.distributed import run_ranks
from tests.integration import nowcast_runs
from tests.integration.fault_runs import KINDS, Fault, checkpoints, train_watched
from tests.integration.runs import arguments, make_shards, metrics

MICRO_STEPS = 3
SETTINGS: dict[str, object] = {
    "data__global_batch": 12, "data__micro_batch": 4, "optim__ema_decay": 0.8, "run__max_nonfinite": 100,
    "optim__clip_norm": 1.0, "run__keep_last": 50,
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("storms"))


def random_faults(seed: int, *, steps: int) -> list[Fault]:
    """A fault at about every second step, each kind and each place in a step at least once where there is room."""
    rng = np.random.default_rng(seed)
    chosen = sorted(int(step) for step in rng.choice(steps, size=steps // 2, replace=False))
    kinds, places = rng.permutation(len(KINDS)), rng.permutation(MICRO_STEPS)
    return [
        Fault(step, int(places[number % MICRO_STEPS]), int(rng.integers(2)), KINDS[kinds[number % len(KINDS)]])
        for number, step in enumerate(chosen)
    ]


def losses(run: Path) -> list[dict[str, Any]]:
    """A run's metrics without those of what was skipped, which may be no numbers, but with the steps."""
    return [line if not line.get("skipped") else {"step": line["step"]} for line in metrics(run)]


def check(runs: list[tuple[Path, list[Fault]]], ranks: list[list[dict[str, Any]]], *, steps: int) -> None:
    """Compare each run that had the faults with the one that was told to leave their steps out."""
    for number, (folder, faults) in enumerate(runs):
        bad = sorted({fault.step for fault in faults})
        assert 0 < len(bad) < steps
        for rank in ranks:
            for found in rank[2 * number : 2 * number + 2]:
                assert found == {"code": 0, "skipped": bad, "unchanged": bad}, (folder, faults)
        poisoned, left_out = checkpoints(folder), checkpoints(folder.with_name(f"{folder.name} left out"))
        assert any("ema" in name for name in poisoned)
        assert poisoned.keys() == left_out.keys()
        for name, value in poisoned.items():
            assert bool(torch.isfinite(value).all()), (folder, name)
            assert torch.equal(value, left_out[name]), (folder, name)
        assert losses(folder) == losses(folder.with_name(f"{folder.name} left out"))
        state = json.loads((step_folders(folder / "checkpoints")[0][1] / "state.json").read_text())
        assert state["step"] == steps
        assert set(state["optimizer_steps"].values()) == {steps - len(bad)}


def pair(argv: list[str], faults: list[Fault]) -> list[tuple[list[str], list[Fault], bool]]:
    """One run with the faults, and one beside it that leaves their steps out."""
    place = argv.index("--run.dir") + 1
    beside = [*argv[:place], f"{argv[place]} left out", *argv[place + 1 :]]
    return [(argv, faults, True), (beside, faults, False)]


@pytest.mark.parametrize("task", ["pretraining", pytest.param("nowcast", marks=pytest.mark.slow)])
def test_a_bad_value_on_one_rank_leaves_the_step_out_on_all(shards: Path, tmp_path: Path, task: str) -> None:
    """The first, a middle and the last micro-batch, ZeRO and plain, pretraining and fine-tuning."""
    steps = 5
    faults = [Fault(1, 0, 1, "input"), Fault(2, 2, 0, "gradient"), Fault(3, 1, 1, "infinite loss")]
    short: dict[str, object] = {**SETTINGS, "run__steps": steps, "run__evaluate_every": steps, "run__save_every": 3}
    partitioned: dict[str, object] = {"engine__zero_stage": 2, "engine__precision": "bf16", "optim__name": "lamb"}
    if task == "pretraining":
        argv = arguments(shards, tmp_path / task, **short, **partitioned)
    else:
        argv = nowcast_runs.arguments(shards, tmp_path / task, **short)
    check([(tmp_path / task, faults)], run_ranks(train_watched, 2, pair(argv, faults), timeout_s=600), steps=steps)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bad_values_at_random_steps(shards: Path, tmp_path: Path, precision: str) -> None:
    """Every engine, every kind of fault, at steps, micro-batches and ranks that chance chose."""
    steps = 8
    runs, jobs = [], []
    for number, stage in enumerate(("null", 0, 1, 2, 3)):
        faults = random_faults(2 * number + (precision == "bf16"), steps=steps)
        often: dict[str, object] = {"run__steps": steps, "run__evaluate_every": steps, "run__save_every": 5}
        engine = {"engine__zero_stage": stage, "engine__precision": precision}
        jobs += pair(arguments(shards, tmp_path / f"{stage}", **SETTINGS, **often, **engine), faults)
        runs.append((tmp_path / f"{stage}", faults))
    check(runs, run_ranks(train_watched, 2, jobs, timeout_s=1800), steps=steps)
