"""Compute how much memory a rank needs, by a formula that tests/bench/memory.py holds against engines.

What it says of DeepSpeed was read off version 0.19.8 at work: every tensor that a rank allocates, ZeRO 0 to 3.
"""

from dataclasses import dataclass
from typing import Final

from torch import nn

from ...trainer.engine.zero import BUCKET_ELEMENTS, PERSISTENT_ELEMENTS
from ...trainer.settings.engine import EngineConfig
from ...trainer.settings.optim import OptimConfig

ALL_REDUCE_ELEMENTS: Final = 500_000_000
"""DeepSpeed at stage 0 flattens gradients up to so many values before it reduces them."""
LAMB_COPIES: Final = 6
"""Tensors of what is updated that LAMB holds at a time beside its state: new moments, root, update, new weights."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What of a model decides the memory that it needs.

    Attributes:
        parameters: Values of all parameters.
        trained: Values of those that are trained.
        largest: Values of the largest one.
        persistent: Values of those that ZeRO 3 keeps whole on every rank.
        buffer_bytes: Bytes of the buffers.
    """

    parameters: int
    trained: int
    largest: int
    persistent: int
    buffer_bytes: int


def size_of(model: nn.Module) -> ModelSize:
    """Count a model, which may be on the meta device: `with torch.device("meta")` builds one without its memory."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    return ModelSize(
        parameters=sum(sizes),
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        largest=max(sizes, default=0),
        persistent=sum(size for size in sizes if size <= PERSISTENT_ELEMENTS),
        buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
    )


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes that one rank allocates for tensors on its device.

    Attributes:
        weights: Parameters as the forward reads them; with ZeRO 3 this rank's part and what stays whole.
        master: This rank's part of the weights that ZeRO's optimizer updates, beside those.
        moments: Of the optimizer.
        gradients: That stay between steps: DistributedDataParallel's buckets, ZeRO 3's part.
        average: Averaged weights and buffers.
        buffers: Normalisation statistics and the copies that a skipped step puts back.
        backward: What a backward pass needs beside activations: gradients, buckets, gathered weights.
        activations: What one micro-batch needs at its peak.
        reduction: What the reduction of gradients needs beside those, when activations are gone.
        update: What an update needs at its peak, when activations are gone.
    """

    weights: int
    master: int
    moments: int
    gradients: int
    average: int
    buffers: int
    backward: int
    activations: int
    reduction: int
    update: int

    @property
    def resident(self) -> int:
        """Bytes held from step to step."""
        return self.weights + self.master + self.moments + self.gradients + self.average + self.buffers

    @property
    def peak(self) -> int:
        """Bytes at the worst moment of a step."""
        return self.resident + max(self.backward + max(self.activations, self.reduction), self.update)


def num_moments(optim: OptimConfig) -> int:
    """Count the moments that the optimizer keeps a parameter."""
    if optim.name == "sgd":
        return int(optim.momentum != 0)
    return 2


def value_bytes(engine: EngineConfig) -> int:
    """Give the bytes of a weight: autocast (bf16, fp16) keeps fp32 ones."""
    return 8 if engine.precision == "fp64" else 4


def rank_memory(
    size: ModelSize,
    optim: OptimConfig,
    engine: EngineConfig,
    *,
    world_size: int,
    micro_steps: int,
    activations: int,
) -> RankMemory:
    """Add up the tensors of one rank.

    Args:
        size: The model.
        optim: Its optimizer.
        engine: Precision and ZeRO stage.
        world_size: Ranks of the run; one rank without ZeRO is taken as started alone, without a process group.
        micro_steps: Micro-batches a global batch.
        activations: Peak bytes of one micro-batch of one rank, as `launch.doctor.memory_trace` measures them.
    """
    unit = value_bytes(engine)
    stage = engine.zero_stage
    trained = size.trained * unit
    share = -(-trained // world_size) if stage else trained
    average = 0
    if optim.ema_decay is not None:
        average = _weights(size, unit, world_size, stage, whole=False) + size.buffer_bytes
    gradients, backward, reduction = _backward(size, unit, world_size, stage, micro_steps)

    # An average is moved by a difference of its own size; LAMB builds the new state beside the old.
    update = max(average, LAMB_COPIES * unit * _updated_at_once(size, stage, share // unit) * (optim.name == "lamb"))
    if stage is None or stage == 0:
        update += trained if gradients == 0 else 0
    elif stage < 3:
        # Gradients of this rank's part, flattened beside themselves; then the weights of all ranks, gathered.
        update += max(2 * share, trained)
    else:
        update += share

    return RankMemory(
        weights=_weights(size, unit, world_size, stage, whole=True),
        master=share if stage else 0,
        moments=num_moments(optim) * share,
        gradients=gradients,
        average=average,
        buffers=2 * size.buffer_bytes,
        backward=backward,
        activations=activations,
        reduction=reduction,
        update=update,
    )


def _weights(size: ModelSize, unit: int, world_size: int, stage: int | None, *, whole: bool) -> int:
    if stage != 3:
        return size.parameters * unit
    return -(-size.parameters // world_size) * unit + (size.persistent * unit if whole else 0)


def _updated_at_once(size: ModelSize, stage: int | None, share: int) -> int:
    """Count the values that the optimizer updates at a time: a parameter, or under ZeRO a rank's flat part."""
    return share if stage else size.largest


def _backward(size: ModelSize, unit: int, world_size: int, stage: int | None, micro_steps: int) -> tuple[int, int, int]:
    """Give the bytes of gradients that stay from step to step, of what stands beside activations, of the reduction."""
    trained = size.trained * unit
    if stage is None:
        # Gradients of micro-batches before the last one stand beside the buckets.
        return (0, trained, 0) if world_size == 1 else (trained, trained * (micro_steps > 1), 0)
    if stage == 0:
        return 0, trained, min(trained, ALL_REDUCE_ELEMENTS * unit)

    bucket = min(size.trained, BUCKET_ELEMENTS) * unit
    share = -(-trained // world_size)
    if stage == 3:
        # All weights fit under DeepSpeed's `stage3_max_live_parameters`, so that they stay gathered until the backward
        # is through; each fetch lands in a flat buffer first.
        gathered = size.parameters * unit
        return share + bucket, gathered + min(gathered, BUCKET_ELEMENTS * unit), 0

    kept = 0 if micro_steps == 1 else (trained if stage == 1 else share)
    reduced = share + bucket - bucket // world_size
    # Of several buckets all but the last are reduced while activations are still there.
    several = bucket < trained
    return 0, bucket + kept + reduced * several, reduced * (not several)
