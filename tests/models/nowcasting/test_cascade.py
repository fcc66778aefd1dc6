"""Scales that are forecast by how long a window's own rain keeps them, against slow references."""

import numpy as np
import pytest
import torch

from rainspark.data.units import ModelSpace
from rainspark.models.nowcasting.blend import smooth
from rainspark.models.nowcasting.cascade import (
    BORDER_SHARE,
    LEAST_CORRELATION,
    MOST_CHANGE,
    MOST_CORRELATION,
    NUM_LEVELS,
    RIDGE,
    SCALES_PX,
    STRIDE,
    Cascade,
    correlations,
    split,
)
from rainspark.models.nowcasting.motion import MARGIN_PX, Carried, carry

SPACE = ModelSpace(kind="log", scale_mmh=0.2, clip_mmh=None)
LEADS = 5


def make_carried(keep: float, seed: int = 0, frames: int = 4, size: int = 96) -> Carried:
    """A window at rest whose fields keep a share of themselves from frame to frame and are renewed by noise."""
    draws = torch.Generator().manual_seed(seed)
    fields = [torch.randn(1, 1, size, size, dtype=torch.float64, generator=draws)]
    for _ in range(frames - 1):
        fresh = torch.randn(1, 1, size, size, dtype=torch.float64, generator=draws)
        fields.append(keep * fields[-1] + (1 - keep**2) ** 0.5 * fresh)
    past = 2 + torch.cat(fields, dim=1)
    canvas = torch.nn.functional.pad(past[:, -1:], (MARGIN_PX,) * 4, mode="replicate")
    return Carried(past_bthw=past, canvas_b1hw=canvas, known_bthw=past, steps=[])


def test_the_levels_add_up_to_the_field() -> None:
    field = torch.rand(2, 1, 70, 64, dtype=torch.float64)
    levels = split(field)
    assert levels.shape == (2, NUM_LEVELS, 70, 64)
    torch.testing.assert_close(levels.sum(1, keepdim=True), field)
    torch.testing.assert_close(levels[:, :1], field - smooth(field, SCALES_PX[1]))


@pytest.mark.parametrize("frames", [2, 4])
def test_correlations_are_those_of_plain_loops(frames: int) -> None:
    past = make_carried(0.8, frames=frames).past_bthw
    measured = correlations(past, LEADS)[0].numpy()
    levels = np.stack([split(past[:, frame : frame + 1])[0].numpy() for frame in range(frames)])
    border = int(96 * BORDER_SHARE)
    inner = levels[..., border:-border, border:-border]
    inner = inner - inner.mean(axis=(2, 3), keepdims=True)
    for level in range(NUM_LEVELS):
        expected: list[float] = []
        for lag in range(1, frames):
            one, other = inner[lag:, level].ravel(), inner[:-lag, level].ravel()
            value = (one @ other) / np.sqrt((one @ one) * (other @ other))
            expected.append(float(np.clip(value, LEAST_CORRELATION, MOST_CORRELATION)))
        rate = min(expected[-1] / (expected[-2] if len(expected) > 1 else 1.0), 1.0)
        while len(expected) < LEADS:
            expected.append(max(expected[-1] * rate, LEAST_CORRELATION))
        np.testing.assert_allclose(measured[level], expected, rtol=1e-9)


def test_a_field_without_variation_is_forgotten_and_no_number_is_lost() -> None:
    measured = correlations(torch.zeros(1, 4, 96, 96), LEADS)
    assert torch.equal(measured, torch.full_like(measured, LEAST_CORRELATION))


def make_drifting() -> Carried:
    """A window that turns steadily from one field into another: its last change says most of what comes."""
    draws = torch.Generator().manual_seed(5)
    one, other = torch.randn(2, 1, 1, 96, 96, dtype=torch.float64, generator=draws)
    past = 4 + torch.cat([one + 0.12 * frame * other for frame in range(8)], dim=1)
    canvas = torch.nn.functional.pad(past[:, -1:], (MARGIN_PX,) * 4, mode="replicate")
    return Carried(past_bthw=past, canvas_b1hw=canvas, known_bthw=past, steps=[])


@pytest.mark.parametrize(("carried", "limited"), [(make_carried(0.9), False), (make_drifting(), True)])
def test_the_field_is_the_regression_on_two_frames_level_by_level(carried: Carried, limited: bool) -> None:
    cascade, is_limited = Cascade(LEADS).double(), False
    with torch.no_grad():
        cascade.offsets.uniform_(-0.1, 0.1)
        cascade.gains.uniform_(0.05, 0.15)
        cascade.changes.uniform_(0.05, 0.15)
    field, levels, kept = (values.detach().numpy() for values in cascade(carried, SPACE))

    # Dry pixels stand below no rain; beyond the frame the one before is as the last.
    canvases = [carried.canvas_b1hw, carried.canvas_b1hw.clone()]
    canvases[1][..., MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX] = carried.past_bthw[:, -2:-1]
    drizzle = float(np.log1p(0.1 / 0.2))
    last, before = (split(torch.where(canvas < drizzle, -0.3, canvas))[0].numpy() for canvas in canvases)
    np.testing.assert_allclose(levels[0], last, atol=1e-7)

    correlation = correlations(carried.past_bthw, LEADS + 1)[0].numpy()
    offsets, gains, factors = (
        STRIDE * weight.detach().numpy().reshape(NUM_LEVELS, LEADS)
        for weight in (cascade.offsets, cascade.gains, cascade.changes)
    )
    for lead in range(LEADS):
        expected = np.full_like(last[0], last[-1].mean())
        for level in range(NUM_LEVELS):
            damping, share = 1.0, 1.0
            first = correlation[level, 0]
            for earlier in range(lead + 1):
                odds = np.log(correlation[level, earlier] / (1 - correlation[level, earlier]))
                logit = offsets[level, earlier] + gains[level, earlier] * odds
                damping = min(damping, 1 / (1 + np.exp(-logit)))
                change = correlation[level, earlier + 1] - first * correlation[level, earlier]
                change = factors[level, earlier] * change / (1 - first**2 + RIDGE)
                is_limited |= abs(change) > MOST_CHANGE
                change = np.clip(change, -MOST_CHANGE, MOST_CHANGE)
                share = min(share, np.sqrt(min(damping**2 + (1 - first**2) * change**2, 1.0)))
            assert kept[0, level, lead] == pytest.approx(share)
            means = [0.0, 0.0] if level < NUM_LEVELS - 1 else [last[-1].mean(), before[-1].mean()]
            new = last[level] - means[0]
            expected += damping * new + change * (before[level] - means[1] - first * new)
        np.testing.assert_allclose(field[0, lead], expected, rtol=1e-9, atol=1e-6)
    assert is_limited == limited


def test_fields_that_remember_two_frames_are_forecast_from_both() -> None:
    draws = np.random.default_rng(3)
    values: list[np.ndarray] = []
    for _ in range(60):
        one, other = values[-1:-3:-1] if len(values) > 1 else [np.zeros((160, 160))] * 2
        values.append(1.2 * one - 0.5 * other + draws.normal(size=(160, 160)))
    past = 20 + torch.from_numpy(np.stack(values[-40:])).unsqueeze(0)
    canvas = torch.nn.functional.pad(past[:, -1:], (MARGIN_PX,) * 4, mode="replicate")
    field, _, kept = Cascade(2).double()(Carried(past_bthw=past, canvas_b1hw=canvas, known_bthw=past, steps=[]), SPACE)

    # Away from the border, where the canvas is something else, all scales follow the pixels' own recursion.
    inner = slice(MARGIN_PX + 60, -MARGIN_PX - 60)
    forecast = field[0, 0, inner, inner].detach().numpy() - 20
    expected = (1.2 * values[-1] - 0.5 * values[-2])[60:-60, 60:-60]
    assert np.sqrt(np.mean((forecast - expected) ** 2)) < 0.1 * expected.std()
    # The share that can be forecast of it: 1 less the noise's part of the variance (Yule and Walker).
    first = 1.2 / 1.5
    share = 1.2 * first - 0.5 * (1.2 * first - 0.5)
    assert float(kept.detach()[0, 0, 0]) == pytest.approx(share**0.5, abs=0.01)


@pytest.mark.parametrize(("rate", "most"), [(0.01, 0.9), (0.03, 0.6), (0.06, 0.6)])
def test_a_steady_trend_goes_on(rate: float, most: float) -> None:
    """Nearer to what comes than the last frame, however slow it is."""
    draws = torch.Generator().manual_seed(7)
    one, other = (smooth(field, 3.0) for field in torch.randn(2, 1, 1, 160, 160, dtype=torch.float64, generator=draws))
    fields = [8 + 10 * (one + rate * frame * other) for frame in range(15)]
    past = torch.cat(fields[:12], dim=1)
    canvas = torch.nn.functional.pad(past[:, -1:], (MARGIN_PX,) * 4, mode="replicate")
    forecast, _, _ = Cascade(3).double()(Carried(past_bthw=past, canvas_b1hw=canvas, known_bthw=past, steps=[]), SPACE)
    inner = slice(MARGIN_PX + 20, -MARGIN_PX - 20)
    for lead in range(3):
        future = fields[12 + lead][0, 0, 20:-20, 20:-20]
        errors = [forecast[0, lead, inner, inner] - future, past[0, -1, 20:-20, 20:-20] - future]
        assert float(errors[0].detach().square().mean()) < most * float(errors[1].square().mean())


@pytest.mark.parametrize("part", [slice(None), slice(32, None)])
def test_frames_that_were_not_measured_are_as_the_last_one_and_not_as_dry(part: slice) -> None:
    rain = torch.from_numpy(np.random.default_rng(1).gamma(2.0, 1.0, (1, 1, 64, 64))).expand(1, 6, -1, -1).clone()
    valid = torch.ones_like(rain, dtype=torch.bool)
    valid[:, -2, part] = False
    whole, holed = (carry(SPACE.from_mmh(rain.where(mask, 0.0)), mask, 3, SPACE) for mask in (valid | True, valid))
    torch.testing.assert_close(holed.known_bthw[:, -2, part], holed.past_bthw[:, -1, part])
    fields = [Cascade(3).double()(carried, SPACE)[0].detach() for carried in (whole, holed)]
    # Nothing changes in this window, and so nothing does where one frame does not say so.
    torch.testing.assert_close(fields[1], fields[0], atol=0.02, rtol=0)


def test_rain_that_changes_faster_is_smoothed_more_and_every_lead_time_more_than_the_last() -> None:
    cascade = Cascade(LEADS).double()
    spreads = [cascade(make_carried(keep), SPACE)[0].std((2, 3))[0].tolist() for keep in (0.95, 0.6)]
    assert all(slow > fast for slow, fast in zip(*spreads, strict=True))
    assert all(own == sorted(own, reverse=True) for own in spreads)


def test_windows_do_not_depend_on_each_other() -> None:
    cascade = Cascade(LEADS).double()
    both = [make_carried(0.9, seed=1), make_carried(0.5, seed=2)]
    together = Carried(
        past_bthw=torch.cat([one.past_bthw for one in both]),
        canvas_b1hw=torch.cat([one.canvas_b1hw for one in both]),
        known_bthw=torch.cat([one.known_bthw for one in both]),
        steps=[],
    )
    alone = torch.cat([cascade(one, SPACE)[0] for one in both])
    torch.testing.assert_close(cascade(together, SPACE)[0], alone)
