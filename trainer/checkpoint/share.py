"""A checkpoint that one rank has read, given to all of them: one reader of the files, whatever the number of ranks."""

import torch
import torch.distributed as dist

from ..engine.engine import Engine, EngineState
from .folder import Loaded

_SECTIONS = ("model", "optimizer", "average")


def share(engine: Engine, loaded: Loaded | None) -> Loaded | None:
    """Give all ranks the main rank's checkpoint; every rank calls it.

    Names, shapes and types go first, then one tensor after another, so that no rank holds more than the checkpoint and
    one tensor. The files need to be seen by the main rank only.

    Args:
        engine: Started processes.
        loaded: What the main rank has read, None where there is nothing; the other ranks' is not looked at.
    """
    if engine.world_size == 1:
        return loaded
    # First what tensors there are, so that the other ranks make room for them.
    head = None
    if loaded is not None:
        kinds = {
            section: {name: (t.shape, t.dtype) for name, t in vars(loaded)[section].items()} for section in _SECTIONS
        }
        head = loaded.state, loaded.path, kinds
    head = engine.broadcast_object(head)
    if head is None:
        return None

    state, path, kinds = head
    # Then their bytes, one tensor after another, in the order that all ranks know.
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for section, named in kinds.items():
        sources = {} if loaded is None else vars(loaded)[section]
        tensors[section] = {name: _send(engine, sources.get(name), *kind) for name, kind in named.items()}
    return Loaded(state=state, path=path, **tensors)


def as_engine_state(loaded: Loaded) -> EngineState:
    """Give what an engine takes over of a checkpoint."""
    return EngineState(
        model=loaded.model,
        optimizer=loaded.optimizer,
        optimizer_steps=loaded.state.optimizer_steps,
        loss_scale=loaded.state.loss_scale,
        loss_scale_good_steps=loaded.state.loss_scale_good_steps,
        average=loaded.average,
    )


def _send(engine: Engine, source: torch.Tensor | None, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Broadcast one CPU tensor through the device of the process group, as bytes: gloo and NCCL know them all."""
    tensor = torch.empty(shape, dtype=dtype) if source is None else source
    if tensor.numel() == 0:
        return tensor
    flat = tensor.reshape(-1).view(torch.uint8)
    travelling = flat.to(engine.device)
    dist.broadcast(travelling, src=0)
    if source is None:
        flat.copy_(travelling)
    return tensor
