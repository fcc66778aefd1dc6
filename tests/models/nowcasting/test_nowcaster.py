"""The forecaster: packed as dense, its heads, missing pixels, freezing, recomputation, starting weights, errors."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from rainspark.models.encoder import build_encoder, depth_rates
from rainspark.models.norm import BatchNorm2d
from rainspark.models.nowcasting.motion import MARGIN_PX, Carried, advect, carry
from rainspark.models.nowcasting.nowcaster import Frozen, Head, Nowcaster
from rainspark.models.nowcasting.translation import MixerTranslation, TranslationName
from rainspark.models.patches import pack
from rainspark.models.spark import SparK
from rainspark.models.sparse import PatchLayout
from rainspark.models.weights.manifest import CheckpointError
from rainspark.models.weights.transfer import init_from
from tests.models.drawing import draw, draw_positions, relative, shake
from tests.models.nowcasting.storm_cells import Tenths

HEADS: tuple[Head, ...] = ("patch", "direct", "residual", "advected")
TRANSLATIONS: tuple[TranslationName, ...] = ("identity", "linear", "mixer")


def _model(
    head: Head = "direct",
    translation: TranslationName = "mixer",
    *,
    masks: bool = False,
    frames_in: int = 2,
    frames_out: int = 3,
    depth_drop: float = 0.0,
) -> Nowcaster:
    """Weights off their starting values, which would hide the mixer and the residual blocks."""
    torch.manual_seed(0)
    model = Nowcaster(
        build_encoder("resnet18", frames_in, depth_drop),
        frames_out=frames_out,
        decoder_width=32,
        translation=translation,
        head=head,
        masks=masks,
        space=Tenths(),
    ).double()
    shake(model)
    if isinstance(model.transition, MixerTranslation):
        for layer in model.transition.leave:
            torch.nn.init.normal_(cast(Any, layer).weight, std=0.1)
    return model


def _rain(*shape: int, seed: int = 0) -> Tensor:
    return draw(*shape, seed=seed).abs()


def _all_visible(images: int, patches: int) -> Tensor:
    return torch.arange(patches).expand(images, patches).contiguous()


@pytest.mark.parametrize("translation", TRANSLATIONS)
def test_dense_equals_packed_with_nothing_hidden(translation: TranslationName) -> None:
    """In training, with stochastic depth: forecast, gradients and running statistics."""
    frames = _rain(2, 2, 64, 96)
    results = []
    for visible_bv in (None, _all_visible(2, 6)):
        model = _model("patch", translation, masks=True, depth_drop=0.5)
        keep_kb = torch.ones(len(depth_rates(model.sparse_encoder)), 2, dtype=torch.float64)
        keep_kb[5, 1], keep_kb[6, 0] = 0.0, 1.7
        forecast = model(frames, visible_bv, None, keep_kb)
        torch.autograd.backward(forecast.square().mean())
        gradients = {name: p.grad for name, p in model.named_parameters() if "mask_tokens" not in name}
        results.append({"forecast": forecast.detach()} | gradients | dict(model.named_buffers()))
    scale = max(float(value.abs().max()) for value in results[0].values() if value is not None)
    for name, expected in results[0].items():
        found = results[1][name]
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11 * scale, msg=name)


@pytest.mark.parametrize("translation", TRANSLATIONS)
def test_hidden_patches_do_not_reach_the_forecast(translation: TranslationName) -> None:
    model = _model("direct", translation, masks=True)
    visible_bv = draw_positions(2, (2, 3), 0.5)
    frames = _rain(2, 2, 64, 96)
    hidden = ~PatchLayout.from_positions(visible_bv, (2, 3)).visible_bhw()
    hidden_b1hw = hidden[:, None].repeat_interleave(32, 2).repeat_interleave(32, 3)
    forecast = model(frames, visible_bv)
    assert torch.equal(model(torch.where(hidden_b1hw, float("nan"), frames), visible_bv), forecast)
    assert not torch.equal(model(torch.where(hidden_b1hw, frames, frames + 1.0), visible_bv), forecast)
    torch.autograd.backward(forecast.square().mean())
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert float(cast(Tensor, model.mask_tokens[0].grad).abs().max()) > 0


@pytest.mark.parametrize("with_missing", [False, True])
def test_patch_head_gives_the_decoded_image_the_moments_of_the_past(with_missing: bool) -> None:
    """Patch by patch in numpy: mean and unbiased deviation of the valid pixels of all past frames."""
    valid = torch.rand(2, 2, 64, 64, generator=torch.Generator().manual_seed(1)) > 0.3
    valid[0, :, :32, :32] = False
    frames = _rain(2, 2, 64, 64)
    if with_missing:
        frames = torch.where(valid, frames, 0.0)
    model = _model("patch").eval()
    found = model(frames, None, valid if with_missing else None).detach()
    model.head = "direct"
    decoded = model(frames).detach()
    for image in range(2):
        for row in range(2):
            for col in range(2):
                cut = (image, slice(None), slice(32 * row, 32 * row + 32), slice(32 * col, 32 * col + 32))
                true = frames[cut].numpy()[valid[cut].numpy()] if with_missing else frames[cut].numpy().ravel()
                mean, variance = (true.mean(), true.var(ddof=1)) if true.size else (0.0, 0.0)
                expected = decoded[cut].numpy() * np.sqrt(variance + 1e-6) + mean
                np.testing.assert_allclose(found[cut].numpy(), expected, rtol=1e-10, atol=1e-12)


def test_patch_head_is_sparks_reconstruction() -> None:
    """With the translation away, the same weights do what pretraining did."""
    torch.manual_seed(0)
    spark = SparK(build_encoder("resnet18", 2), decoder_width=32).double().eval()
    shake(spark)
    model = _model("patch", "identity", masks=True, frames_out=2).eval()
    model.load_state_dict(spark.state_dict())
    frames, visible_bv = _rain(1, 2, 64, 64), torch.tensor([[0, 3]])
    assert relative(model(frames, visible_bv), spark.reconstruct(spark(frames, visible_bv))) < 1e-12


def test_residual_head_starts_as_persistence_and_learns() -> None:
    torch.manual_seed(0)
    model = Nowcaster(build_encoder("resnet18", 2), frames_out=3, decoder_width=32, head="residual")
    frames = _rain(2, 2, 64, 64).float()
    forecast = model(frames)
    assert torch.equal(forecast, frames[:, 1:].expand(2, 3, 64, 64))
    torch.autograd.backward(forecast.square().mean())
    gradient = model.dense_decoder.proj.weight.grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0
    before = _model("residual").eval()
    frames = frames.double()
    residual = before(frames)
    before.head = "direct"
    torch.testing.assert_close(residual, frames[:, -1:] + before(frames))


def _moving_storms(num_frames: int) -> Tensor:
    """Storms that move by (row 2, column -3) pixels a frame, (1, num_frames, 96, 96), model space."""
    place = torch.arange(96, dtype=torch.float64)
    frames = []
    for frame in range(num_frames):
        field = torch.zeros(96, 96, dtype=torch.float64)
        for row, col, size in ((20.0, 70.0, 5.0), (50.0, 60.0, 8.0), (40.0, 85.0, 6.0)):
            rows, cols = place - (row + 2 * frame), place - (col - 3 * frame)
            field += torch.exp(-(rows[:, None] ** 2 + cols[None] ** 2) / (2 * size**2))
        frames.append(field)
    return torch.stack(frames)[None]


def _advected_model(dtype: torch.dtype = torch.float64) -> Nowcaster:
    """A fresh one, 3 frames to 4."""
    torch.manual_seed(0)
    model = Nowcaster(build_encoder("resnet18", 3), frames_out=4, decoder_width=32, head="advected", space=Tenths())
    return model.to(dtype).eval()


def _carried_on(fields_blhw: Tensor, carried: Carried) -> Tensor:
    """Each lead's field, with its margin, moved to its time."""
    moved = [
        advect(fields_blhw[:, lead : lead + 1], step, margin_px=MARGIN_PX) for lead, step in enumerate(carried.steps)
    ]
    return torch.cat(moved, dim=1)


def test_advected_head_starts_as_extrapolation() -> None:
    """Of the last frame, smoother the further ahead."""
    model, frames = _advected_model(), _moving_storms(7)
    past, future = frames[:, :3], frames[:, 3:]
    carried = carry(past, None, 4, Tenths())
    assert model.blend is not None
    forecast = model(past)
    assert torch.equal(forecast, _carried_on(model.blend(carried.canvas_b1hw), carried))
    error_t = (forecast - future).square().mean((0, 2, 3))
    assert bool((error_t < 0.2 * (past[:, 2:] - future).square().mean((0, 2, 3))).all())


def test_advected_head_adds_before_and_after_the_motion() -> None:
    """What the first half of the decoder's channels says moves with the rain; the second half stays in place."""
    model, past = _advected_model(), _moving_storms(3)
    plain = model(past).detach()
    decoded = draw(1, 8, 96, 96)
    model.dense_decoder.register_forward_hook(lambda *_: decoded)
    grown = F.pad(decoded[:, :4], (MARGIN_PX,) * 4, mode="replicate")
    expected = plain + _carried_on(grown, carry(past, None, 4, Tenths())) + decoded[:, 4:]
    assert relative(model(past), expected) < 1e-12


def test_autocast_does_not_touch_the_motion() -> None:
    """With a last layer of zeros the forecast is the extrapolation, to the bit; the encoder sees the same frames."""
    model, past = _advected_model(torch.float32), _moving_storms(3).float()
    seen: list[Tensor] = []
    model.sparse_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    expected = model(past)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(past)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(seen[0], seen[1])


def test_half_precision_frames_are_carried_in_single() -> None:
    """A model that is bfloat16 as a whole: the last layer's zeros leave the extrapolation of what was measured."""
    past = _moving_storms(3).bfloat16()
    found = _advected_model(torch.bfloat16)(past)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, _advected_model(torch.float32)(past.float()), rtol=0, atol=0.01)


def test_advected_head_shows_the_encoder_the_past_at_the_last_time() -> None:
    """Storms that only move stand still there, and a missing pixel is filled from around it."""
    model = _model("advected", frames_in=3)
    seen: list[Tensor] = []
    model.sparse_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    past = _moving_storms(3)
    model(past)
    valid = torch.ones_like(past, dtype=torch.bool)
    valid[0, :, 40:44, 50:54] = False
    model(torch.where(valid, past, 0.0), None, valid)
    for aligned in seen:
        moved = (past[:, :2] - past[:, 2:]).square().mean()
        assert float((aligned[:, :2] - aligned[:, 2:]).square().mean()) < 0.1 * float(moved)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("frames_in", "frames_out"), [(2, 1), (4, 2), (2, 5)])
def test_any_lengths(head: Head, frames_in: int, frames_out: int) -> None:
    model = _model(head, frames_in=frames_in, frames_out=frames_out)
    assert (model.frames_in, model.frames_out) == (frames_in, frames_out)
    assert model(_rain(1, frames_in, 64, 32)).shape == (1, frames_out, 64, 32)


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_that_learns_is_used(head: Head) -> None:
    """Distributed training waits for the gradient of each: mask tokens have none where nothing is ever hidden."""
    model = _model(head)
    torch.autograd.backward(model(_rain(2, 2, 32, 64)).square().mean())
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == learning
    assert {name for name, _ in model.named_parameters()} - learning == {f"mask_tokens.{level}" for level in range(4)}


def test_output_is_float32_under_autocast() -> None:
    for head in HEADS:
        model = _model(head).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(_rain(2, 2, 32, 64).float()).dtype == torch.float32


@pytest.mark.parametrize("parts", ["none", "encoder", "decoder", "both"])
def test_frozen_parts_stay_as_they_are(parts: Frozen) -> None:
    model = _model("direct", "linear", masks=True)
    decoder = ("dense_decoder.", "densify_norms.", "densify_projs.", "mask_tokens.")
    frozen = {"none": (), "encoder": ("sparse_encoder.",), "decoder": decoder, "both": ("sparse_encoder.", *decoder)}
    model.freeze("both")
    model.freeze(parts)
    for _ in range(2):
        model.train()
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (not name.startswith(frozen[parts])), name
        for name, module in model.named_modules():
            if isinstance(module, BatchNorm2d):
                assert module.training == (not name.startswith(frozen[parts])), name
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        torch.autograd.backward(model(_rain(2, 2, 64, 64), draw_positions(2, (2, 2), 0.5)).square().mean())
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, before[name]) == name.startswith(frozen[parts]), name
        model.eval()
        assert not any(module.training for module in model.modules())


def test_freezing_keeps_unused_tokens_without_gradients() -> None:
    model = _model()
    model.freeze("encoder")
    model.freeze("none")
    assert not any(token.requires_grad for token in model.mask_tokens)


def test_recomputed_is_the_same() -> None:
    results = []
    for recompute in (False, True):
        model = _model("patch", masks=True)
        model.set_checkpoint_blocks(recompute)
        torch.autograd.backward(model(_rain(2, 2, 64, 96), draw_positions(2, (2, 3), 0.5)).square().mean())
        assert all(norm.num_batches_tracked == 1 for norm in model.modules() if isinstance(norm, BatchNorm2d))
        results.append({name: p.grad for name, p in model.named_parameters()} | dict(model.named_buffers()))
    for name, expected in results[0].items():
        assert torch.equal(cast(Tensor, results[1][name]), cast(Tensor, expected)), name


def test_starts_from_pretraining_of_another_length(tmp_path: Path) -> None:
    """All but the last layer, whose shape follows the number of frames, and the translation."""
    torch.manual_seed(1)
    spark = SparK(build_encoder("resnet18", 2), decoder_width=32)
    safetensors.torch.save_file(spark.state_dict(), tmp_path / "model.safetensors")
    model = _model("direct", "linear", frames_out=3).float()
    last = {f"dense_decoder.proj.{kind}" for kind in ("weight", "bias")}
    before = {name: model.state_dict()[name].clone() for name in last}
    with pytest.raises(CheckpointError, match=r"2 tensors have another shape: dense_decoder.proj"):
        init_from(model, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"2 tensors have another shape: dense_decoder.proj"):
        init_from(model, tmp_path / "model.safetensors", may_differ=("sparse_encoder.",))
    report = init_from(model, tmp_path / "model.safetensors", may_differ=("dense_decoder.proj.",))
    own = model.state_dict()
    assert set(report.missing) == last | {name for name in own if name.startswith("transition.")}
    assert set(report.unused) == last
    assert set(report.loaded) == set(spark.state_dict()) - last
    assert all(torch.equal(own[name], spark.state_dict()[name]) for name in report.loaded)
    assert all(torch.equal(own[name], before[name]) for name in last)


def test_allowed_names_of_equal_shape_are_loaded(tmp_path: Path) -> None:
    spark = SparK(build_encoder("resnet18", 2), decoder_width=32)
    safetensors.torch.save_file(spark.state_dict(), tmp_path / "model.safetensors")
    model = _model("residual", "identity", frames_out=2).float()
    report = init_from(model, tmp_path / "model.safetensors", may_differ=("dense_decoder.proj.",))
    assert (report.missing, report.unused) == ((), ())
    assert float(model.dense_decoder.proj.weight.detach().abs().max()) > 0
    model.reset_projection()
    assert float(model.dense_decoder.proj.weight.detach().abs().max()) == 0


def test_errors() -> None:
    encoder = build_encoder("resnet18", 2)
    with pytest.raises(ValueError, match="0 frames to forecast; expected at least 1"):
        Nowcaster(encoder, frames_out=0)
    with pytest.raises(
        ValueError, match="head is 'other'; expected 'patch', 'direct', 'residual', 'advected' or 'cascade'"
    ):
        Nowcaster(encoder, frames_out=1, head=cast(Any, "other"))
    with pytest.raises(
        ValueError, match="head 'advected' finds motion from rain in mm/h; give the space of the frames"
    ):
        Nowcaster(encoder, frames_out=1, head="advected")
    model, frames = _model(), _rain(2, 2, 64, 64)
    with pytest.raises(ValueError, match="parts to freeze are 'all'; expected 'none'"):
        model.freeze(cast(Any, "all"))
    with pytest.raises(ValueError, match="build it with masks=True"):
        model(frames, _all_visible(2, 4))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 64, 64\); expected \(images, 2, h, w\)"):
        model(_rain(2, 3, 64, 64))
    with pytest.raises(ValueError, match="40 x 64 pixels; expected sides that are multiples of 32"):
        model(_rain(2, 2, 40, 64))
    with pytest.raises(ValueError, match="visible positions of 1 images, frames of 2"):
        model(frames, _all_visible(1, 4))
    with pytest.raises(ValueError, match=r"validity has shape \(2, 1, 64, 64\)"):
        model(frames, None, torch.ones(2, 1, 64, 64, dtype=torch.bool))


def test_packing_reverses_what_dense_lays_out() -> None:
    visible_bv = draw_positions(2, (2, 3), 0.5)
    layout = PatchLayout.from_positions(visible_bv, (2, 3))
    packed = draw(visible_bv.numel(), 3, 8, 8)
    assert torch.equal(pack(layout.dense(packed, torch.zeros(1, 3, 1, 1)), visible_bv, (2, 3)), packed)
