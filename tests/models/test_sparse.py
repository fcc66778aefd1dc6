"""Packed patches against the slow dense definition, forward and gradients."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rainspark.models.encoder import Encoder, build_encoder, depth_rates
from rainspark.models.sparse import NEIGHBOURS, PatchLayout
from tests.models.drawing import draw, draw_positions, relative, shake
from tests.models.masked_dense import MaskedDense, mask_at


def _pair(name: str, in_chans: int = 3) -> tuple[Encoder, MaskedDense]:
    """The encoder and the slow definition, with equal weights, float64, in training mode."""
    encoder, dense = build_encoder(name, in_chans).double(), MaskedDense(name, in_chans).double()
    shake(encoder)
    dense.load_state_dict(encoder.state_dict())
    return encoder, dense


def _packed(map_bchw: Tensor, layout: PatchLayout) -> Tensor:
    """The visible patches of a dense map, slowly."""
    rows, cols = layout.grid_hw
    size_h, size_w = map_bchw.shape[2] // rows, map_bchw.shape[3] // cols
    patches = []
    for image, positions in zip(map_bchw, layout.visible_bv.tolist(), strict=True):
        for position in positions:
            row, col = position // cols * size_h, position % cols * size_w
            patches.append(image[:, row : row + size_h, col : col + size_w])
    return torch.stack(patches)


@pytest.mark.parametrize(
    ("name", "grid_hw", "ratio"),
    [
        ("resnet18", (2, 3), 0.0),
        ("resnet18", (3, 2), 0.3),
        ("resnet18", (3, 4), 0.6),
        ("resnet18", (4, 3), 0.9),
        ("resnet26", (1, 2), 0.0),
        ("resnet26", (3, 2), 0.3),
        ("resnet26", (2, 3), 0.6),
        ("resnet26", (2, 4), 0.9),
        ("resnet50", (1, 2), 0.0),
        ("resnet50", (2, 3), 0.3),
        ("resnet50", (2, 3), 0.6),
        ("resnet50", (1, 4), 0.9),
    ],
)
def test_packed_equals_masked_dense(name: str, grid_hw: tuple[int, int], ratio: float) -> None:
    encoder, dense = _pair(name)
    layout = PatchLayout.from_positions(draw_positions(3, grid_hw, ratio), grid_hw)
    frames = draw(3, 3, 32 * grid_hw[0], 32 * grid_hw[1])
    found = encoder.forward_packed(frames, layout)
    expected = dense(frames, layout.visible_bhw())
    total_found = total_expected = torch.zeros((), dtype=torch.float64)
    for level, (packed, reference) in enumerate(zip(found, expected, strict=True)):
        assert packed.shape[1:] == (encoder.channels[level], *(2 * [32 // encoder.strides[level]]))
        assert relative(packed, _packed(reference, layout)) < 1e-9
        assert (reference * ~mask_at(layout.visible_bhw(), *reference.shape[2:])).abs().max() == 0
        factor = draw(*reference.shape, seed=level)
        total_found = total_found + (packed * _packed(factor, layout)).sum()
        total_expected = total_expected + (reference * factor).sum()
    torch.autograd.backward([total_found, total_expected])
    for (key, one), other in zip(encoder.named_parameters(), dense.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert relative(one.grad, other.grad) < 1e-9, key
    for (key, buffer), other_buffer in zip(encoder.named_buffers(), dense.buffers(), strict=True):
        torch.testing.assert_close(buffer, other_buffer, rtol=1e-9, atol=1e-12, msg=key)


def test_evaluation_mode_and_gradient_of_the_frames() -> None:
    encoder, dense = _pair("resnet18")
    layout = PatchLayout.from_positions(draw_positions(2, (2, 3), 0.5), (2, 3))
    frames = draw(2, 3, 64, 96)
    encoder.eval()
    dense.eval()
    grads = []
    for walk in (lambda x: encoder.forward_packed(x, layout), lambda x: dense(x, layout.visible_bhw())):
        leaf = frames.clone().requires_grad_()
        torch.autograd.backward([(feature * feature).sum() for feature in walk(leaf)])
        grads.append(leaf.grad)
    assert relative(grads[0], grads[1]) < 1e-9  # type: ignore[arg-type]


def test_masked_pixels_have_no_influence_not_even_as_nan() -> None:
    encoder, _ = _pair("resnet18")
    layout = PatchLayout.from_positions(torch.tensor([[0, 4], [2, 3]]), (2, 3))
    frames = draw(2, 3, 64, 96)
    hidden = frames.masked_fill(~mask_at(layout.visible_bhw(), 64, 96), float("nan"))
    for one, other in zip(encoder.forward_packed(frames, layout), encoder.forward_packed(hidden, layout), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_stochastic_depth_is_per_image(name: str) -> None:
    encoder, dense = _pair(name)
    blocks = len(depth_rates(encoder))
    generator = torch.Generator().manual_seed(1)
    keep_kb = (torch.rand(blocks, 3, generator=generator) > 0.4).double() / 0.6
    layout = PatchLayout.from_positions(draw_positions(3, (2, 3), 0.5), (2, 3))
    frames = draw(3, 3, 64, 96)
    found = encoder.forward_packed(frames, layout, keep_kb)
    expected = dense(frames, layout.visible_bhw(), keep_kb)
    for packed, reference in zip(found, expected, strict=True):
        assert relative(packed, _packed(reference, layout)) < 1e-9
    assert relative(found[-1], encoder.forward_packed(frames, layout)[-1]) > 1e-3


def _gradients(encoder: Encoder, losses: Callable[[], list[Tensor]]) -> list[Tensor]:
    encoder.zero_grad()
    for loss in losses():
        torch.autograd.backward(loss)
    return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("recompute", [False, True])
def test_two_forwards_before_a_backward(recompute: bool) -> None:
    """No hidden state: the second forward's mask and stochastic depth do not reach the first one's recomputation."""
    encoder, _ = _pair("resnet18")
    keep_kb = torch.tensor([[0.0, 2.0]] * 8, dtype=torch.float64)
    frames = draw(2, 3, 64, 64)
    layouts = [PatchLayout.from_positions(torch.tensor(rows), (2, 2)) for rows in ([[0, 1], [1, 3]], [[2], [0]])]

    def loss(layout: PatchLayout, keep: Tensor | None) -> Tensor:
        return torch.stack([(x * x).sum() for x in encoder.forward_packed(frames, layout, keep)]).sum()

    one = _gradients(encoder, lambda: [loss(layouts[0], keep_kb)])
    two = _gradients(encoder, lambda: [loss(layouts[1], None)])
    encoder.checkpoint_blocks = recompute
    both = _gradients(encoder, lambda: [loss(layouts[0], keep_kb), loss(layouts[1], None)][::-1])
    for a, b, c in zip(one, two, both, strict=True):
        torch.testing.assert_close(a + b, c, rtol=1e-12, atol=1e-12 * float(c.abs().max()))


def test_recomputation_frees_the_activations_within_a_block() -> None:
    encoder, _ = _pair("resnet18")
    layout = PatchLayout.from_positions(draw_positions(2, (2, 2), 0.5), (2, 2))
    frames, saved = draw(2, 3, 64, 64), []
    for recompute in (False, True):
        encoder.checkpoint_blocks = recompute
        count = [0]

        def pack(tensor: Tensor, count: list[int] = count) -> Tensor:
            count[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            encoder.forward_packed(frames, layout)
        saved.append(count[0])
    gc.collect()
    assert saved[1] < saved[0] / 2


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    cols=st.integers(1, 5),
    images=st.integers(1, 3),
    ratio=st.floats(0.0, 0.95),
    size=st.sampled_from([1, 2, 4]),
    widths=st.sampled_from([(1, 1), (1, 0), (0, 1)]),
    seed=st.integers(0, 10**6),
)
def test_halo_and_its_gradient(
    rows: int, cols: int, images: int, ratio: float, size: int, widths: tuple[int, int], seed: int
) -> None:
    """Against padding the masked dense map and cutting windows out of it, with autograd's own backward."""
    before, after = widths
    layout = PatchLayout.from_positions(draw_positions(images, (rows, cols), ratio, seed), (rows, cols))
    packed = draw(layout.num_packed, 2, size, size, seed=seed).requires_grad_()
    found = layout.attach_halo(packed, before, after)
    factor = draw(*found.shape, seed=seed + 1)
    (grad,) = torch.autograd.grad((found * factor).sum(), packed)

    reference = packed.detach().clone().requires_grad_()
    cells = {position: n for n, position in enumerate(_places(layout))}
    zero = torch.zeros(2, size, size, dtype=torch.float64)
    grid = [
        [[reference[cells[b, r, c]] if (b, r, c) in cells else zero for c in range(cols)] for r in range(rows)]
        for b in range(images)
    ]
    dense = torch.stack([torch.cat([torch.cat(line, 2) for line in image], 1) for image in grid])
    framed = F.pad(dense, (before, after, before, after))
    span = size + before + after
    windows = [framed[b, :, r * size : r * size + span, c * size : c * size + span] for b, r, c in _places(layout)]
    assert torch.equal(found, torch.stack(windows))
    (expected,) = torch.autograd.grad((torch.stack(windows) * factor).sum(), reference)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)
    filled = layout.dense(packed, torch.full((1, 2, 1, 1), 7.0, dtype=torch.float64))
    mask = mask_at(layout.visible_bhw(), rows * size, cols * size)
    assert torch.equal(filled, torch.where(mask, dense, 7.0))


def _places(layout: PatchLayout) -> list[tuple[int, int, int]]:
    """(image, row, column) of every packed patch."""
    cols = layout.grid_hw[1]
    return [(b, p // cols, p % cols) for b, line in enumerate(layout.visible_bv.tolist()) for p in line]


def test_neighbours_are_inverse_to_each_other() -> None:
    layout = PatchLayout.from_positions(draw_positions(3, (4, 5), 0.4), (4, 5))
    around = layout.neighbours_8n.tolist()
    for number in range(8):
        assert NEIGHBOURS[7 - number] == (-NEIGHBOURS[number][0], -NEIGHBOURS[number][1])
        for patch, neighbour in enumerate(around[number]):
            assert neighbour == layout.num_packed or around[7 - number][neighbour] == patch


def test_gradient_of_the_fill_value() -> None:
    layout = PatchLayout.from_positions(draw_positions(2, (2, 3), 0.5), (2, 3))
    packed, fill = draw(6, 4, 2, 2).requires_grad_(), draw(1, 4, 1, 1).requires_grad_()
    assert torch.autograd.gradcheck(layout.dense, (packed, fill))


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, 3), torch.zeros(2, 7, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)]
)
def test_positions_of_a_wrong_shape_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected int64 \(images, 1 to 6\)"):
        PatchLayout.from_positions(bad, (2, 3))


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    """No host sync and no shape that depends on data: one graph, and no second one for another mask."""
    encoder, _ = _pair("resnet18")
    frames = draw(2, 3, 64, 64)

    def walk(frames_bchw: Tensor, visible_bv: Tensor, keep_kb: Tensor) -> list[Tensor]:
        return encoder.forward_packed(frames_bchw, PatchLayout.from_positions(visible_bv, (2, 2)), keep_kb)

    graphs = [0]

    def count(module: Any, _: Any) -> Any:
        graphs[0] += 1
        return module.forward

    torch.compiler.reset()
    compiled = torch.compile(walk, backend=count, fullgraph=True, dynamic=False)
    keep_kb = torch.ones(8, 2, dtype=torch.float64)
    for rows in ([[0, 1], [1, 3]], [[2, 3], [0, 3]]):
        found, expected = (f(frames, torch.tensor(rows), keep_kb) for f in (compiled, walk))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
    assert graphs == [1]
