"""SparK's loss where pixels are missing, its counts, its reconstruction and its errors."""

import copy
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rainspark.models.encoder import build_encoder
from rainspark.models.patches import patchify, unpatchify
from rainspark.models.spark import Loss, SparK, SparKOutput, counted_patches, num_terms
from tests.models.drawing import draw, draw_positions, relative, shake


def _model(loss: Loss = "masked", *, patch: int = 32, in_chans: int = 2) -> SparK:
    torch.manual_seed(0)
    model = SparK(
        build_encoder("resnet18", in_chans), decoder_width=32, patch=patch, loss=loss, target_eps=1e-4
    ).double()
    shake(model)
    return model


def _missing(shape: tuple[int, ...]) -> Tensor:
    """Validity with whole patches, most, half and few pixels of patches missing."""
    valid = torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.2
    valid[0, :, :32, :32] = False
    valid[0, :, :32, 32:64] = torch.arange(32)[:, None] < 16
    valid[1, :, 32:, :32] = False
    valid[1, 0, 32:, 0] = True
    return valid


def _slow_errors(frames: Tensor, valid: Tensor, decoded: Tensor, eps: float) -> tuple[list[float], list[bool]]:
    """Errors of every patch from its valid pixels alone, patch by patch in numpy."""
    errors, counted = [], []
    for image in range(frames.shape[0]):
        for row in range(frames.shape[2] // 32):
            for col in range(frames.shape[3] // 32):
                cut = (image, slice(None), slice(32 * row, 32 * row + 32), slice(32 * col, 32 * col + 32))
                good = valid[cut].numpy()
                true, predicted = frames[cut].numpy()[good], decoded[cut].numpy()[good]
                counted.append(2 * good.sum() >= good.size)
                if good.sum() < 2:
                    errors.append(float("nan"))
                    continue
                target = (true - true.mean()) / np.sqrt(true.var(ddof=1) + eps)
                errors.append(float(((predicted - target) ** 2).mean()))
    return errors, counted


@pytest.mark.parametrize("loss", ["masked", "all"])
def test_missing_pixels_leave_statistics_and_errors(loss: Loss) -> None:
    model = _model(loss)
    valid = _missing((2, 2, 64, 96))
    frames = torch.where(valid, draw(2, 2, 64, 96).abs(), 0.0)
    visible_bv = draw_positions(2, (2, 3), 0.5)
    output = model(frames, visible_bv, valid)
    decoded = unpatchify(output.prediction_blp, model.patch, output.grid_hw).detach()
    errors, counted = _slow_errors(frames, valid, decoded, 1e-4)
    assert output.counted_bl.flatten().tolist() == counted
    assert counted[:2] == [False, True]
    enters = np.array(counted)
    if loss == "masked":
        enters &= ~output.visible_bl.flatten().numpy()
    value = model.loss_sum(output)
    assert value.detach().item() == pytest.approx(np.array(errors)[enters].sum(), rel=1e-10)
    counted_bl = counted_patches(valid.numpy())
    terms = num_terms(loss, visible_bv.numpy(), counted_bl, 2, 6)
    assert terms == (2 if loss == "all" else enters.sum())
    assert torch.equal(torch.from_numpy(counted_bl), counted_patches(valid))
    torch.autograd.backward(value)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_nothing_missing_is_the_same_as_no_mask_of_validity() -> None:
    model, frames, visible_bv = _model().eval(), draw(2, 2, 64, 64), draw_positions(2, (2, 2), 0.5)
    without, complete = model(frames, visible_bv), model(frames, visible_bv, torch.ones_like(frames, dtype=torch.bool))
    assert relative(complete.error_bl, without.error_bl) < 1e-12
    assert torch.equal(complete.counted_bl, without.counted_bl)


def test_uncounted_patches_do_not_enter_even_when_not_finite() -> None:
    model = _model("all")
    output = model.eval()(draw(1, 2, 32, 64), torch.tensor([[1]]))
    broken = output.error_bl.detach().clone()
    broken[0, 0] = float("nan")
    fields = {name: getattr(output, name) for name in SparKOutput.__dataclass_fields__}
    spoilt = SparKOutput(**(fields | {"error_bl": broken, "counted_bl": torch.tensor([[False, True]])}))
    assert model.loss_sum(spoilt) == broken[0, 1]


def test_perfect_prediction_reconstructs_the_frames() -> None:
    model, frames = _model(), draw(2, 2, 64, 96)
    output = model(frames, draw_positions(2, (2, 3), 0.5))
    target = (patchify(frames, model.patch) - output.mean_bl1) / output.deviation_bl1
    fields = {name: getattr(output, name) for name in SparKOutput.__dataclass_fields__}
    assert relative(model.reconstruct(SparKOutput(**(fields | {"prediction_blp": target}))), frames) < 1e-12


def test_order_of_values_in_a_patch_is_row_column_channel() -> None:
    model, frames = _model(), draw(1, 2, 64, 96)
    assert torch.equal(patchify(frames, model.patch)[0, 4, (5 * 32 + 7) * 2 + 1], frames[0, 1, 32 + 5, 32 + 7])


def test_a_patch_may_be_a_multiple_of_the_stride() -> None:
    """64-pixel patches, all pixels of which are visible, give what 32-pixel patches give at the same places."""
    coarse, fine = _model(patch=64).eval(), _model().eval()
    frames = draw(1, 2, 64, 128)
    one, four = coarse(frames, torch.tensor([[1]])), fine(frames, torch.tensor([[2, 3, 6, 7]]))
    whole, parts = (unpatchify(out.prediction_blp, p, out.grid_hw) for out, p in ((one, 64), (four, 32)))
    assert relative(whole, parts) < 1e-9


def test_bfloat16_autocast_compares_in_float32() -> None:
    model = _model().float()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(draw(2, 2, 64, 64).float(), draw_positions(2, (2, 2), 0.5))
    assert output.error_bl.dtype == torch.float32
    assert output.error_bl.isfinite().all()


def test_a_micro_batch_with_one_visible_patch_trains_with_frozen_norms_only() -> None:
    """At the last stage such a patch is one value a channel, which has no variance."""
    model, frames, visible_bv = _model(), draw(1, 2, 64, 64), torch.tensor([[2]])
    message = r"expected at least 2: use a larger micro-batch or a lower mask ratio"
    for recompute in (False, True):
        model.set_checkpoint_blocks(recompute)
        with pytest.raises(ValueError, match=message):
            model(frames, visible_bv)
    assert model.eval()(frames, visible_bv).error_bl.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_forward_and_backward_are_the_eager_ones(recompute: bool) -> None:
    """Through AOT autograd: functionalised buffers, and the custom functions' backward as a graph."""
    usual = _model()
    for stage in range(1, 5):  # One block a stage, with its shortcut: less to trace.
        del cast(nn.Sequential, usual.sparse_encoder.sp_cnn.get_submodule(f"layer{stage}"))[1]
    compiled = copy.deepcopy(usual)
    for model in (usual, compiled):
        model.set_checkpoint_blocks(recompute)
    torch.compiler.reset()
    walk = torch.compile(compiled, backend="aot_eager", fullgraph=True, dynamic=False)
    frames, visible_bv = draw(2, 2, 64, 64), draw_positions(2, (2, 2), 0.5)
    valid = _missing((2, 2, 64, 64))
    frames = torch.where(valid, frames, 0.0)
    losses = []
    for call, model in ((usual, usual), (walk, compiled)):
        loss = model.loss_sum(call(frames, visible_bv, valid))
        torch.autograd.backward(loss)
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=0)
    for (key, one), other in zip(usual.named_parameters(), compiled.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        floor = 1e-12 * max(1.0, float(losses[0]))
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=floor, msg=key)
    for (key, buffer), again in zip(usual.named_buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(buffer, again, rtol=1e-12, atol=1e-12, msg=key)


def test_terms_without_missing_pixels() -> None:
    visible_bv = draw_positions(4, (3, 3), 0.6).numpy()
    assert num_terms("masked", visible_bv, None, 4, 9) == 4 * (9 - visible_bv.shape[1])
    assert num_terms("masked", visible_bv, np.ones((4, 9), bool), 4, 9) == 4 * (9 - visible_bv.shape[1])
    assert num_terms("all", visible_bv, None, 4, 9) == 4
    one_unseen_bl = np.arange(4)[:, None] > np.zeros(9)
    assert num_terms("all", visible_bv, one_unseen_bl, 4, 9) == 3


def test_initial_values_are_the_published_ones() -> None:
    model = SparK(build_encoder("resnet18", 1), decoder_width=64)
    assert all(token.abs().max() <= 0.02 and token.std() > 0.005 for token in model.mask_tokens)
    block = model.dense_decoder.dec[0]
    assert 0.015 < float(block.get_parameter("conv.0.weight").detach().std()) < 0.025
    fan_out = 64 * 16
    assert float(block.get_parameter("up_sample.weight").detach().std()) == pytest.approx(
        (2 / fan_out) ** 0.5, rel=0.05
    )


@pytest.mark.parametrize(
    ("shape", "positions", "valid", "message"),
    [
        ((1, 3, 64, 64), (1, 2), None, r"frames have shape \(1, 3, 64, 64\); expected \(images, 2, h, w\)"),
        ((1, 2, 64, 65), (1, 2), None, "frames of 64 x 65 pixels; expected sides that are multiples of 32"),
        ((1, 2, 64, 64), (2, 2), None, "positions of 2 images, frames of 1"),
        ((1, 2, 64, 64), (1, 2), (1, 1, 64, 64), "validity has shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    shape: tuple[int, ...], positions: tuple[int, int], valid: tuple[int, ...] | None, message: str
) -> None:
    mask = None if valid is None else torch.ones(valid, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        _model()(torch.zeros(shape, dtype=torch.float64), torch.zeros(positions, dtype=torch.int64), mask)


def test_settings_that_cannot_be_are_refused() -> None:
    encoder = build_encoder("resnet18", 1)
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"patch": 48}, "patch is 48 pixels; expected a multiple of the encoder's stride 32"),
        ({"loss": "recon"}, "loss is 'recon'; expected 'masked' or 'all'"),
        ({"decoder_width": 100}, "decoder width is 100; expected a multiple of 32"),
        ({"decoder_activation": "gelu"}, "decoder activation is 'gelu'"),
    )
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            SparK(encoder, **arguments)
