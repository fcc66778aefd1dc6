"""The loss of events against a plain loop, what it rewards, its slopes, and that missing pixels have no part in it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rainspark.models.losses import mse
from rainspark.models.nowcasting.event_loss import (
    event_loss,
)
from tests.models.drawing import draw


def _fields(seed: int = 0, size: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Forecast (also below 0), rain (a third of it 0), validity of 3 windows of 2 frames; the last has nothing."""
    forecast, rain = (draw(3, 2, size, size + 2, seed=seed + part) * 4 for part in (0, 1))
    valid = torch.rand(rain.shape, generator=torch.Generator().manual_seed(seed)) > 0.2
    valid[1, 0] = False
    valid[2] = False
    return forecast, torch.where(rain > -2.0, rain.abs(), 0.0), valid


def _log(rain: float) -> float:
    return math.log(1 + rain / 0.2) if rain > 0 else rain / 0.2


def _slow(forecast: Tensor, rain: Tensor, valid: Tensor) -> float:
    """One window, pixel by pixel, with the numbers written out."""
    total = 0.0
    for threshold, weight in zip((0.1, 0.5, 1, 2, 5, 10), (0.5, 1, 1, 1, 0.5, 0.25), strict=True):
        for lead in range(len(rain)):
            hits = misses = false_alarms = 0.0
            for f, r, v in zip(*(part[lead].flatten().tolist() for part in (forecast, rain, valid)), strict=True):
                if not v:
                    continue
                said = 1 / (1 + math.exp(-(_log(f) - _log(threshold)) / 0.2))
                if r > threshold:
                    hits, misses = hits + said, misses + 1 - said
                else:
                    false_alarms += said
            csi = (hits + 20) / (hits + misses + false_alarms + 20)
            bias = (hits + false_alarms + 20) / (hits + misses + 20)
            total += weight / 4.25 * (1 - csi + 0.1 * math.log(bias) ** 2) / len(rain)
    pairs = zip(forecast.flatten().tolist(), rain.flatten().tolist(), valid.flatten().tolist(), strict=True)
    squares = [(_log(f) - _log(r)) ** 2 for f, r, v in pairs if v]
    return total + 0.2 * (sum(squares) / len(squares) if squares else 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_pixel_by_pixel(seed: int) -> None:
    forecast, rain, valid = _fields(seed)
    found = event_loss(forecast, rain, valid)
    assert found.tolist() == pytest.approx([_slow(forecast[b], rain[b], valid[b]) for b in range(3)], rel=1e-10)
    assert float(found[2]) == 0.0
    whole = torch.ones_like(valid)
    assert event_loss(forecast, rain).tolist() == pytest.approx(
        [_slow(forecast[b], rain[b], whole[b]) for b in range(3)], rel=1e-10
    )
    assert torch.equal(event_loss(forecast, rain), event_loss(forecast, rain, whole))


def test_rain_of_exactly_a_threshold_is_no_event() -> None:
    """As in the verification, where an event is rain above the threshold."""
    forecast = torch.full((1, 1, 40, 40), 3.0, dtype=torch.float64)
    below, at, above = (float(event_loss(forecast, torch.full_like(forecast, rain))) for rain in (0.999, 1.0, 1.001))
    assert at == pytest.approx(below, abs=0.01)
    assert above < at - 0.2


def test_gradients_are_right() -> None:
    forecast, rain, valid = _fields(size=6)
    assert torch.autograd.gradcheck(lambda values: event_loss(values, rain, valid), forecast.requires_grad_())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 1.0))
def test_missing_pixels_have_no_part(seed: int, share: float) -> None:
    """Whatever stands there, NaN too: the same loss, a gradient of exactly 0."""
    forecast, rain, _ = _fields(seed)
    valid = torch.rand(rain.shape, generator=torch.Generator().manual_seed(seed)) >= share
    forecast.requires_grad_()
    loss = event_loss(forecast, rain, valid)
    (gradient,) = torch.autograd.grad(loss.sum(), forecast)
    assert bool((gradient[~valid] == 0).all())
    assert bool(gradient.isfinite().all())
    for bad in (float("nan"), float("inf"), -1e30):
        other = torch.where(valid, forecast.detach(), bad).requires_grad_()
        found = event_loss(other, torch.where(valid, rain, bad), valid)
        (again,) = torch.autograd.grad(found.sum(), other)
        assert torch.equal(found, loss)
        assert torch.equal(again, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("said", [-1e4, -1.0, 0.0, 1e-30, 0.05, 1.0, 300.0, 1e6])
@pytest.mark.parametrize("rain", [0.0, 0.12, 100.0])
def test_gradients_are_finite(said: float, rain: float, dtype: torch.dtype) -> None:
    """Dry on dry too."""
    forecast = torch.full((1, 2, 16, 16), said, dtype=dtype, requires_grad=True)
    loss = event_loss(forecast, torch.full((1, 2, 16, 16), rain, dtype=dtype))
    (gradient,) = torch.autograd.grad(loss.sum(), forecast)
    assert bool(loss.isfinite().all())
    assert bool(gradient.isfinite().all())


def test_a_dry_frame_is_cheapest_a_little_below_zero() -> None:
    """The soft event of 0.1 mm/h does not end at 0."""
    dry = torch.zeros(1, 2, 288, 288)
    cost = {said: float(event_loss(dry + said, dry)) for said in (-0.4, -0.2, -0.1, 0.0, 0.1, 1.0)}
    assert cost[-0.2] < cost[-0.1] < cost[0.0] < cost[0.1] < cost[1.0]
    assert cost[-0.4] > cost[-0.2]
    assert cost[-0.2] < 0.35


@pytest.mark.parametrize("said", [0.0, -0.05, -1.0])
def test_a_dry_pixel_that_should_rain_feels_a_slope(said: float) -> None:
    """More rain there lowers the loss, also at exactly 0 and below."""
    rain = torch.zeros(1, 1, 32, 32)
    rain[..., 10:14, 5:25] = 3.0
    forecast = torch.full_like(rain, said).requires_grad_()
    (gradient,) = torch.autograd.grad(event_loss(forecast, rain).sum(), forecast)
    assert float(gradient[rain > 0].max()) < -1e-5


def _band(centre: float, width: float, peak: float = 6.0) -> Tensor:
    """A rain band along the columns, Gaussian across, mm/h: (1, 1, 96, 96)."""
    across = peak * torch.exp(-((torch.arange(96, dtype=torch.float64) - centre) ** 2) / (2 * width**2))
    return across.view(1, 1, 96, 1).expand(1, 1, 96, 96).contiguous()


def test_a_sharp_band_nearby_beats_a_blurred_one() -> None:
    """Blur keeps the sum of the rain. MSE likes the blur better; nearer is better than further under both."""
    rain = _band(48, 2)
    sharp = {shift: float(event_loss(_band(48 + shift, 2), rain)) for shift in (0, 1, 2, 3, 6, 12)}
    assert sorted(sharp.values()) == list(sharp.values())
    for shift, blur in ((2, 4.0), (3, 5.0)):
        width = math.hypot(2.0, blur)
        blurred = _band(48, width, 6.0 * 2.0 / width)
        assert float(blurred.sum()) == pytest.approx(float(rain.sum()), rel=1e-6)
        assert float(event_loss(blurred, rain)) > sharp[shift] + 0.02
        assert float(mse(blurred, rain)) < float(mse(_band(48 + shift, 2), rain))


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_too_much_and_too_little_cost_more_than_the_right_area(factor: float) -> None:
    """Twice the width, half of it, twice the rate, half of it."""
    rain = _band(48, 4)
    right = float(event_loss(rain, rain))
    for wrong in (_band(48, 4 * factor), _band(48, 4 / factor), rain * factor, rain / factor):
        assert float(event_loss(wrong, rain)) > right + 0.05
    everywhere = torch.full_like(rain, 6.0)
    assert float(event_loss(everywhere, rain)) > float(event_loss(_band(48, 4 * factor), rain))


def test_windows_are_independent_bit_for_bit() -> None:
    forecast, rain, valid = (part if part.dtype == torch.bool else part.float() for part in _fields(size=30))
    together = event_loss(forecast, rain, valid)
    for b in range(3):
        cut = slice(b, b + 1)
        assert torch.equal(event_loss(forecast[cut], rain[cut], valid[cut]), together[cut])


def test_low_precision_is_widened() -> None:
    forecast, rain, valid = _fields()
    found = event_loss(forecast.bfloat16(), rain.bfloat16(), valid)
    assert found.dtype == torch.float32
    expected = event_loss(forecast.bfloat16().double(), rain.bfloat16().double(), valid)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_forecast_that_is_not_a_number_is_not_hidden() -> None:
    forecast, rain, valid = _fields()
    forecast[0, 0, 0, 0], valid[0, 0, 0, 0] = float("nan"), True
    found = event_loss(forecast, rain, valid)
    assert found.isnan().tolist() == [True, False, False]


def test_errors() -> None:
    forecast, rain, valid = _fields()
    with pytest.raises(ValueError, match=r"forecast has shape \(3, 1, 12, 14\), target \(3, 2, 12, 14\)"):
        event_loss(forecast[:, :1], rain)
    with pytest.raises(ValueError, match=r"validity \(3, 2, 12, 13\); expected the same"):
        event_loss(forecast, rain, valid[..., :13])
