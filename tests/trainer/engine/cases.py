"""What the ranks of the engine's tests run: a small network with everything that matters, on known batches."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rainspark.models.norm import BatchNorm2d
from rainspark.trainer.engine.engine import Engine, EngineState
from rainspark.trainer.settings.engine import EngineConfig
from rainspark.trainer.settings.optim import OptimConfig

BATCH = 8
STEPS = 20
SGD = OptimConfig(name="sgd", lr=0.1, clip_norm=1.0, weight_decay=0.01)
PLAIN_SGD = OptimConfig(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)
ADAMW = OptimConfig(name="adamw", lr=1e-3, clip_norm=1.0)
STAGES = (None, 0, 1, 2, 3)


@dataclass
class Output:
    """Not a tensor, as SparK's output is none: ZeRO 3 hooks itself to tensors."""

    prediction_b8: Tensor


class Net(nn.Module):
    """Convolutions, normalisation, a mask token, and weights that ZeRO 3 shares, one of them with an odd size."""

    def __init__(self, seed: int, *, norm: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.norm = BatchNorm2d(8) if norm else nn.Identity()
            self.mask_tokens = nn.ParameterList([nn.Parameter(0.1 * torch.randn(1, 8, 1, 1))])
            self.wide = nn.Linear(8 * 64, 127)
            self.odd = nn.Linear(127, 129)
            self.head = nn.Linear(129, 8)

    def forward(self, frames_bchw: Tensor) -> Output:
        maps = torch.relu(self.norm(self.conv(frames_bchw)) + self.mask_tokens[0])
        return Output(self.head(torch.tanh(self.odd(torch.tanh(self.wide(maps.flatten(1)))))))


def batch_of(step: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(BATCH, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)


def make_engine(
    stage: Any, optim: OptimConfig, *, seed: int = 0, precision: Any = "fp32", norm: bool = True, **settings: Any
) -> Engine:
    engine = Engine(EngineConfig(zero_stage=stage, precision=precision, device="cpu", timeout_s=60, **settings))
    engine.prepare(Net(seed, norm=norm), optim, micro_batch=BATCH)
    engine.model.train()
    return engine


def train_step(
    engine: Engine,
    step: int,
    *,
    rate: float = 1e-2,
    decay: float = 0.02,
    micro_steps: int = 1,
    poison: str | None = None,
    average_decay: float = 0.0,
) -> tuple[float, float, bool]:
    """Return (global loss, gradient norm, skipped).

    `poison` "input" puts a NaN into the last rank's last image, "flag" only says that the loss was not finite.
    """
    dtype = torch.float64 if engine.config.precision == "fp64" else torch.float32
    frames = batch_of(step, dtype)
    if poison == "input":
        frames[-1, 0, 0, 0] = torch.nan
    engine.start_step()
    loss_sum = torch.zeros((), dtype=torch.float64)
    for micro_step, micro in enumerate(frames.chunk(micro_steps)):
        own = micro.chunk(engine.world_size)[engine.rank]
        with engine.accumulate(last=micro_step == micro_steps - 1):
            output = engine.model(own).prediction_b8
        target = own.flatten(1)[:, :8]
        loss = (output.to(dtype) - target).square().sum()
        engine.backward(loss / (BATCH * 8))
        loss_sum += loss.detach().double()
    agreed = engine.sum_over_ranks(torch.stack([loss_sum, (~loss_sum.isfinite()).double()]))
    skip = torch.ones(()) if poison == "flag" else agreed[1]
    result = engine.update(rate=rate, decay=decay, skip=skip, average_decay=average_decay)
    return float(agreed[0]) / (BATCH * 8), float(result.grad_norm), bool(result.skipped)


def flat(state: EngineState) -> dict[str, Tensor]:
    """Everything of a state under one name each."""
    steps = {f"{name}.steps": torch.tensor(count) for name, count in state.optimizer_steps.items()}
    return {**state.model, **state.optimizer, **steps}


def take_over(engine: Engine, state: EngineState) -> None:
    """Import what rank 0 exported."""
    engine.import_state(engine.broadcast_object(state))


def run_steps(engine: Engine, optim: OptimConfig) -> dict[str, Any]:
    rate = 1e-2 if optim.name == "sgd" else 1e-3
    figures = [train_step(engine, step, rate=rate) for step in range(STEPS)]
    return {
        "losses": [figure[0] for figure in figures],
        "norms": [figure[1] for figure in figures],
        "state": flat(engine.export_state()),
    }


def fp64_run() -> dict[str, Any]:
    engine = make_engine(None, ADAMW, precision="fp64")
    result = run_steps(engine, ADAMW)
    result["buffers"] = {name: buffer.clone() for name, buffer in engine.bare_model.named_buffers()}
    engine.shutdown(clean=True)
    return result


def equality(stage: Any) -> dict[str, Any]:
    """Gradients from one state, and 20 steps of SGD and AdamW."""
    results: dict[str, Any] = {}
    engine = make_engine(stage, PLAIN_SGD)
    before = flat(engine.export_state())
    _, results["norm"], _ = train_step(engine, 0, rate=1024.0, decay=0.0)
    after = flat(engine.export_state())
    # w1 = w0 - 1024 g: the gradient of every engine, read the same way.
    names = [name for name, _ in engine.bare_model.named_parameters()]
    results["gradient"] = {name: (before[name] - after[name]) / 1024 for name in names if name in before}
    engine.shutdown(clean=True)
    for optim in (SGD, ADAMW):
        engine = make_engine(stage, optim)
        results[optim.name] = run_steps(engine, optim)
        engine.shutdown(clean=True)
    return results


def accumulation(stage: Any) -> dict[str, Any]:
    """Two steps in one and in four micro-batches, without normalisation, from the same state."""
    engine = make_engine(stage, ADAMW, norm=False)
    start = engine.export_state()
    states: list[Any] = []
    for micro_steps in (1, 2):
        take_over(engine, start)
        norms = [train_step(engine, step, micro_steps=micro_steps)[1] for step in range(3)]
        states.append((norms, flat(engine.export_state())))
    engine.shutdown(clean=True)
    return {"whole": states[0], "parts": states[1]}


def skipping(stage: Any, optim: OptimConfig) -> dict[str, Any]:
    """Bad steps at the start and in the middle, beside the same run without them."""
    engine = make_engine(stage, optim)
    start = engine.export_state()
    clean = [train_step(engine, step)[0] for step in range(3)]
    without = flat(engine.export_state())
    take_over(engine, start)
    results: dict[str, Any] = {"clean losses": clean, "without": without, "skipped": [], "unchanged": True}
    losses = []
    for step, poisons in ((0, ("input", "flag")), (1, ("flag", "input", "input")), (2, ())):
        for poison in poisons:
            before = flat(engine.export_state())
            results["skipped"].append(train_step(engine, 90, poison=poison, micro_steps=2)[2])
            results["unchanged"] &= equal(before, flat(engine.export_state()))
        loss, _, skipped = train_step(engine, step)
        losses.append(loss)
        results["skipped"].append(skipped)
    results["losses"] = losses
    results["with"] = flat(engine.export_state())
    engine.shutdown(clean=True)
    return results


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def resuming(stage: Any, precision: str) -> dict[str, Any]:
    """Four steps at once, and two, export, another engine of other weights, import, two more."""
    engine = make_engine(stage, ADAMW, precision=precision)
    for step in range(2):
        train_step(engine, step)
    middle = engine.export_state()
    first = [train_step(engine, step)[:2] for step in (2, 3)]
    end = flat(engine.export_state())
    engine.shutdown(clean=True)
    engine = make_engine(stage, ADAMW, seed=7, precision=precision)
    take_over(engine, middle)
    again = flat(engine.export_state())
    second = [train_step(engine, step)[:2] for step in (2, 3)]
    resumed = flat(engine.export_state())
    engine.shutdown(clean=True)
    return {
        "first": first,
        "second": second,
        "end": end,
        "resumed": resumed,
        "middle": flat(middle),
        "again": again,
        "loss_scale": middle.loss_scale,
    }


def resuming_everywhere(_rank: int) -> dict[str, Any]:
    """Stop and go on under every engine."""
    return {str(stage): resuming(stage, "fp32") for stage in STAGES}


def crossing() -> dict[str, Any]:
    """DDP -> ZeRO 2 -> ZeRO 3 -> DDP, nothing trained in between."""
    states: list[dict[str, Tensor]] = []
    state: EngineState | None = None
    for stage in (None, 2, 3, None):
        engine = make_engine(stage, ADAMW, seed=len(states))
        if state is None:
            for step in range(2):
                train_step(engine, step)
        else:
            take_over(engine, state)
        state = engine.export_state()
        states.append(flat(state))
        engine.shutdown(clean=True)
    return {"states": states}


def overflowing(stage: Any) -> dict[str, Any]:
    """One fp16 step with a loss scale far too large, then good ones."""
    engine = make_engine(stage, ADAMW, precision="fp16")
    state = engine.broadcast_object(engine.export_state())
    engine.import_state(dataclasses.replace(state, loss_scale=2.0**60))
    skipped = train_step(engine, 0)[2]
    after = engine.export_state()
    engine.import_state(dataclasses.replace(state, loss_scale=1024.0))
    figures = train_step(engine, 0)
    engine.shutdown(clean=True)
    return {
        "skipped": skipped,
        "unchanged": equal(flat(state), flat(after)) if engine.is_main else True,
        "scale": after.loss_scale,
        "figures": figures,
    }


def averaging(stage: Any) -> dict[str, Any]:
    """Three steps and a bad one with averaged weights; what is seen inside, and an engine that goes on from it."""
    optim = dataclasses.replace(SGD, ema_decay=0.5)
    engine = make_engine(stage, optim)
    for step, poison in ((0, None), (90, "input"), (1, None), (2, None)):
        train_step(engine, step, poison=poison, average_decay=0.5)
    state = engine.export_state()
    frames = batch_of(50, torch.float32).chunk(engine.world_size)[engine.rank]
    engine.model.eval()
    with engine.averaged(), torch.no_grad():
        inside = engine.export_state().model
        predicted = engine.model(frames).prediction_b8.clone()
    engine.model.train()
    after = engine.export_state()
    sent = engine.broadcast_object(state)
    train_step(engine, 3, average_decay=0.5)
    end = engine.export_state()
    engine.shutdown(clean=True)
    # What a bare model with the averaged weights makes of the same images.
    bare = Net(0).eval()
    bare.load_state_dict(sent.average)
    with torch.no_grad():
        expected = bare(frames).prediction_b8
    engine = make_engine(stage, optim, seed=7)
    engine.import_state(sent)
    train_step(engine, 3, average_decay=0.5)
    resumed = engine.export_state()
    engine.shutdown(clean=True)
    return {
        "model": state.model,
        "average": state.average,
        "inside": inside,
        "after": flat(after),
        "before": flat(state),
        "end": end.average,
        "resumed": resumed.average,
        "predicted": predicted,
        "expected": expected,
    }


def buffers_of_ranks() -> tuple[bool, dict[str, Any]]:
    """Whether the buckets were laid out for good before the first step, and the buffers after three."""
    engine = make_engine(None, ADAMW)
    settled = bool(engine.model._has_rebuilt_buckets)
    for step in range(3):
        train_step(engine, step)
    buffers = {name: buffer.clone() for name, buffer in engine.bare_model.named_buffers()}
    engine.shutdown(clean=True)
    return settled, buffers


def everything(rank: int) -> dict[str, Any]:
    """All that two ranks are asked, in one start of the processes."""
    results: dict[str, Any] = {"fp64": fp64_run()}
    results["settled"], results["buffers"] = buffers_of_ranks()
    for stage in STAGES:
        results[f"equality {stage}"] = equality(stage)
        results[f"accumulation {stage}"] = accumulation(stage)
        for optim in (SGD, ADAMW):
            results[f"skipping {stage} {optim.name}"] = skipping(stage, optim)
        for precision in ("fp32", "bf16", "fp16"):
            results[f"resuming {stage} {precision}"] = resuming(stage, precision)
        results[f"overflowing {stage}"] = overflowing(stage)
        results[f"averaging {stage}"] = averaging(stage)
    results["crossing"] = crossing()
    results["rank"] = rank
    return results
