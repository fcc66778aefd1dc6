"""The average of the weights, against a slow plain loop; and a model that gets its own weights back bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rainspark.trainer.engine.averaging import Average
from tests.trainer.engine.cases import equal

WENT_ON = torch.zeros((), dtype=torch.bool)
SKIPPED = torch.ones((), dtype=torch.bool)


def make_net(dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 4, bias=False)).to(dtype)
    net[2].requires_grad_(False)
    net.register_buffer("scratch", torch.zeros(2), persistent=False)
    return net


def move(net: nn.Module, step: int) -> None:
    """Write weights, statistics and the counter of a step."""
    generator = torch.Generator().manual_seed(step)
    for name, tensor in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(step)
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))


def values_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


@given(steps=st.lists(st.tuples(st.floats(0, 0.9999), st.booleans()), min_size=1, max_size=8))
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_the_average_is_the_slow_loop(dtype: torch.dtype, bound: float, steps: list[tuple[float, bool]]) -> None:
    net = make_net(dtype)
    average = Average(net)
    assert equal(average.values, values_of(net))
    slow = {name: tensor.double().flatten().tolist() for name, tensor in net.state_dict().items()}
    for step, (decay, skipped) in enumerate(steps, start=1):
        if not skipped:
            move(net, step)
            for name, tensor in net.state_dict().items():
                live = tensor.double().flatten().tolist()
                if name.endswith("num_batches_tracked"):
                    slow[name] = live
                else:
                    slow[name] = [decay * a + (1 - decay) * w for a, w in zip(slow[name], live, strict=True)]
        average.update(decay, SKIPPED if skipped else WENT_ON)
    for name, value in average.values.items():
        assert value.dtype == net.state_dict()[name].dtype
        assert value.double().flatten().tolist() == pytest.approx(slow[name], rel=bound, abs=bound), name


def test_a_skipped_step_changes_nothing_whatever_the_decay() -> None:
    net = make_net()
    average = Average(net)
    move(net, 1)
    average.update(0.5, WENT_ON)
    before = {name: value.clone() for name, value in average.values.items()}
    counter = "1.num_batches_tracked"
    for step in (2, 3):
        # The engine has put the counter back by then, as it does the statistics.
        move(net, step)
        net.state_dict()[counter].fill_(1)
        average.update(0.0, SKIPPED)
    assert equal(average.values, before)
    assert int(average.values[counter]) == 1


def test_the_model_gets_its_own_weights_back_bit_for_bit() -> None:
    net = make_net()
    average = Average(net)
    move(net, 1)
    average.update(0.75, WENT_ON)
    own, averaged = values_of(net), {name: value.clone() for name, value in average.values.items()}
    with average.swapped_in():
        assert equal(values_of(net), averaged)
    assert equal(values_of(net), own)
    with pytest.raises(KeyboardInterrupt), average.swapped_in():
        raise KeyboardInterrupt
    assert equal(values_of(net), own)
    assert equal(average.values, averaged)


def test_without_saved_averages_it_starts_at_the_weights() -> None:
    net = make_net()
    average = Average(net)
    move(net, 5)
    average.restore({})
    assert equal(average.values, values_of(net))
