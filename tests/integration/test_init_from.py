"""What a fine-tuning run starts from: pretrained runs, other nowcasters, published weights; and what stays frozen."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rainspark.data.errors import ConfigError
from rainspark.data.exit_codes import ExitCode
from rainspark.models.weights.manifest import CheckpointError, latest_verified, step_folders
from rainspark.trainer.checkpoint.folder import load
from rainspark.trainer.forecasting.build import build_nowcaster
from rainspark.trainer.forecasting.forecaster import load_forecaster
from rainspark.trainer.settings.experiment import FinetuneConfig, PretrainConfig
from rainspark.trainer.settings.parse import parse_config
from rainspark.trainer.training.finetuning import Finetuning
from tests.conftest import REPOSITORY
from tests.integration.runs import arguments as pretraining_arguments
from tests.integration.runs import equal, train
from tests.integration.runs import nowcast_arguments as arguments
from tests.models.published import load_inputs, write_published

CONFIGS = REPOSITORY / "configs"


HOURS = 5


@pytest.fixture(scope="module")
def pretrained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining run of windows of four frames, with averaged weights."""
    run = tmp_path_factory.mktemp("pretrained") / "run"
    short = {"run__steps": 2, "run__evaluate_every": 2, "optim__warmup_steps": 0, "optim__ema_decay": 0.5}
    assert train(pretraining_arguments(shards, run, **short)) == ExitCode.DONE
    return run


def started(argv: list[str]) -> dict[str, torch.Tensor]:
    """Give the weights that a run starts from."""
    found: dict[str, torch.Tensor] = {}

    def look(finetuning: Finetuning) -> None:
        found.update({name: value.clone() for name, value in finetuning.engine.bare_model.state_dict().items()})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(argv, change=look)
    return found


@pytest.mark.parametrize("head", ["patch", "advected"])
def test_a_pretrained_decoders_last_layer_starts_anew_unless_it_is_the_published_head(
    shards: Path, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, head: str
) -> None:
    """As many frames out as in, so that the shape fits: what it stood for does not."""
    caplog.set_level(logging.INFO)
    like = {"model__head": head, "model__frames_in": 4, "model__frames_out": 4}
    found = started(arguments(shards, tmp_path / "run", **like, init_from=pretrained))
    fresh = started(arguments(shards, tmp_path / "fresh", **like))
    newest = latest_verified(pretrained / "checkpoints")
    assert newest is not None
    averaged = load_file(newest / "ema.safetensors")
    assert f"tensors from {newest / 'ema.safetensors'}" in caplog.text
    name = "dense_decoder.proj.weight"
    assert torch.equal(found[name], averaged[name] if head == "patch" else fresh[name])
    assert ("not used: " in caplog.text and name in caplog.text.partition("not used: ")[2]) == (head != "patch")
    for other in ("sparse_encoder.sp_cnn.layer4.1.conv2.weight", "dense_decoder.dec.0.conv.0.weight"):
        assert torch.equal(found[other], averaged[other])
        assert not torch.equal(found[other], fresh[other])


def test_a_nowcaster_goes_on_from_the_best_checkpoint_of_another(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same head keeps its last layer, another head and other lead times do not."""
    caplog.set_level(logging.INFO)
    first = tmp_path / "first"
    argv = arguments(shards, first, run__steps=2, run__choose_by="mse", optim__ema_decay=0.5)
    assert train(argv) == ExitCode.DONE
    best = step_folders(first / "best" / "checkpoints")[0][1]
    weights = load_file(best / "model.safetensors")
    found = started(arguments(shards, tmp_path / "second", init_from=first))
    assert f"tensors from {best / 'model.safetensors'}" in caplog.text
    assert equal(found, weights)
    name = "dense_decoder.proj.weight"
    file = best / "model.safetensors"
    assert torch.equal(started(arguments(shards, tmp_path / "second", init_from=file))[name], weights[name])
    for other in ({"model__head": "direct"}, {"model__frames_out": 2}):
        found = started(arguments(shards, tmp_path / "second", init_from=first, **other))
        fresh = started(arguments(shards, tmp_path / "second", **other))
        assert torch.equal(found[name], fresh[name])
    # A file that says nothing of itself is taken for a published one, whose last layer gives normalised patches.
    copied = Path(shutil.copy(file, tmp_path / "weights.safetensors"))
    found = started(arguments(shards, tmp_path / "second", init_from=copied))
    assert bool((found[name] == 0).all())


def test_a_smaat_unet_starts_from_a_smaat_unet_only(shards: Path, pretrained: Path, tmp_path: Path) -> None:
    like = {"model__name": "smaat_unet", "model__smaat_width": 4, "run__steps": 2}
    assert train(arguments(shards, tmp_path / "smaat", **like)) == ExitCode.DONE
    best = load(tmp_path / "smaat" / "best").model
    assert equal(started(arguments(shards, tmp_path / "again", **like, init_from=tmp_path / "smaat")), best)
    fewer = {**like, "model__frames_out": 2}
    found = started(arguments(shards, tmp_path / "again", **fewer, init_from=tmp_path / "smaat"))
    assert torch.equal(found["down.0.conv1.0.weight"], best["down.0.conv1.0.weight"])
    assert found["proj.weight"].shape[0] == 2
    with pytest.raises(CheckpointError, match=r"none of its .* belongs to this model"):
        train(arguments(shards, tmp_path / "again", **like, init_from=pretrained))
    with pytest.raises(CheckpointError, match=r"none of its .* belongs to this model"):
        train(arguments(shards, tmp_path / "again", init_from=tmp_path / "smaat"))


@pytest.mark.parametrize("freeze", ["decoder", pytest.param("encoder", marks=pytest.mark.slow), "both"])
def test_frozen_parts_stay_bit_for_bit_and_the_rest_learns(
    shards: Path, pretrained: Path, tmp_path: Path, freeze: str
) -> None:
    like = {"model__freeze": freeze, "model__translation": "linear", "init_from": pretrained, "run__steps": 2}
    before = started(arguments(shards, tmp_path / "start", **like))
    assert train(arguments(shards, tmp_path / "run", **like)) == ExitCode.DONE
    after = load(tmp_path / "run").model
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    frozen = {"encoder": {"sparse_encoder"}, "decoder": {"densify_norms", "densify_projs"}}
    frozen["both"] = frozen["encoder"] | frozen["decoder"]
    assert not changed & frozen[freeze]
    assert "transition" in changed
    decoder = {
        name for name in before if name.startswith("dense_decoder") and not torch.equal(before[name], after[name])
    }
    if freeze != "encoder":
        assert decoder == {"dense_decoder.proj.weight", "dense_decoder.proj.bias"}
    assert ("sparse_encoder" in changed) == (freeze == "decoder")


def test_what_nothing_gives_cannot_be_frozen(shards: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.freeze is encoder, but there is no init_from"):
        train(arguments(shards, tmp_path / "run", model__freeze="encoder"))
    published_head = {"model__head": "patch", "model__freeze": "decoder", "init_from": pretrained}
    with pytest.raises(ConfigError, match=r"model\.freeze is decoder.* no weights for dense_decoder\.proj"):
        train(arguments(shards, tmp_path / "run", **published_head))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("head", ["patch", "advected"])
def test_a_published_checkpoint_trains_and_forecasts(
    shards: Path, shared_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, head: str
) -> None:
    """A `.pth` under published names, from the command line to a forecaster; frozen but for what starts anew."""
    caplog.set_level(logging.INFO)
    like = {"model__frames_out": 4, "model__translation": "linear", "run__steps": 1, "run__evaluate_every": 1}
    like |= {"model__mask_ratio": 0.5, "model__freeze": "both", "model__head": head, "optim__warmup_steps": 0}
    config = parse_config(arguments(shards, tmp_path, **{**like, "model__head": "patch"}), FinetuneConfig, prog="test")
    published = build_nowcaster(config.model)
    write_published(published, load_inputs(shared_dir), 64, tmp_path / "published.pth")
    saved = torch.load(tmp_path / "published.pth", weights_only=True)["module"]
    argv = arguments(shards, tmp_path / "run", **like, init_from=tmp_path / "published.pth")
    assert train(argv) == ExitCode.DONE
    assert f"tensors from {tmp_path / 'published.pth'}" in caplog.text
    learned = load_forecaster(tmp_path / "run").model.state_dict()
    taken = {name for name, value in learned.items() if torch.equal(saved.get(f"module.{name}", value - 1), value)}
    new = {"transition", "blend"} | (
        set() if head == "patch" else {"dense_decoder.proj.weight", "dense_decoder.proj.bias"}
    )
    assert {name for name in learned if name not in taken} <= {n for n in learned if n.startswith(tuple(new))}
    assert not {name for name in taken if name.startswith("transition") and name.endswith("weight")}
    assert any(name.startswith("mask_tokens") for name in taken)


def test_weights_that_have_seen_the_test_part_are_refused(
    shards: Path, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The pretraining held out the last fifth; of a validation part that begins before it is warned."""
    leaks = {"init_from": pretrained, "run__steps": 1, "optim__warmup_steps": 0}
    with pytest.raises(
        ConfigError, match=r"the test part of this run .* share frames with the train part of .*how well it remember"
    ):
        train(arguments(shards, tmp_path / "run", **leaks, data__test_share=0.4, data__guard_h=0))
    assert not (tmp_path / "run").exists()
    started(arguments(shards, tmp_path / "run", **leaks, data__validation_share=0.4))
    assert "the best checkpoint is chosen on frames that its weights have seen" in caplog.text
    caplog.clear()
    started(arguments(shards, tmp_path / "run", **leaks, data__validation_share=0.2))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    later = {"data__train_times": '["2020-06-01T00:00/2020-06-01T03:00"]', "data__validation_share": 0.1}
    later |= {"data__test_times": '["2020-06-01T04:05/2020-06-01T05:00"]'}
    started(arguments(shards, tmp_path / "run", **leaks, **later))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("key", "value"), [("space.scale_mmh", 0.2), ("space.kind", "linear"), ("decoder_activation", "relu6")]
)
def test_what_weights_do_not_say_is_compared(
    shards: Path, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, value: object
) -> None:
    started([*arguments(shards, tmp_path / "run", init_from=pretrained), f"--model.{key}", str(value)])
    assert f"was trained with model.{key.partition('.')[0]}" in caplog.text


def test_recipes_start_from_the_pretraining_that_they_name() -> None:
    """The same network, space and past, and times that the encoder has not seen are scored."""
    for first, second in (
        ("pretrain_resnet50", "finetune_advected"),
        ("pretrain_spat_spark", "finetune_spat_spark"),
        ("demo", "demo_nowcast"),
    ):
        given = ["--data.shards", "s", "--run.dir", "r"]
        one = parse_config(["--config", str(CONFIGS / f"{first}.yaml"), *given], PretrainConfig, prog="test")
        other = parse_config(["--config", str(CONFIGS / f"{second}.yaml"), *given], FinetuneConfig, prog="test")
        for name in ("encoder", "decoder_width", "decoder_activation", "space"):
            assert getattr(one.model, name) == getattr(other.model, name), (first, name)
        assert one.data.window == other.model.frames_in
        for name in ("validation_share", "test_share", "guard_h"):
            assert getattr(one.data, name) == getattr(other.data, name), (first, name)
