"""The engine: runs a model under Accelerate or DeepSpeed, sums over ranks, steps, gives and takes its state."""

import os
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...models.norm import synchronise
from ...models.weights.manifest import CheckpointError
from ..settings.engine import EngineConfig
from ..settings.optim import OptimConfig
from .averaging import Average
from .lamb import PartitionedLamb
from .optimizers import build_optimizer, counts_steps, fresh_state, moment_names, parameter_groups
from .processes import AUTOCAST_DTYPES, Processes, check_clipping
from .replicated import Backend, Forward, LossScale, Replicated, UpdateResult, settle_buckets

_Object = TypeVar("_Object")


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """A training state that any engine of any world size takes over.

    What an engine exports is complete on rank 0 and empty on the others; what it imports is complete on all of them.

    Attributes:
        model: Parameters and buffers by bare name, on the CPU, float32 (float64 in fp64), integers for counters.
        optimizer: Moments by "<parameter name>.<moment>", on the CPU, of the parameter's shape and dtype.
        optimizer_steps: Updates done, by parameter name; empty for sgd, which keeps none.
        loss_scale: Of fp16, else None; what is imported in other precisions is ignored, and None starts a new search.
        loss_scale_good_steps: Good gradients in a row since that scale last changed.
        average: Averaged weights and buffers by bare name, as `model`; empty without an average. An engine that
            averages starts at the weights where it is empty, and one that does not ignores it.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    optimizer_steps: dict[str, float]
    loss_scale: float | None = None
    loss_scale_good_steps: int = 0
    average: dict[str, Tensor] = field(default_factory=dict)


class Engine:
    """Started processes and, after `prepare`, a model that trains on all of them.

    A step: `start_step`, then for each micro-batch the forward pass inside `accumulate(last=...)` and `backward`, then
    `update`. The loss handed to `backward` is a sum of terms over their count in the whole GLOBAL batch: gradients are
    summed over micro-batches and ranks, never averaged.

    Attributes:
        rank: This process, 0 to world_size - 1.
        world_size: Processes of the run.
        device: Where this process computes.
        is_main: Whether this is rank 0.
        group: Process group of all ranks, None with one process.
        heartbeat: What this process does, published to all of them.
        started_s: When this process began to wait for the others, on its monotonic clock.
        model: The wrapped model, to be called like the bare one.
        bare_model: The task's own model; its weights may be partitioned (ZeRO 3): read them with `export_state`.

    Args:
        config: Processes, precision, DeepSpeed.
        stop_asked: Returns whether this process was asked to stop while it waits for the others.

    Raises:
        ConfigError: Settings of the launcher contradict ours, or the processes did not start as asked for.
        RankEndedError: Not all processes came in time; those that are missing are named.
    """

    model: nn.Module
    bare_model: nn.Module

    def __init__(self, config: EngineConfig, stop_asked: Callable[[], bool] = lambda: False) -> None:
        self.started_s = time.monotonic()
        self.config = config
        self._processes = Processes(config, stop_asked)
        self.heartbeat = self._processes.heartbeat
        self.rank = self._processes.identity.rank
        self.world_size = self._processes.identity.world_size
        self.device = self._processes.device
        self.is_main = self.rank == 0
        self.group = self._processes.group

        self._backend: Backend | None = None
        self._scale = LossScale(self.device) if config.precision == "fp16" else None
        self._buffers: list[Tensor] = []
        self._saved_buffers: list[Tensor] = []
        self._average: Average | None = None

    def prepare(self, model: nn.Module, optim: OptimConfig, *, micro_batch: int | None = None) -> None:
        """Move a model to the device, give it synchronised normalisation and an optimizer, and wrap it.

        Args:
            model: The task's model, fp32, with equal weights on all ranks or rank 0's to be taken by all.
            optim: Optimizer; its rates are given to `update`.
            micro_batch: Windows of one forward pass over ALL ranks, which DeepSpeed asks for.

        Raises:
            ConfigError: A clipping of the launcher contradicts ours.
        """
        config = self.config
        check_clipping(optim.clip_norm, os.environ)

        # Layout, synchronised normalisation, and rank 0's buffers; the wrappers give its parameters to all.
        model = model.to(self.device, torch.float64 if config.precision == "fp64" else torch.float32)
        if config.channels_last and config.zero_stage is None:
            model = model.to(memory_format=torch.channels_last)
        synchronise(model, self.group)
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)
        self.bare_model = model

        lamb = PartitionedLamb if config.zero_stage else None
        optimizer = build_optimizer(parameter_groups(model, optim), optim, lamb)
        if config.compile:
            # In place: the names of the state stay as they are.
            model.compile()
        dtype = AUTOCAST_DTYPES[config.precision]
        forward = Forward(model, device_type=self.device.type, dtype=dtype, channels_last=config.channels_last)
        micro_batch_per_rank = max(1, (micro_batch or 1) // self.world_size)
        self._backend = self._wrap(forward, optimizer, optim.clip_norm, micro_batch_per_rank)
        self.model = self._backend.model

        # What a skipped step puts back, and the averaged weights.
        self._buffers = list(model.buffers())
        self._saved_buffers = [buffer.clone() for buffer in self._buffers]
        self._average = None if optim.ema_decay is None else Average(model, self._backend.parts)

    def _wrap(
        self, forward: Forward, optimizer: torch.optim.Optimizer, clip_norm: float | None, micro_batch_per_rank: int
    ) -> Backend:
        """Wrap a model for its processes: plain, in DistributedDataParallel, or in DeepSpeed's engine."""
        # DistributedDataParallel warns so of 1x1 convolutions, whose two layouts are the same bytes.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        deepspeed = None
        if self.config.zero_stage is None:
            with warnings.catch_warnings():
                # `broadcast_buffers` has a new name in torch 2.15, and torch 2.10 does not know that one.
                warnings.filterwarnings("ignore", category=FutureWarning, message=".*broadcast_buffers.*")
                model: nn.Module = self._processes.accelerator.prepare_model(forward)
            settle_buckets(model)
        else:
            from .zero import Partitioned, start_deepspeed

            model = deepspeed = start_deepspeed(
                self._processes.accelerator,
                self.config,
                forward,
                optimizer,
                clip_norm=clip_norm,
                micro_batch_per_rank=micro_batch_per_rank,
            )
            if self.config.zero_stage > 0:
                return Partitioned(deepspeed, world_size=self.world_size, scale=self._scale, rank=self.rank)

        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter] = fresh_state(optimizer, parameter)
        return Replicated(
            model,
            optimizer,
            world_size=self.world_size,
            clip_norm=clip_norm,
            scale=self._scale,
            deepspeed=deepspeed,
        )

    def start_step(self) -> None:
        """Remember the normalisation buffers, which a skipped step puts back."""
        if self._buffers:
            torch._foreach_copy_(self._saved_buffers, self._buffers)

    def accumulate(self, *, last: bool) -> AbstractContextManager[None]:
        """Run one forward pass inside; gradients travel between ranks after the last micro-batch's backward only."""
        return self._prepared.accumulate(last)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's sum of terms over the count of terms in the global batch."""
        self._prepared.backward(loss)

    def update(self, *, rate: float, decay: float, skip: Tensor, average_decay: float = 0.0) -> UpdateResult:
        """Clip, step the optimizer and clear the gradients; or skip the step on all ranks and put the buffers back.

        Args:
            rate: Learning rate of this step.
            decay: Weight decay of this step.
            skip: Scalar on the device, agreed on by all ranks (`sum_over_ranks`): above 0 skips the step. A gradient
                norm that is not finite skips it too.
            average_decay: Decay of the averaged weights after this step, where there are any.
        """
        with torch.no_grad():
            result = self._prepared.update(rate, decay, skip)
            for buffer, saved in zip(self._buffers, self._saved_buffers, strict=True):
                buffer.copy_(torch.where(result.skipped, saved, buffer))
            if self._average is not None:
                self._average.update(average_decay, result.skipped)
        return result

    def averaged(self) -> AbstractContextManager[None]:
        """Give the model its averaged weights while inside; nothing happens without an average."""
        return nullcontext() if self._average is None else self._average.swapped_in()

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Sum a small tensor over ranks; the host does not wait for a GPU."""
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def broadcast_object(self, value: _Object) -> _Object:
        """Give all ranks rank 0's small object (pickled between our own processes only)."""
        if self.world_size == 1:
            return value
        # Torch fills a list in place.
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather_objects(self, value: _Object) -> list[_Object]:
        """Give all ranks every rank's small object, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def export_state(self) -> EngineState:
        """Gather the whole training state; every rank calls it, rank 0 gets it. Nothing in it shares live storage."""
        backend = self._prepared
        trained = self._trained()
        model: dict[str, Tensor] = {}
        optimizer: dict[str, Tensor] = {}
        average: dict[str, Tensor] = {}

        def keep(target: dict[str, Tensor], name: str, value: Tensor) -> None:
            if self.is_main:
                target[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)

        # Tensor by tensor: under ZeRO every rank takes part, and no GPU holds more than one whole one.
        with torch.no_grad():
            for name, parameter in self.bare_model.named_parameters():
                keep(model, name, backend.read_parameter(parameter))
            for name, buffer in self._persistent_buffers().items():
                keep(model, name, buffer)
            for name, parameter in trained.items():
                for moment in moment_names(backend.optimizer):
                    keep(optimizer, f"{name}.{moment}", backend.read_moment(parameter, moment))
            for name, value in () if self._average is None else self._average.gathered():
                keep(average, name, value)

        if not self.is_main:
            return EngineState(model={}, optimizer={}, optimizer_steps={})
        return EngineState(
            model=model,
            optimizer=optimizer,
            optimizer_steps=backend.read_steps(trained) if counts_steps(backend.optimizer) else {},
            loss_scale=None if self._scale is None else float(self._scale.value),
            loss_scale_good_steps=0 if self._scale is None else self._scale.good_steps,
            average=average,
        )

    def import_state(self, state: EngineState) -> None:
        """Take over a whole training state; every rank calls it with the same one.

        Raises:
            CheckpointError: A tensor is missing, not expected or of another shape; all of them are named.
        """
        backend = self._prepared
        trained = self._trained()
        buffers = self._persistent_buffers()
        moments = moment_names(backend.optimizer)

        # Check everything before anything is written.
        shapes = {name: _whole_shape(parameter) for name, parameter in self.bare_model.named_parameters()}
        whole = shapes | {name: buffer.shape for name, buffer in buffers.items()}
        _check_tensors("model", state.model, whole)
        _check_tensors("optimizer", state.optimizer, {f"{n}.{m}": shapes[n] for n in trained for m in moments})
        _check_names("optimizer_steps", state.optimizer_steps, trained if counts_steps(backend.optimizer) else {})
        if self._average is not None and state.average:
            _check_tensors("average", state.average, whole)

        with torch.no_grad():
            for name, parameter in self.bare_model.named_parameters():
                backend.write_parameter(parameter, state.model[name])
            for name, buffer in buffers.items():
                buffer.copy_(state.model[name])
            for name, parameter in trained.items():
                for moment in moments:
                    backend.write_moment(parameter, moment, state.optimizer[f"{name}.{moment}"])
            if state.optimizer_steps:
                backend.write_steps(trained, state.optimizer_steps)
        if self._scale is not None and state.loss_scale is not None:
            self._scale.restore(state.loss_scale, state.loss_scale_good_steps)
        if self._average is not None:
            self._average.restore(state.average)

    def shutdown(self, *, clean: bool) -> None:
        """End the processes' work together: `clean` destroys the process group; after an error no collective is run."""
        if self._backend is not None and clean:
            self._backend.close()
        self._backend = None
        self._processes.stop(clean=clean)

    @property
    def _prepared(self) -> Backend:
        assert self._backend is not None, "Engine.prepare comes first"
        return self._backend

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.bare_model.named_parameters() if p.requires_grad}

    def _persistent_buffers(self) -> dict[str, Tensor]:
        names = self.bare_model.state_dict().keys()
        return {name: buffer for name, buffer in self.bare_model.named_buffers() if name in names}


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _check_tensors(kind: str, tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    _check_names(kind, tensors, expected)
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if tensors[name].shape != shape
    ]
    if wrong:
        raise CheckpointError(f"{kind}: {'; '.join(wrong)}: the checkpoint is of another model")


def _check_names(kind: str, names: Mapping[str, object], expected: Mapping[str, object]) -> None:
    missing = sorted(expected.keys() - names.keys())
    unexpected = sorted(names.keys() - expected.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{kind}: missing {', '.join(missing) or 'nothing'}; not expected {', '.join(unexpected) or 'nothing'}: "
            "the checkpoint is of another model or optimizer; resume with the same ones, or start with --init_from"
        )
