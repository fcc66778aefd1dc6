"""Normalisation over ranks: two processes compute what one does."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.decoder import LightDecoder
from models.norm import BatchNorm2d, synchronise
from models.spark import SparK
from tests.distributed import run_ranks
from tests.models.drawing import draw, draw_positions, relative, shake

Result = dict[str, Tensor]


def _small_spark() -> SparK:
    from models.encoder import build_encoder

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
    results["bfloat16"] = _norm_alone(group, half, torch.bfloat16)
    return results


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
    for rank in ranks:
        assert rank["bfloat16"]["y"].dtype == torch.bfloat16
        assert rank["bfloat16"]["mean"].dtype == torch.float32
        assert relative(rank["bfloat16"]["mean"].double(), whole["mean"]) < 1e-2


def test_one_process_is_torch_itself() -> None:
    own, torchs = BatchNorm2d(4), nn.BatchNorm2d(4)
    x = draw(3, 4, 5, 5).float()
    for _ in range(2):
        assert torch.equal(own(x), torchs(x))
    for one, other in zip(own.state_dict().values(), torchs.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_statistics_given_out_leave_the_running_ones_until_taken_in() -> None:
    norm, usual = BatchNorm2d(4), BatchNorm2d(4)
    x = draw(3, 4, 5, 5).float()
    statistics: list[tuple[Tensor, Tensor]] = []
    for _ in range(2):
        assert torch.equal(norm(x, statistics), usual(x))
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 0
    assert norm.running_mean is not None
    assert norm.running_mean.abs().max() == 0
    for batch in statistics:
        norm.update_running(batch)
    for one, other in zip(norm.state_dict().values(), usual.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


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


def test_decoder_recomputes_alike() -> None:
    torch.manual_seed(0)
    usual = LightDecoder(4, 8, 3).double()
    again = copy.deepcopy(usual)
    again.checkpoint_blocks = True
    for decoder in (usual, again):
        torch.autograd.backward(decoder([draw(2, 8, 3, 2), draw(2, 4, 6, 4, seed=1)]).square().sum())
    for (key, one), other in zip(usual.named_parameters(), again.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12, msg=key)
    for buffer, other_buffer in zip(usual.buffers(), again.buffers(), strict=True):
        torch.testing.assert_close(buffer, other_buffer, rtol=1e-15, atol=1e-15)
