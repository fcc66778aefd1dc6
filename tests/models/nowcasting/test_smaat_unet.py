"""SmaAt-UNet: its size, its parts against plain formulas, its call and its errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rainspark.models.norm import BatchNorm2d
from rainspark.models.nowcasting.smaat_unet import Attention, DoubleConv, SmaAtUNet
from tests.models.drawing import draw, relative, shake


def _model(frames_in: int = 3, frames_out: int = 5, width: int = 8) -> SmaAtUNet:
    torch.manual_seed(0)
    model = SmaAtUNet(frames_in, frames_out, width).double()
    shake(model)
    return model


def test_as_many_parameters_as_published() -> None:
    """12 frames to one: about 4.1 million (Trebing et al. 2021, table 1)."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in SmaAtUNet(12, 1).parameters())
    assert count == pytest.approx(4.1e6, rel=0.03)


def test_forecast_and_gradients() -> None:
    model = _model()
    frames = draw(2, 3, 48, 32)
    forecast = model(frames, None, torch.ones(2, 3, 48, 32, dtype=torch.bool), None)
    assert forecast.shape == (2, 5, 48, 32)
    torch.autograd.backward(forecast.square().mean())
    assert isinstance(model, SmaAtUNet)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_output_is_float32_under_autocast() -> None:
    model = _model().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(draw(1, 3, 32, 32).float()).dtype == torch.float32


def test_separable_convolution_by_hand() -> None:
    """Output channels 2c and 2c + 1 of the first part see input channel c alone."""
    block = DoubleConv(3, 4, 5).double().eval()
    depthwise, pointwise = block.conv1
    assert isinstance(depthwise, torch.nn.Conv2d)
    assert isinstance(pointwise, torch.nn.Conv2d)
    x = draw(1, 3, 6, 7)
    inner = torch.cat(
        [F.conv2d(x[:, k // 2 : k // 2 + 1], depthwise.weight[k : k + 1], padding=1) for k in range(6)], 1
    )
    inner = inner + depthwise.bias[:, None, None]  # type: ignore[index]
    expected = torch.einsum("oi,bihw->bohw", pointwise.weight[:, :, 0, 0], inner)
    expected = expected + pointwise.bias[:, None, None]  # type: ignore[index]
    assert relative(block.conv1(x), expected) < 1e-12
    normalised = (expected / (1 + 1e-5) ** 0.5).relu()
    assert relative(block(x), (block.conv2(normalised) / (1 + 1e-5) ** 0.5).relu()) < 1e-9


def test_attention_by_hand() -> None:
    """Woo et al. 2018, equations 2 and 3, with loops over channels and places."""
    attention = Attention(32).double().eval()
    shake(attention)
    x = draw(1, 32, 5, 6)

    def perceptron(values: Tensor) -> Tensor:
        first, _, second = attention.channel
        assert isinstance(first, torch.nn.Conv2d)
        assert isinstance(second, torch.nn.Conv2d)
        assert first.bias is not None
        hidden = (first.weight[:, :, 0, 0] @ values + first.bias).relu()
        assert hidden.shape == (2,)
        assert second.bias is not None
        return second.weight[:, :, 0, 0] @ hidden + second.bias

    means = torch.stack([x[0, c].sum() / 30 for c in range(32)])
    largest = torch.stack([x[0, c].flatten().sort().values[-1] for c in range(32)])
    weighed = x[0] * (perceptron(means) + perceptron(largest)).sigmoid()[:, None, None]
    pooled = F.pad(torch.stack([weighed.max(0).values, weighed.sum(0) / 32]), (3, 3, 3, 3))
    expected = torch.empty_like(weighed)
    for row in range(5):
        for col in range(6):
            value = (pooled[:, row : row + 7, col : col + 7] * attention.place.weight[0]).sum()
            value = value / (1 + 1e-5) ** 0.5 * attention.norm.weight[0] + attention.norm.bias[0]
            expected[:, row, col] = weighed[:, row, col] * value.sigmoid()
    assert relative(attention(x)[0], expected) < 1e-12


def test_recomputed_is_the_same() -> None:
    results = []
    for recompute in (False, True):
        model = _model()
        model.set_checkpoint_blocks(recompute)
        torch.autograd.backward(model(draw(2, 3, 32, 32)).square().mean())
        assert all(norm.num_batches_tracked == 1 for norm in model.modules() if isinstance(norm, BatchNorm2d))
        results.append({name: p.grad for name, p in model.named_parameters()} | dict(model.named_buffers()))
    for name, expected in results[0].items():
        found = results[1][name]
        assert found is not None
        assert expected is not None
        assert torch.equal(found, expected), name


def test_errors() -> None:
    model, frames = _model(), draw(1, 3, 32, 32)
    with pytest.raises(ValueError, match="given patches to hide, which it does not have"):
        model(frames, torch.tensor([[0]]))
    with pytest.raises(ValueError, match="given stochastic depth"):
        model(frames, None, None, torch.ones(8, 1))
    with pytest.raises(ValueError, match=r"shape \(1, 4, 32, 32\); expected \(images, 3, h, w\)"):
        model(draw(1, 4, 32, 32))
    with pytest.raises(ValueError, match="40 x 32 pixels; expected sides that are multiples of 16"):
        model(draw(1, 3, 40, 32))
    with pytest.raises(ValueError, match=r"validity has shape \(1, 1, 32, 32\)"):
        model(frames, None, torch.ones(1, 1, 32, 32, dtype=torch.bool))
    with pytest.raises(ValueError, match="0 frames in, 5 out, width 8; expected at least 1"):
        SmaAtUNet(0, 5, 8)
