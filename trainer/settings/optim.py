"""Settings of the optimizer and its schedules."""

import math
from dataclasses import dataclass
from typing import Literal

from ...data.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedules.

    Args:
        name: `adamw`, `sgd` (torch's fused ones) or `lamb`.
        lr: Peak learning rate for a global batch of 256.
        lr_scaling: How the peak follows other global batches: `linear` by global batch / 256, `sqrt` by the root of
            that (for lamb at large batches), `none` not at all.
        betas: Decay of the first and second moment, 0 to below 1 (adamw, lamb).
        momentum: Momentum of sgd, 0 to below 1.
        eps: Term beside the root of the second moment, above 0 (adamw, lamb).
        weight_decay: Weight decay at the first step, 0 or more; adamw's is decoupled, sgd's is an L2 term.
        weight_decay_end: Weight decay at the last step, reached along a cosine. Null: it stays as it is.
        warmup_steps: Steps of linear warm-up before the peak.
        min_lr_share: Learning rate of the last step as a share of the peak, 0 to 1.
        clip_norm: Largest global gradient norm, above 0. Null: no clipping.
        layer_decay: Factor of the learning rate from one residual block of the encoder to the one before it, above 0
            to 1; what is not encoder has the full rate.
        ema_decay: Decay a step of the averaged weights that evaluation and the best checkpoint use, 0 to below 1.
            Null: no average.
    """

    name: Literal["adamw", "lamb", "sgd"] = "adamw"
    lr: float = 2e-4
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.9
    eps: float = 1e-6
    weight_decay: float = 0.04
    weight_decay_end: float | None = None
    warmup_steps: int = 0
    min_lr_share: float = 0.001
    clip_norm: float | None = None
    layer_decay: float = 1.0
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"optim.lr is {self.lr}; above 0 and finite")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas is {self.betas}; two numbers from 0 to below 1")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"optim.momentum is {self.momentum}; 0 to below 1")
        if not self.eps > 0:
            raise ConfigError(f"optim.eps is {self.eps}; above 0")

        for name, decay in (("weight_decay", self.weight_decay), ("weight_decay_end", self.weight_decay_end)):
            if decay is not None and not (math.isfinite(decay) and decay >= 0):
                raise ConfigError(f"optim.{name} is {decay}; 0 or more and finite")

        if self.warmup_steps < 0:
            raise ConfigError(f"optim.warmup_steps is {self.warmup_steps}; 0 or more")
        if not 0 <= self.min_lr_share <= 1:
            raise ConfigError(f"optim.min_lr_share is {self.min_lr_share}; a share, 0 to 1")

        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"optim.clip_norm is {self.clip_norm}; above 0, or null for no clipping")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optim.layer_decay is {self.layer_decay}; above 0, up to 1 (every layer alike)")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"optim.ema_decay is {self.ema_decay}; 0 to below 1, or null for no average")
