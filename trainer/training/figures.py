"""Figures of a step by name: summed over ranks in one collective, and copied to the host without waiting for it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..engine.engine import Engine


def sum_figures(engine: Engine, figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum float64 tensors of any shape over ranks; names and order are the same on all of them."""
    # One collective for all figures: each call costs a round trip, however small the tensor.
    flat = engine.sum_over_ranks(torch.cat([figure.flatten() for figure in figures.values()]))
    totals = torch.split(flat, [figure.numel() for figure in figures.values()])
    return {name: total.view(figures[name].shape) for name, total in zip(figures, totals, strict=True)}


class HostCopy:
    """Scalars on their way to the host.

    Args:
        figures: Scalars of one dtype by name, on any device.

    Attributes:
        arrived: Set on the device when the copy is there; None on a CPU, where it is at once.
    """

    def __init__(self, figures: Mapping[str, Tensor]) -> None:
        self._names = list(figures)
        self._values = torch.stack(list(figures.values()))
        self.arrived: torch.cuda.Event | None = None
        if self._values.device.type == "cuda":
            # Only a copy into page-locked memory goes on while the host does something else.
            pinned = torch.empty(self._values.shape, dtype=self._values.dtype, pin_memory=True)
            pinned.copy_(self._values, non_blocking=True)
            self._values = pinned
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.arrived.record()

    def read(self) -> dict[str, float]:
        """Wait for the figures and give them by name."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))
