"""What the ranks of LAMB's tests run: weights under gradients that come out the same however they are summed."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rainspark.trainer.engine.engine import Engine, EngineState
from rainspark.trainer.settings.engine import EngineConfig
from rainspark.trainer.settings.optim import OptimConfig
from tests.trainer.engine.cases import STAGES, equal, flat, skipping

WINDOWS = 12
STEPS = 8
BAD_STEP = 5
LAMB = OptimConfig(name="lamb", lr=1.0, weight_decay=0.1, layer_decay=0.5)
# The network's batch does not go into three.
NETWORK_ON = (1, 4)
# What ZeRO cuts at odd places; the largest is above what stage 3 keeps whole on every rank.
SHAPES = {
    "sp_cnn.layer1.0.weight": (3, 5, 3),
    "sp_cnn.layer1.0.bias": (7,),
    "sp_cnn.layer1.1.weight": (101, 103),
    "sp_cnn.layer1.1.bias": (1,),
    "head.weight": (11, 2),
    "head.bias": (13,),
}


def rate_of(step: int) -> float:
    return 0.01 * (step + 1)


def decay_of(step: int) -> float:
    return 0.1 + 0.02 * step


def slopes(step: int) -> dict[str, npt.NDArray[np.float32]]:
    """The gradient of every window, (windows, *shape), in eighths: sums of them are exact in any order."""
    rng = np.random.default_rng(100 + step)
    return {
        name: (rng.integers(-8, 9, size=(WINDOWS, *shape)) / 8).astype(np.float32) for name, shape in SHAPES.items()
    }


class Piece(nn.Module):
    """A weight and a bias whose gradients are given."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(len(prefix))
        size = 0.25 if prefix == "head" else 1.0
        self.weight = nn.Parameter(size * torch.randn(SHAPES[f"{prefix}.weight"], generator=generator))
        # A zero norm: the ratio of the first step is 1.
        self.bias = nn.Parameter(torch.zeros(SHAPES[f"{prefix}.bias"]))
        self.prefix = prefix

    def forward(self, factors: dict[str, Tensor]) -> Tensor:
        weight = (self.weight * factors[f"{self.prefix}.weight"]).sum()
        return weight + (self.bias * factors[f"{self.prefix}.bias"]).sum()


class Slopes(nn.Module):
    """Three pieces, two of them at the places of an encoder's blocks, which have rates of their own."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Piece(f"sp_cnn.layer1.{block}") for block in range(2)]
        self.sp_cnn = nn.ModuleDict({"layer1": nn.ModuleList(blocks)})
        self.head = Piece("head")

    def forward(self, factors: dict[str, Tensor]) -> Tensor:
        total: Tensor = self.head(factors)
        for module in self.sp_cnn.modules():
            if isinstance(module, Piece):
                total = total + module(factors)
        return total


def soil_padding(engine: Engine) -> None:
    """Put numbers where ZeRO 3 fills up parts that do not come out even: DeepSpeed leaves there what memory held."""
    zero: Any = engine.model.optimizer
    for parameter in engine.bare_model.parameters():
        group, start, size = zero.grad_position[zero.get_param_id(parameter)]
        own = max(0, min(size, parameter.ds_numel - engine.rank * size))  # type: ignore[attr-defined]
        zero.fp32_partitioned_groups_flat[group].data[start + own : start + size] = 1e3


def lamb_steps(stage: Any, *, bad_step: int | None = None) -> EngineState:
    """Train in two micro-batches a step; `bad_step` is done once more, with a gradient that is not finite on rank 0."""
    engine = Engine(EngineConfig(zero_stage=stage, device="cpu", timeout_s=60))
    engine.prepare(Slopes(), LAMB, micro_batch=WINDOWS // 2)
    engine.model.train()
    if stage == 3:
        soil_padding(engine)
    good = [(step, False) for step in range(STEPS)]
    for step, bad in good if bad_step is None else [*good[:bad_step], (bad_step, True), *good[bad_step:]]:
        given = {name: torch.from_numpy(values) for name, values in slopes(step).items()}
        engine.start_step()
        for micro_step in range(2):
            own = slice(micro_step * engine.world_size + engine.rank, None, 2 * engine.world_size)
            share = {name: values[own].sum(0) for name, values in given.items()}
            if bad and engine.rank == micro_step == 0:
                share["head.weight"][0, 0] = torch.inf
            with engine.accumulate(last=micro_step == 1):
                loss = engine.model(share)
            engine.backward(loss)
        result = engine.update(rate=rate_of(step), decay=decay_of(step), skip=torch.zeros(()))
        assert bool(result.skipped) == bad
    state = engine.export_state()
    engine.shutdown(clean=True)
    return state


def reference() -> tuple[dict[str, npt.NDArray[np.float64]], dict[str, list[float]]]:
    """LAMB in float64, a parameter at a time (algorithm 2 of You et al. 2019): weights, and ratios by step."""
    blocks = {"sp_cnn.layer1.0": 0.25, "sp_cnn.layer1.1": 0.5, "head": 1.0}
    weights = {name: value.detach().double().numpy() for name, value in Slopes().named_parameters()}
    first = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    second = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    ratios: dict[str, list[float]] = {name: [] for name in SHAPES}
    for step in range(STEPS):
        gradients = {name: values.astype(np.float64).sum(0) for name, values in slopes(step).items()}
        for name, weight in weights.items():
            gradient = gradients[name]
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.95 * second[name] + 0.05 * np.square(gradient)
            root = np.sqrt(second[name] / (1 - 0.95 ** (step + 1))) + 1e-6
            update, ratio = first[name] / (1 - 0.9 ** (step + 1)) / root, 1.0
            if weight.ndim > 1:
                update = update + decay_of(step) * weight
                ratio = float(np.linalg.norm(weight.ravel()) / np.linalg.norm(update.ravel()))
            ratios[name].append(ratio)
            weights[name] = weight - rate_of(step) * blocks[name.rpartition(".")[0]] * ratio * update
    return weights, ratios


def everything(rank: int, world_size: int) -> dict[str, Any]:
    """All that the ranks are asked, in one start of the processes; a whole network too on some."""
    results: dict[str, Any] = {"rank": rank}
    for stage in STAGES:
        results[f"plain {stage}"] = flat(lamb_steps(stage))
        results[f"skipped {stage}"] = equal(flat(lamb_steps(stage, bad_step=BAD_STEP)), results[f"plain {stage}"])
        if world_size not in NETWORK_ON:
            continue
        net = skipping(stage, dataclasses.replace(LAMB, layer_decay=1.0))
        results[f"net {stage}"] = net["unchanged"] and equal(net["with"], net["without"])
    return results
