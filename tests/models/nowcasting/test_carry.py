"""Fields carried along: by hand, by loops and as pysteps does, filled, continued over borders, window by window."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rainspark.models.nowcasting.motion import (
    MARGIN_PX,
    Carried,
    advect,
    carry,
    displacements,
    extrapolate,
    fill_missing,
)
from tests.models.drawing import draw
from tests.models.nowcasting.storm_cells import Field, Tenths, circle, far, moving


def _sampled(field: Field, x: float, y: float) -> float:
    """Bilinear, the nearest pixel's value outside."""
    rows, cols = field.shape
    x, y = min(max(x, 0.0), cols - 1.0), min(max(y, 0.0), rows - 1.0)
    left, top = min(int(x), max(cols - 2, 0)), min(int(y), max(rows - 2, 0))
    right, bottom = min(left + 1, cols - 1), min(top + 1, rows - 1)
    upper = field[top, left] * (1 - (x - left)) + field[top, right] * (x - left)
    lower = field[bottom, left] * (1 - (x - left)) + field[bottom, right] * (x - left)
    return float(upper * (1 - (y - top)) + lower * (y - top))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_advect_by_hand(dtype: torch.dtype) -> None:
    field = torch.tensor([[1.0, 2.0, 4.0], [10.0, 20.0, 40.0]], dtype=dtype).view(1, 1, 2, 3)

    def moved(x: float, y: float) -> object:
        step = torch.tensor([x, y], dtype=dtype).view(1, 2, 1, 1).expand(1, 2, 2, 3)
        return [pytest.approx(row, rel=1e-5) for row in advect(field, step)[0, 0].tolist()]

    assert moved(0, 0) == [[1, 2, 4], [10, 20, 40]]
    assert moved(1, 0) == [[1, 1, 2], [10, 10, 20]]
    assert moved(-1, 0) == [[2, 4, 4], [20, 40, 40]]
    assert moved(0, 1) == [[1, 2, 4], [1, 2, 4]]
    assert moved(0.5, 0) == [[1, 1.5, 3], [10, 15, 30]]
    assert moved(0.25, -0.5) == [[5.5, 0.55 * 17.5, 0.55 * 35], [10, 17.5, 35]]
    assert moved(1000, 1000) == [[1, 1, 1], [1, 1, 1]]


def test_advect_of_fields_with_a_margin_by_hand() -> None:
    canvas = torch.arange(20.0).view(1, 1, 4, 5)
    still = torch.zeros(1, 2, 2, 3)
    torch.testing.assert_close(advect(canvas, still, margin_px=1), canvas[..., 1:3, 1:4])
    step = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    torch.testing.assert_close(advect(canvas, step, margin_px=1), canvas[..., 2:4, 0:3])
    each = torch.zeros(1, 2, 2, 3)
    each[0, 0, 0, 2], each[0, 1, 1, 0] = -5.0, 0.5
    expected = torch.tensor([[6.0, 7.0, 9.0], [8.5, 12.0, 13.0]])
    torch.testing.assert_close(advect(canvas, each, margin_px=1)[0, 0], expected)


def _smooth(seed: int, channels: int, rows: int, cols: int) -> Tensor:
    """A smooth field around 0, (1, channels, rows, cols), float64."""
    coarse = draw(1, channels, 4, 4, seed=seed)
    return torch.nn.functional.interpolate(coarse, size=(rows, cols), mode="bicubic", align_corners=True)


def test_displacements_pixel_by_pixel() -> None:
    motion = 2.0 * _smooth(0, 2, 12, 15)
    found = displacements(motion, 4)
    field_x, field_y = motion[0].numpy()
    total = np.zeros((2, 12, 15))
    for step in found:
        for row in range(12):
            for col in range(15):
                x, y = col - total[0, row, col], row - total[1, row, col]
                total[:, row, col] += _sampled(field_x, x, y), _sampled(field_y, x, y)
        np.testing.assert_allclose(step[0].numpy(), total, rtol=1e-9, atol=1e-9)
    assert torch.equal(displacements(motion, 2)[1], found[1])
    assert displacements(motion, 0) == []


def test_extrapolation_is_that_of_pysteps_inside_the_frame() -> None:
    """Exactly with its n_iter=0; with its default, a midpoint, to a small part of a pixel in a smooth motion."""
    semilagrangian = pytest.importorskip("pysteps.extrapolation.semilagrangian")
    motion = torch.tensor([3.0, -2.0], dtype=torch.float64).view(1, 2, 1, 1) + 0.2 * _smooth(1, 2, 96, 80)
    rain = moving((0, 0), frames=1)[..., :96, :80]
    steps = displacements(motion, 6)
    found = extrapolate(rain, steps)[0].numpy()
    place_y, place_x = np.mgrid[:96, :80]
    for num_iterations, tolerance in ((0, 1e-9), (1, 0.15)):
        frames, last = semilagrangian.extrapolate(
            rain[0, 0].numpy(), motion[0].numpy(), 6, n_iter=num_iterations, return_displacement=True
        )
        for lead in range(6):
            shift_x, shift_y = steps[lead][0].numpy()
            x, y = place_x - shift_x, place_y - shift_y
            inside = (x >= 0.5) & (x <= 78.5) & (y >= 0.5) & (y <= 94.5) & np.isfinite(frames[lead])
            assert inside.mean() > 0.5
            np.testing.assert_allclose(found[lead][inside], frames[lead][inside], atol=tolerance)
        if num_iterations == 0:
            np.testing.assert_allclose(last[:, inside], -steps[-1][0].numpy()[:, inside], atol=tolerance)


def _slow_fill(field: Field, valid: npt.NDArray[np.bool_]) -> Field:
    """Push and pull by loops."""
    rows, cols = field.shape
    if rows == cols == 1:
        return field if valid[0, 0] else np.zeros((1, 1))
    small = (-(-rows // 2), -(-cols // 2))
    means, known = np.zeros(small), np.zeros(small, bool)
    for row in range(small[0]):
        for col in range(small[1]):
            cut = (slice(2 * row, 2 * row + 2), slice(2 * col, 2 * col + 2))
            if valid[cut].any():
                means[row, col], known[row, col] = field[cut][valid[cut]].mean(), True
    coarse = _slow_fill(means, known)
    filled = field.copy()
    for row, col in zip(*np.nonzero(~valid), strict=True):
        filled[row, col] = _sampled(coarse, (col - 0.5) / 2, (row - 0.5) / 2)
    return filled


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 13), cols=st.integers(1, 21), missing=st.sampled_from([0.1, 0.6, 0.97]), seed=st.integers(0, 99)
)
@example(rows=8, cols=16, missing=0.97, seed=1)
@example(rows=1, cols=16, missing=0.6, seed=1)
def test_missing_pixels_are_filled_from_around(rows: int, cols: int, missing: float, seed: int) -> None:
    fields = draw(2, 3, rows, cols, seed=seed)
    valid = torch.rand(2, 3, rows, cols, generator=torch.Generator().manual_seed(seed)) >= missing
    found = fill_missing(torch.where(valid, fields, float("nan")), valid)
    for place in np.ndindex(2, 3):
        expected = _slow_fill(fields[place].numpy(), valid[place].numpy())
        np.testing.assert_allclose(found[place].numpy(), expected, rtol=1e-9, atol=1e-12)
        measured = fields[place][valid[place]]
        assert torch.equal(found[place][valid[place]], measured)
        if measured.numel():
            assert float(found[place].min()) >= float(measured.min()) - 1e-12
            assert float(found[place].max()) <= float(measured.max()) + 1e-12
        else:
            assert not bool(found[place].any())
    constant = fill_missing(torch.where(valid, 2.5, 0.0), valid)
    torch.testing.assert_close(constant, torch.where(valid.any(-1).any(-1)[..., None, None], 2.5, 0.0).expand_as(valid))


def test_a_measured_half_fills_the_other() -> None:
    """Whatever the frame's shape: pooling goes on until one pixel is left."""
    for shape in ((64, 128), (128, 64), (32, 200)):
        valid = torch.zeros(1, 1, *shape, dtype=torch.bool)
        valid[..., : shape[0] // 2, : shape[1] // 2] = True
        assert bool((fill_missing(valid * 4.0, valid) == 4.0).all())


def _at(rain_b1hw: Tensor, x: float, y: float) -> Tensor:
    """The frame as it is when everything has moved by (x, y), (h, w)."""
    step = torch.tensor([x, y], dtype=rain_b1hw.dtype).view(1, 2, 1, 1).expand(1, 2, *rain_b1hw.shape[-2:])
    return extrapolate(rain_b1hw, [step])[0, 0]


def test_inside_the_frame_extrapolation_is_a_shift() -> None:
    rain = draw(1, 1, 50, 71).abs()
    torch.testing.assert_close(_at(rain, 0, 0), rain[0, 0])
    torch.testing.assert_close(_at(rain, 7, -3)[:47, 7:], rain[0, 0, 3:, :-7])
    torch.testing.assert_close(_at(rain, -20, 40)[40:, :51], rain[0, 0, :10, 20:])


@settings(max_examples=15, deadline=None)
@given(x=st.floats(-400, 400), y=st.floats(-400, 400))
def test_a_constant_field_flows_in_as_it_is(x: float, y: float) -> None:
    field = torch.full((1, 1, 33, 47), 2.5, dtype=torch.float64)
    torch.testing.assert_close(_at(field, x, y), field[0, 0], rtol=1e-12, atol=0)
    rain = draw(1, 1, 33, 47).abs()
    moved = _at(rain, x, y)
    assert float(rain.min()) - 1e-12 <= float(moved.min()) <= float(moved.max()) <= float(rain.max()) + 1e-12


def test_the_further_out_the_smoother_the_guess() -> None:
    """Beyond 24 pixels it is the mean of about 100 border pixels; beyond the margin it does not change any more."""
    rain = draw(1, 1, 300, 40, seed=2).square()
    border = rain[0, 0, :, 0]
    rough = []
    for distance in (2, 8, 18, 100):
        guess = _at(rain, distance + 39, 0)[:, 39]
        rough.append(float(guess[60:-60].diff().abs().mean()))
    assert sorted(rough, reverse=True) == rough
    assert rough[-1] < 0.05 * float(border.diff().abs().mean())
    far_out = _at(rain, 139, 0)[:, 39]
    for row in (80, 150, 220):
        assert float(far_out[row]) == pytest.approx(float(border[row - 54 : row + 54].mean()), abs=0.15)
    beyond = [_at(rain, MARGIN_PX + 39 + more, 0)[:, 39] for more in (0, 10, 500)]
    torch.testing.assert_close(beyond[1], beyond[0])
    torch.testing.assert_close(beyond[2], beyond[0])


def _window(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Four windows of four frames in model space, different motions and masks, one dry, one unmeasured."""
    steps = [(4.0, 1.0), (-2.0, 3.0), (0.5, 0.0)]
    rain = torch.cat([moving(step, frames=4, seed=seed) for seed, step in enumerate(steps)])
    rain = torch.cat([rain, torch.zeros_like(rain[:1])]).to(dtype) / 10
    valid = torch.ones_like(rain, dtype=torch.bool)
    valid[0] = circle(55, 4)[0]
    valid[1, 2, 20:40, :50] = False
    valid[2, 3] = False
    return torch.where(valid, rain, 0.0), valid


def _parts(carried: Carried) -> list[Tensor]:
    return [carried.past_bthw, carried.canvas_b1hw, *carried.steps]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_windows_do_not_depend_on_each_other(dtype: torch.dtype, masked: bool) -> None:
    """Bit for bit, in any company."""
    frames, valid = _window(dtype)
    together = _parts(carry(frames, valid if masked else None, 5, Tenths()))
    assert all(part.dtype == dtype and bool(part.isfinite().all()) for part in together)
    for chosen in ([0], [1], [2], [3], [3, 1], [2, 0, 1]):
        some = _parts(carry(frames[chosen], valid[chosen] if masked else None, 5, Tenths()))
        assert all(torch.equal(one, all_[chosen]) for one, all_ in zip(some, together, strict=True))


def test_carry_takes_the_motion_out_of_the_past() -> None:
    step = (3.0, -2.0)
    frames = moving(step, frames=5) / 10
    valid = torch.ones_like(frames, dtype=torch.bool)
    valid[0, 1:, 60:66, 50:58] = False
    carried = carry(torch.where(valid, frames, 0.0), valid, 4, Tenths())
    inside = (..., slice(15, -15), slice(15, -15))
    last = frames[:, -1:]
    still = (frames - last)[inside].square().mean((0, 2, 3)).sqrt()
    left = (carried.past_bthw - last)[inside].square().mean((0, 2, 3)).sqrt()
    assert bool((left[:4] < 0.2 * still[:4]).all())
    rain = fill_missing(10 * torch.where(valid, frames, 0.0)[:, -1:], valid[:, -1:])
    torch.testing.assert_close(carried.past_bthw[:, -1:], rain / 10)
    torch.testing.assert_close(
        carried.canvas_b1hw[..., MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX], rain / 10, rtol=1e-12, atol=0
    )
    future = torch.cat([advect(carried.canvas_b1hw, one, margin_px=MARGIN_PX) for one in carried.steps], dim=1)
    torch.testing.assert_close(future, extrapolate(rain, carried.steps) / 10)
    for lead in range(4):
        assert float(far(carried.steps[lead], (3.0 * (lead + 1), -2.0 * (lead + 1))).mean()) < 0.15 * (lead + 1)


def test_carry_has_no_gradient_and_is_the_same_under_autocast() -> None:
    frames, valid = _window()
    expected = _parts(carry(frames.requires_grad_(), valid, 3, Tenths()))
    assert not any(part.requires_grad for part in expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _parts(carry(frames, valid, 3, Tenths()))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_what_was_not_measured_moves_on_with_its_frame() -> None:
    """Known of a past frame is what was measured there, at its place of now; the rest is as in the last frame."""
    rain = moving((4.0, 0.0), frames=4)
    valid = torch.ones_like(rain, dtype=torch.bool)
    holes = {2: slice(60, 70), 1: slice(20, 30)}
    for frame, cols in holes.items():
        valid[:, frame, 40:90, cols] = False
    carried = carry(Tenths().from_mmh(rain.where(valid, 0.0)), valid, 3, Tenths())

    as_last = (carried.known_bthw == carried.past_bthw[:, -1:])[0, :, 45:85]
    for frame, cols in holes.items():
        steps = 3 - frame
        there = slice(cols.start + 4 * steps + 2, cols.stop + 4 * steps - 2)
        assert as_last[frame, :, there].all()
        beside = as_last[frame].clone()
        beside[:, cols.start + 4 * steps - 3 : cols.stop + 4 * steps + 3] = False
        assert float(beside.double().mean()) < 0.01
