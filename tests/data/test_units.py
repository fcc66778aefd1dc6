"""Rain units against published values, and model spaces there and back."""

from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rainspark.data.units import (
    KNMI_MMH_PER_COUNT,
    NL50_MAX_MM_5MIN,
    ModelSpace,
    dbz_to_mmh,
    depth_mm_5min_to_mmh,
    mmh_to_dbz,
    mmh_to_depth_mm_5min,
)

# Rain rate in mm/h of a reflectivity by Z = 200 R**1.6, as weather services tabulate it (for example the United States
# National Weather Service's and Wikipedia's table "DBZ (meteorology)": 5 dBZ 0.07, 10 0.15, 15 0.3, 20 0.6, ...).
PUBLISHED_MMH = (0.07, 0.15, 0.3, 0.6, 1.3, 2.7, 5.6, 11.53, 23.7, 48.6, 100, 205, 421)


@pytest.mark.parametrize(("reflectivity_dbz", "rain_mmh"), list(zip(range(5, 70, 5), PUBLISHED_MMH, strict=True)))
def test_marshall_palmer_matches_the_published_table(reflectivity_dbz: float, rain_mmh: float) -> None:
    digits = 0.005 if rain_mmh < 0.2 else 0.05 if rain_mmh < 50 else 0.5
    assert float(dbz_to_mmh(torch.tensor(float(reflectivity_dbz)))) == pytest.approx(rain_mmh, abs=digits * 1.01)


def test_one_knmi_count_is_a_hundredth_of_a_millimetre_in_five_minutes() -> None:
    assert float(depth_mm_5min_to_mmh(torch.tensor(0.01, dtype=torch.float64))) == pytest.approx(KNMI_MMH_PER_COUNT)
    assert float(mmh_to_depth_mm_5min(torch.tensor(0.12, dtype=torch.float64))) == pytest.approx(0.01)


@given(st.floats(1e-3, 1e3))
def test_reflectivity_there_and_back(rain_mmh: float) -> None:
    rain = torch.tensor(rain_mmh, dtype=torch.float64)
    assert float(dbz_to_mmh(mmh_to_dbz(rain))) == pytest.approx(rain_mmh, rel=1e-9)


def test_no_rain_has_no_reflectivity() -> None:
    assert float(mmh_to_dbz(torch.tensor(0.0))) == -torch.inf


@given(st.floats(0, 600), st.sampled_from(["linear", "log"]), st.floats(0.01, 600))
def test_model_space_there_and_back(rain_mmh: float, kind: Literal["linear", "log"], scale_mmh: float) -> None:
    space = ModelSpace(kind=kind, scale_mmh=scale_mmh)
    rain = torch.tensor(rain_mmh, dtype=torch.float64)
    assert float(space.to_mmh(space.from_mmh(rain))) == pytest.approx(rain_mmh, rel=1e-9, abs=1e-9)


def test_published_scale_maps_the_training_maximum_to_one() -> None:
    space = ModelSpace(kind="linear", scale_mmh=NL50_MAX_MM_5MIN * 12)
    rain = depth_mm_5min_to_mmh(torch.tensor([0.0, 47.83]))
    assert torch.allclose(space.from_mmh(rain), torch.tensor([0.0, 1.0]))


def test_log_space_and_clipping() -> None:
    space = ModelSpace(kind="log", scale_mmh=2.0, clip_mmh=10.0)
    values = space.from_mmh(torch.tensor([0.0, 2.0, 10.0, 99.0]))
    assert torch.allclose(values, torch.log1p(torch.tensor([0.0, 1.0, 5.0, 5.0])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "cubic", "scale_mmh": 1.0}, "'cubic' is unknown"),
        ({"kind": "log", "scale_mmh": 0.0}, "scale_mmh is 0.0"),
        ({"kind": "log", "scale_mmh": float("nan")}, "scale_mmh is nan"),
        ({"kind": "linear", "scale_mmh": 1.0, "clip_mmh": -1.0}, "clip_mmh is -1.0"),
    ],
)
def test_wrong_model_spaces_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSpace(**arguments)
