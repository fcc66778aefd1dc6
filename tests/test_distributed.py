"""The helper that other tests start their ranks with."""

import pytest
import torch
import torch.distributed as dist

from tests.distributed import RankError, run_ranks


def _sum_of_ranks(rank: int, offset: float) -> dict[str, torch.Tensor]:
    total = torch.tensor([rank + offset])
    dist.all_reduce(total)
    return {"total": total, "rank": torch.tensor(rank)}


def _fails_on_rank_one(rank: int) -> None:
    if rank == 1:
        raise RuntimeError("a rank that fails on purpose")
    dist.barrier()


def test_results_come_back_by_rank() -> None:
    results = run_ranks(_sum_of_ranks, 2, 0.5)
    assert [int(result["rank"]) for result in results] == [0, 1]
    assert all(result["total"].item() == 2.0 for result in results)


def test_the_traceback_of_a_failing_rank_is_raised() -> None:
    with pytest.raises(RankError, match=r"^rank 1:[\s\S]*a rank that fails on purpose"):
        run_ranks(_fails_on_rank_one, 2)
