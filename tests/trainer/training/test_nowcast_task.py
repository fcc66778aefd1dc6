"""What a fine-tuning step computes, against slow references: draws, missing pixels, terms and losses."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.data.units import MISSING_COUNT, ModelSpace
from rainspark.models.encoder import build_encoder, depth_rates
from rainspark.models.nowcasting.crps import ensemble_loss
from rainspark.models.nowcasting.nowcaster import Nowcaster
from rainspark.trainer.training.nowcast_task import Frames, NowcastTask
from tests.trainer.training.cases import SCALE_MMH, batch_of, drawn

SPACE = ModelSpace(kind="log", scale_mmh=0.5, clip_mmh=None)
FRAMES_IN, FRAMES_OUT = 3, 2


def make_task(**changes: Any) -> NowcastTask:
    arguments: dict[str, Any] = {
        "frames_in": FRAMES_IN,
        "frames_out": FRAMES_OUT,
        "loss": "mse",
        "mask_ratio": 0.0,
        "crop": None,
        "depth_rates": (),
        "augment": False,
        "seed": 5,
        "dtype": torch.float64,
    }
    return NowcastTask(space=SPACE, **(arguments | changes))


def make_counts(windows: int = 4, *, rows: int = 64, cols: int = 96, missing: bool = True) -> npt.NDArray[np.uint16]:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 60, (windows, FRAMES_IN + FRAMES_OUT, rows, cols)).astype(np.uint16)
    if missing:
        counts[0, :, :40, :30] = MISSING_COUNT
        counts[1, FRAMES_IN:] = MISSING_COUNT
        counts[2, 1] = MISSING_COUNT
    return counts


DRAWS = {"crop": 32, "augment": True, "mask_ratio": 0.5, "depth_rates": (0.0, 0.3, 0.6)}


def last_frame(past_bthw: torch.Tensor, *_: Any) -> torch.Tensor:
    """A model: persistence."""
    return past_bthw[:, -1:].expand(-1, FRAMES_OUT, -1, -1)


def test_draws_depend_on_step_and_index_alone() -> None:
    """A rank that holds the last two windows draws for them what one rank draws for all four."""
    counts = make_counts()
    task = make_task(**(DRAWS | {"crop": 64}))
    whole, rest = task.prepare(batch_of(counts)), task.prepare(batch_of(counts[2:], first=2))
    np.testing.assert_array_equal(rest.counts_bthw.numpy(), whole.counts_bthw[2:].numpy())
    assert torch.equal(drawn(rest.visible_bv), drawn(whole.visible_bv)[2:])
    assert torch.equal(drawn(rest.turn_b), drawn(whole.turn_b)[2:])
    assert torch.equal(drawn(rest.depth_keep_kb), drawn(whole.depth_keep_kb)[:, 2:])
    again = make_task(**(DRAWS | {"crop": 64})).prepare(batch_of(counts))
    assert torch.equal(again.counts_bthw.view(torch.int16), whole.counts_bthw.view(torch.int16))


@pytest.mark.parametrize("change", ["step", "seed", "index"])
def test_another_step_seed_or_place_draws_something_else(change: str) -> None:
    counts = np.broadcast_to(make_counts(1, missing=False), (12, FRAMES_IN + FRAMES_OUT, 64, 96)).copy()
    first = make_task(**DRAWS).prepare(batch_of(counts))
    other = make_task(**(DRAWS | ({"seed": 6} if change == "seed" else {}))).prepare(
        batch_of(counts, step=4 if change == "step" else 3, first=100 if change == "index" else 0)
    )
    assert not torch.equal(first.counts_bthw.view(torch.int16), other.counts_bthw.view(torch.int16))
    for name in ("turn_b", "depth_keep_kb"):
        assert not torch.equal(getattr(first, name), getattr(other, name)), name


def test_different_things_are_drawn_independently() -> None:
    """Switching one draw on leaves the others as they were."""
    counts = make_counts(missing=False)
    everything = make_task(**DRAWS).prepare(batch_of(counts))
    for name, field in (("augment", "turn_b"), ("mask_ratio", "visible_bv"), ("depth_rates", "depth_keep_kb")):
        alone = make_task(crop=32, **{name: DRAWS[name]}).prepare(batch_of(counts))
        assert torch.equal(alone.counts_bthw.view(torch.int16), everything.counts_bthw.view(torch.int16))
        # With a crop the frames are square with and without the other draws, so the same eight turns are open.
        assert torch.equal(getattr(alone, field), getattr(everything, field))


def test_a_crop_is_a_part_of_its_own_window_at_every_place_and_the_same_in_all_frames() -> None:
    counts = np.empty((40, FRAMES_IN + FRAMES_OUT, 64, 96), np.uint16)
    counts[:] = np.arange(64 * 96).reshape(64, 96)
    parts = make_task(crop=32).prepare(batch_of(counts)).counts_bthw.numpy()
    corners = parts[:, 0, 0, 0]
    rows, cols = corners // 96, corners % 96
    for part, row, col in zip(parts, rows.tolist(), cols.tolist(), strict=True):
        np.testing.assert_array_equal(part, counts[0, :, row : row + 32, col : col + 32])
    assert rows.min() >= 0
    assert rows.max() <= 32
    assert cols.max() <= 64
    assert cols.max() > 32, "columns are drawn over the frame's own width"
    assert len(set(corners.tolist())) > 30


def test_a_crop_of_the_whole_frame_is_the_frame() -> None:
    counts = make_counts(rows=64, cols=64)
    np.testing.assert_array_equal(make_task(crop=64).prepare(batch_of(counts)).counts_bthw.numpy(), counts)


def test_past_and_future_turn_together_and_missing_pixels_are_zero_and_masked() -> None:
    counts = make_counts(rows=64, cols=64)
    task = make_task(augment=True)
    prepared = task.prepare(batch_of(counts))
    assert prepared.turn_b is not None
    frames = task.frames(prepared)
    assert frames.past_valid_bthw is not None
    assert frames.future_valid_bthw is not None
    rain = torch.cat([frames.past_mmh_bthw, frames.future_mmh_bthw], 1).numpy()
    valid = torch.cat([frames.past_valid_bthw, frames.future_valid_bthw], 1).numpy()
    for window, code in enumerate(prepared.turn_b.tolist()):
        expected = counts[window]
        expected = expected[..., ::-1] if code & 1 else expected
        expected = expected[:, ::-1] if code & 2 else expected
        expected = expected.transpose(0, 2, 1) if code & 4 else expected
        np.testing.assert_array_equal(valid[window], expected != MISSING_COUNT)
        np.testing.assert_allclose(rain[window], np.where(expected == MISSING_COUNT, 0, expected * SCALE_MMH))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**20), crop=st.sampled_from([None, 32]), augment=st.booleans())
def test_terms_are_the_windows_with_a_measured_future_pixel_after_the_crop(
    seed: int, crop: int | None, augment: bool
) -> None:
    rng = np.random.default_rng(seed)
    counts = make_counts(6, missing=False)
    for window in range(6):
        # Only a small corner of the future is measured: a crop may miss it.
        if rng.random() < 0.7:
            kept = counts[window, FRAMES_IN:, :20, :20].copy()
            counts[window, FRAMES_IN:] = MISSING_COUNT
            if rng.random() < 0.7:
                counts[window, FRAMES_IN:, :20, :20] = kept
    task = make_task(crop=crop, augment=augment, seed=seed)
    prepared = task.prepare(batch_of(counts))
    frames = task.frames(prepared)
    valid = frames.future_valid_bthw
    expected = 6 if valid is None else int(valid.flatten(1).any(1).sum())
    assert prepared.num_valid == expected
    output = task.step(last_frame, prepared)
    assert output.num_valid == expected
    assert bool(output.loss.isfinite())


@pytest.mark.parametrize("missing", [False, True])
def test_the_mse_is_that_of_plain_loops(missing: bool) -> None:
    counts = make_counts(missing=missing)
    task = make_task()
    loss = float(task.step(last_frame, task.prepare(batch_of(counts))).loss)
    total = 0.0
    space = np.log1p(np.where(counts == MISSING_COUNT, 0, counts).astype(np.float64) * SCALE_MMH / 0.5)
    for window in range(len(counts)):
        squares, pixels = 0.0, 0
        for lead in range(FRAMES_OUT):
            measured = counts[window, FRAMES_IN + lead] != MISSING_COUNT
            error = space[window, FRAMES_IN + lead] - space[window, FRAMES_IN - 1]
            squares += float((error[measured] ** 2).sum())
            pixels += int(measured.sum())
        total += squares / pixels if pixels else 0.0
    assert loss == pytest.approx(total, rel=1e-12)


LOSSES = ("mse", "mse_ssim", "weighted", "spectral", "csi")


@pytest.mark.parametrize("loss", LOSSES)
def test_two_ranks_losses_and_gradients_sum_to_one_ranks(loss: str) -> None:
    """Through a real model, with everything drawn; batch statistics aside, which the ranks share elsewhere."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", FRAMES_IN, depth_drop=0.5)
    model = Nowcaster(encoder, frames_out=FRAMES_OUT, decoder_width=32, head="direct", masks=True, space=SPACE)
    model = model.double().eval()
    changes = DRAWS | {"crop": 64, "depth_rates": depth_rates(encoder), "loss": loss}
    counts = make_counts()
    sums = []
    for parts in (((0, 4),), ((0, 2), (2, 4))):
        task = make_task(**changes)
        model.zero_grad()
        loss_sum, terms = 0.0, 0
        for low, high in parts:
            output = task.step(model, task.prepare(batch_of(counts[low:high], first=low)))
            output.loss.backward()  # type: ignore[no-untyped-call]
            loss_sum, terms = loss_sum + float(output.loss.detach()), terms + output.num_valid
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        sums.append((loss_sum, terms, gradient))
    (one, one_terms, one_gradient), (two, two_terms, two_gradient) = sums
    assert two == pytest.approx(one, rel=1e-12)
    assert two_terms == one_terms == 3
    torch.testing.assert_close(two_gradient, one_gradient, rtol=1e-9, atol=1e-12)


def make_ensemble() -> Nowcaster:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", FRAMES_IN)
    model = Nowcaster(
        encoder,
        frames_out=FRAMES_OUT,
        decoder_width=32,
        translation="identity",
        head="cascade",
        ensemble=True,
        space=SPACE,
    )
    return model.double().eval()


def test_an_ensembles_losses_and_gradients_are_the_same_on_two_ranks() -> None:
    model, counts, sums = make_ensemble(), make_counts(), []
    for parts in (((0, 4),), ((0, 2), (2, 4))):
        task = make_task(crop=64, augment=True, loss="crps")
        model.zero_grad()
        loss_sum, terms = 0.0, 0
        for low, high in parts:
            output = task.step(model, task.prepare(batch_of(counts[low:high], first=low)))
            output.loss.backward()  # type: ignore[no-untyped-call]
            loss_sum, terms = loss_sum + float(output.loss.detach()), terms + output.num_valid
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        sums.append((loss_sum, terms, gradient))
    (one, one_terms, one_gradient), (two, two_terms, two_gradient) = sums
    assert two == pytest.approx(one, rel=1e-12)
    assert two_terms == one_terms == 3
    torch.testing.assert_close(two_gradient, one_gradient, rtol=1e-9, atol=1e-12)


def test_the_lead_times_of_a_step_are_one_of_each_stretch_and_the_same_for_all_windows() -> None:
    task = make_task(frames_out=12, frames_in=1, loss="crps")
    drawn_leads = [task._draw_leads(step) for step in range(40)]
    assert all(first // 3 == stretch for leads in drawn_leads for stretch, first in enumerate(leads))
    assert {lead for leads in drawn_leads for lead in leads} == set(range(12))
    assert make_task(frames_out=2, loss="crps")._draw_leads(3) == (0, 1)


def test_the_noise_of_a_window_is_its_own_whatever_shares_its_batch() -> None:
    task, counts = make_task(loss="crps", crop=64), make_counts()
    whole, rest = task.prepare(batch_of(counts)), task.prepare(batch_of(counts[2:], first=2))
    assert whole.white_nhw is not None
    assert rest.white_nhw is not None
    assert torch.equal(rest.white_nhw, whole.white_nhw[4:])
    assert rest.leads == whole.leads
    assert task.prepare_held_out(batch_of(counts)).noise is not None
    assert make_task(loss="csi").prepare(batch_of(counts)).noise is None


def frames_of_lead(frames: Frames, lead: int) -> Frames:
    return replace(frames, future_mmh_bthw=frames.future_mmh_bthw[:, lead : lead + 1])


def test_an_ensembles_loss_is_that_of_two_members_in_model_space_and_in_rain() -> None:
    task = make_task(loss="crps")
    frames = task.frames(task.prepare(batch_of(make_counts(missing=False))))
    members = torch.randn(4, 2, FRAMES_OUT, 64, 96, dtype=torch.float64)
    target_mmh = frames.future_mmh_bthw
    rain = SPACE.to_mmh(members.clamp(min=0))
    expected = ensemble_loss(members.clamp(min=0), SPACE.from_mmh(target_mmh), None)
    expected = expected + ensemble_loss(rain, target_mmh, None) / (target_mmh.mean((1, 2, 3)) + 0.2)
    torch.testing.assert_close(task.ensemble_losses(members, frames, (0, 1)), expected)

    # Members of one lead time are compared with the radar of that one.
    last = frames_of_lead(frames, 1)
    torch.testing.assert_close(
        task.ensemble_losses(members[:, :, 1:], frames, (1,)), task.ensemble_losses(members[:, :, 1:], last, (0,))
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_held_out_windows_are_taken_whole_and_padding_has_no_terms(loss: str) -> None:
    counts = make_counts(missing=False)
    counts[3] = 0
    task = make_task(**DRAWS, loss=loss)
    batch = batch_of(counts, windows=(4, 9, 2, -1))
    prepared = task.prepare_held_out(batch)
    assert (prepared.turn_b, prepared.visible_bv, prepared.depth_keep_kb) == (None, None, None)
    np.testing.assert_array_equal(prepared.counts_bthw[:3].numpy(), counts[:3])
    assert prepared.num_valid == 3
    frames = task.frames(prepared)
    forecast = torch.zeros_like(frames.future_mmh_bthw)
    loss_b = task.losses(forecast, frames)
    assert float(loss_b[3]) == 0
    alone = make_task(**DRAWS, loss=loss).prepare_held_out(batch_of(counts[:3]))
    expected = task.losses(forecast[:3], task.frames(alone))
    torch.testing.assert_close(loss_b[:3], expected, rtol=1e-12, atol=1e-15)
