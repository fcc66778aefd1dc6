"""Settings of the optimizer and its schedules."""

from dataclasses import dataclass
from typing import Literal

from .ranges import check_number


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
        check_number("optim.lr", self.lr, above=0)
        for beta in self.betas:
            check_number("optim.betas", beta, least=0, below=1)
        check_number("optim.momentum", self.momentum, least=0, below=1)
        check_number("optim.eps", self.eps, above=0)
        check_number("optim.weight_decay", self.weight_decay, least=0)
        check_number("optim.weight_decay_end", self.weight_decay_end, least=0)

        check_number("optim.warmup_steps", self.warmup_steps, least=0)
        check_number("optim.min_lr_share", self.min_lr_share, least=0, most=1)
        check_number("optim.clip_norm", self.clip_norm, above=0)
        check_number("optim.layer_decay", self.layer_decay, above=0, most=1)
        check_number("optim.ema_decay", self.ema_decay, least=0, below=1)
