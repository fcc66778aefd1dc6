"""Optimizers, parameter groups and schedules: all of them pure functions of the configuration and the step."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..settings.optim import OptimConfig

BATCH_OF_LR = 256
MASK_TOKENS = "mask_tokens"
ENCODER_STAGE = re.compile(r"\bsp_cnn\.layer(\d+)\.(\d+)\.")
ENCODER_STEM = re.compile(r"\bsp_cnn\.(?:conv1|bn1)\.")


def rate_at(config: OptimConfig, step: int, total_steps: int, global_batch: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to `min_lr_share` of the peak.

    The peak is reached at step `warmup_steps`; the lowest rate is the last step's. With b = global_batch / 256 it is
    lr * b (`linear`, Goyal et al. 2017, https://arxiv.org/abs/1706.02677), lr * sqrt(b) (`sqrt`, Krizhevsky 2014,
    https://arxiv.org/abs/1404.5997; the rule by which You et al. 2019, https://arxiv.org/abs/1904.00962, take LAMB to
    batches of 32k without tuning it again), or lr (`none`).

    Args:
        config: The schedule.
        step: Global step, 0 to total_steps - 1.
        total_steps: Steps of the run.
        global_batch: Windows an update.
    """
    # The peak for this batch size, then warm-up, then the cosine.
    exponent = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[config.lr_scaling]
    peak = config.lr * (global_batch / BATCH_OF_LR) ** exponent
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    share = _cosine(step - config.warmup_steps, total_steps - config.warmup_steps)
    return peak * (config.min_lr_share + (1 - config.min_lr_share) * share)


def decay_at(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the weight decay of a step: a cosine from `weight_decay` to `weight_decay_end` (as SparK's)."""
    if config.weight_decay_end is None:
        return config.weight_decay
    return config.weight_decay_end + (config.weight_decay - config.weight_decay_end) * _cosine(step, total_steps)


def average_decay_at(config: OptimConfig, step: int) -> float:
    """Return the decay of the averaged weights after a step: min(decay, (1 + step) / (10 + step)).

    The early steps count for little of a long average (the rule of TensorFlow's `ExponentialMovingAverage`).
    """
    return min(config.ema_decay or 0.0, (1 + step) / (10 + step))


def _cosine(step: int, steps: int) -> float:
    """Half a cosine, 1 at step 0 and 0 at the last."""
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / max(1, steps - 1)))


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Sort trainable parameters into those that decay and those that do not, and by their share of the learning rate.

    Biases, norms (ndim <= 1) and mask tokens do not decay. The share is `layer_decay` to the power of the residual
    blocks that lie between a parameter and the encoder's end, as in BEiT (Bao et al. 2022,
    https://arxiv.org/abs/2106.08254, appendix): the stem counts as a block before the first.

    Returns:
        Groups for torch's optimizers, in the order of `named_parameters`, decaying ones first, each with `names`
        beside `params`, and with `decays` and `rate_share`, which `set_schedule` reads.
    """
    # Frozen blocks count as well: freezing some leaves the rates of the others.
    depths = _block_depths(name for name, _ in model.named_parameters())
    last = max(depths.values(), default=0) + 1
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and MASK_TOKENS not in name.split(".")
        share = config.layer_decay ** (last - depths.get(name, last))
        new = {"params": [], "names": [], "decays": decays, "rate_share": share}
        group = groups.setdefault((decays, share), new)
        group["params"].append(parameter)
        group["names"].append(name)

    if not groups:
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")
    for (decays, _), group in groups.items():
        group["weight_decay"] = config.weight_decay if decays else 0.0
    return sorted(groups.values(), key=lambda group: not group["decays"])


def _block_depths(names: Iterable[str]) -> dict[str, int]:
    """Number the encoder's parameters by residual block, 0 for the stem; others are left out."""
    blocks: dict[str, tuple[int, int]] = {}
    for name in names:
        if (block := ENCODER_STAGE.search(name)) is not None:
            blocks[name] = (int(block.group(1)), int(block.group(2)))
        elif ENCODER_STEM.search(name) is not None:
            blocks[name] = (0, 0)
    # Stages and blocks in the order of the forward pass.
    order = {block: depth for depth, block in enumerate(sorted(set(blocks.values())))}
    return {name: order[block] for name, block in blocks.items()}


def set_schedule(optimizer: torch.optim.Optimizer, rate: float, decay: float) -> None:
    """Write one step's learning rate and weight decay into every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_share"]
        group["weight_decay"] = decay if group["decays"] else 0.0


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimConfig, lamb: "type[Lamb] | None" = None
) -> torch.optim.Optimizer:
    """Build the optimizer; each skips its update on the device where its attribute `found_inf` holds 1.

    Args:
        groups: Of `parameter_groups`.
        config: The optimizer.
        lamb: Class for `lamb`; None: `Lamb`.
    """
    if config.name == "lamb":
        return (lamb or Lamb)(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def moment_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Name the moments that the optimizer keeps a parameter, each of the parameter's shape."""
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    return ("exp_avg", "exp_avg_sq")


def counts_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer keeps a step count a parameter (`step`)."""
    return not isinstance(optimizer, torch.optim.SGD)


def fresh_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Make the state that the optimizer's first step would make.

    Made before that step, so that a checkpoint of step 0 is complete, and a skipped first step of torch's fused SGD
    does not leave an uninitialised momentum behind.
    """
    state = {name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in moment_names(optimizer)}
    if counts_steps(optimizer):
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return state


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2019, https://arxiv.org/abs/1904.00962, algorithm 2), as the published recipe's timm uses it.

    Adam's update with bias correction, plus weight decay, scaled a parameter by |weight| / |update|. As in timm
    1.0.31 (`timm/optim/lamb.py`, `always_adapt=False`) parameters without decay keep the plain Adam update, and a
    ratio with a zero norm is 1. Clipping by global norm is the engine's, not the optimizer's.

    State a parameter: `exp_avg`, `exp_avg_sq` (its shape) and `step` (float32 scalar), as torch's AdamW keeps them.
    Where the attribute `found_inf` (a scalar tensor) holds anything but 0, the step changes neither weights nor state;
    that is decided on the device.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(fresh_state(self, parameter))
        beta1, beta2 = group["betas"]

        # Adam's update. float64: the powers of beta2 lose their last digits in float32, and they are a scalar each.
        step = state["step"] + 1
        correction1 = 1 - torch.pow(torch.full_like(step, beta1, dtype=torch.float64), step)
        correction2 = 1 - torch.pow(torch.full_like(step, beta2, dtype=torch.float64), step)
        exp_avg = torch.lerp(state["exp_avg"], gradient, 1 - beta1)
        exp_avg_sq = (state["exp_avg_sq"] * beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (exp_avg_sq.sqrt() / correction2.sqrt().to(exp_avg_sq.dtype)).add_(group["eps"])
        update = (exp_avg / correction1.to(exp_avg.dtype)).div_(root)

        # Decay, and the trust ratio of the whole.
        if group["decays"]:
            update.add_(parameter, alpha=group["weight_decay"])
            self._scale(parameter, update)

        # Write it all, or nothing where the step is skipped.
        moved = torch.add(parameter, update, alpha=-group["lr"])
        new = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "step": step}
        for target, value in [(parameter, moved), *((state[name], value) for name, value in new.items())]:
            target.copy_(value if self.found_inf is None else torch.where(self.found_inf != 0, target, value))

    def _scale(self, parameter: Tensor, update: Tensor) -> None:
        """Multiply an update by its parameter's trust ratio."""
        update.mul_(trust_ratio(square_norm(parameter), square_norm(update)).to(update.dtype))


def square_norm(values: Tensor) -> Tensor:
    """Sum the squares in float64: in float32 the sum would depend on the order, and so on how a parameter is cut."""
    return torch.linalg.vector_norm(values, dtype=torch.float64).square()


def trust_ratio(weight_square: Tensor, update_square: Tensor) -> Tensor:
    """Return |weight| / |update| from the squared norms, and 1 where either is zero."""
    ratio = weight_square.sqrt() / update_square.sqrt()
    return torch.where((weight_square > 0) & (update_square > 0), ratio, 1.0)
