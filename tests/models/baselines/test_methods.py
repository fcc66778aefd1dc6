"""pysteps' methods as the evaluator runs them: beside direct calls, on dry and thin rain, with missing pixels."""

import io
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rainspark.models.baselines.methods import (
    METHODS,
    Anvil,
    BaselineError,
    LagrangianProbability,
    Linda,
    Method,
    Sprog,
    Steps,
    Window,
    forecast,
)
from tests.conftest import REPOSITORY

SIZE = 64
ALL: list[Method] = [Sprog(), Anvil(), Linda(), Linda(members=2), Steps(members=3), LagrangianProbability()]


def showers(frames: int = 4) -> npt.NDArray[np.float32]:
    """Textured showers of up to 12 mm/h that move by 2 columns and 1 row a frame, (frames, rows, cols)."""
    random = np.random.default_rng(5)
    rows, cols = np.mgrid[:SIZE, :SIZE]
    rain = np.zeros((frames, SIZE, SIZE))
    for row, col, width in random.uniform((10, 5, 4), (50, 45, 9), (5, 3)):
        for k in range(frames):
            y, x = rows - row - k, cols - col - 2 * k
            texture = 1 + 0.5 * np.sin(y / 2) * np.sin(x / 2)
            rain[k] += 8 * np.exp(-(y**2 + x**2) / width**2) * texture
    return np.where(rain > 0.1, rain, 0).astype(np.float32)


def window_of(rain_thw: npt.NDArray[np.float32], **changes: Any) -> Window:
    settings = {"valid_thw": None, "issue_s": 1_282_780_800, "frames_out": 3, "pixel_km": 1.0, "step_min": 5.0}
    return Window(**{"rain_mmh_thw": rain_thw, "seed": 7, "thresholds_mmh": (0.5, 2.0), **settings, **changes})


def called(method: Method, rain_thw: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Call pysteps as its examples do."""
    rain = rain_thw[-method.frames_in :].astype(np.float64)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from pysteps import nowcasts
        from pysteps.motion import get_method
        from pysteps.utils.transformation import dB_transform

        motion = get_method("LK")(10 * np.log10(np.maximum(rain[-3:], 0.1)))
        run = nowcasts.get_method(method.kind)
        decibels = dB_transform(rain, threshold=0.1, zerovalue=-15.0)[0]
        fixed: dict[str, Any] = {"kmperpixel": 1.0, "timestep": 5.0, "seed": 7}
        match method:
            case Sprog():
                return dB_transform(run(decibels, motion, 3, precip_thr=-10.0), threshold=-10.0, inverse=True)[0]
            case Anvil():
                return run(rain, motion, 3, ar_order=1)
            case Linda(members=0):
                return run(rain, motion, 3, add_perturbations=False)
            case Linda(members=members):
                return run(rain, motion, 3, n_ens_members=members, **fixed)
            case Steps(members=members):
                rain_dbr = run(decibels, motion, 3, n_ens_members=members, precip_thr=-10.0, **fixed)
                return dB_transform(rain_dbr, threshold=-10.0, inverse=True)[0]
            case _:
                return np.stack([run(rain[-1], motion, 3, threshold, slope=5) for threshold in (0.5, 2.0)])


@pytest.mark.parametrize("method", ALL, ids=str)
def test_a_method_is_pysteps_called_directly(method: Method, capfd: pytest.CaptureFixture[str]) -> None:
    rain = showers()
    result = forecast(method, window_of(rain))
    assert capfd.readouterr() == ("", "")
    assert result.dtype == np.float32
    assert np.isnan(result).any(), "something flows in"
    assert not np.isinf(result).any()
    with warnings.catch_warnings():
        expected = np.maximum(called(method, rain), 0)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)


def test_a_share_of_exactly_the_threshold_is_no_event() -> None:
    rain = np.where(showers() > 2, np.float32(2.0), np.float32(0))
    shares = forecast(LagrangianProbability(), window_of(rain, thresholds_mmh=(1.9, 2.0)))
    assert np.nanmax(shares[0]) > 0.5
    assert np.nanmax(shares[1]) == 0


def test_circles_grow_by_kilometres_a_minute() -> None:
    """Pixels of 2 km every 10 minutes see the circles of 1 km every 5, and a slope of 0 leaves the carried events."""
    rain = showers()
    coarse = forecast(LagrangianProbability(), window_of(rain, pixel_km=2.0, step_min=10.0))
    np.testing.assert_array_equal(coarse, forecast(LagrangianProbability(), window_of(rain)))
    sharp = forecast(LagrangianProbability(slope=0.0), window_of(rain))
    assert set(np.unique(sharp[~np.isnan(sharp)])) == {0.0, 1.0}


def global_state() -> bytes:
    key: npt.NDArray[np.uint32] = np.random.get_state(legacy=False)["state"]["key"]  # noqa: NPY002
    return key.tobytes()


@pytest.mark.parametrize("method", [Steps(members=3), pytest.param(Linda(members=2), marks=pytest.mark.slow)], ids=str)
def test_members_follow_from_the_seed_and_their_number_alone(method: Any) -> None:
    rain = showers()
    before = global_state()
    members = forecast(method, window_of(rain))
    np.testing.assert_array_equal(members, forecast(method, window_of(rain)))
    assert global_state() == before, "the global generator is left alone"
    assert not np.array_equal(members[0], members[1], equal_nan=True)
    other = forecast(method, window_of(rain, seed=8))
    assert not np.array_equal(members, other, equal_nan=True)
    if isinstance(method, Steps):
        fewer = forecast(replace(method, members=2), window_of(rain))
        np.testing.assert_array_equal(members[:2], fewer)


def thin(what: str) -> npt.NDArray[np.float32]:
    rain = showers()
    match what:
        case "no rain":
            rain[:] = 0
        case "only the last frame":
            rain[:-1] = 0
        case "not the last frame":
            rain[-1] = 0
        case "one pixel":
            rain[:] = 0
            rain[:, 30, 30] = 4
        case "the same everywhere":
            rain[:] = 2
    return rain


@pytest.mark.parametrize(
    "what", ["no rain", "only the last frame", "not the last frame", "one pixel", "the same everywhere"]
)
def test_rain_too_thin_to_estimate_anything_from_is_carried_on(what: str) -> None:
    rain = thin(what)
    for method in ALL:
        result = forecast(method, window_of(rain))
        assert not np.isinf(result).any()
        if isinstance(method, Anvil | LagrangianProbability):
            # They estimate what is there place by place, or nothing.
            assert np.nanmax(result) <= max(rain.max(), 1)
            continue
        carried = result if method.gives == "field" else result[0]
        # Nothing moves in any of these but by the frames before the last one.
        if what != "not the last frame":
            np.testing.assert_allclose(carried, np.stack([rain[-1]] * 3), rtol=1e-6)
        else:
            assert np.nanmax(carried) == 0
        if method.gives == "members":
            assert all(np.array_equal(member, result[0], equal_nan=True) for member in result)


@pytest.mark.parametrize("method", ALL, ids=str)
def test_what_was_not_measured_is_not_known_and_not_seen(method: Method) -> None:
    rain = showers()
    valid = np.ones(rain.shape, bool)
    valid[:, 20:30, 24:34] = False
    results = [
        forecast(method, window_of(np.where(valid, rain, np.float32(value)), valid_thw=valid)) for value in (0.0, 55.0)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    # The hole moves by 1 row and 2 columns a frame.
    for lead in range(3):
        row, col = 20 + lead + 1, 24 + 2 * (lead + 1)
        assert np.isnan(results[0][..., lead, row + 2 : row + 8, col + 2 : col + 8]).all()
    nothing = forecast(method, window_of(np.zeros_like(rain), valid_thw=np.zeros(rain.shape, bool)))
    assert np.isnan(nothing).all()


def test_a_failure_names_the_window_and_the_method() -> None:
    with pytest.raises(BaselineError, match=r"sprog: pysteps failed on the window issued at 2010-08-26T00:00Z \(.*\)"):
        forecast(Sprog(), window_of(showers()[:2]))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("steps", {"members": 0}, "members is 0; expected 1 to 1000"),
        ("linda", {"members": -1}, "members is -1; expected 0 to 1000"),
        ("linda", {"features": 0}, "features is 0; expected 1 to 1000"),
        ("sprog", {"levels": 0}, "levels is 0; expected 1 to 20"),
        ("anvil", {"order": 3}, "order is 3; expected 1 to 2"),
        ("lagrangian_probability", {"slope": float("nan")}, "slope is nan; expected 0 to 100"),
    ],
)
def test_options_outside_their_range_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHODS[kind](**options)


def test_workers_need_no_torch() -> None:
    code = (
        "import sys; from rainspark.models.baselines.methods import Steps, Window, forecast; import numpy as np\n"
        "rain = np.random.default_rng(0).gamma(0.5, 2.0, (3, 48, 48)).astype('f4')\n"
        "forecast(Steps(members=2), Window(rain_mmh_thw=rain, valid_thw=None, issue_s=0, frames_out=2, pixel_km=1.0, "
        "step_min=5.0))\n"
        "sys.exit('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
