"""Exponential moving average of a model's weights, kept on the device beside them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn


class Parts(Protocol):
    """Access to what a rank holds of each parameter, and so averages."""

    def own(self, parameter: nn.Parameter) -> Tensor:
        """Return what this rank holds: live storage, without a graph."""

    def whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor:
        """Return the whole of what all ranks have such parts of; collective."""

    def cut(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        """Return this rank's part of a whole tensor."""

    def written(self) -> None:
        """Refresh what was made of parts that were written; collective."""


class Average:
    """An average over the steps of every weight and every floating buffer; counters are taken as they are.

    Weights that move little near the end of a run, and noisily before it, forecast better averaged (Polyak and
    Juditsky 1992, doi:10.1137/0330046).

    Args:
        model: The model whose weights are averaged.
        parts: What of them this rank holds; None: all of them, equal on all ranks.

    Attributes:
        values: The averages by name, on the model's device; of parameters this rank's parts.
    """

    def __init__(self, model: nn.Module, parts: Parts | None = None) -> None:
        persistent = model.state_dict().keys()
        self._parts = parts
        self._parameters = dict(model.named_parameters())
        self._buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
        self.values = {name: tensor.clone() for name, tensor in self._live().items()}

    def _live(self) -> dict[str, Tensor]:
        """List what is averaged as it is now: an engine may give a parameter other storage."""
        parts = self._parts
        own = {name: p.detach() if parts is None else parts.own(p) for name, p in self._parameters.items()}
        return own | self._buffers

    @torch.no_grad()
    def update(self, decay: float, skipped: Tensor) -> None:
        """Move a step: average = decay * average + (1 - decay) * weights; a skipped step changes nothing.

        Args:
            decay: Share of the old average, 0 to below 1.
            skipped: Bool scalar on the device.
        """
        live = self._live()
        moving = [name for name, tensor in live.items() if tensor.is_floating_point()]
        # In float64, which holds 1 - decay for float64 weights too; a scalar does not widen float32 ones.
        share = torch.where(skipped, 0.0, torch.full((), 1.0 - decay, dtype=torch.float64, device=skipped.device))
        steps = torch._foreach_sub([live[name] for name in moving], [self.values[name] for name in moving])
        torch._foreach_mul_(steps, share)
        torch._foreach_add_([self.values[name] for name in moving], steps)
        for name, tensor in live.items():
            if not tensor.is_floating_point():
                self.values[name].copy_(tensor)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the model the averages while inside, and its own weights back afterwards, bit for bit."""
        with torch.no_grad():
            # A copy, for the averages are written over the live storage.
            own = {name: tensor.clone() for name, tensor in self._live().items()}
            self._write(self.values)
            try:
                yield
            finally:
                self._write(own)

    def gathered(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and whole average one after the other; every rank takes them all."""
        for name, value in self.values.items():
            if self._parts is None or name not in self._parameters:
                yield name, value
            else:
                yield name, self._parts.whole(self._parameters[name], value)

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Take over saved averages, whole ones, or the model's present weights for what they do not hold."""
        with torch.no_grad():
            for name, live in self._live().items():
                value = values.get(name, live)
                if self._parts is not None and name in values and name in self._parameters:
                    value = self._parts.cut(self._parameters[name], value)
                self.values[name].copy_(value)

    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self._live().items():
            tensor.copy_(values[name])
        if self._parts is not None:
            self._parts.written()
