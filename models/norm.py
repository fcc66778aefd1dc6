"""Batch normalisation over all ranks, on any backend (torch's SyncBatchNorm refuses CPU tensors)."""

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

RunningStatistics = tuple[Tensor, Tensor]
"""Mean (C,) and unbiased variance (C,) as a normalisation's running ones are once a batch is taken in."""


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose training statistics are those of all ranks of `process_group`.

    Inputs are (n, C, h, w): dense maps, or packed patches. Every rank must hold equally many positions.
    Without a group, or with one rank in it, this is torch's own batch normalisation, bit for bit.
    Statistics are taken in float32 (float64 for float64 inputs) whatever autocast says.
    """

    process_group: dist.ProcessGroup | None = None

    @property
    def takes_in(self) -> bool:
        """Whether a forward changes the running statistics: in training, unless there are none."""
        return self.training and self.running_mean is not None

    def forward(self, input: Tensor, statistics: list[RunningStatistics] | None = None) -> Tensor:
        """Normalise. With a list given, put the new running statistics there instead of into the buffers.

        The list serves activation checkpointing: the caller hands it to `update_running` once, however often the
        forward is computed. It stays empty where `takes_in` is False.

        Raises:
            ValueError: in training, fewer than two values a channel over all ranks: they have no variance.
        """
        self._check_input_dim(input)

        # With running statistics, or of one rank, torch's own batch normalisation does it, bit for bit.
        if not (self.training or self.running_mean is None):
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        world_size = 1 if self.process_group is None else dist.get_world_size(self.process_group)
        _check_count(input, world_size)
        if world_size == 1 and statistics is None:
            return super().forward(input)

        # torch's `momentum=None` (a plain average) is refused by `synchronise`; timm and the decoder use 0.1.
        momentum = cast(float, self.momentum)
        # Copies, so that torch itself computes the new values: the buffers come out the same, recomputed or not.
        running = self._running_copies()
        mean_c, var_c = running or (None, None)
        if world_size == 1:
            output = F.batch_norm(input, mean_c, var_c, self.weight, self.bias, True, momentum, self.eps)
        else:
            output, *batch = self._over_ranks(input)
            for value, new in zip(running or (), batch, strict=running is not None):
                value.mul_(1.0 - momentum).add_(new.to(value.dtype) * momentum)

        if running is not None and statistics is None:
            self.update_running(running)
        elif running is not None and statistics is not None:
            statistics.append(running)
        return output

    @torch.no_grad()
    def update_running(self, running: RunningStatistics) -> None:
        """Make what a forward gave out the running statistics, and count the batch."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        self.running_mean.copy_(running[0])
        self.running_var.copy_(running[1])

    def _running_copies(self) -> RunningStatistics | None:
        if not self.takes_in or self.running_mean is None or self.running_var is None:
            return None
        return self.running_mean.clone(), self.running_var.clone()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _over_ranks(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised input, batch mean and unbiased batch variance over all ranks."""
        return cast(
            tuple[Tensor, Tensor, Tensor],
            _NormaliseOverRanks.apply(input, self.weight, self.bias, self.eps, self.process_group),
        )


def run_block(block: nn.Module, recompute: bool, *inputs: Tensor | object) -> Tensor:
    """Call `block(*inputs, statistics)`, with `recompute` keeping only its inputs for the backward pass.

    The forward is then computed twice, but the running statistics take the batch in once, here, outside of it.

    Args:
        block: its `BatchNorm2d` modules are registered in the order in which its forward passes them.
        recompute: use activation checkpointing; without gradients there is nothing to save.
        inputs: positional arguments of the block; `statistics` follows them.
    """
    if not (recompute and torch.is_grad_enabled()):
        return block(*inputs, None)

    def forward(*inputs: Tensor | object) -> tuple[Tensor, ...]:
        statistics: list[RunningStatistics] = []
        output = block(*inputs, statistics)
        return output, *(value for running in statistics for value in running)

    output, *values = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
    norms = [module for module in block.modules() if isinstance(module, BatchNorm2d) and module.takes_in]
    for norm, mean_c, var_c in zip(norms, values[0::2], values[1::2], strict=True):
        norm.update_running((mean_c, var_c))
    return output


def synchronise(model: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Let every `BatchNorm2d` of the model take its statistics over `group` (None: this process alone).

    Raises:
        ValueError: a batch normalisation of another class, or one without momentum, which could not follow.
    """
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm2d):
            if module.momentum is None:
                raise ValueError(f"{name}: momentum is None; expected a number, a cumulative average is not covered")
            module.process_group = group
        elif group is not None and isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{name} is a {type(module).__name__}; expected models.norm.BatchNorm2d, else ranks would normalise "
                "differently"
            )


def _check_count(x_nchw: Tensor, world_size: int) -> None:
    """Refuse statistics of a single value, whether it lies on one rank or there are several."""
    num_total = x_nchw.numel() // x_nchw.shape[1] * world_size
    if num_total < 2:
        raise ValueError(
            f"batch normalisation in training got {num_total} values a channel (a map of shape {tuple(x_nchw.shape)}, "
            f"{world_size} ranks); expected at least 2: use a larger micro-batch or a lower mask ratio"
        )


class _NormaliseOverRanks(torch.autograd.Function):
    """Training-mode batch normalisation with the statistics of all ranks.

    Forward: each rank's mean and (biased) variance are combined with equal counts, as mean = avg(mean_r) and
    var = avg(var_r + mean_r^2) - mean^2. Both are averaged in one all-reduce of float64, in which the difference loses
    less than the float32 mean of a rank does: 2^-52 mean^2. What travels does not grow with the number of ranks.
    Backward: with x' = (x - mean) / sqrt(var + eps), the two sums over all ranks, sum(dy) and sum(dy x'), enter
    dx = w / sqrt(var + eps) * (dy - sum(dy)/n - x' sum(dy x')/n) (Ioffe and Szegedy 2015, section 3). Gradients of
    weight and bias stay this rank's share: the engine adds them up like all others.
    """

    @staticmethod
    def forward(
        ctx: Any, x_nchw: Tensor, weight_c: Tensor, bias_c: Tensor, eps: float, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor]:
        # This rank's mean and variance, averaged over the ranks as mean and mean square.
        world_size = dist.get_world_size(group)
        wide = torch.float64 if x_nchw.dtype == torch.float64 else torch.float32
        num_local = x_nchw.numel() // x_nchw.shape[1]
        var_c, mean_c = (own.double() for own in torch.var_mean(x_nchw.to(wide), dim=(0, 2, 3), correction=0))
        averages = torch.stack((mean_c, var_c + mean_c.square())) / world_size
        dist.all_reduce(averages, group=group)
        var_c = (averages[1] - averages[0].square()).clamp_min(0).to(wide)
        mean_c = averages[0].to(wide)

        num_total = num_local * world_size
        unbiased_c = var_c * (num_total / (num_total - 1))
        y_nchw = F.batch_norm(x_nchw, mean_c, var_c, weight_c, bias_c, False, 0.0, eps)
        ctx.save_for_backward(x_nchw, weight_c, mean_c, torch.rsqrt(var_c + eps))
        ctx.group, ctx.num_total = group, num_total
        ctx.mark_non_differentiable(mean_c, unbiased_c)
        return y_nchw, mean_c, unbiased_c

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_nchw: Tensor, *_: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        # The two sums over all ranks' positions, in one all-reduce.
        x_nchw, weight_c, mean_c, inverse_c = ctx.saved_tensors
        wide = mean_c.dtype
        grad = grad_nchw.to(wide)
        centred = x_nchw.to(wide) - mean_c[:, None, None]
        sums = torch.stack((grad.sum((0, 2, 3)), (grad * centred).sum((0, 2, 3)) * inverse_c))
        grad_bias_c, grad_weight_c = sums[0].clone(), sums[1].clone()
        dist.all_reduce(sums, group=ctx.group)
        sums /= ctx.num_total

        scale_c = weight_c.to(wide) * inverse_c
        slope_c = scale_c * sums[1] * inverse_c
        grad_x = grad * scale_c[:, None, None] - centred * slope_c[:, None, None] - (scale_c * sums[0])[:, None, None]
        return grad_x.to(x_nchw.dtype), grad_weight_c.to(weight_c.dtype), grad_bias_c.to(weight_c.dtype), None, None
