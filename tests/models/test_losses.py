"""Losses against plain loops, what they reward, and that missing pixels have no part in them."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rainspark.models.losses import mse, mse_ssim, rain_weights, spectral, ssim, weighted
from tests.models.drawing import draw

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Field = npt.NDArray[np.float64]


def _weighted(forecast: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    return weighted(forecast, target, valid, weight_bthw=rain_weights(target * 20.0))


LOSSES: dict[str, Loss] = {
    "mse": mse,
    "mse_ssim": partial(mse_ssim, ssim_weight=0.5),
    "weighted": _weighted,
    "spectral": spectral,
}


def _fields(seed: int = 0, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Forecast, target, validity of 3 windows of 2 frames: a block missing, scattered ones missing, nothing valid."""
    forecast, target = (draw(3, 2, size, size + 4, seed=seed + part).abs() for part in (0, 1))
    valid = torch.ones(3, 2, size, size + 4, dtype=torch.bool)
    valid[0, 0, :3, :5] = False
    valid[1] = torch.rand(valid.shape[1:], generator=torch.Generator().manual_seed(seed)) > 0.01
    valid[2] = False
    return forecast, target, valid


def _slow_mse(forecast: Field, target: Field, valid: npt.NDArray[np.bool_]) -> float:
    errors = [(f - t) ** 2 for f, t, v in zip(forecast.flat, target.flat, valid.flat, strict=True) if v]
    return sum(errors) / len(errors) if errors else 0.0


def _slow_ssim(forecast: Field, target: Field, valid: npt.NDArray[np.bool_], data_range: float) -> float:
    """Wang et al. 2004, equation 13, place by place, with moments about the mean; NaN where no window is whole."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    frames = []
    for x_frame, y_frame, good in zip(forecast, target, valid, strict=True):
        values = []
        for row in range(5, x_frame.shape[0] - 5):
            for col in range(5, x_frame.shape[1] - 5):
                cut = (slice(row - 5, row + 6), slice(col - 5, col + 6))
                if not good[cut].all():
                    continue
                x, y = x_frame[cut], y_frame[cut]
                mean_x, mean_y = (window * x).sum(), (window * y).sum()
                var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
                covariance = (window * (x - mean_x) * (y - mean_y)).sum()
                above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
                values.append(above / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))
        if values:
            frames.append(float(np.mean(values)))
    return float(np.mean(frames)) if frames else float("nan")


def _slow_dft(field: Field) -> npt.NDArray[np.complex128]:
    """Orthonormal two-dimensional discrete Fourier transform as matrix products of its definition."""
    rows, cols = (np.arange(size) for size in field.shape)
    left = np.exp(-2j * np.pi * np.outer(rows, rows) / rows.size)
    right = np.exp(-2j * np.pi * np.outer(cols, cols) / cols.size)
    return np.asarray(left @ field @ right / np.sqrt(field.size))


def test_mse() -> None:
    forecast, target, valid = _fields()
    expected = [_slow_mse(*(part[b].numpy() for part in (forecast, target, valid))) for b in range(3)]
    np.testing.assert_allclose(mse(forecast, target, valid).numpy(), expected, rtol=1e-12)
    assert expected[2] == 0.0


@pytest.mark.parametrize("data_range", [1.0, 2.5])
def test_ssim(data_range: float) -> None:
    forecast, target, valid = _fields()
    forecast = target + 0.3 * forecast
    for mask in (valid, torch.ones_like(valid)):
        found = ssim(forecast, target, mask, data_range=data_range)
        for b in range(3):
            slow = _slow_ssim(forecast[b].numpy(), target[b].numpy(), mask[b].numpy(), data_range)
            assert float(found[b]) == pytest.approx(1.0 if math.isnan(slow) else slow, rel=1e-9)
    torch.testing.assert_close(ssim(forecast, target, data_range=data_range), found, rtol=1e-12, atol=0.0)
    assert ssim(target, target).tolist() == pytest.approx([1.0] * 3, abs=1e-12)


def test_mse_ssim_has_the_published_weight() -> None:
    forecast, target, valid = _fields()
    expected = mse(forecast, target, valid) + 1e-4 * (1 - ssim(forecast, target, valid))
    torch.testing.assert_close(mse_ssim(forecast, target, valid), expected)
    assert float(mse_ssim(forecast, target, valid)[2]) == 0.0


def test_ssim_is_the_same_under_autocast() -> None:
    forecast, target, valid = (part if part.dtype == torch.bool else part.float() for part in _fields())
    expected = ssim(forecast, target, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ssim(forecast, target, valid), expected)


def test_rain_weights_are_those_of_b_mse() -> None:
    """Shi et al. 2017, section 3.2: 1, 2, 5, 10, 30 from 0, 2, 5, 10, 30 mm/h on."""
    rain = torch.tensor([0.0, 1.99, 2.0, 4.99, 5.0, 9.99, 10.0, 29.99, 30.0, 200.0])
    assert rain_weights(rain).tolist() == [1, 1, 2, 2, 5, 5, 10, 10, 30, 30]
    rain_bthw = torch.stack([rain, rain.flip(0)]).view(2, 1, 2, 5).transpose(2, 3)
    assert rain_weights(rain_bthw).shape == (2, 1, 5, 2)
    assert float(rain_weights(rain_bthw)[0, 0, 4, 1]) == 30.0


def test_weighted() -> None:
    forecast, target, valid = _fields()
    weight = rain_weights(target * 20.0)
    scaled = weight.sqrt()
    expected = [_slow_mse(*(part[b].numpy() for part in (forecast * scaled, target * scaled, valid))) for b in range(3)]
    found = weighted(forecast, target, valid, weight_bthw=weight)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert bool((found[:2] > mse(forecast, target, valid)[:2]).all())


def test_spectral() -> None:
    forecast, target, valid = _fields()
    found = spectral(forecast, target, valid, spectral_weight=0.7)
    for b in range(3):
        num_valid = max(int(valid[b].sum()), 1)
        squares = 0.0
        for lead in range(2):
            shown = [np.where(valid[b, lead], part[b, lead].numpy(), 0.0) for part in (forecast, target)]
            squares += float(((np.abs(_slow_dft(shown[0])) - np.abs(_slow_dft(shown[1]))) ** 2).sum())
        plain = _slow_mse(*(part[b].numpy() for part in (forecast, target, valid)))
        assert float(found[b]) == pytest.approx(plain + 0.7 * squares / num_valid, rel=1e-10)


def _storms(size: int = 64) -> Tensor:
    """A few sharp cells, (1, 1, size, size), periodic."""
    field = torch.zeros(1, 1, size, size, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    place = torch.arange(size)
    for row, col in torch.randint(0, size, (6, 2), generator=generator).tolist():
        distance_r = torch.minimum((place - row) % size, (row - place) % size)
        distance_c = torch.minimum((place - col) % size, (col - place) % size)
        field += torch.exp(-(distance_r[:, None] ** 2 + distance_c[None] ** 2) / (2 * 2.0**2))
    return field


def _blurred(field: Tensor, sigma: float) -> Tensor:
    place = torch.arange(-12, 13, dtype=field.dtype)
    kernel = torch.exp(-(place**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(field, (12, 12, 12, 12), mode="circular")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))


def test_spectral_does_not_reward_blur() -> None:
    """MSE likes the blurred field better than the sharp one in the wrong place; the spectral loss does not."""
    target = _storms()
    blurred, displaced = _blurred(target, 4.0), target.roll((2, 2), (2, 3))
    assert float(mse(blurred, target)) < float(mse(displaced, target))
    assert float(spectral(blurred, target)) > float(spectral(displaced, target))
    assert float(spectral(displaced, target)) == pytest.approx(float(mse(displaced, target)), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_right(name: str) -> None:
    forecast, target, valid = _fields(size=12)
    cut = (slice(0, 2), slice(0, 1), slice(0, 12), slice(0, 12))
    forecast, target, valid = forecast[cut], target[cut], valid[cut]
    loss = LOSSES[name]
    assert torch.autograd.gradcheck(lambda values: loss(values, target, valid), forecast.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_dry_fields_are_finite(name: str, dtype: torch.dtype) -> None:
    forecast = torch.zeros(2, 2, 16, 16, dtype=dtype, requires_grad=True)
    loss = LOSSES[name](forecast, torch.zeros(2, 2, 16, 16, dtype=dtype), None)
    assert bool(loss.isfinite().all())
    (gradient,) = torch.autograd.grad(loss.sum(), forecast)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", LOSSES)
def test_low_precision_is_widened(name: str) -> None:
    forecast, target, valid = _fields()
    found = LOSSES[name](forecast.bfloat16(), target.bfloat16(), valid)
    assert found.dtype == torch.float32
    expected = LOSSES[name](forecast.bfloat16().double(), target.bfloat16().double(), valid)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), share=st.floats(0.0, 1.0))
@pytest.mark.parametrize("name", LOSSES)
def test_missing_pixels_have_no_part(name: str, seed: int, share: float) -> None:
    """Whatever stands there, NaN too: the same loss, and a gradient of exactly 0."""
    forecast, target, _ = _fields(seed)
    valid = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed)) >= share
    valid[0, 0, :12, :12] = True
    valid[2] = False
    forecast.requires_grad_()
    loss = LOSSES[name](forecast, target, valid)
    (gradient,) = torch.autograd.grad(loss.sum(), forecast)
    assert bool((gradient[~valid] == 0).all())
    assert bool(gradient[:1][valid[:1]].isfinite().all())
    assert float(loss[2].detach()) == 0.0
    other = torch.where(valid, forecast.detach(), float("nan")).requires_grad_()
    elsewhere = torch.where(valid, target, 7.0)
    found = LOSSES[name](other, elsewhere, valid)
    torch.testing.assert_close(found, loss, rtol=1e-12, atol=1e-15)
    (again,) = torch.autograd.grad(found.sum(), other)
    assert bool((again[~valid] == 0).all())
    torch.testing.assert_close(again, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_windows_are_independent_and_all_valid_is_none(name: str) -> None:
    forecast, target, valid = _fields()
    together = LOSSES[name](forecast, target, valid)
    assert together.shape == (3,)
    alone = torch.cat([LOSSES[name](forecast[b : b + 1], target[b : b + 1], valid[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0.0)
    whole = LOSSES[name](forecast, target, torch.ones_like(valid))
    torch.testing.assert_close(LOSSES[name](forecast, target, None), whole, rtol=1e-12, atol=0.0)


def test_errors() -> None:
    forecast, target, valid = _fields()
    with pytest.raises(ValueError, match=r"forecast has shape \(3, 1, 16, 20\), target \(3, 2, 16, 20\)"):
        mse(forecast[:, :1], target)
    with pytest.raises(ValueError, match=r"validity \(3, 1, 16, 20\); expected the same"):
        spectral(forecast, target, valid[:, :1])
    with pytest.raises(ValueError, match="10 x 20 pixels; expected at least 11 a side for SSIM"):
        ssim(forecast[:, :, :10], target[:, :, :10])
