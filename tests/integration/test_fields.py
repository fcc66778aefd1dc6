"""Every setting has an effect: each one is changed, and something that is built from it, or done by it, changes."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rainspark.trainer.engine.engine import Engine
from rainspark.trainer.engine.optimizers import decay_at, rate_at
from rainspark.trainer.processes.entry import StopSignal
from rainspark.trainer.settings.experiment import PretrainConfig
from rainspark.trainer.settings.parse import dotted_keys, parse_config
from rainspark.trainer.training.pretraining import Pretraining
from rainspark.trainer.training.windows import open_stream, open_windows
from tests.conftest import REPOSITORY
from tests.integration.runs import arguments, metrics, tensors, train

SHORT = {"run__steps": 3, "run__evaluate_every": 2, "optim__warmup_steps": 1, "data__lanes": 1}


def schedule(argv: list[str]) -> Any:
    config = parse_config(argv, PretrainConfig, prog="test")
    steps, batch = config.run.steps, config.data.global_batch
    return [(rate_at(config.optim, step, steps, batch), decay_at(config.optim, step, steps)) for step in range(steps)]


def plan(argv: list[str]) -> Any:
    config = parse_config(argv, PretrainConfig, prog="test")
    windows = open_windows(config.data, config.data.window)
    stream = open_stream(windows, config.data, seed=config.seed, rank=0, world_size=1, pin=False)
    return stream.fingerprint(), stream.steps_per_epoch, windows.spans


def reading(argv: list[str]) -> Any:
    config = parse_config(argv, PretrainConfig, prog="test")
    stream = open_stream(
        open_windows(config.data, config.data.window), config.data, seed=0, rank=0, world_size=1, pin=False
    )
    feed = stream._feed
    return feed._options, feed._max_frames, feed._quarantine._budget


def model(argv: list[str]) -> Any:
    config = parse_config(argv, PretrainConfig, prog="test")
    engine = Engine(config.engine)
    try:
        run = Pretraining(config, engine, StopSignal())
        weights = b"".join(p.detach().numpy().tobytes() for p in engine.bare_model.parameters())
        encoder = run.model.sparse_encoder
        task = (run.task.mask_ratio, run.task.space, run.task.depth_rates, run.task.augment, run.model.loss)
        return repr(engine.bare_model), hashlib.sha256(weights).hexdigest(), encoder.checkpoint_blocks, task
    finally:
        engine.shutdown(clean=True)


def outcome(argv: list[str]) -> Any:
    train(argv)
    run = Path(argv[argv.index("--run.dir") + 1])
    paths = [path for path in run.rglob("*") if path.name not in ("config.yaml", ".lock")]
    files = sorted(str(path.relative_to(run)).split("events.out")[0] for path in paths)
    weights = b"".join(value.numpy().tobytes() for _, value in sorted(tensors(run).items()))
    return files, metrics(run), hashlib.sha256(weights).hexdigest()


def progress(argv: list[str]) -> Any:
    import io
    from contextlib import redirect_stderr

    with redirect_stderr(io.StringIO()) as shown:
        train(argv)
    return "step/s" in shown.getvalue() or "s/step" in shown.getvalue()


CHANGES: dict[str, tuple[object, Callable[[list[str]], Any]]] = {
    "run.steps": (4, outcome),
    "run.log_every": (2, outcome),
    "run.evaluate_every": (1, outcome),
    "run.save_every": (2, outcome),
    "run.progress": ("bar", progress),
    "data.window": (6, plan),
    "data.min_rain_fraction": (0.05, plan),
    "data.target_frame": (0, plan),
    "data.validation_share": (0.3, plan),
    "data.test_share": (0.15, plan),
    "data.guard_h": (1.0, plan),
    "data.global_batch": (4, plan),
    "data.micro_batch": (8, plan),
    "data.lanes": (4, plan),
    "data.block_mb": (1.0, plan),
    "data.decoded_mb": (64, reading),
    "data.threads": (3, reading),
    "data.prefetch_steps": (3, reading),
    "data.prefetch_mb": (64, reading),
    "data.readers": (3, reading),
    "data.quarantine": (2, reading),
    "data.augment": ("false", outcome),
    "data.evaluation_windows": (3, outcome),
    "model.encoder": ("resnet26", model),
    "model.decoder_width": (64, model),
    "model.decoder_activation": ("relu6", model),
    "model.mask_ratio": (0.25, outcome),
    "model.loss": ("all", outcome),
    "model.depth_drop": (0.5, outcome),
    "model.checkpoint_blocks": ("true", model),
    "model.space.kind": ("linear", outcome),
    "model.space.scale_mmh": (3.0, outcome),
    "model.space.clip_mmh": (0.5, outcome),
    "optim.name": ("sgd", outcome),
    "optim.lr": (0.01, schedule),
    "optim.lr_scaling": ("sqrt", schedule),
    "optim.betas": ("[0.8, 0.9]", outcome),
    "optim.eps": (1e-3, outcome),
    "optim.weight_decay": (0.3, schedule),
    "optim.weight_decay_end": (0.3, schedule),
    "optim.warmup_steps": (2, schedule),
    "optim.min_lr_share": (0.5, schedule),
    "optim.clip_norm": (0.01, outcome),
    "optim.layer_decay": (0.5, outcome),
    "optim.ema_decay": (0.5, outcome),
    "engine.precision": ("bf16", outcome),
    "tracking.tensorboard": ("true", outcome),
    "seed": (1, outcome),
}
ELSEWHERE = {
    "run.dir": "tests/integration/runs.py",
    "data.shards": "tests/integration/runs.py",
    "data.source": "tests/integration/test_mixed.py",
    "data.weights": "tests/integration/test_mixed.py",
    "data.select": "tests/integration/test_mixed.py",
    "data.select_rule": "tests/integration/test_mixed.py",
    "data.deadline_s": "tests/integration/test_store_settings.py",
    "data.cache_dir": "tests/integration/test_store_settings.py",
    "data.cache_gb": "tests/integration/test_store_settings.py",
    "data.train_times": "tests/integration/test_fields.py",
    "data.validation_times": "tests/integration/test_fields.py",
    "data.test_times": "tests/integration/test_fields.py",
    "run.checkpoint_url": "tests/integration/test_object_store.py",
    "run.keep_last": "tests/trainer/checkpoint/test_folder.py",
    "run.keep_every": "tests/integration/test_checkpoint_settings.py",
    "run.push_deadline_s": "tests/integration/test_checkpoint_settings.py",
    "run.max_nonfinite": "tests/integration/test_user_errors.py",
    "run.allow_plan_change": "tests/integration/test_fields.py",
    "init_from": "tests/integration/test_fields.py",
    "optim.momentum": "tests/integration/test_fields.py",
    "tracking.services": "tests/integration/test_trackers.py",
    "tracking.project": "tests/integration/test_trackers.py",
    "tracking.run_name": "tests/integration/test_trackers.py",
    "tracking.close_s": "tests/integration/test_trackers.py",
    "engine.zero_stage": "tests/integration/test_launch.py",
    "engine.compile": "tests/integration/test_pretrain.py",
    "engine.channels_last": "tests/trainer/engine/test_engine.py",
    "engine.device": "tests/trainer/engine/test_engine.py",
    "engine.timeout_s": "tests/integration/test_ranks.py",
    "engine.start_timeout_s": "tests/integration/test_ranks.py",
}


def test_no_setting_is_left_out() -> None:
    assert sorted([*CHANGES, *ELSEWHERE]) == sorted(dotted_keys(PretrainConfig))
    for key, path in ELSEWHERE.items():
        assert key.rpartition(".")[2] in (REPOSITORY / path).read_text(encoding="utf-8"), key


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_setting_changes_what_comes_of_it(
    key: str, shards: Path, tmp_path: Path, baselines: Callable[[Callable[[list[str]], Any]], Any]
) -> None:
    value, observe = CHANGES[key]
    changed = arguments(shards, tmp_path, **{**SHORT, key.replace(".", "__"): value})
    if key == "data.global_batch":
        changed += ["--data.micro_batch", "4"]
    assert observe(changed) != baselines(observe)


def test_the_same_settings_give_the_same_outcome(
    shards: Path, tmp_path: Path, baselines: Callable[[Callable[[list[str]], Any]], Any]
) -> None:
    """Without this, the test above could pass on noise."""
    assert outcome(arguments(shards, tmp_path, **SHORT)) == baselines(outcome)


def test_stated_times(shards: Path, tmp_path: Path) -> None:
    """Each of the three changes the spans, and the training times the windows too."""
    day = "2020-06-01T"
    times: dict[str, object] = {
        "data__validation_share": 0.1, "data__train_times": f'["{day}00:00/{day}02:00"]',
        "data__validation_times": f'["{day}02:30/{day}03:00"]', "data__test_times": f'["{day}03:30/{day}04:00"]',
    }  # fmt: skip
    stated = plan(arguments(shards, tmp_path, **times))
    assert stated != plan(arguments(shards, tmp_path, data__validation_share=0.1))
    for key, value in (("train", f"{day}00:00/{day}01:30"), ("validation", f"{day}02:30/{day}02:55")):
        changed = plan(arguments(shards, tmp_path, **{**times, f"data__{key}_times": f'["{value}"]'}))
        assert (changed[0] == stated[0]) == (key != "train")
        assert changed[2] != stated[2]
    later = plan(arguments(shards, tmp_path, **{**times, "data__test_times": f'["{day}03:35/{day}04:00"]'}))
    assert later[:2] == stated[:2]
    assert later[2] != stated[2]


def test_momentum(shards: Path, tmp_path: Path) -> None:
    results = [
        outcome(arguments(shards, tmp_path / str(momentum), **SHORT, optim__name="sgd", optim__momentum=momentum))
        for momentum in (0.0, 0.9)
    ]
    assert results[0] != results[1]


def test_init_from_and_allowed_plan_change(shards: Path, tmp_path: Path) -> None:
    first = arguments(shards, tmp_path / "first", **SHORT)
    train(first)
    second = arguments(shards, tmp_path / "second", **SHORT, init_from=tmp_path / "first")
    assert model(second)[1] != model(arguments(shards, tmp_path / "third", **SHORT))[1]
    more = {**SHORT, "run__steps": 5, "data__micro_batch": 8, "run__allow_plan_change": "true"}
    train(arguments(shards, tmp_path / "first", **more))
    assert metrics(tmp_path / "first")[-1]["step"] == 5
    weights = tensors(tmp_path / "first")
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
