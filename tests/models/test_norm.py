"""Normalisation over ranks: two processes compute what one does."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rainspark.models.decoder import LightDecoder
from rainspark.models.encoder import build_encoder
from rainspark.models.norm import BatchNorm2d, synchronise
from rainspark.models.spark import SparK
from tests.distributed import run_ranks
from tests.models.drawing import draw, draw_positions, relative, shake

Result = dict[str, Tensor]


def _small_spark() -> SparK:
    torch.manual_seed(0)
    model = SparK(build_encoder("resnet18", 2), decoder_width=64).double()
    shake(model)
    return model


def _step(model: SparK, rows: slice, group: dist.ProcessGroup | None) -> Result:
    """One forward and backward on some images; gradients and the loss summed over ranks, buffers as they are."""
    synchronise(model, group)
    frames, visible_bv = draw(4, 2, 64, 96)[rows], draw_positions(4, (2, 3), 0.5)[rows]
    loss = model.loss_sum(model(frames, visible_bv))
    torch.autograd.backward(loss)
    result = {"loss": loss.detach()}
    result |= {f"grad {key}": tensor.grad for key, tensor in model.named_parameters() if tensor.grad is not None}
    if group is not None:
        for tensor in result.values():
            dist.all_reduce(tensor)
    return result | {f"buffer {key}": tensor for key, tensor in model.named_buffers()}


def _norm_alone(group: dist.ProcessGroup | None, rows: slice, dtype: torch.dtype) -> Result:
    """A normalisation alone, channels-last, in two steps and then in evaluation mode."""
    norm = BatchNorm2d(5)
    shake(norm)
    norm.to(torch.float64 if dtype == torch.float64 else torch.float32)
    synchronise(norm, group)
    x = (3 + 2 * draw(6, 5, 3, 4))[rows].to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    factor = draw(6, 5, 3, 4, seed=1)[rows].to(dtype)
    torch.autograd.backward((norm(x) * factor).sum())
    outputs = norm(x).detach()
    norm.eval()
    assert x.grad is not None
    return {"y": outputs, "dx": x.grad, "mean": norm.running_mean, "var": norm.running_var, "eval": norm(x).detach()}


def _two_values(group: dist.ProcessGroup | None, rows: slice) -> Result:
    """A normalisation of the fewest values that have a variance, over all ranks: two a channel."""
    norm = BatchNorm2d(5).double()
    synchronise(norm, group)
    x = draw(2, 5, 1, 1)[rows].requires_grad_()
    y = norm(x)
    torch.autograd.backward((y * draw(2, 5, 1, 1, seed=1)[rows]).sum())
    assert x.grad is not None
    return {"y": y.detach(), "dx": x.grad, "mean": norm.running_mean, "var": norm.running_var}


def _far_from_zero(rank: int, num_channels: int) -> Tensor:
    """A rank's maps, float32: means up to 1000, deviations down to 0.02, and another mean on every rank."""
    offset_c = torch.linspace(-1000, 1000, num_channels)[:, None, None]
    deviation_c = torch.logspace(-1.7, 2, num_channels)[:, None, None]
    return (offset_c + deviation_c * (0.1 * rank + draw(3, num_channels, 5, 7, seed=rank))).float()


def _buffers(rank: int) -> dict[str, Result]:
    """What normalisations of few and many channels take in, in float32."""
    results = {}
    for num_channels in (1, 7, 1030):
        norm = BatchNorm2d(num_channels, momentum=1.0)
        synchronise(norm, dist.group.WORLD)
        norm(_far_from_zero(rank, num_channels))
        results[str(num_channels)] = dict(norm.named_buffers())
    return results


def _compare_buffers(ranks: list[dict[str, Result]]) -> None:
    """Bit for bit over the ranks, and to what float32 can hold with the exact statistics."""
    for kind, buffers in ranks[0].items():
        for other in ranks[1:]:
            for key, value in buffers.items():
                assert torch.equal(value, other[kind][key]), (kind, key)
        whole = torch.cat([_far_from_zero(rank, int(kind)) for rank in range(len(ranks))]).double()
        var_c, mean_c = torch.var_mean(whole, dim=(0, 2, 3))
        torch.testing.assert_close(buffers["running_mean"].double(), mean_c, rtol=1e-6, atol=0)
        # Each rank rounds a mean of 1000 by up to 3e-5; squares of float32 would leave 0.06 of a variance of 0.0004.
        torch.testing.assert_close(buffers["running_var"].double(), var_c, rtol=1e-3, atol=0)


def _checks(rank: int) -> dict[str, Result]:
    """All that needs two processes, in one start of them."""
    group, rows = dist.group.WORLD, slice(2 * rank, 2 * rank + 2)
    assert group is not None
    model = _small_spark()
    results = {"spark": _step(model, rows, group)}
    model = _small_spark()
    model.set_checkpoint_blocks(True)
    results["recomputed"] = _step(model, rows, group)
    half = slice(3 * rank, 3 * rank + 3)
    results["alone"] = _norm_alone(group, half, torch.float64)
    results["one value a rank"] = _two_values(group, slice(rank, rank + 1))
    with pytest.raises(ValueError, match=r"got 0 values a channel \(a map of shape \(0, 5, 1, 1\), 2 ranks\)"):
        _two_values(group, slice(0, 0))
    results["bfloat16"] = _norm_alone(group, half, torch.bfloat16)
    return results | {f"buffers {kind}": found for kind, found in _buffers(rank).items()}


def test_two_ranks_compute_what_one_does() -> None:
    ranks = run_ranks(_checks, 2)
    expected = _step(_small_spark(), slice(0, 4), None)
    for kind in ("spark", "recomputed"):
        for key, value in expected.items():
            # What is zero but for rounding (a bias before a normalisation) is measured on the weights' scale.
            floor = 1e-12 * max(1.0, float(expected["loss"]))
            torch.testing.assert_close(ranks[0][kind][key], value, rtol=1e-9, atol=floor, msg=f"{kind} {key}")
            if key.startswith("buffer"):
                assert torch.equal(ranks[0][kind][key], ranks[1][kind][key]), f"{kind} {key}: ranks differ"
    whole = _norm_alone(None, slice(0, 6), torch.float64)
    for key, value in whole.items():
        found = torch.cat([rank["alone"][key] for rank in ranks]) if value.ndim == 4 else ranks[1]["alone"][key]
        assert relative(found, value) < 1e-12, key
    for key, value in _two_values(None, slice(0, 2)).items():
        found = torch.cat([rank["one value a rank"][key] for rank in ranks])
        found = found if value.ndim == 4 else ranks[0]["one value a rank"][key]
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12, msg=key)
    for rank in ranks:
        assert rank["bfloat16"]["y"].dtype == torch.bfloat16
        assert rank["bfloat16"]["mean"].dtype == torch.float32
        assert relative(rank["bfloat16"]["mean"].double(), whole["mean"]) < 1e-2
    kinds = [kind for kind in ranks[0] if kind.startswith("buffers")]
    _compare_buffers([{kind.split()[1]: rank[kind] for kind in kinds} for rank in ranks])


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [3, 5])
def test_buffers_are_bit_equal_on_all_ranks(world_size: int) -> None:
    """The sum over more than two ranks depends on its order, which must be the same for all of them."""
    _compare_buffers(run_ranks(_buffers, world_size, timeout_s=400.0))


def test_one_process_is_torch_itself() -> None:
    own, torchs = BatchNorm2d(4), nn.BatchNorm2d(4)
    x = draw(3, 4, 5, 5).float()
    for _ in range(2):
        assert torch.equal(own(x), torchs(x))
    for one, other in zip(own.state_dict().values(), torchs.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_statistics_given_out_leave_the_running_ones_until_taken_in() -> None:
    """As recomputation does it: several steps, each of two forwards, the first of which is taken in."""
    norm, usual = BatchNorm2d(4), nn.BatchNorm2d(4)
    for step in range(3):
        x, before = 2 + draw(3, 4, 5, 5, seed=step).float(), copy.deepcopy(norm.state_dict())
        statistics: list[tuple[Tensor, Tensor]] = []
        expected = usual(x)
        for _ in range(2):
            assert torch.equal(norm(x, statistics), expected)
        for key, value in norm.state_dict().items():
            assert torch.equal(value, before[key]), key
        norm.update_running(statistics[0])
        for (key, one), other in zip(norm.state_dict().items(), usual.state_dict().values(), strict=True):
            assert torch.equal(one, other), key


@pytest.mark.parametrize("frozen", ["", "bn1", "bn2", "downsample.1"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_recomputed_buffers_are_bit_equal_with_some_frozen(frozen: str, dtype: torch.dtype) -> None:
    """Several steps; a frozen normalisation stays what it was, and the others get their own statistics."""
    torch.manual_seed(0)
    usual = build_encoder("resnet18", 2).to(dtype)
    shake(usual)
    if frozen:
        usual.sp_cnn.get_submodule(f"layer2.0.{frozen}").eval()
    again = copy.deepcopy(usual)
    again.checkpoint_blocks = True
    start = copy.deepcopy(usual.state_dict())
    for step in range(3):
        for encoder in (usual, again):
            torch.autograd.backward(encoder(draw(2, 2, 64, 64, seed=step).to(dtype))[-1].square().mean())
    for (key, one), other in zip(usual.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(one, other), key
        assert torch.equal(one, start[key]) is (bool(frozen) and f"layer2.0.{frozen}." in key), key
    for (key, weight), weight_again in zip(usual.named_parameters(), again.parameters(), strict=True):
        assert weight.grad is not None
        assert weight_again.grad is not None
        assert torch.equal(weight.grad, weight_again.grad), key


def test_a_single_value_is_refused_in_training_only() -> None:
    norm, x = BatchNorm2d(4), draw(1, 4, 1, 1).float()
    with pytest.raises(ValueError, match=r"got 1 values a channel .* use a larger micro-batch or a lower mask ratio"):
        norm(x)
    assert norm.eval()(x).shape == x.shape


def test_without_running_statistics_recomputation_has_nothing_to_take_in() -> None:
    decoder = LightDecoder(2, 8, 3).double()
    decoder.dec[0].get_submodule("conv").register_module("1", BatchNorm2d(8, track_running_stats=False).double())
    last = decoder.dec[0].get_submodule("conv.4")
    again = copy.deepcopy(decoder)
    again.checkpoint_blocks = True
    assert torch.equal(again([draw(2, 8, 3, 2)]), decoder([draw(2, 8, 3, 2)]))
    for key, value in again.dec[0].get_submodule("conv.4").state_dict().items():
        assert torch.equal(value, last.state_dict()[key]), key


def test_autocast_keeps_statistics_in_float32() -> None:
    norm = BatchNorm2d(4)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(draw(3, 4, 5, 5).to(torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert norm.running_mean is not None
    assert norm.running_mean.dtype == torch.float32


def test_what_cannot_follow_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 is a BatchNorm2d; expected models\.norm\.BatchNorm2d"):
        synchronise(nn.Sequential(nn.BatchNorm2d(2)), dist.ProcessGroup(0, 1))
    with pytest.raises(ValueError, match="momentum is None"):
        synchronise(nn.Sequential(BatchNorm2d(2, momentum=None)), None)
