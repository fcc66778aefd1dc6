"""LAMB under ZeRO: the trust ratio of whole parameters, whatever rank holds which part of them."""

from typing import Any

import numpy as np
import pytest

from tests.distributed import run_ranks
from tests.trainer.engine import lamb_cases
from tests.trainer.engine.cases import STAGES, equal
from tests.trainer.engine.lamb_cases import SHAPES, STEPS, reference


@pytest.fixture(scope="module", params=[2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 4))])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What every rank found, from one start of that many processes."""
    return run_ranks(lamb_cases.everything, request.param, request.param, timeout_s=240.0)


@pytest.mark.parametrize("stage", STAGES)
def test_lamb_is_the_slow_formula(ranks: list[dict[str, Any]], stage: int | None) -> None:
    found = ranks[0][f"plain {stage}"]
    weights, ratios = reference()
    for name in SHAPES:
        assert np.allclose(found[name].double().numpy(), weights[name], rtol=2e-5, atol=2e-6), name
        assert float(found[f"{name}.steps"]) == STEPS
    # One ratio for all, which is what a flat vector gives, would be far off.
    assert max(ratios["sp_cnn.layer1.1.weight"]) > 1.5 * max(ratios["head.weight"])
    assert set(ratios["head.bias"]) == {1.0}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_parts_give_what_the_whole_gives(ranks: list[dict[str, Any]], stage: int) -> None:
    """Bit for bit where the gradients are: a third is no float."""
    whole, found = ranks[0]["plain None"], ranks[0][f"plain {stage}"]
    if len(ranks) != 3:
        assert equal(found, whole)
    assert whole.keys() == found.keys()
    for name, value in whole.items():
        assert np.allclose(found[name].numpy(), value.numpy(), rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("stage", STAGES)
def test_a_bad_gradient_on_one_rank_leaves_lamb_as_it_was(ranks: list[dict[str, Any]], stage: int | None) -> None:
    for rank in ranks:
        assert rank[f"skipped {stage}"]
        assert rank.get(f"net {stage}", True)
