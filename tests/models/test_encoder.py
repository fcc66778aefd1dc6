"""The encoder without a mask is timm's network; what it does not cover is refused; timm is left as it was."""

from typing import Any

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from rainspark.models.encoder import ENCODERS, build_encoder, depth_rates, pack_network
from rainspark.models.norm import BatchNorm2d
from rainspark.models.sparse import PatchLayout
from tests.models.drawing import draw, relative, shake


@pytest.mark.parametrize("name", ENCODERS)
def test_names_and_widths_are_timms(name: str) -> None:
    encoder = build_encoder(name, 12)
    plain: Any = timm.create_model(name, in_chans=12, num_classes=0)
    own = {key: tensor.shape for key, tensor in encoder.sp_cnn.state_dict().items()}
    assert own == {key: tensor.shape for key, tensor in plain.state_dict().items()}
    assert list(encoder.channels) == [info["num_chs"] for info in plain.feature_info[1:]]
    assert encoder.strides == (4, 8, 16, 32)


@pytest.mark.parametrize("name", ["resnet18", "resnet26"])
@pytest.mark.parametrize("training", [False, True])
def test_without_a_mask_it_is_the_plain_network(name: str, training: bool) -> None:
    encoder = build_encoder(name, 3)
    shake(encoder)
    plain: Any = timm.create_model(name, in_chans=3, num_classes=0)
    plain.load_state_dict(encoder.sp_cnn.state_dict(), strict=True)
    encoder.train(training)
    plain.train(training)
    frames = draw(2, 3, 64, 96).float()
    maps = encoder(frames)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (width, 64 // stride, 96 // stride) for width, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    through_timm = encoder.sp_cnn(frames)
    assert relative(maps[-1], plain.forward_features(frames)) < 1e-5
    if not training:
        assert all(torch.equal(one, other) for one, other in zip(maps, through_timm, strict=True))


def test_our_modules_leave_timms_classes_alone() -> None:
    """An ordinary timm model works after ours was built, and holds nothing of ours."""
    encoder = build_encoder("resnet18", 3)
    plain = timm.create_model("resnet18", in_chans=3, num_classes=5)
    assert plain(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert not any(type(module).__module__.startswith("models.") for module in plain.modules())
    assert all(
        cls.__module__ == cls.forward.__module__ == "timm.models.resnet" for cls in (ResNet, BasicBlock, Bottleneck)
    )
    assert type(encoder.sp_cnn.get_submodule("layer1.0")) is not BasicBlock


def test_stochastic_depth_rises_linearly_and_is_not_timms() -> None:
    encoder = build_encoder("resnet18", 3, depth_drop=0.2)
    rates = depth_rates(encoder)
    plain = timm.create_model("resnet18", drop_path_rate=0.2)
    expected = [
        getattr(block.drop_path, "drop_prob", 0.0) for stage in range(1, 5) for block in getattr(plain, f"layer{stage}")
    ]
    assert rates == pytest.approx(expected)
    assert not any("DropPath" in type(module).__name__ for module in encoder.modules())


@pytest.mark.parametrize("name", ["seresnet50", "resnet50d", "resnetblur50", "convnext_tiny", "resnext50_32x4d"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"encoder '{name}' is not covered; expected one of resnet18, resnet26"):
        build_encoder(name, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet50d", {}, "deep stem"),
        ("seresnet50", {}, "squeeze-and-excitation is not covered"),
        ("resnetblur50", {}, "anti-aliasing"),
        ("resnet18", {"act_layer": "gelu"}, "act1 before the pooling is GELU, not ReLU"),
        ("resnet18", {"drop_path_rate": 0.1}, "DropPath, which draws from the global generator"),
        ("resnet18", {"drop_block_rate": 0.1}, "drop_block DropBlock2d"),
        ("resnet18", {"output_stride": 16}, "without dilation"),
        ("resnet18", {"norm_layer": nn.BatchNorm2d}, r"not models\.norm\.BatchNorm2d"),
        ("convnext_atto", {"norm_layer": None}, "stem conv1 is NoneType"),
    ],
)
def test_parts_not_covered_are_refused_by_name(name: str, arguments: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"norm_layer": BatchNorm2d} | arguments
    network = timm.create_model(name, features_only=True, **settings)
    with pytest.raises(ValueError, match=message):
        pack_network(network, name)


def test_average_pooled_shortcut_is_covered() -> None:
    """timm's "d" shortcut on a plain stem: 2x2 average, then 1x1 convolution."""
    network = timm.create_model(
        "resnet18", features_only=True, out_indices=(1, 2, 3, 4), avg_down=True, norm_layer=BatchNorm2d
    ).double()
    shake(network)
    frames = draw(2, 3, 64, 64)
    expected = network(frames)
    pack_network(network, "resnet18 with avg_down")
    from rainspark.models.encoder import Encoder

    layout = PatchLayout.from_positions(torch.arange(4).expand(2, 4), (2, 2))
    found = Encoder(network, "resnet18", 3, 0.0).forward_packed(frames, layout)
    for packed, dense in zip(found, expected, strict=True):
        assert relative(layout.dense(packed, torch.zeros(1, packed.shape[1], 1, 1)), dense) < 1e-9


@pytest.mark.parametrize(("arguments", "message"), [((0, 0.0), "0 input channels"), ((3, 1.0), "depth rate is 1.0")])
def test_settings_that_cannot_be_are_refused(arguments: tuple[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder("resnet18", *arguments)
