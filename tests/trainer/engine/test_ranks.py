"""What two ranks compute: equal to one process, equal under DDP and ZeRO, skipped together, resumed bit for bit."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed import run_ranks
from tests.trainer.engine import cases as engine_cases
from tests.trainer.engine.cases import STAGES, equal


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """Everything that two ranks found, from one start of the processes."""
    return run_ranks(engine_cases.everything, 2, timeout_s=400.0)


@pytest.fixture(scope="module")
def main(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """What rank 0 found."""
    return ranks[0]


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm, of all tensors together."""
    assert left.keys() == right.keys()
    off = sum(float((left[name].double() - right[name].double()).square().sum()) for name in left)
    return math.sqrt(off / sum(float(value.double().square().sum()) for value in right.values()))


def loss_distance(left: list[float], right: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(left, right, strict=True))


def test_two_processes_equal_one_in_float64(main: dict[str, Any]) -> None:
    one, two = engine_cases.fp64_run(), main["fp64"]
    assert len(one["losses"]) == 20
    assert loss_distance(two["losses"], one["losses"]) < 1e-9
    assert loss_distance(two["norms"], one["norms"]) < 1e-9
    assert distance(two["state"], one["state"]) < 1e-9
    assert distance(two["buffers"], one["buffers"]) < 1e-9
    assert all(
        value.dtype in (torch.float64, torch.int64) for name, value in one["state"].items() if "steps" not in name
    )


def test_buffers_are_bit_equal_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    assert int(ranks[0]["buffers"]["norm.num_batches_tracked"]) == 3
    assert equal(ranks[0]["buffers"], ranks[1]["buffers"])


def test_buckets_are_laid_out_before_the_first_step(ranks: list[dict[str, Any]]) -> None:
    """Else more than two ranks would add up the first step after a resume in another order; see the test on four."""
    assert [rank["settled"] for rank in ranks] == [True, True]


def test_only_rank_0_is_given_the_state(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["crossing"]["states"] == [{}] * 4
    assert ranks[1]["equality 3"]["adamw"]["losses"] == ranks[0]["equality 3"]["adamw"]["losses"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_equals_ddp(main: dict[str, Any], stage: int) -> None:
    ddp, zero = main["equality None"], main[f"equality {stage}"]
    assert distance(zero["gradient"], ddp["gradient"]) < 1e-5
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in ddp["gradient"].values()))
    assert ddp["norm"] == pytest.approx(norm, rel=1e-5)
    assert zero["norm"] == pytest.approx(norm, rel=1e-5)
    for name, bound in (("sgd", 1e-5), ("adamw", 2e-3)):
        assert loss_distance(zero[name]["losses"], ddp[name]["losses"]) < bound
        assert distance(zero[name]["state"], ddp[name]["state"]) < bound


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_equals_none(main: dict[str, Any], stage: Any) -> None:
    (norms, whole), (parts_norms, parts) = (
        main[f"accumulation {stage}"]["whole"],
        main[f"accumulation {stage}"]["parts"],
    )
    assert parts_norms == pytest.approx(norms, rel=1e-5)
    assert distance(parts, whole) < 1e-5


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("stage", STAGES)
def test_bad_steps_leave_everything_as_it_was(ranks: list[dict[str, Any]], stage: Any, optim: str) -> None:
    for rank in ranks:
        found = rank[f"skipping {stage} {optim}"]
        assert found["skipped"] == [True, True, False, True, True, True, False, False]
        assert found["unchanged"]
        assert found["losses"] == found["clean losses"]
        assert equal(found["with"], found["without"])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_resume_is_bit_identical(main: dict[str, Any], stage: Any, precision: str) -> None:
    found = main[f"resuming {stage} {precision}"]
    assert equal(found["middle"], found["again"])
    assert found["first"] == found["second"]
    assert equal(found["end"], found["resumed"])
    assert not equal(found["middle"], found["end"])
    assert (found["loss_scale"] is not None) == (precision == "fp16")
    assert all(value.dtype != torch.bfloat16 for value in found["end"].values())


@pytest.mark.slow
def test_resume_is_bit_identical_on_four_ranks() -> None:
    """Where more than two add up, the order of a sum depends on where a gradient stands in a bucket."""
    for stage, found in run_ranks(engine_cases.resuming_everywhere, 4, timeout_s=400.0)[0].items():
        assert found["first"] == found["second"], stage
        assert equal(found["end"], found["resumed"]), stage


@pytest.mark.parametrize("stage", STAGES)
def test_precision_changes_the_numbers_a_little(main: dict[str, Any], stage: Any) -> None:
    exact = main[f"resuming {stage} fp32"]["first"][0][0]
    for precision in ("bf16", "fp16"):
        other = main[f"resuming {stage} {precision}"]["first"][0][0]
        assert other != exact
        assert other == pytest.approx(exact, rel=2e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_fp16_overflow_is_skipped_and_halves_the_scale(main: dict[str, Any], stage: Any) -> None:
    found = main[f"overflowing {stage}"]
    assert found["skipped"]
    assert found["unchanged"]
    assert found["scale"] == 2.0**59
    assert not found["figures"][2]
    assert found["figures"][1] == pytest.approx(main["overflowing None"]["figures"][1], rel=1e-5)


def test_state_crosses_engines_unchanged(main: dict[str, Any]) -> None:
    ddp, zero2, zero3, back = main["crossing"]["states"]
    assert equal(ddp, zero2)
    assert equal(ddp, zero3)
    assert equal(ddp, back)
    assert {
        "odd.weight",
        "odd.weight.exp_avg",
        "odd.weight.exp_avg_sq",
        "odd.weight.steps",
        "norm.running_mean",
    } <= set(ddp)
    assert float(ddp["odd.weight.steps"]) == 2


@pytest.mark.parametrize("stage", STAGES)
def test_averaged_weights_are_the_same_with_and_without_zero(
    ranks: list[dict[str, Any]], main: dict[str, Any], stage: int | None
) -> None:
    for rank in ranks:
        seen = rank[f"averaging {stage}"]
        assert torch.allclose(seen["predicted"], seen["expected"], rtol=1e-5, atol=1e-6), "what is evaluated"
    found, plain = main[f"averaging {stage}"], main["averaging None"]
    assert equal(found["inside"], found["average"]), "what is evaluated and kept as the best is the average"
    assert equal(found["before"], found["after"]), "the weights come back bit for bit"
    assert equal(found["end"], found["resumed"])
    assert not equal(found["average"], found["model"])
    assert int(found["average"]["norm.num_batches_tracked"]) == 3
    assert distance(found["average"], plain["average"]) < 1e-5
    assert distance(found["end"], plain["end"]) < 1e-5
