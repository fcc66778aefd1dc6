"""What only a GPU can show: a step that never waits for the device, and the same losses as on a CPU."""

from pathlib import Path

import pytest
import torch

from rainspark.data.exit_codes import ExitCode
from rainspark.data.stream.stream import Batch
from rainspark.trainer.training.loop import Loop
from tests.integration.runs import arguments, make_shards, metrics, train

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("storms"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_steps_never_wait_for_the_device(
    shards: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Loop._train_step

    def watched(loop: Loop, step: int, batches: list[Batch]) -> object:
        # The first step loads kernels and makes optimizer state, which may wait.
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            return original(loop, step, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Loop, "_train_step", watched)
    argv = arguments(shards, tmp_path / "run", engine__device="cuda", engine__precision=precision, run__steps=4)
    assert train(argv) == ExitCode.DONE


def test_a_gpu_learns_what_a_cpu_learns(shards: Path, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        argv = arguments(shards, tmp_path / device, engine__device=device, engine__precision="fp64", run__steps=3)
        assert train(argv) == ExitCode.DONE
    for first, second in zip(metrics(tmp_path / "cpu"), metrics(tmp_path / "cuda"), strict=True):
        assert second == pytest.approx(first, rel=1e-6)
