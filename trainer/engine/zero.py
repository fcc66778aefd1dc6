"""Train through DeepSpeed: its configuration is derived from ours; under ZeRO 1 to 3 ranks share the state."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin
from torch import Tensor, nn

from ...data.errors import ConfigError
from ..settings.engine import EngineConfig
from .averaging import Parts
from .lamb import PartitionedLamb
from .optimizers import counts_steps, fresh_state, set_schedule
from .replicated import LossScale, UpdateResult

# Elements of a reduction: DeepSpeed's default of 5e8 sets 2 GB aside before the first step.
BUCKET_ELEMENTS = 50_000_000
# Smaller parameters (norms, biases, 1x1 convolutions of narrow stages) stay whole on every rank in stage 3.
PERSISTENT_ELEMENTS = 10_000


class _Plugin(DeepSpeedPlugin):  # type: ignore[misc]
    def set_deepspeed_weakref(self) -> None:
        """Do without `transformers`, which the plugin asks for whatever the stage."""


def make_plugin(config: EngineConfig, device_type: str) -> Any:
    """Make Accelerate's DeepSpeed plugin; batch and clipping follow in `start_deepspeed`, when they are known."""
    if device_type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return _Plugin(
        hf_ds_config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": {
                "stage": config.zero_stage,
                "reduce_bucket_size": BUCKET_ELEMENTS,
                "allgather_bucket_size": BUCKET_ELEMENTS,
                "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
                "stage3_gather_16bit_weights_on_model_save": True,
            },
        },
        zero3_init_flag=False,
    )


def start_deepspeed(
    accelerator: Accelerator,
    config: EngineConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    clip_norm: float | None,
    micro_batch_per_rank: int,
) -> Any:
    """Wrap a model in DeepSpeed's engine.

    Accumulation is driven by us (`set_gradient_accumulation_boundary`), so DeepSpeed's own stays at 1 and divides
    nothing. At stage 0 clipping is ours too.
    """
    import deepspeed

    # This helper of CPU inference takes a compiler and 40 s to build, and training never calls it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed warns of optimizers that are not its own, and of skipped steps, which the loop reports.
    deepspeed.utils.logger.setLevel(logging.ERROR)

    # The plugin was made before batch and clipping were known.
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = micro_batch_per_rank
    settings["gradient_clipping"] = clip_norm if clip_norm is not None and config.zero_stage else 0.0
    settings["zero_optimization"]["reduce_bucket_size"] = min(
        BUCKET_ELEMENTS, sum(parameter.numel() for parameter in model.parameters())
    )

    wrapped, _ = accelerator.prepare(model, optimizer)
    assert wrapped.zero_optimization_stage() == config.zero_stage, "the plugin was made for this stage"
    return wrapped


class FlatParts:
    """Parts of parameters under ZeRO 3: of each a flat one, equally long on all ranks. See `Parts`."""

    def __init__(self, zero: Any, *, rank: int, world_size: int) -> None:
        self._zero = zero
        self._rank = rank
        self._world_size = world_size

    def own(self, parameter: Any) -> Tensor:
        """See `Parts`."""
        flat: Tensor = parameter.ds_tensor.detach()
        return flat

    def whole(self, parameter: Any, part: Tensor) -> Tensor:
        """See `Parts`."""
        # Flat pieces of equal length, the last one filled up: cut the filling off.
        parts = [torch.empty_like(part) for _ in range(self._world_size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)

    def cut(self, parameter: Any, whole: Tensor) -> Tensor:
        """See `Parts`: the last rank's is filled up with zeros."""
        size = parameter.ds_tensor.numel()
        padded = torch.nn.functional.pad(whole.flatten(), (0, size * self._world_size - whole.numel()))
        return padded.narrow(0, size * self._rank, size)

    def written(self) -> None:
        """See `Parts`: whole copies that DeepSpeed still holds are of the weights before."""
        self._zero._partition_all_parameters()

    def gather_persistent(self, *_: Any) -> None:
        """Make small parameters whole on every rank before a forward pass, be it the first or one after state was read.

        DeepSpeed does so after each step only. A parameter of the model's top module (mask tokens) is gathered for the
        backward by a hook on that module's output, and there is none on an output that is a dataclass. A forward pass
        that finds it in parts also adds it to a list that the recorded order of the modules no longer fits.
        """
        absent = [p for p in self._zero.persistent_parameters if p.ds_status.name != "AVAILABLE"]
        if absent:
            absent[0].all_gather(absent)


class Partitioned:
    """Trains under ZeRO 1 to 3: gradients are reduced to the rank that owns a part of the moments (3: of the weights).

    A non-finite step is skipped twice over: DeepSpeed drops it where its gradient norm, agreed on by all ranks, is not
    finite, and the optimizer inside skips by `found_inf` where the loss was not or where DeepSpeed did not look.
    """

    def __init__(self, deepspeed: Any, *, world_size: int, scale: LossScale | None, rank: int) -> None:
        self.model: nn.Module = deepspeed
        self._deepspeed = deepspeed
        self._zero = deepspeed.optimizer
        self.optimizer: torch.optim.Optimizer = self._zero.optimizer
        self._stage = deepspeed.zero_optimization_stage()
        self._world_size = world_size
        self._rank = rank
        self._scale = scale

        # Stage 3 shares the weights too.
        self._flat_parts = FlatParts(self._zero, rank=rank, world_size=world_size) if self._stage == 3 else None
        self.parts: Parts | None = self._flat_parts
        if self._flat_parts is not None:
            deepspeed.register_forward_pre_hook(self._flat_parts.gather_persistent)

        # The optimizer inside works on this rank's flat parts.
        self._skip: Tensor = torch.zeros((), device=self._flats()[0].device)
        self.optimizer.register_step_pre_hook(self._before_inner_step)
        for flat in self._flats():
            self.optimizer.state[flat] = fresh_state(self.optimizer, flat)
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()
        if isinstance(self.optimizer, PartitionedLamb):
            self.optimizer.lay_out(dict(self._slices()))

    def _flats(self) -> list[Tensor]:
        """List this rank's flat fp32 parts, whose moments and step counts the optimizer inside keeps."""
        zero = self._zero
        return list(zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups)

    def _slices(self) -> Iterator[tuple[Tensor, list[slice]]]:
        """Give each flat part, and where in it the parameters of its group lie, empty for those of other ranks."""
        groups = self._zero.fp16_groups if self._stage == 3 else self._zero.bit16_groups
        for flat, group in zip(self._flats(), groups, strict=True):
            yield flat, [self._slice_of(parameter) for parameter in group]

    def _slice_of(self, parameter: Any) -> slice:
        if self._stage == 3:
            _, start, size = self._zero.grad_position[self._zero.get_param_id(parameter)]
            # DeepSpeed does not set what fills up the last rank's part.
            return slice(start, start + max(0, min(size, parameter.ds_numel - self._rank * size)))
        if parameter._hp_mapping is None:
            return slice(0, 0)
        address = parameter._hp_mapping.get_hp_fragment_address()
        return slice(address.start, address.start + address.numel)

    def _norm(self) -> Tensor:
        """Read the global gradient norm of the step; DeepSpeed writes -1 or inf for one that is not finite."""
        norm = torch.as_tensor(self._zero._global_grad_norm, dtype=torch.float32, device=self._skip.device)
        return torch.where(norm >= 0, norm, torch.inf).reshape(())

    def _before_inner_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        skipped = ~torch.isfinite(self._norm()) | (self._skip > 0)
        optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """See `Backend`."""
        self._deepspeed.set_gradient_accumulation_boundary(last)
        if self._scale is not None:
            self._zero.override_loss_scale(float(self._scale.value))
        yield

    def backward(self, loss: Tensor) -> None:
        """See `Backend`: DeepSpeed averages over ranks, which the factor undoes; the loss scale is inside."""
        self._deepspeed.backward(loss * self._world_size, scale_wrt_gas=False)

    def update(self, rate: float, decay: float, skip: Tensor) -> UpdateResult:
        """See `Backend`."""
        self._skip = skip.to(self._skip.device)
        set_schedule(self.optimizer, rate, decay)
        self._deepspeed.step()
        norm = self._norm()
        judged = self._skip <= 0
        overflowed = ~torch.isfinite(norm)
        if self._scale is not None:
            self._scale.update(overflowed, judged)
        return UpdateResult(grad_norm=norm, skipped=overflowed | ~judged)

    def read_parameter(self, parameter: nn.Parameter) -> Tensor:
        """See `Backend`."""
        with self._gathered(parameter):
            return parameter.detach().clone()

    def write_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        """See `Backend`: the copy that the forward reads, and the part that the optimizer keeps."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        value = value.to(parameter.device, torch.float32)
        with self._gathered(parameter, modifier_rank=0):
            if self._stage < 3 or self._rank == 0:
                parameter.data.copy_(value)
        if not parameter.requires_grad:
            return
        if self._flat_parts is not None:
            safe_set_local_fp32_param(parameter, self._flat_parts.cut(parameter, value))
        else:
            safe_set_full_fp32_param(parameter, value)

    def read_moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        """See `Backend`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, moment)

    def write_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        """See `Backend`."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        value = value.to(parameter.device, torch.float32)
        if self._flat_parts is not None:
            safe_set_local_optimizer_state(parameter, self._flat_parts.cut(parameter, value), moment)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def read_steps(self, parameters: dict[str, nn.Parameter]) -> dict[str, float]:
        """See `Backend`: all parameters are updated or skipped together, so one count stands for all."""
        return dict.fromkeys(parameters, float(self.optimizer.state[self._flats()[0]]["step"]))

    def write_steps(self, parameters: dict[str, nn.Parameter], steps: dict[str, float]) -> None:
        """See `Backend`."""
        counts = {steps[name] for name in parameters}
        if len(counts) > 1:
            raise ConfigError(
                f"the checkpoint holds parameters of {len(counts)} different step counts ({min(counts):g} to "
                f"{max(counts):g}); engine.zero_stage={self._stage} keeps one for all: use engine.zero_stage=null"
            )
        if counts_steps(self.optimizer):
            for flat in self._flats():
                self.optimizer.state[flat]["step"].fill_(next(iter(counts)))

    def close(self) -> None:
        """See `Backend`."""
        self._deepspeed.destroy()

    def _gathered(self, parameter: nn.Parameter, modifier_rank: int | None = None) -> Any:
        if self._stage < 3:
            return contextlib.nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter], modifier_rank=modifier_rank)
