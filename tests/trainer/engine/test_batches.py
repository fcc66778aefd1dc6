"""Global batches of 32k windows: planned, accumulated over a thousand micro-batches, in the memory of one."""

import gc

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rainspark.data.windows.mixing import BatchLayout
from rainspark.data.windows.plan import plan
from rainspark.data.windows.selection import Selection, select_windows
from rainspark.trainer.engine.engine import Engine
from rainspark.trainer.settings.engine import EngineConfig
from rainspark.trainer.settings.optim import OptimConfig
from tests.data.archives import index_in_memory

GLOBAL_BATCH, MICRO_BATCH = 32768, 32
MICRO_STEPS = GLOBAL_BATCH // MICRO_BATCH
RATE = 4.0


class Rows(nn.Module):
    """A weighted sum of each window's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(6, 1, bias=False)

    def forward(self, x_bn: Tensor) -> Tensor:
        return self.weights(x_bn)[:, 0]


def make_windows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers and target of every window, and whether it counts: whole micro-batches have none that do."""
    rng = np.random.default_rng(0)
    x_bn = rng.normal(size=(GLOBAL_BATCH, 6)).astype(np.float32)
    y_b = rng.normal(size=GLOBAL_BATCH).astype(np.float32)
    counts_b = rng.random(GLOBAL_BATCH) < 0.7
    counts_b[5 * MICRO_BATCH : 9 * MICRO_BATCH] = False
    return x_bn, y_b, counts_b


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_a_gradient_of_32k_windows_is_the_slow_mean() -> None:
    x_bn, y_b, counts_b = make_windows()
    optim = OptimConfig(name="sgd", momentum=0.0, weight_decay=0.0)
    engine = Engine(EngineConfig(device="cpu"))
    engine.prepare(Rows(), optim, micro_batch=MICRO_BATCH)
    before = engine.export_state().model["weights.weight"].double().numpy()[0]
    num_terms, sizes = int(counts_b.sum()), []
    engine.start_step()
    for micro_step in range(MICRO_STEPS):
        own = slice(micro_step * MICRO_BATCH, (micro_step + 1) * MICRO_BATCH)
        with engine.accumulate(last=micro_step == MICRO_STEPS - 1):
            output_b = engine.model(torch.from_numpy(x_bn[own]))
        error_b = (output_b - torch.from_numpy(y_b[own])).square()
        engine.backward((error_b * torch.from_numpy(counts_b[own])).sum() / num_terms)
        del output_b, error_b
        if micro_step in (MICRO_STEPS // 8, MICRO_STEPS - 2):
            sizes.append(live_tensors())
    result = engine.update(rate=RATE, decay=0.0, skip=torch.zeros(()))
    after = engine.export_state().model["weights.weight"].double().numpy()[0]
    engine.shutdown(clean=True)
    assert sizes[1] <= sizes[0], "memory grows with the number of micro-batches"
    gradient = np.zeros(6)
    for x_n, y, counts in zip(x_bn.astype(np.float64), y_b.astype(np.float64), counts_b, strict=True):
        gradient += counts * 2 * (x_n @ before - y) * x_n / num_terms
    assert np.allclose((before - after) / RATE, gradient, rtol=1e-4, atol=1e-6)
    assert float(result.grad_norm) == pytest.approx(float(np.linalg.norm(gradient)), rel=1e-4)


def test_a_global_batch_of_32k_is_planned() -> None:
    """Any number of processes that divides the micro-batch reads it; each window once, in a thousand micro-batches."""
    index = index_in_memory([1000] * 80, window=24, max_frames=144, num_shards=16)
    table = select_windows(index, Selection(window=24))
    assert len(table) > 2 * GLOBAL_BATCH
    layout = BatchLayout(seed=1, global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH, lanes=32, block_bytes=2**26)
    rows_sab = plan(index, table, layout, epoch=0)
    assert rows_sab.shape == (len(table) // GLOBAL_BATCH, MICRO_STEPS, MICRO_BATCH)
    assert len(np.unique(rows_sab)) == rows_sab.size
