"""Frames in parts: what a network gives on the whole, where it sees far enough beyond each part."""

import pytest
import torch
from torch import nn

from rainspark.models.encoder import build_encoder
from rainspark.models.nowcasting.nowcaster import Head, Nowcaster
from rainspark.models.nowcasting.parts import OVERLAP_PX, in_parts
from tests.models.drawing import draw, shake
from tests.models.nowcasting.storm_cells import Tenths


@pytest.mark.parametrize("size", [(8, 8), (24, 31), (40, 7), (9, 57)])
def test_parts_are_the_whole_where_the_network_sees_far_enough(size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    # Three convolutions see three pixels far.
    network = nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))).double()
    frames_bchw = draw(1, 2, *size)
    whole = network(frames_bchw)
    torch.testing.assert_close(in_parts(network, frames_bchw, 8, 3), whole, rtol=0, atol=1e-12)
    # The parts' seams show where it does not see so far, so that they were parts indeed.
    seams = (in_parts(network, frames_bchw, 8, 1) - whole).abs().max()
    assert (seams > 1e-6) == (max(size) > 10)


def test_each_part_is_as_small_as_it_is_asked_for() -> None:
    sizes = []

    def network(part: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(part.shape[-2:]))
        return part

    frames_bchw = draw(1, 1, 20, 50)
    torch.testing.assert_close(in_parts(network, frames_bchw, 16, 4), frames_bchw)
    assert max(max(size) for size in sizes) <= 16 + 2 * 4
    assert len(sizes) == 2 * 4


@pytest.mark.parametrize("head", ["patch", "residual", "advected"])
def test_a_forecast_in_parts_is_that_of_the_whole(head: Head) -> None:
    torch.manual_seed(0)
    model = Nowcaster(build_encoder("resnet18", 2), frames_out=3, decoder_width=32, head=head, space=Tenths())
    model.double().eval()
    shake(model)
    # Residual and advected heads start at 0, where no part would differ.
    nn.init.normal_(model.dense_decoder.proj.weight, std=0.1)
    frames_bthw = draw(1, 2, 64, 704).abs()
    whole = model(frames_bthw)

    seen: list[torch.Size] = []
    model.sparse_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    model.part_px = 64
    torch.testing.assert_close(model(frames_bthw), whole, rtol=0, atol=1e-3)
    assert len(seen) == 11
    assert max(size[1] for size in seen) == 64 + 2 * OVERLAP_PX
