"""What a step computes, against slow references: turns, model space with missing pixels, terms, draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rainspark.data.stream.stream import Batch
from rainspark.data.units import MISSING_COUNT, ModelSpace
from rainspark.models.encoder import build_encoder
from rainspark.models.spark import SparK
from rainspark.trainer.training.pretrain_task import PretrainTask
from rainspark.trainer.training.task import turn
from tests.trainer.training.cases import SCALE_MMH, batch_of, drawn

LOG_SPACE = ModelSpace(kind="log", scale_mmh=1.0, clip_mmh=None)


def make_task(*, augment: bool = True, depth: float = 0.0, loss: str = "masked") -> tuple[PretrainTask, SparK]:
    torch.manual_seed(0)
    model = SparK(build_encoder("resnet18", 3, depth_drop=depth), decoder_width=32, loss=loss).double()  # type: ignore[arg-type]
    task = PretrainTask(
        model=model,
        space=LOG_SPACE,
        mask_ratio=0.5,
        seed=5,
        grid_hw=(2, 2),
        depth_rates=tuple(depth * k / 7 for k in range(8)),
        augment=augment,
        dtype=torch.float64,
    )
    return task, model


def make_batch(*, missing: bool, step: int = 3, windows: tuple[int, ...] = (7, 1, 4)) -> Batch:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (len(windows), 3, 64, 64)).astype(np.uint16)
    if missing:
        counts[0, :, :32, :20] = MISSING_COUNT
        counts[1, 1, 40:, 40:] = MISSING_COUNT
    return batch_of(counts, first=2, step=step, windows=windows)


def test_turns_are_the_eight_symmetries_of_the_square() -> None:
    square = torch.arange(9.0).reshape(1, 3, 3)
    images = square.expand(8, 1, 3, 3)
    turned = turn(images, torch.arange(8))
    for code in range(8):
        expected = square[0].numpy()
        expected = expected[:, ::-1] if code & 1 else expected
        expected = expected[::-1] if code & 2 else expected
        expected = expected.T if code & 4 else expected
        np.testing.assert_array_equal(turned[code, 0].numpy(), expected)
    assert len({tuple(image.flatten().tolist()) for image in turned}) == 8


def test_turns_of_oblong_images_keep_their_shape() -> None:
    images = torch.rand(4, 2, 3, 5)
    assert turn(images, torch.arange(4)).shape == images.shape


def test_missing_pixels_are_zero_and_masked_everything_else_is_the_logarithm_of_rain() -> None:
    task, _ = make_task(augment=False)
    batch = make_batch(missing=True)
    frames, valid = task.frames(task.prepare(batch))
    counts = batch.counts_bthw.numpy()
    assert valid is not None
    np.testing.assert_array_equal(valid.numpy(), counts != MISSING_COUNT)
    expected = np.where(counts == MISSING_COUNT, 0, np.log1p(counts.astype(np.float64) * SCALE_MMH))
    np.testing.assert_allclose(frames.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("loss", ["masked", "all"])
@pytest.mark.parametrize("augment", [False, True])
def test_terms_counted_on_the_host_are_those_of_the_loss(loss: str, augment: bool) -> None:
    task, model = make_task(augment=augment, loss=loss)
    for step in range(4):
        prepared = task.prepare(make_batch(missing=True, step=step))
        frames, valid = task.frames(prepared)
        output = model(frames, prepared.visible_bv, valid, None)
        entering = output.counted_bl & ~output.visible_bl if loss == "masked" else output.counted_bl
        assert prepared.num_valid == (int(entering.sum()) if loss == "masked" else 3)
        step_output = task.step(model, prepared)
        assert step_output.num_valid == prepared.num_valid
        torch.testing.assert_close(step_output.loss, output.error_bl[entering].sum())


@pytest.mark.parametrize("loss", ["masked", "all"])
@pytest.mark.parametrize("lost", [(0,), (2,), (0, 1), (0, 1, 2)])
def test_lost_windows_have_no_terms_and_change_no_others(loss: str, lost: tuple[int, ...]) -> None:
    task, model = make_task(augment=True, loss=loss)
    whole, batch = make_batch(missing=True), make_batch(missing=True)
    batch.counts_bthw.numpy()[list(lost)] = MISSING_COUNT
    batch.window_b[list(lost)] = -1
    prepared, other = task.prepare(batch), task.prepare(whole)
    kept = [place for place in range(3) if place not in lost]
    assert torch.equal(prepared.visible_bv, other.visible_bv)
    frames, valid = task.frames(prepared)
    whole_frames, _ = task.frames(other)
    assert torch.equal(frames[kept], whole_frames[kept])
    output = model(frames, prepared.visible_bv, valid, None)
    assert not bool(output.counted_bl[list(lost)].any())
    entering = output.counted_bl & ~output.visible_bl if loss == "masked" else output.counted_bl
    assert prepared.num_valid == (int(entering.sum()) if loss == "masked" else len(kept))
    step_output = task.step(model, prepared)
    assert bool(step_output.loss.isfinite())
    torch.testing.assert_close(step_output.loss, output.error_bl[entering].sum())


def test_draws_depend_on_step_and_index_alone() -> None:
    task, _ = make_task(depth=0.4)
    batch = make_batch(missing=False)
    arrays = {name: getattr(batch, name)[1:] for name in ("counts_bthw", "scale_mmh_b", "window_b", "index_b")}
    whole, rest = task.prepare(batch), task.prepare(replace(batch, micro_step=9, epoch=2, **arrays))
    assert torch.equal(rest.visible_bv, whole.visible_bv[1:])
    assert torch.equal(drawn(rest.turn_b), drawn(whole.turn_b)[1:])
    assert torch.equal(drawn(rest.depth_keep_kb), drawn(whole.depth_keep_kb)[:, 1:])
    other = task.prepare(make_batch(missing=False, step=4))
    assert not torch.equal(other.visible_bv, whole.visible_bv)
    assert not torch.equal(drawn(other.depth_keep_kb), drawn(whole.depth_keep_kb))


def test_depth_multipliers_keep_the_mean() -> None:
    task, _ = make_task(depth=0.5)
    kept = [task.prepare(make_batch(missing=False, step=step)).depth_keep_kb for step in range(300)]
    mean_k = torch.stack([keep for keep in kept if keep is not None]).mean((0, 2))
    torch.testing.assert_close(mean_k, torch.ones_like(mean_k), rtol=0, atol=0.12)
    assert mean_k[0] == 1


def test_held_out_draws_depend_on_the_window_alone_and_padding_has_no_terms() -> None:
    task, model = make_task()
    first = task.prepare_held_out(make_batch(missing=False, windows=(7, 1, -1)))
    second = task.prepare_held_out(make_batch(missing=False, windows=(1, -1, 7), step=9))
    assert torch.equal(first.visible_bv[1], second.visible_bv[0])
    assert first.num_valid == 2 * 2
    assert first.turn_b is None
    frames, valid = task.frames(first)
    assert valid is not None
    assert not bool(valid[2].any())
    output = model(frames, first.visible_bv, valid, None)
    assert not bool(output.counted_bl[2].any())
