"""A checkpoint that one rank has read, given to all of them: one reader of the files, whatever the number of ranks."""

import torch
import torch.distributed as dist

from ..engine.engine import Engine
from .folder import Loaded

_Tensors = dict[str, torch.Tensor]


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
    head = None if loaded is None else (loaded.state, loaded.path, [_shapes(part) for part in _parts(loaded)])
    head = engine.broadcast_object(head)
    if head is None:
        return None
    state, path, shapes = head
    sources = [{}, {}, {}] if loaded is None else _parts(loaded)
    model, optimizer, average = (
        {name: _send(engine, source.get(name), *kind) for name, kind in kinds.items()}
        for source, kinds in zip(sources, shapes, strict=True)
    )
    return Loaded(state=state, model=model, optimizer=optimizer, average=average, path=path)


def _parts(loaded: Loaded) -> list[_Tensors]:
    return [loaded.model, loaded.optimizer, loaded.average]


def _shapes(tensors: _Tensors) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


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
