"""Train where every rank holds all weights and moments: one process, DistributedDataParallel, ZeRO 0."""

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .averaging import Parts
from .optimizers import set_schedule


@dataclass(frozen=True)
class UpdateResult:
    """What an update did, on the device.

    Attributes:
        grad_norm: Global norm of the gradient before clipping, scalar; inf or NaN when the step was skipped for it.
        skipped: Whether weights, moments, step counts and buffers stayed as before the step, bool scalar; the same on
            all ranks.
    """

    grad_norm: Tensor
    skipped: Tensor


class LossScale:
    """Dynamic loss scale of fp16, kept and adapted on the device, as torch.amp.GradScaler does.

    It starts at 2**12, lower than GradScaler's 2**16: our losses are means, and steps that are lost to the search for
    a scale count as not finite.
    """

    INITIAL, GROWTH, BACKOFF, INTERVAL = 4096.0, 2.0, 0.5, 2000

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), self.INITIAL, device=device)
        self._good_steps = torch.zeros((), device=device)

    def update(self, overflowed: Tensor, judged: Tensor) -> None:
        """Halve the scale after a gradient that overflowed, double it after 2000 good ones in a row.

        Args:
            overflowed: Whether the gradient was not finite, bool scalar.
            judged: Whether the step says anything about the scale, bool scalar: the loss is computed without it, so
                one that is not finite, or has no terms, leaves scale and count as they are.
        """
        # All of it on the device: the host does not know whether a gradient overflowed.
        good = torch.where(overflowed, 0.0, self._good_steps + 1)
        grow = good >= self.INTERVAL
        factor = torch.where(overflowed, self.BACKOFF, torch.where(grow, self.GROWTH, 1.0))
        self.value.mul_(torch.where(judged, factor, 1.0))
        self._good_steps.copy_(torch.where(judged, torch.where(grow, 0.0, good), self._good_steps))

    @property
    def good_steps(self) -> int:
        """Good gradients in a row since the scale last changed; waits for the device."""
        return int(self._good_steps)

    def restore(self, value: float, good_steps: int) -> None:
        """Take over a saved scale and its count of good steps."""
        self.value.fill_(value)
        self._good_steps.fill_(good_steps)


def settle_buckets(model: nn.Module) -> None:
    """Have DistributedDataParallel lay out its buckets for good, before the first step.

    It lays them out anew after the first backward pass, in the order in which gradients came. Where a gradient stands
    decides in which order more than two ranks add it up, so the first step after a resume would round unlike that step
    of a run that went on.
    """
    if isinstance(model, DistributedDataParallel):
        for _ in range(2):
            model(None).backward()
            model.zero_grad(set_to_none=True)


class Backend(Protocol):
    """One way to train a wrapped model; `Engine` adds what all of them share."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    parts: Parts | None

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Run a forward pass inside; gradients are summed over ranks after the backward of the last one only."""

    def backward(self, loss: Tensor) -> None:
        """Add the loss' gradient, scaled so that the sum over ranks comes out."""

    def update(self, rate: float, decay: float, skip: Tensor) -> UpdateResult:
        """Clip and step, or skip on all ranks where `skip`, a scalar, is above 0."""

    def read_parameter(self, parameter: nn.Parameter) -> Tensor:
        """Return the complete parameter; collective."""

    def write_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set the complete parameter, with the same value on all ranks; collective."""

    def read_moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        """Return a parameter's complete moment; collective."""

    def write_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        """Set a parameter's complete moment, with the same value on all ranks."""

    def read_steps(self, parameters: dict[str, nn.Parameter]) -> dict[str, float]:
        """Return the updates done, by parameter name."""

    def write_steps(self, parameters: dict[str, nn.Parameter], steps: dict[str, float]) -> None:
        """Set the updates done."""

    def close(self) -> None:
        """Let go of hooks and buffers; no collective."""


class Replicated:
    """Trains a model of which every rank holds everything; the device decides, and the host never waits.

    Args:
        model: The wrapped model: plain, DistributedDataParallel, or DeepSpeed's engine at stage 0.
        optimizer: Ours.
        world_size: Ranks whose gradients the wrapper averages.
        clip_norm: Largest global gradient norm, None for no clipping.
        scale: Dynamic loss scale (fp16) or None.
        deepspeed: DeepSpeed's engine where it does backward and step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        world_size: int,
        clip_norm: float | None,
        scale: LossScale | None,
        deepspeed: Any = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.parts: Parts | None = None
        self._world_size = world_size
        self._clip_norm = clip_norm
        self._scale = scale
        self._deepspeed = deepspeed

    @contextlib.contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """See `Backend`; for DistributedDataParallel it is the forward that decides, so the backward may follow it."""
        if self._deepspeed is not None:
            self._deepspeed.set_gradient_accumulation_boundary(last)
        if isinstance(self.model, DistributedDataParallel) and not last:
            with self.model.no_sync():
                yield
        else:
            yield

    def backward(self, loss: Tensor) -> None:
        """See `Backend`: both wrappers average over ranks, which the factor undoes."""
        # Factors on the loss go through to the gradients; the scale is taken off again before clipping.
        loss = loss * self._world_size
        if self._scale is not None:
            loss = loss * self._scale.value
        if self._deepspeed is not None:
            self._deepspeed.backward(loss, scale_wrt_gas=False)
        else:
            loss.backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, rate: float, decay: float, skip: Tensor) -> UpdateResult:
        """See `Backend`: the optimizer skips by its `found_inf`; gradients are equal on all ranks, so all agree."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self._scale is not None:
            torch._foreach_mul_(gradients, 1.0 / self._scale.value)

        # Decide on the device whether the step counts.
        norm = torch.nn.utils.get_total_norm(gradients)
        overflowed = ~torch.isfinite(norm)
        judged = skip.to(norm.device) <= 0
        skipped = overflowed | ~judged
        if self._clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, norm)
        if self._scale is not None:
            self._scale.update(overflowed, judged)

        # Step: the optimizer leaves everything as it was where `found_inf` is set.
        set_schedule(self.optimizer, rate, decay)
        self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        if self._deepspeed is not None:
            self._deepspeed.step()
        else:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return UpdateResult(grad_norm=norm, skipped=skipped)

    def read_parameter(self, parameter: nn.Parameter) -> Tensor:
        """See `Backend`."""
        return parameter.detach()

    def write_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        """See `Backend`."""
        parameter.data.copy_(value)

    def read_moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        """See `Backend`."""
        return self.optimizer.state[parameter][moment]

    def write_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        """See `Backend`."""
        self.optimizer.state[parameter][moment].copy_(value)

    def read_steps(self, parameters: dict[str, nn.Parameter]) -> dict[str, float]:
        """See `Backend`."""
        return {name: float(self.optimizer.state[parameter]["step"]) for name, parameter in parameters.items()}

    def write_steps(self, parameters: dict[str, nn.Parameter], steps: dict[str, float]) -> None:
        """See `Backend`."""
        for name, parameter in parameters.items():
            self.optimizer.state[parameter]["step"].fill_(steps[name])

    def close(self) -> None:
        """See `Backend`."""
        if self._deepspeed is not None:
            self._deepspeed.destroy()


class Forward(nn.Module):
    """Runs a task's model under autocast and in the wished memory layout.

    Autocast stands inside what is wrapped: DeepSpeed switches an outer one off, and its own `torch_autocast` section
    would reduce the gradients of convolutions in bf16.

    Args:
        module: The task's model.
        device_type: "cpu" or "cuda".
        dtype: Of autocast, None to do without.
        channels_last: Turn four-dimensional floating inputs to channels-last layout.
    """

    def __init__(self, module: nn.Module, *, device_type: str, dtype: torch.dtype | None, channels_last: bool) -> None:
        super().__init__()
        self.module = module
        self._device_type = device_type
        self._dtype = dtype
        self._channels_last = channels_last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; with None touch every trained parameter instead, the last one first in the backward."""
        # For `settle_buckets`: each gradient has to come once, whatever the model computes.
        if len(args) == 1 and args[0] is None:
            return sum((parameter * 0.0).sum() for parameter in self.parameters() if parameter.requires_grad)
        if self._channels_last:
            args = tuple(_channels_last(args))
        with torch.autocast(self._device_type, dtype=self._dtype or torch.bfloat16, enabled=self._dtype is not None):
            return self.module(*args, **kwargs)


def _channels_last(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point():
            yield value.contiguous(memory_format=torch.channels_last)
        else:
            yield value
