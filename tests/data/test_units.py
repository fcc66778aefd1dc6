"""Model spaces: there and back, and the published scale."""

from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rainspark.data.units import NL50_MAX_MM_5MIN, ModelSpace


@given(st.floats(0, 600), st.sampled_from(["linear", "log"]), st.floats(0.01, 600))
def test_model_space_there_and_back(rain_mmh: float, kind: Literal["linear", "log"], scale_mmh: float) -> None:
    space = ModelSpace(kind=kind, scale_mmh=scale_mmh)
    rain = torch.tensor(rain_mmh, dtype=torch.float64)
    assert float(space.to_mmh(space.from_mmh(rain))) == pytest.approx(rain_mmh, rel=1e-9, abs=1e-9)


def test_published_scale_maps_the_training_maximum_to_one() -> None:
    space = ModelSpace(kind="linear", scale_mmh=NL50_MAX_MM_5MIN * 12)
    assert torch.allclose(space.from_mmh(torch.tensor([0.0, 12 * 47.83])), torch.tensor([0.0, 1.0]))


def test_log_space_and_clipping() -> None:
    space = ModelSpace(kind="log", scale_mmh=2.0, clip_mmh=10.0)
    values = space.from_mmh(torch.tensor([0.0, 2.0, 10.0, 99.0]))
    assert torch.allclose(values, torch.log1p(torch.tensor([0.0, 1.0, 5.0, 5.0])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "log", "scale_mmh": 0.0}, "scale_mmh is 0.0"),
        ({"kind": "log", "scale_mmh": float("nan")}, "scale_mmh is nan"),
        ({"kind": "linear", "scale_mmh": 1.0, "clip_mmh": -1.0}, "clip_mmh is -1.0"),
    ],
)
def test_wrong_model_spaces_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSpace(**arguments)
