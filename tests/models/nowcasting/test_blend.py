"""Smoothing that grows with lead time, against slow references."""

import math

import numpy as np
import pytest
import torch

from rainspark.models.nowcasting.blend import SMOOTHING_PX, Blend, smooth


def gaussian_mean(field: np.ndarray, deviation: float) -> np.ndarray:
    """Smooth by the definition: a weighted mean over all offsets to 4 deviations, the field repeated at its border."""
    reach = math.ceil(4 * deviation)
    rows, cols = field.shape
    total, weights = np.zeros_like(field), 0.0
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            weight = math.exp(-(down**2 + right**2) / (2 * deviation**2))
            row = np.clip(np.arange(rows) + down, 0, rows - 1)
            col = np.clip(np.arange(cols) + right, 0, cols - 1)
            total += weight * field[row][:, col]
            weights += weight
    return total / weights


@pytest.mark.parametrize("deviation", SMOOTHING_PX[1:])
def test_smoothing_is_a_gaussian_mean(deviation: float) -> None:
    field = np.random.default_rng(0).gamma(0.5, 1.0, (176, 160))
    found = smooth(torch.from_numpy(field)[None, None], deviation)[0, 0].numpy()
    expected = gaussian_mean(field, deviation)
    # Beyond 2 px it is taken of a coarser field, whose border pixel, too, is a mean: a nowcaster's border lies in the
    # margin, far from the frame.
    margin = math.ceil(3 * deviation)
    inner = np.s_[margin:-margin, margin:-margin]
    assert np.sqrt(np.square(found - expected)[inner].mean()) < 0.3 * expected[inner].std()
    assert found[inner].std() == pytest.approx(expected[inner].std(), rel=0.1)


def test_sides_that_no_coarse_pixel_divides() -> None:
    field = torch.rand(2, 1, 45, 61, dtype=torch.float64)
    for deviation in SMOOTHING_PX:
        assert smooth(field, deviation).shape == field.shape
    torch.testing.assert_close(smooth(torch.ones_like(field), 8.0), torch.ones_like(field))


def test_weights_are_a_mean_and_later_leads_are_smoother() -> None:
    blend = Blend(12).double()
    constant = torch.full((1, 1, 64, 64), 1.7, dtype=torch.float64)
    torch.testing.assert_close(blend(constant), constant.expand(1, 12, 64, 64))
    noise = torch.randn(1, 1, 64, 64, dtype=torch.float64)
    spreads = blend(noise).std((2, 3))[0].tolist()
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] < float(noise.std())


def test_each_lead_is_the_sum_of_its_weights_times_the_smoothings() -> None:
    blend = Blend(3).double()
    torch.nn.init.normal_(blend.logits)
    field = torch.rand(2, 1, 40, 40, dtype=torch.float64)
    logits = blend.logits.detach().numpy().reshape(3, len(SMOOTHING_PX))
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = sum(
        weights[:, level, None, None] * smooth(field, deviation).numpy() for level, deviation in enumerate(SMOOTHING_PX)
    )
    np.testing.assert_allclose(blend(field).detach().numpy(), expected, rtol=1e-12)


def test_weights_learn_and_do_not_decay() -> None:
    blend = Blend(2)
    blend(torch.rand(1, 1, 32, 32)).square().sum().backward()
    assert blend.logits.grad is not None
    assert float(blend.logits.grad.abs().max()) > 0
    assert blend.logits.ndim == 1
