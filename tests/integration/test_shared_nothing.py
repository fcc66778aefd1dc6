"""Nodes that see only their own disks: the main rank reads the checkpoint, and gives it to all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.fault_server import FaultServer
from tests.integration.faults import share_small, train_apart
from tests.integration.runs import equal, tensors
from tests.integration.runs import smallest_arguments as arguments

HOURS = 3


@pytest.mark.parametrize("stage", ["null", *(pytest.param(stage, marks=pytest.mark.slow) for stage in "0123")])
def test_only_the_main_rank_needs_the_folders(shards: Path, tmp_path: Path, server: FaultServer, stage: str) -> None:
    """Stopped and resumed bit for bit while the other node's folder stays empty; weights to start from alike."""
    apart = tmp_path / "of another node"

    def train(run: Path, stop: int | None = None, **settings: object) -> list[int]:
        source = {"init_from": apart / "nothing"} if "init_from" in settings else {}
        settings["engine__zero_stage"] = stage
        argvs = [arguments(shards, run, **settings), arguments(shards, apart / run.name, **settings | source)]
        ended = server.run(train_apart, argvs, stop, ranks=2)
        assert set(ended.codes) <= {0, 75}, ended
        return ended.codes

    whole, stopped, started = (tmp_path / name for name in ("whole", "stopped", "started"))
    averaged: dict[str, Any] = {} if stage == "3" else {"optim__ema_decay": 0.9}
    if stage == "1":
        # Pictures, the best checkpoint and the metrics of an evaluation are the main rank's too.
        averaged |= {"data__validation_share": 0.25, "run__evaluate_every": 2}
    assert train(whole, **averaged) == [0, 0]
    assert train(stopped, 2, **averaged) == [75, 75]
    assert train(stopped, **averaged) == [0, 0]
    assert equal(tensors(stopped), tensors(whole))
    assert train(started, init_from=stopped / "checkpoints" / "step-00000004", optim__lr=1e-9) == [0, 0]
    # Of a run with averaged weights these are taken, and a step of so small a rate leaves them.
    name = "ema.safetensors" if averaged else "model.safetensors"
    average, weights = load_file(stopped / "checkpoints" / "step-00000004" / name), tensors(started)
    assert all(torch.allclose(weights[name], average[name], atol=1e-6) for name in average if name.endswith("weight"))
    assert not apart.exists()


def test_every_type_and_shape_arrives(tmp_path: Path, server: FaultServer) -> None:
    ended = server.run(share_small, str(tmp_path), ranks=2)
    assert ended.codes == [0, 0], ended
    for part in ("model", "optimizer"):
        expected = (tmp_path / f"{part}-expected.safetensors").read_bytes()
        assert [(tmp_path / f"{part}-{rank}.safetensors").read_bytes() for rank in (0, 1)] == [expected] * 2
