"""What a model has to beat: each baseline beside a plain computation, whole or with missing pixels."""

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rainspark.models.baselines.extrapolation import Extrapolation
from rainspark.models.baselines.simple import (
    Advection,
    DampedExtrapolation,
    DampingFit,
    Persistence,
    TrainingMean,
)
from rainspark.models.nowcasting.forecasts import Forecaster
from tests.conftest import REPOSITORY

SIZE = 96


def storm(row: float, col: float) -> npt.NDArray[np.float32]:
    """A round shower of up to 12 mm/h with a texture that motion can be found in."""
    rows, cols = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(rows - row, cols - col)
    texture = 1 + 0.4 * np.sin((rows - row) / 3) * np.sin((cols - col) / 3)
    rain = 12 * np.exp(-((distance / 14) ** 2)) * texture
    return np.where(rain > 0.1, rain, 0).astype(np.float32)


def moving(frames: int, *, rows: float = 1.0, cols: float = 2.0) -> torch.Tensor:
    """A shower that moves by so many pixels a frame, (1, frames, rows, cols)."""
    return torch.from_numpy(np.stack([storm(36 + rows * k, 30 + cols * k) for k in range(frames)]))[None]


def baselines() -> list[Forecaster]:
    extrapolation = Extrapolation()
    damped = DampedExtrapolation(mean_mmh=0.4, factors=(0.9, 0.5, 0.2), extrapolation=extrapolation)
    return [Persistence(), Advection(), extrapolation, TrainingMean(mean_mmh=0.4), damped]


def known_of(model: Forecaster, forecast: torch.Tensor) -> torch.Tensor:
    """Check that nothing is NaN but what a model may mark, and give the forecast with -1 there."""
    marks_unknown = isinstance(model, Extrapolation)
    assert torch.isfinite(forecast).all() or marks_unknown
    assert not torch.isinf(forecast).any()
    return forecast.nan_to_num(nan=-1.0)


def test_persistence_repeats_the_last_frame() -> None:
    rain = torch.rand(2, 4, 5, 6)
    forecast = Persistence().forecast(rain, None, 3)
    assert torch.equal(forecast, torch.stack([rain[:, 3]] * 3, dim=1))
    valid = torch.rand(2, 4, 5, 6) > 0.3
    masked = Persistence().forecast(rain, valid, 2)
    assert torch.equal(masked[:, 1], rain[:, 3] * valid[:, 3])


@pytest.mark.parametrize("name", ["advection", "extrapolation"])
def test_a_moving_shower_is_followed(name: str) -> None:
    frames = moving(9)
    model: Forecaster = Advection() if name == "advection" else Extrapolation()
    forecast = model.forecast(frames[:, :3], None, 6).nan_to_num(nan=0.0)
    still = Persistence().forecast(frames[:, :3], None, 6)
    error, of_still = ((one - frames[:, 3:]).square().mean((0, 2, 3)) for one in (forecast, still))
    assert (error[1:] < 0.1 * of_still[1:]).all()


def test_extrapolation_is_pysteps_on_the_logarithm() -> None:
    from pysteps import extrapolation, motion

    frames = moving(5, rows=0.0, cols=3.0)
    forecast = Extrapolation().forecast(frames, None, 4)
    decibel = 10 * np.log10(np.maximum(frames[0, -3:].double().numpy(), 0.1))
    field = motion.get_method("LK")(decibel)
    expected = extrapolation.get_method("semilagrangian")(frames[0, -1].double().numpy(), field, 4)
    assert np.isnan(expected).any()
    np.testing.assert_allclose(forecast[0].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("what", ["no rain", "one pixel", "rain everywhere", "rain in the last frame only"])
@pytest.mark.parametrize("index", range(5))
def test_forecasts_are_finite_and_not_negative_whatever_there_is(index: int, what: str) -> None:
    frames = torch.zeros(1, 3, SIZE, SIZE)
    if what == "one pixel":
        frames[:, :, 40, 40] = 3.0
    elif what == "rain everywhere":
        frames[:] = 2.0
    elif what == "rain in the last frame only":
        frames[:, 2] = moving(1)[:, 0]
    model = baselines()[index]
    forecast = model.forecast(frames, None, 3)
    assert forecast.shape == (1, 3, SIZE, SIZE)
    assert forecast.dtype == torch.float32
    assert not (forecast < 0).any()
    known_of(model, forecast)
    if what == "no rain" and model.name in ("persistence", "advection", "extrapolation"):
        assert not forecast.any()


@pytest.mark.parametrize("index", range(5))
def test_missing_pixels_change_nothing_by_their_value(index: int) -> None:
    """A missing pixel is 0 by convention; whatever else stood there must not be seen."""
    model, frames = baselines()[index], moving(3)
    valid = torch.ones_like(frames, dtype=torch.bool)
    valid[:, :, 20:30] = False
    valid[:, 1, :, 50:60] = False
    rains = [torch.where(valid, frames, value) for value in (0.0, 55.0)]
    forecasts = [known_of(model, model.forecast(rain, valid, 3)) for rain in rains]
    if model.name == "advection":  # its motion search leaves them out by weight, to rounding
        torch.testing.assert_close(forecasts[0], forecasts[1], rtol=1e-3, atol=1e-3)
    else:
        assert torch.equal(forecasts[0], forecasts[1])
    nothing = known_of(model, model.forecast(torch.zeros_like(frames), torch.zeros_like(valid), 3))
    assert (nothing == -1).all() or not isinstance(model, Extrapolation)


@pytest.mark.parametrize("index", range(5))
def test_a_batch_is_forecast_window_by_window(index: int) -> None:
    model = baselines()[index]
    frames = torch.cat([moving(3), moving(3, rows=-1.0, cols=1.0)])
    whole = model.forecast(frames, None, 3)
    for number in range(2):
        alone = model.forecast(frames[number : number + 1], None, 3)[0]
        torch.testing.assert_close(whole[number], alone, equal_nan=True)


def test_a_blurred_forecast_is_fitted_by_least_squares() -> None:
    random = np.random.default_rng(0)
    observed = torch.from_numpy(random.gamma(0.5, 2.0, (4, 3, 8, 8))).float()
    noise = torch.from_numpy(random.gamma(0.5, 2.0, (4, 3, 8, 8))).float()
    share = torch.tensor([0.9, 0.5, 0.1]).view(3, 1, 1)
    forecast = share * observed + (1 - share) * noise  # the first lead's best factor is above 1
    valid = torch.from_numpy(random.random((4, 3, 8, 8)) > 0.2)
    fit = DampingFit(3)
    for half in (slice(0, 1), slice(1, 4)):
        fit.update(forecast[half], observed[half], valid[half])
    mean = float(observed[valid].double().mean())
    assert fit.mean_mmh == pytest.approx(mean)
    for lead, factor in enumerate(fit.factors()):
        known = valid[:, lead]
        left = (forecast[:, lead][known].double() - mean).numpy()[:, None]
        right = (observed[:, lead][known].double() - mean).numpy()
        solved = float(np.linalg.lstsq(left, right, rcond=None)[0][0])
        assert factor == pytest.approx(min(max(solved, 0), 1), rel=1e-6)
    assert fit.factors()[0] == 1.0
    assert 0.1 < fit.factors()[2] < fit.factors()[1] < 1


@given(sign=st.sampled_from([-1.0, 1.0, 0.0]), level=st.floats(0.0, 5.0))
def test_damping_stays_between_the_mean_and_the_forecast(sign: float, level: float) -> None:
    observed = torch.linspace(0, 2, 32).view(1, 1, 4, 8)
    forecast = level + sign * 0.25 * observed
    factor = DampingFit(1).update(forecast, observed, None).factors()[0]
    assert 0 <= factor <= 1


def test_nothing_measured_has_no_mean() -> None:
    fit = DampingFit(2).update(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3).bool())
    assert np.isnan(fit.mean_mmh)
    assert fit.factors() == (0.0, 0.0)


def test_damped_extrapolation_fades_and_refuses_what_it_was_not_fitted_for() -> None:
    damped = DampedExtrapolation(mean_mmh=0.5, factors=(1.0, 0.5, 0.0), extrapolation=Persistence())
    frames = moving(1)
    forecast = damped.forecast(frames, None, 3)
    torch.testing.assert_close(forecast[:, 0], frames[:, 0])
    torch.testing.assert_close(forecast[:, 1], 0.25 + 0.5 * frames[:, 0])
    torch.testing.assert_close(forecast[:, 2], torch.full_like(frames[:, 0], 0.5))
    with pytest.raises(ValueError, match="fitted for 3 lead times, 4 were asked for"):
        damped.forecast(frames, None, 4)


@pytest.mark.parametrize("package", ["pysteps", "cv2"])
def test_what_is_not_installed_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'rainspark\[nowcast\]', or take `advection`"):
        Extrapolation()


def test_pysteps_is_quiet_and_leaves_the_warning_filters_alone() -> None:
    code = (
        "import warnings; before = list(warnings.filters)\n"
        "from rainspark.models.baselines.extrapolation import Extrapolation; import torch\n"
        "Extrapolation().forecast(torch.rand(1, 3, 48, 48), None, 2)\n"
        "assert [w for w in warnings.filters if w not in before and 'pysteps' in str(w)] == []"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr


def test_extrapolation_knows_only_what_comes_from_measured_pixels() -> None:
    """A texture that moves by 3 pixels a frame to the right: 3 columns more flow in with every frame."""
    random = np.random.default_rng(3)
    wide = torch.from_numpy(random.gamma(2.0, 2.0, (1, 1, 24, 40)))
    smooth = torch.nn.functional.interpolate(wide, scale_factor=4, mode="bicubic").clamp(min=0)[0, 0].float()
    frames = torch.stack([smooth[:, 40 - 3 * k : 136 - 3 * k] for k in range(3)])[None]
    model = Extrapolation()
    assert model.marks_unknown
    known = torch.isfinite(model.forecast(frames, None, 4))
    for lead in range(4):
        inflow = 3 * (lead + 1)
        assert not known[0, lead, 20:76, : inflow - 2].any()
        assert known[0, lead, 20:76, inflow + 2 : 90].all()

    # Missing pixels are carried along: what comes from columns 30 to 49 is known no more.
    valid = torch.ones_like(frames, dtype=torch.bool)
    valid[:, :, :, 30:50] = False
    known = torch.isfinite(model.forecast(frames, valid, 4))
    moved = torch.isfinite(model.forecast(valid.float() * 5, None, 1))
    assert moved.all(), "what does not move flows in nowhere"
    for lead in (0, 1):
        shift = 3 * (lead + 1)
        assert not known[0, lead, 20:76, 30 + shift + 3 : 50 + shift - 4].any()
        assert known[0, lead, 20:76, 50 + shift + 3 : 90].all()
        assert known[0, lead, 20:76, shift + 3 : 30 + shift - 8].all()
