"""Probability matching against plain loops, its limits, and how long it takes."""

import bisect
import time

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rainspark.models.nowcasting.matching import match_distribution

Field = npt.NDArray[np.float64]


def _slow_frame(forecast: Field, reference: Field, valid: npt.NDArray[np.bool_]) -> Field:
    """Rank by rank: each value's rate is the mean of the sorted reference over the ranks that the value holds."""
    if not (np.isfinite(forecast).all() and valid.any()):
        return forecast
    values, rates = sorted(forecast[valid].tolist()), sorted(reference[valid].tolist())
    rate_of = {}
    for value in values:
        ranks = [rank for rank, other in enumerate(values) if other == value]
        rate_of[value] = sum(rates[rank] for rank in ranks) / len(ranks)
    known = sorted(rate_of)
    matched = np.empty_like(forecast)
    for place, value in np.ndenumerate(forecast):
        above = bisect.bisect_left(known, value)
        if above == len(known):
            matched[place] = rate_of[known[-1]]
        elif value in rate_of or above == 0:
            matched[place] = rate_of[known[above]]
        else:
            low, high = known[above - 1], known[above]
            matched[place] = rate_of[low] + (value - low) / (high - low) * (rate_of[high] - rate_of[low])
    return matched


def _drawn(
    seed: int, *, levels: int | None = None, missing: float = 0.0, shape: tuple[int, int, int, int] = (3, 2, 7, 9)
) -> tuple[Tensor, Tensor, Tensor]:
    """Forecast, measured field with some dry pixels, validity; few levels make ties."""
    generator = torch.Generator().manual_seed(seed)
    forecast = torch.rand(shape, generator=generator, dtype=torch.float64) * 8
    if levels is not None:
        forecast = (forecast / 8 * levels).floor()
    one = (shape[0], 1, *shape[2:])
    wet = torch.rand(one, generator=generator) > 0.4
    rain = torch.rand(one, generator=generator, dtype=torch.float64).square() * 30 * wet
    return forecast, rain, torch.rand(one, generator=generator) >= missing


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    levels=st.sampled_from([None, 1, 2, 5, 40]),
    missing=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
)
def test_each_value_takes_the_rates_of_its_ranks(seed: int, levels: int | None, missing: float) -> None:
    forecast, rain, valid = _drawn(seed, levels=levels, missing=missing)
    found = match_distribution(forecast, rain, valid)
    for window in range(3):
        for lead in range(2):
            parts = (forecast[window, lead], rain[window, 0], valid[window, 0])
            expected = _slow_frame(*(part.numpy() for part in parts))
            np.testing.assert_allclose(found[window, lead].numpy(), expected, rtol=1e-9, atol=1e-7)


def test_without_a_mask_nothing_is_missing() -> None:
    forecast, rain, valid = _drawn(1)
    assert bool(valid.all())
    assert torch.equal(match_distribution(forecast, rain), match_distribution(forecast, rain, valid))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), missing=st.sampled_from([0.0, 0.4]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distribution_is_exactly_the_measured_one_where_nothing_ties(
    dtype: torch.dtype, seed: int, missing: float
) -> None:
    """And the order of the pixels stays that of the forecast."""
    _, rain, valid = _drawn(seed, missing=missing, shape=(2, 3, 40, 30))
    valid[..., 0, 0] = True
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(1200, generator=generator) for _ in range(6)])
    forecast, rain = order.view(2, 3, 40, 30).to(dtype), rain.to(dtype)
    found = match_distribution(forecast, rain, valid)
    assert found.dtype == dtype
    for window in range(2):
        measured = valid[window, 0]
        for lead in range(3):
            matched = found[window, lead]
            assert torch.equal(matched[measured].sort().values, rain[window, 0][measured].sort().values)
            assert bool((matched.flatten()[forecast[window, lead].flatten().argsort()].diff() >= 0).all())


def test_a_large_wet_field_loses_no_digits() -> None:
    """A sum in float32 over 90,000 wet pixels would be off by a hundredth of a mm/h."""
    generator = torch.Generator().manual_seed(0)
    rain = torch.rand(1, 1, 300, 300, generator=generator) * 100
    forecast = torch.randperm(90_000, generator=generator).view(1, 1, 300, 300).float()
    assert torch.equal(match_distribution(forecast, rain).flatten().sort().values, rain.flatten().sort().values)
    pairs = match_distribution((forecast / 2).floor(), rain).flatten().sort().values.double()
    expected = rain.flatten().sort().values.double().view(-1, 2).mean(1).repeat_interleave(2)
    torch.testing.assert_close(pairs, expected, rtol=1e-6, atol=1e-7)


def test_what_stands_in_missing_pixels_of_the_measured_field_does_not_matter() -> None:
    forecast, rain, valid = _drawn(7, missing=0.4)
    other = torch.where(valid, rain, float("nan"))
    assert torch.equal(match_distribution(forecast, other, valid), match_distribution(forecast, rain, valid))


@pytest.mark.parametrize("levels", [None, 6])
def test_windows_and_leads_do_not_depend_on_each_other(levels: int | None) -> None:
    """Bit for bit, and the same again."""
    forecast, rain, valid = _drawn(8, levels=levels, missing=0.2, shape=(3, 4, 33, 31))
    forecast, rain = forecast.float(), rain.float()
    together = match_distribution(forecast, rain, valid)
    assert torch.equal(match_distribution(forecast, rain, valid), together)
    for window in range(3):
        cut = slice(window, window + 1)
        for lead in range(4):
            alone = match_distribution(forecast[cut, lead : lead + 1], rain[cut], valid[cut])
            assert torch.equal(alone[0, 0], together[window, lead])


def test_an_hour_of_radar_takes_a_fraction_of_a_second() -> None:
    generator = torch.Generator().manual_seed(0)
    forecast = (torch.rand(1, 12, 288, 288, generator=generator) - 0.3).clamp(min=0)
    rain = torch.rand(1, 1, 288, 288, generator=generator)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        match_distribution(forecast, rain, rain > 0.1)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("missing", [None, "window", "frame"])
@pytest.mark.parametrize("reference", ["window", "frame"])
def test_each_frame_may_have_a_field_of_its_own(reference: str, missing: str | None) -> None:
    """The same as frame by frame; a frame that is not finite, or has no measured pixel, stays as it is."""
    forecast, _, _ = _drawn(9, shape=(3, 4, 7, 9))
    forecast[0, 2, 1, 1] = float("nan")
    rain = torch.cat([_drawn(seed, shape=(3, 4, 7, 9))[1] for seed in range(4)], dim=1)
    valid = torch.cat([_drawn(seed, missing=0.3, shape=(3, 4, 7, 9))[2] for seed in range(4)], dim=1)
    valid[1, 3] = False
    rain = rain if reference == "frame" else rain[:, :1]
    mask = {None: None, "window": valid[:, :1], "frame": valid}[missing]
    found = match_distribution(forecast, rain, mask)
    for lead in range(4):
        own = rain[:, lead : lead + 1] if reference == "frame" else rain
        own_mask = mask[:, lead : lead + 1] if mask is not None and missing == "frame" else mask
        alone = match_distribution(forecast[:, lead : lead + 1], own, own_mask)
        torch.testing.assert_close(found[:, lead : lead + 1], alone, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(found[0, 2], forecast[0, 2], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found[1, 3], forecast[1, 3]) == (missing == "frame")


def test_errors() -> None:
    forecast, rain, valid = _drawn(0)
    with pytest.raises(
        ValueError, match=r"forecast has shape \(3, 2, 7, 9\).*\[\(2, 1, 7, 9\)\]; expected \(3, 1, 7, 9\)"
    ):
        match_distribution(forecast, rain[:2])
    with pytest.raises(
        ValueError, match=r"\[\(3, 1, 7, 9\), \(3, 1, 7, 8\)\]; expected \(3, 1, 7, 9\), or the forecast's"
    ):
        match_distribution(forecast, rain, valid[..., :8])
    with pytest.raises(ValueError, match=r"\[\(3, 7, 9\)\]; expected"):
        match_distribution(forecast, rain[:, 0])
