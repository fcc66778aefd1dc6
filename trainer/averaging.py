"""Exponential moving average of a model's weights, kept on the device beside them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """An average over the steps of every weight and every floating buffer; counters are taken as they are.

    Weights that move little near the end of a run, and noisily before it, forecast better averaged (Polyak and
    Juditsky 1992, doi:10.1137/0330046).

    Args:
        model: The model whose weights are averaged; they are equal on all ranks, so no rank has to ask another.

    Attributes:
        values: The averages by name, on the model's device.
    """

    def __init__(self, model: nn.Module) -> None:
        persistent = model.state_dict().keys()
        self._live = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self._live |= {name: buffer for name, buffer in model.named_buffers() if name in persistent}
        self.values = {name: tensor.clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, decay: float, skipped: Tensor) -> None:
        """Move a step: average = decay * average + (1 - decay) * weights; a skipped step changes nothing.

        Args:
            decay: Share of the old average, 0 to below 1.
            skipped: Bool scalar on the device.
        """
        moving = [name for name, tensor in self._live.items() if tensor.is_floating_point()]
        # In float64, which holds 1 - decay for float64 weights too; a scalar does not widen float32 ones.
        share = torch.where(skipped, 0.0, torch.full((), 1.0 - decay, dtype=torch.float64, device=skipped.device))
        steps = torch._foreach_sub([self._live[name] for name in moving], [self.values[name] for name in moving])
        torch._foreach_mul_(steps, share)
        torch._foreach_add_([self.values[name] for name in moving], steps)
        for name, tensor in self._live.items():
            if not tensor.is_floating_point():
                self.values[name].copy_(tensor)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the model the averages while inside, and its own weights back afterwards, bit for bit."""
        with torch.no_grad():
            own = {name: tensor.clone() for name, tensor in self._live.items()}
            self._write(self.values)
            try:
                yield
            finally:
                self._write(own)

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Take over saved averages, or the model's present weights for what they do not hold."""
        with torch.no_grad():
            for name, value in self.values.items():
                value.copy_(values.get(name, self._live[name]))

    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(values[name])
