"""Every setting of fine-tuning has an effect: each one is changed, and what is built from it, or done by it, changes.

What pretraining has too, and what is done with it by the same lines, is shown in tests/integration/test_fields.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rainspark.data.exit_codes import ExitCode
from rainspark.trainer.settings.experiment import FinetuneConfig
from rainspark.trainer.settings.parse import dotted_keys
from rainspark.trainer.training.finetuning import Finetuning
from tests.integration.runs import arguments as pretraining_arguments
from tests.integration.runs import built as built_run
from tests.integration.runs import digest, learned, metrics, stored, train
from tests.integration.runs import nowcast_arguments as arguments
from tests.integration.test_fields import BELOW
from tests.integration.test_fields import CHANGES as PRETRAINING
from tests.integration.test_fields import ELSEWHERE as PRETRAINING_ELSEWHERE

SHORT: dict[str, object] = {"run__steps": 2, "run__evaluate_every": 2, "data__lanes": 1}


@pytest.fixture(scope="module")
def pretrained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pretrained") / "run"
    short = {"run__steps": 1, "run__evaluate_every": 9, "optim__warmup_steps": 0}
    assert train(pretraining_arguments(shards, run, **short)) == ExitCode.DONE
    return run


def built(argv: list[str]) -> Any:
    with built_run(argv) as run:
        trained = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
        recomputed = [name for name, module in run.model.named_modules() if getattr(module, "checkpoint_blocks", False)]
        return repr(run.model), trained, recomputed


def outcome(argv: list[str]) -> Any:
    """Metrics, every stored tensor, and what was chosen as the best."""
    seen: list[Finetuning] = []
    train(argv, change=seen.append)
    run = Path(argv[argv.index("--run.dir") + 1])
    return metrics(run), digest(stored(run)), seen[0].best


CHANGES: dict[str, tuple[object, Callable[[list[str]], Any]]] = {
    "run.choose_by": ("mse", outcome),
    "data.crop": (32, learned),
    "data.augment": ("false", learned),
    "model.frames_in": (5, built),
    "model.frames_out": (2, built),
    "model.encoder": ("resnet26", built),
    "model.decoder_width": (64, built),
    "model.decoder_activation": ("relu6", built),
    "model.translation": ("linear", built),
    "model.head": ("direct", learned),
    "model.mask_ratio": (0.5, learned),
    "model.loss": ("csi", learned),
    "model.match": ("last_frame", outcome),
    "model.depth_drop": (0.5, learned),
    "model.checkpoint_blocks": ("true", built),
    "model.space.kind": ("linear", learned),
    "model.space.scale_mmh": (3.0, learned),
    "model.space.clip_mmh": (0.5, learned),
    "seed": (1, learned),
}
ELSEWHERE = {"model.name", "model.smaat_width", "model.freeze", "init_from"}


def test_no_setting_is_left_out() -> None:
    shared = {*PRETRAINING, *BELOW.split(), *(key for keys in PRETRAINING_ELSEWHERE.values() for key in keys.split())}
    keys = set(dotted_keys(FinetuneConfig))
    assert {*CHANGES, *ELSEWHERE} <= keys
    left = keys - {*CHANGES, *ELSEWHERE}
    assert left <= shared, left - shared
    assert not [key for key in left if key.startswith("model.")], "the models are not the same"


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_setting_changes_what_comes_of_it(
    key: str, shards: Path, tmp_path: Path, baselines: Callable[[Callable[[list[str]], Any]], Any]
) -> None:
    value, observe = CHANGES[key]
    assert observe(arguments(shards, tmp_path, **{**SHORT, key.replace(".", "__"): value})) != baselines(observe)


def test_the_same_settings_give_the_same_outcome(
    shards: Path, tmp_path: Path, baselines: Callable[[Callable[[list[str]], Any]], Any]
) -> None:
    """Without this, the test above could pass on noise."""
    for observe in (learned, outcome):
        assert observe(arguments(shards, tmp_path, **SHORT)) == baselines(observe)


def test_frames_in_and_out_decide_the_windows(shards: Path, tmp_path: Path) -> None:
    """Lead times are trained on: one less is another loss, and a longer past other windows."""
    first, _ = learned(arguments(shards, tmp_path, **SHORT))
    for changed in ({"model__frames_out": 2}, {"model__frames_in": 5}):
        assert learned(arguments(shards, tmp_path, **SHORT, **changed))[0] != first


def test_the_other_model_and_its_width(shards: Path, tmp_path: Path) -> None:
    models = [built(arguments(shards, tmp_path, **SHORT))]
    for width in (4, 8):
        smaat = {"model__name": "smaat_unet", "model__smaat_width": width}
        models.append(built(arguments(shards, tmp_path, **SHORT, **smaat)))
    assert len({names for names, _, _ in models}) == 3


def test_frozen_parts(shards: Path, pretrained: Path, tmp_path: Path) -> None:
    trained = [
        built(arguments(shards, tmp_path, **SHORT, init_from=pretrained, model__freeze=freeze))[1]
        for freeze in ("none", "encoder", "decoder", "both")
    ]
    assert len({tuple(names) for names in trained}) == 4
    assert trained[3] == ["dense_decoder.proj.weight", "dense_decoder.proj.bias"]


def test_recomputed_blocks_give_the_same_outcome(
    shards: Path, tmp_path: Path, baselines: Callable[[Callable[[list[str]], Any]], Any]
) -> None:
    assert learned(arguments(shards, tmp_path, **SHORT, model__checkpoint_blocks="true")) == baselines(learned)
