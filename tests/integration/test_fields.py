"""Every setting has an effect: each one is changed, and something that is built from it, or done by it, changes.

Of fine-tuning's settings those are changed that pretraining lacks, or does something else with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rainspark.data.exit_codes import ExitCode
from rainspark.trainer.engine.optimizers import decay_at, rate_at
from rainspark.trainer.settings.experiment import FinetuneConfig, PretrainConfig
from rainspark.trainer.settings.parse import dotted_keys, parse_config
from rainspark.trainer.training.finetuning import Finetuning
from rainspark.trainer.training.windows import open_stream, open_windows
from tests.conftest import REPOSITORY
from tests.integration.runs import (
    arguments,
    built,
    digest,
    learned,
    metrics,
    nowcast_arguments,
    stored,
    tensors,
    train,
)

Observe = Callable[[list[str]], Any]
SHORT = {"run__steps": 3, "run__evaluate_every": 3, "optim__warmup_steps": 1, "data__lanes": 1}
NOWCAST_SHORT: dict[str, object] = {"run__steps": 2, "run__evaluate_every": 2, "data__lanes": 1}


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
    with built(argv) as run:
        task = (run.task.mask_ratio, run.task.space, run.task.depth_rates, run.task.augment, run.model.loss)
        blocks = run.model.sparse_encoder.checkpoint_blocks
        return repr(run.engine.bare_model), digest(run.engine.bare_model.state_dict()), blocks, task


def outcome(argv: list[str]) -> Any:
    train(argv)
    run = Path(argv[argv.index("--run.dir") + 1])
    paths = [path for path in run.rglob("*") if path.name not in ("config.yaml", ".lock")]
    files = sorted(str(path.relative_to(run)).split("events.out")[0] for path in paths)
    return files, metrics(run), digest(tensors(run))


def progress(argv: list[str]) -> Any:
    import io
    from contextlib import redirect_stderr

    with redirect_stderr(io.StringIO()) as shown:
        train(argv)
    return "step/s" in shown.getvalue() or "s/step" in shown.getvalue()


def logged(argv: list[str]) -> Any:
    """Losses alone: lead times are trained on, and a longer past has other windows."""
    return learned(argv)[0]


def nowcaster(argv: list[str]) -> Any:
    with built(argv) as run:
        trained = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
        recomputed = [name for name, module in run.model.named_modules() if getattr(module, "checkpoint_blocks", False)]
        return repr(run.model), trained, recomputed


def chosen(argv: list[str]) -> Any:
    """Metrics, every stored tensor, and what was chosen as the best."""
    seen: list[Finetuning] = []
    train(argv, change=seen.append)
    run = Path(argv[argv.index("--run.dir") + 1])
    return metrics(run), digest(stored(run)), seen[0].best


CHANGES: dict[str, tuple[object, Observe]] = {
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
    "data.augment": ("false", learned),
    "data.evaluation_windows": (3, outcome),
    "model.encoder": ("resnet26", model),
    "model.decoder_width": (64, model),
    "model.decoder_activation": ("relu6", model),
    "model.mask_ratio": (0.25, learned),
    "model.loss": ("all", learned),
    "model.depth_drop": (0.5, learned),
    "model.checkpoint_blocks": ("true", model),
    "model.space.kind": ("linear", learned),
    "model.space.scale_mmh": (3.0, learned),
    "model.space.clip_mmh": (0.5, learned),
    "optim.name": ("sgd", learned),
    "optim.lr": (0.01, schedule),
    "optim.lr_scaling": ("sqrt", schedule),
    "optim.betas": ("[0.8, 0.9]", learned),
    "optim.eps": (1e-3, learned),
    "optim.weight_decay": (0.3, schedule),
    "optim.weight_decay_end": (0.3, schedule),
    "optim.warmup_steps": (2, schedule),
    "optim.min_lr_share": (0.5, schedule),
    "optim.clip_norm": (0.01, learned),
    "optim.layer_decay": (0.5, learned),
    "optim.ema_decay": (0.5, outcome),
    "engine.precision": ("bf16", learned),
    "tracking.tensorboard": ("true", outcome),
    "seed": (1, learned),
}
ELSEWHERE = {
    "integration/runs.py": "run.dir data.shards",
    "integration/test_mixed.py": "data.source data.weights data.select data.select_rule",
    "integration/test_object_store.py": "run.checkpoint_url data.deadline_s data.cache_dir data.cache_gb",
    "integration/test_checkpoint_settings.py": "run.keep_every run.push_deadline_s",
    "integration/test_user_errors.py": "run.max_nonfinite",
    "integration/test_trackers.py": "tracking.services tracking.project tracking.run_name tracking.close_s",
    "integration/test_launch.py": "engine.zero_stage",
    "integration/test_pretrain.py": "engine.compile",
    "integration/test_ranks.py": "engine.timeout_s engine.start_timeout_s",
    "trainer/checkpoint/test_folder.py": "run.keep_last",
    "trainer/engine/test_engine.py": "engine.channels_last engine.device",
}
"""Settings whose effect other files show."""
BELOW = "data.train_times data.validation_times data.test_times run.allow_plan_change init_from optim.momentum"


NOWCAST_CHANGES: dict[str, tuple[object, Observe]] = {
    "run.choose_by": ("mse", chosen),
    "data.crop": (32, learned),
    "data.augment": ("false", learned),
    "model.frames_in": (5, logged),
    "model.frames_out": (2, logged),
    "model.encoder": ("resnet26", nowcaster),
    "model.decoder_width": (64, nowcaster),
    "model.decoder_activation": ("relu6", nowcaster),
    "model.translation": ("linear", nowcaster),
    "model.head": ("direct", learned),
    "model.mask_ratio": (0.5, learned),
    "model.loss": ("csi", learned),
    "model.match": ("last_frame", chosen),
    "model.depth_drop": (0.5, learned),
    "model.checkpoint_blocks": ("true", nowcaster),
    "model.space.kind": ("linear", learned),
    "model.space.scale_mmh": (3.0, learned),
    "model.space.clip_mmh": (0.5, learned),
    "seed": (1, learned),
}
NOWCAST_BELOW = {"model.name", "model.smaat_width", "model.freeze", "model.ensemble", "init_from"}


@dataclass(frozen=True)
class Kind:
    """A kind of training.

    Attributes:
        arguments: Builds the command line of its smallest run.
        short: Settings of the run that changed ones are compared with.
        changes: A changed value for each setting, and what shows the change.
    """

    arguments: Callable[..., list[str]]
    short: Mapping[str, object]
    changes: Mapping[str, tuple[object, Observe]]


KINDS = {
    "pretraining": Kind(arguments, SHORT, CHANGES),
    "fine-tuning": Kind(nowcast_arguments, NOWCAST_SHORT, NOWCAST_CHANGES),
}


@pytest.fixture(scope="module")
def baselines(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind, Observe], Any]:
    """Give what each way to observe a run shows of the unchanged one; each runs once."""
    known: dict[tuple[int, Observe], Any] = {}

    def baseline(kind: Kind, observe: Observe) -> Any:
        if (id(kind), observe) not in known:
            argv = kind.arguments(shards, tmp_path_factory.mktemp("baseline"), **kind.short)
            known[id(kind), observe] = observe(argv)
        return known[id(kind), observe]

    return baseline


def test_no_setting_is_left_out() -> None:
    elsewhere = [key for keys in ELSEWHERE.values() for key in keys.split()]
    shared = [*CHANGES, *elsewhere, *BELOW.split()]
    assert sorted(shared) == sorted(dotted_keys(PretrainConfig))
    for path, keys in {**ELSEWHERE, "integration/test_fields.py": BELOW}.items():
        text = (REPOSITORY / "tests" / path).read_text(encoding="utf-8")
        assert not [key for key in keys.split() if key.rpartition(".")[2] not in text], path

    nowcast = {*NOWCAST_CHANGES, *NOWCAST_BELOW}
    known = set(dotted_keys(FinetuneConfig))
    assert nowcast <= known <= nowcast.union(shared)
    assert not [key for key in known - nowcast if key.startswith("model.")], "the models are not the same"


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind in KINDS for key in KINDS[kind].changes])
def test_a_changed_setting_changes_what_comes_of_it(
    kind: str, key: str, shards: Path, tmp_path: Path, baselines: Callable[[Kind, Observe], Any]
) -> None:
    own = KINDS[kind]
    value, observe = own.changes[key]
    changed = own.arguments(shards, tmp_path, **{**own.short, key.replace(".", "__"): value})
    if key == "data.global_batch":
        changed += ["--data.micro_batch", "4"]
    assert observe(changed) != baselines(own, observe)


@pytest.mark.parametrize(
    ("kind", "observe"),
    [("pretraining", learned), ("pretraining", outcome), ("fine-tuning", learned), ("fine-tuning", chosen)],
)
def test_the_same_settings_give_the_same_outcome(
    kind: str, observe: Observe, shards: Path, tmp_path: Path, baselines: Callable[[Kind, Observe], Any]
) -> None:
    """Without this, the test above could pass on noise."""
    own = KINDS[kind]
    assert observe(own.arguments(shards, tmp_path, **own.short)) == baselines(own, observe)


def test_stated_times(shards: Path, tmp_path: Path) -> None:
    """Each of the three changes the spans, and the training times the windows too."""
    day = "2020-06-01T"
    times: dict[str, object] = {
        "data__validation_share": 0.1,
        "data__train_times": f'["{day}00:00/{day}02:00"]',
        "data__validation_times": f'["{day}02:30/{day}03:00"]',
        "data__test_times": f'["{day}03:30/{day}04:00"]',
    }
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
        learned(arguments(shards, tmp_path / str(momentum), **SHORT, optim__name="sgd", optim__momentum=momentum))
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


def test_the_other_model_and_its_width(shards: Path, tmp_path: Path) -> None:
    models = [nowcaster(nowcast_arguments(shards, tmp_path, **NOWCAST_SHORT))]
    for width in (4, 8):
        smaat = {"model__name": "smaat_unet", "model__smaat_width": width}
        models.append(nowcaster(nowcast_arguments(shards, tmp_path, **NOWCAST_SHORT, **smaat)))
    assert len({names for names, _, _ in models}) == 3


def test_an_ensemble(shards: Path, tmp_path: Path) -> None:
    single = {**NOWCAST_SHORT, "model__head": "cascade"}
    ensemble = {**single, "model__ensemble": True, "model__loss": "crps"}
    names, more = (nowcaster(nowcast_arguments(shards, tmp_path, **own))[1] for own in (single, ensemble))
    assert {name.split(".")[0] for name in set(more) - set(names)} == {"members", "noise_proj"}


def test_frozen_parts(shards: Path, tmp_path: Path) -> None:
    pretrained = tmp_path / "pretrained"
    short = {"run__steps": 1, "run__evaluate_every": 9, "optim__warmup_steps": 0}
    assert train(arguments(shards, pretrained, **short)) == ExitCode.DONE
    trained = [
        nowcaster(nowcast_arguments(shards, tmp_path, **NOWCAST_SHORT, init_from=pretrained, model__freeze=freeze))[1]
        for freeze in ("none", "encoder", "decoder", "both")
    ]
    assert len({tuple(names) for names in trained}) == 4
    assert trained[3] == ["dense_decoder.proj.weight", "dense_decoder.proj.bias"]
