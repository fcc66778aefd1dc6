"""Optimizers, groups and schedules against slow formulas."""

import copy
import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rainspark.models.encoder import build_encoder
from rainspark.models.nowcasting.nowcaster import Nowcaster
from rainspark.trainer.engine.optimizers import (
    average_decay_at,
    build_optimizer,
    decay_at,
    fresh_state,
    moment_names,
    parameter_groups,
    rate_at,
    set_schedule,
)
from rainspark.trainer.settings.optim import OptimConfig


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.mask_tokens = nn.ParameterList([nn.Parameter(torch.randn(1, 4, 1, 1))])
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.head((self.norm(self.conv(x_bchw)) + self.mask_tokens[0]).mean((2, 3)))


def test_rate_is_the_formula() -> None:
    config = OptimConfig(lr=2e-4, warmup_steps=10, min_lr_share=0.001)
    peak = 2e-4 * 128 / 256
    rates = [rate_at(config, step, 50, 128) for step in range(50)]
    for step in range(10):
        assert rates[step] == pytest.approx(peak * (step + 1) / 11)
    for step in range(10, 50):
        share = 0.5 * (1 + math.cos(math.pi * (step - 10) / 39))
        assert rates[step] == pytest.approx(peak * (0.001 + 0.999 * share))
    assert rates[10] == pytest.approx(peak)
    assert max(rates) == rates[10]
    assert rates[-1] == pytest.approx(peak * 0.001)


def test_the_peak_follows_the_global_batch_as_asked() -> None:
    """At 256 windows all rules give `lr`; at 32k, 128 times as many, 128 times that, its root, or `lr`."""
    rules: dict[Any, tuple[float, float]] = {"linear": (128, 0.25), "sqrt": (math.sqrt(128), 0.5), "none": (1, 1)}
    for scaling, (large, small) in rules.items():
        config = OptimConfig(lr=2e-4, lr_scaling=scaling)
        assert rate_at(config, 0, 10, 256) == 2e-4
        assert rate_at(config, 0, 10, 32768) == pytest.approx(2e-4 * large, rel=1e-12)
        assert rate_at(config, 0, 10, 64) == pytest.approx(2e-4 * small, rel=1e-12)
    assert OptimConfig().lr_scaling == "linear"


def test_rate_without_warm_up_and_of_one_step() -> None:
    config = OptimConfig(lr=1.0)
    assert rate_at(config, 0, 10, 256) == 1.0
    assert rate_at(config, 0, 1, 512) == 2.0


def test_decay_is_the_formula() -> None:
    config = OptimConfig(weight_decay=0.04, weight_decay_end=0.2)
    for step in range(30):
        share = 0.5 * (1 + math.cos(math.pi * step / 29))
        assert decay_at(config, step, 30) == pytest.approx(0.2 - 0.16 * share)
    assert decay_at(config, 0, 30) == pytest.approx(0.04)
    assert decay_at(OptimConfig(weight_decay=0.3), 29, 30) == 0.3


def test_groups_and_schedule() -> None:
    config = OptimConfig(weight_decay=0.5)
    groups = parameter_groups(Net(), config)
    assert [group["names"] for group in groups] == [
        ["conv.weight", "head.weight"],
        ["conv.bias", "norm.weight", "norm.bias", "head.bias", "mask_tokens.0"],
    ]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    optimizer = build_optimizer(groups, config)
    set_schedule(optimizer, 0.25, 0.125)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.25, 0.125), (0.25, 0.0)]


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"lr": 0.0}, "optim.lr"),
        ({"betas": (0.9, 1.0)}, "optim.betas"),
        ({"momentum": 1.0}, "optim.momentum"),
        ({"eps": 0.0}, "optim.eps"),
        ({"weight_decay": -1.0}, "optim.weight_decay"),
        ({"weight_decay_end": math.nan}, "optim.weight_decay_end"),
        ({"warmup_steps": -1}, "optim.warmup_steps"),
        ({"min_lr_share": 1.5}, "optim.min_lr_share"),
        ({"clip_norm": 0.0}, "optim.clip_norm"),
        ({"layer_decay": 0.0}, "optim.layer_decay"),
        ({"ema_decay": 1.0}, "optim.ema_decay"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        OptimConfig(**settings)


def gradients(model: nn.Module, step: int, dtype: torch.dtype = torch.float64) -> None:
    generator = torch.Generator().manual_seed(step)
    model.zero_grad()
    model(torch.randn(4, 3, 6, 6, generator=generator, dtype=torch.float64).to(dtype)).square().sum().backward()


def test_lamb_is_timms() -> None:
    ours = Net().double()
    # The trust ratio of a weight whose norm is zero is 1.
    nn.init.zeros_(ours.head.weight)
    theirs = copy.deepcopy(ours)
    config = OptimConfig(name="lamb", betas=(0.9, 0.95), eps=1e-6)
    first = build_optimizer(parameter_groups(ours, config), config)
    groups = [
        {"params": group["params"], "weight_decay": 0.1 if group["decays"] else 0.0}
        for group in parameter_groups(theirs, config)
    ]
    reference: Any = importlib.import_module("timm.optim")
    second = reference.Lamb(groups, lr=0.02, betas=(0.9, 0.95), eps=1e-6, max_grad_norm=None)
    set_schedule(first, 0.02, 0.1)
    for step in range(20):
        gradients(ours, step)
        gradients(theirs, step)
        first.step()
        second.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-12, atol=1e-14), name


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_found_inf_changes_nothing(name: Any) -> None:
    """The first step too, before torch's fused SGD has made its momentum."""
    config = OptimConfig(name=name, weight_decay=0.1)
    plain, bad = Net(), Net()
    optimizers = [build_optimizer(parameter_groups(model, config), config) for model in (plain, bad)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter] = fresh_state(optimizer, parameter)
    for step in range(4):
        before = {key: value.clone() for key, value in bad.state_dict().items() if "norm.r" not in key}
        gradients(bad, 99, torch.float32)
        for parameter in bad.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(torch.nan)
        optimizers[1].found_inf = torch.ones(())  # type: ignore[attr-defined]
        optimizers[1].step()
        after = bad.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items() if "num_batches" not in key)
        optimizers[1].found_inf = torch.zeros(())  # type: ignore[attr-defined]
        for model, optimizer in zip((plain, bad), optimizers, strict=True):
            gradients(model, step, torch.float32)
            optimizer.step()
    for mine, other in zip(plain.parameters(), bad.parameters(), strict=True):
        assert torch.equal(mine, other)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    assert set(moment_names(optimizers[0])) <= states[0][0].keys()
    for index, state in states[0].items():
        for key, value in state.items():
            assert torch.equal(value, states[1][index][key]), key


def test_early_steps_count_for_little_of_a_long_average() -> None:
    config = OptimConfig(ema_decay=0.99)
    decays = [average_decay_at(config, step) for step in range(2000)]
    for step, decay in enumerate(decays):
        assert decay == pytest.approx((1 + step) / (10 + step) if step < 890 else 0.99, rel=1e-12)
    assert decays == sorted(decays)
    assert average_decay_at(OptimConfig(), 5) == 0


def make_nowcaster() -> Nowcaster:
    return Nowcaster(build_encoder("resnet18", 2), frames_out=2, decoder_width=32, head="direct", translation="linear")


def test_the_rate_falls_from_block_to_block_towards_the_encoders_beginning() -> None:
    """ResNet-18 has eight blocks after its stem: shares 0.5**9 for the stem, 0.5**8 to 0.5 for them, 1 for the rest."""
    blocks = ["conv1", "bn1", *(f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2))]
    exponents = [9, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    expected = {f"sparse_encoder.sp_cnn.{block}.": 0.5**n for block, n in zip(blocks, exponents, strict=True)}
    model, config = make_nowcaster(), OptimConfig(layer_decay=0.5, weight_decay=0.3)
    groups = parameter_groups(model, config)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    parameters = dict(model.named_parameters())
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert parameter is parameters[name]
            share = next((share for start, share in expected.items() if name.startswith(start)), 1.0)
            assert group["rate_share"] == share, name
            assert group["decays"] == (parameter.ndim > 1), name
    optimizer = build_optimizer(groups, config)
    set_schedule(optimizer, 0.25, 0.125)
    for group in optimizer.param_groups:
        assert group["lr"] == 0.25 * group["rate_share"]
        assert group["weight_decay"] == (0.125 if group["decays"] else 0.0)


def test_the_shares_do_not_depend_on_what_is_frozen() -> None:
    whole, part = make_nowcaster(), make_nowcaster()
    part.sparse_encoder.requires_grad_(False)
    block = part.get_submodule("sparse_encoder.sp_cnn.layer2.0").requires_grad_(True)
    config = OptimConfig(layer_decay=0.5)
    shares = [
        {name: group["rate_share"] for group in parameter_groups(model, config) for name in group["names"]}
        for model in (whole, part)
    ]
    assert len([name for name in shares[1] if "sp_cnn" in name]) == len(list(block.parameters()))
    assert shares[1].items() <= shares[0].items()
