"""Weights in and out: layouts, refusals, files that hold code, what timm loads."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from rainspark.models.encoder import build_encoder
from rainspark.models.spark import SparK
from rainspark.models.weights.__main__ import main
from rainspark.models.weights.files import read_weights
from rainspark.models.weights.manifest import CheckpointError, write_manifest
from rainspark.models.weights.transfer import architecture_of, init_from
from tests.data.hostile_samples import Bomb
from tests.models.drawing import draw, relative, shake


def _spark(in_chans: int = 2) -> SparK:
    model = SparK(build_encoder("resnet18", in_chans), decoder_width=32)
    shake(model)
    return model


def _checkpoint(folder: Path, model: SparK, average: SparK | None = None) -> Path:
    folder.mkdir(parents=True)
    safetensors.torch.save_file(dict(model.state_dict()), folder / "model.safetensors")
    if average is not None:
        safetensors.torch.save_file(dict(average.state_dict()), folder / "ema.safetensors")
    write_manifest(folder)
    return folder


def test_export_of_a_run_is_a_plain_timm_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = _spark()
    model(draw(2, 2, 64, 64).float(), torch.tensor([[0], [2]]))
    _checkpoint(tmp_path / "run" / "checkpoints" / "step-00000003", _spark())
    _checkpoint(tmp_path / "run" / "checkpoints" / "step-00000010", _spark(), average=model)
    out = tmp_path / "encoder.safetensors"
    assert main(["export", str(tmp_path / "run"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert 'timm.create_model("resnet18", in_chans=2, num_classes=0' in said
    assert "step-00000010/ema.safetensors" in said
    plain: Any = timm.create_model("resnet18", in_chans=2, num_classes=0)
    tensors = safetensors.torch.load_file(out)
    plain.load_state_dict(tensors, strict=True)
    assert int(tensors["bn1.num_batches_tracked"]) == 1
    frames = draw(1, 2, 64, 64).float()
    model.eval()
    assert relative(plain.eval().forward_features(frames), model.sparse_encoder(frames)[-1]) < 1e-5
    again: Any = timm.create_model("resnet18", in_chans=2, num_classes=0, checkpoint_path=str(out))
    assert torch.equal(again.bn1.running_mean, plain.bn1.running_mean)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_export_refuses_to_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _checkpoint(tmp_path / "step-00000001", _spark())
    out = tmp_path / "encoder.safetensors"
    out.write_bytes(b"mine")
    assert main(["export", str(source), "--out", str(out)]) == 4
    assert "--force" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main(["export", str(source / "model.safetensors"), "--out", str(out), "--force"]) == 0
    assert len(safetensors.torch.load_file(out)) > 100


@pytest.mark.parametrize("layout", ["bare", "module", "state_dict", "prefixed", "sp_cnn", "timm"])
def test_published_layouts_are_read(layout: str, tmp_path: Path) -> None:
    source, target = _spark(), _spark()
    state: dict[str, Any] = dict(source.state_dict())
    dead = {"imn_m": torch.zeros(1), "imn_s": torch.zeros(1), "norm_black": torch.zeros(1)}
    encoder = dict(source.sparse_encoder.sp_cnn.state_dict())
    content: dict[str, Any] = {
        "bare": state | dead,
        "module": {"module": state | dead, "epoch": 3, "args": "text"},
        "state_dict": {"state_dict": state | dead},
        "prefixed": {f"module.{key}": value for key, value in (state | dead).items()},
        "sp_cnn": {f"sp_cnn.{key}": value for key, value in encoder.items()},
        "timm": encoder | {"fc.weight": torch.zeros(5, 512), "fc.bias": torch.zeros(5)},
    }[layout]
    torch.save(content, tmp_path / "published.pth")
    report = init_from(target, tmp_path / "published.pth")
    own = target.state_dict()
    assert report.unused == ()
    if layout in ("sp_cnn", "timm"):
        assert set(report.loaded) == {key for key in own if key.startswith("sparse_encoder.")}
        assert "mask_tokens.0" in report.missing
        assert any("not found" in line and "mask_tokens.0" in line for line in report.lines())
    else:
        assert report.missing == ()
        assert {name.removeprefix("module.") for name in report.dropped} >= set(dead)
    for name in report.loaded:
        assert torch.equal(own[name], state[name])
    out = tmp_path / "model.safetensors"
    assert main(["import", str(tmp_path / "published.pth"), "--out", str(out)]) == 0
    assert set(read_weights(out).tensors) == set(report.loaded)


def test_a_forecaster_starts_a_pretraining_and_says_what_it_left(tmp_path: Path) -> None:
    state = dict(_spark().state_dict()) | {"transition.net.0.0.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "spat.pth")
    report = init_from(_spark(), tmp_path / "spat.pth")
    assert report.unused == ("transition.net.0.0.weight",)
    assert any("not used: transition.net.0.0.weight" in line for line in report.lines())


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proof = tmp_path / "proof"
    torch.save({"module": {"conv1.weight": torch.zeros(1)}, "args": Bomb(proof)}, tmp_path / "evil.pth")
    assert main(["import", str(tmp_path / "evil.pth"), "--out", str(tmp_path / "o")]) == 4
    message = capsys.readouterr().err
    assert "refused" in message
    assert "system" in message
    assert not proof.exists()
    assert not (tmp_path / "o").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert proof.exists(), "the file was harmless, so this test proved nothing"


def test_shapes_that_differ_are_named(tmp_path: Path) -> None:
    torch.save(dict(_spark(in_chans=3).state_dict()), tmp_path / "other.pth")
    message = r"sp_cnn\.conv1\.weight is \(64, 3, 7, 7\) in the file and \(64, 2, 7, 7\) in the model"
    with pytest.raises(CheckpointError, match=message):
        init_from(_spark(), tmp_path / "other.pth")


def test_nothing_that_matches_is_an_error(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a.b": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"none of its 1 tensors \(a\.b\) belongs to this model"):
        init_from(_spark(), tmp_path / "other.safetensors")


def test_the_printed_line_loads_the_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = _spark()
    source, out = _checkpoint(tmp_path / "step-00000001", model), tmp_path / 'it\'s "mine".safetensors'
    assert main(["export", str(source), "--out", str(out)]) == 0
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("load ").strip()
    loaded = eval(line, {"timm": timm})
    assert torch.equal(loaded.conv1.weight, model.sparse_encoder.sp_cnn.get_parameter("conv1.weight").float())


@pytest.mark.parametrize("command", ["export", "import"])
def test_a_name_that_readers_would_misread_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(dict(_spark().state_dict()), tmp_path / "model.pth")
    out = tmp_path / "encoder.pth"
    assert main([command, str(tmp_path / "model.pth"), "--out", str(out)]) == 4
    assert "encoder.pth: expected a name that ends in .safetensors" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wide_resnet50_2", r"layer1.0.conv1.weight is (128, 64, 1, 1) instead of (64, 64, 1, 1)"),
        ("resnext50_32x4d", r"layer1.0.conv1.weight is (128, 64, 1, 1) instead of (64, 64, 1, 1)"),
        ("seresnet50", "it has layer1.0.se.fc1.weight too"),
        ("resnet50d", "conv1.weight is missing"),
    ],
)
def test_look_alikes_are_not_exported(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "other.pth")
    for command in ("export", "import"):
        out = tmp_path / f"{command}.safetensors"
        assert main([command, str(tmp_path / "other.pth"), "--out", str(out)]) == 4
        said = capsys.readouterr().err
        assert f"other.pth: encoder has the blocks of resnet50, but {message}" in said
        assert not out.exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layer1.0.bn2.running_var", None, "layer1.0.bn2.running_var is missing"),
        ("conv1.weight", torch.zeros(64), "conv1.weight is (64,) instead of (64, 1, 7, 7)"),
        ("conv1.weight", torch.zeros(64, 0, 7, 7), "conv1.weight is (64, 0, 7, 7) instead of (64, 1, 7, 7)"),
        ("layer4.1.bn2.extra", torch.zeros(1), "it has layer4.1.bn2.extra too"),
    ],
)
def test_an_encoder_that_timm_could_not_load_is_not_exported(
    name: str, value: Tensor | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {key: tensor for key, tensor in _spark().sparse_encoder.sp_cnn.state_dict().items() if key != name}
    torch.save(state if value is None else state | {name: value}, tmp_path / "encoder.pth")
    assert main(["export", str(tmp_path / "encoder.pth"), "--out", str(tmp_path / "o.safetensors")]) == 4
    assert f"encoder.pth: encoder has the blocks of resnet18, but {message}" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Validating sparse tensor", "ignore:.*quantized tensor", "ignore:TypedStorage")
def test_tensors_that_are_not_plain_numbers_are_refused(tmp_path: Path) -> None:
    kinds = {
        "sparse or nested": torch.eye(3).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "meta": torch.empty(3, device="meta"),
        "complex": torch.zeros(3, dtype=torch.complex64),
    }
    for kind, tensor in kinds.items():
        torch.save({"conv1.weight": tensor}, tmp_path / "odd.pth")
        with pytest.raises(CheckpointError, match=rf"odd\.pth: sparse_encoder\.sp_cnn\.conv1\.weight is a {kind}"):
            read_weights(tmp_path / "odd.pth")


def test_tensors_that_share_memory_are_written_as_copies(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    torch.save({"a.whole": whole, "a.again": whole, "a.part": whole.t()[1:]}, tmp_path / "shared.pth")
    out = tmp_path / "model.safetensors"
    assert main(["import", str(tmp_path / "shared.pth"), "--out", str(out)]) == 0
    tensors = read_weights(out).tensors
    assert torch.equal(tensors["a.again"], whole)
    assert torch.equal(tensors["a.part"], whole.t()[1:])


@pytest.mark.parametrize(
    ("first", "second"),
    [("conv1.weight", "module.conv1.weight"), ("sp_cnn.bn1.bias", "sparse_encoder.sp_cnn.bn1.bias")],
)
def test_two_names_for_one_weight_are_refused(first: str, second: str, tmp_path: Path) -> None:
    torch.save({first: torch.zeros(1), second: torch.ones(1)}, tmp_path / "twice.pth")
    with pytest.raises(
        CheckpointError, match=rf"twice\.pth: {first} and {second} both stand for sparse_encoder\.sp_cnn\."
    ):
        read_weights(tmp_path / "twice.pth")


def test_weights_that_are_not_finite_are_not_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = _spark(), _spark()
    state = dict(source.state_dict())
    state["mask_tokens.1"] = torch.full_like(state["mask_tokens.1"], float("inf"))
    state["dense_decoder.proj.bias"] = torch.full((2,), 1e300, dtype=torch.float64)
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match=r"broken\.pth: dense_decoder\.proj\.bias, mask_tokens\.1 are not finite"):
        init_from(target, tmp_path / "broken.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())
    assert main(["import", str(tmp_path / "broken.pth"), "--out", str(tmp_path / "o.safetensors")]) == 4
    assert "dense_decoder.proj.bias, mask_tokens.1 are not finite" in capsys.readouterr().err


def test_damage_is_named(tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path / "step-00000001", _spark())
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_weights(folder)
    (tmp_path / "cut.safetensors").write_bytes(content[:1000])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_weights(tmp_path / "cut.safetensors")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read as a PyTorch weights file"):
        read_weights(tmp_path / "cut.pth")


def test_sources_that_hold_no_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "text.txt").write_text("")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    for name, message in (
        ("absent", "does not exist"),
        ("run", r"run: no whole checkpoint with model\.safetensors"),
        ("text.txt", r"expected a \.safetensors, \.pth or \.pt file"),
        ("list.pth", "holds a list"),
        ("none.pth", "holds no tensors"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_weights(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint with model\.safetensors"):
        read_weights(tmp_path)


def test_an_encoder_that_is_not_finite_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = _spark()
    with torch.no_grad():
        model.sparse_encoder.sp_cnn.get_parameter("bn1.bias")[3] = float("nan")
    source = _checkpoint(tmp_path / "step-00000001", model)
    assert main(["export", str(source), "--out", str(tmp_path / "o.safetensors")]) == 4
    assert "sp_cnn.bn1.bias is not finite" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["resnet18", "resnet26", "resnet34", "resnet50", "resnet101"])
def test_architecture_is_told_from_names(name: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    assert architecture_of(state, Path("encoder.pth")) == name


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"\(1, 0, 0, 0\) blocks of 2 convolutions; expected one of resnet18"):
        architecture_of({"layer1.0.conv1.weight": torch.zeros(1)}, Path("encoder.pth"))
