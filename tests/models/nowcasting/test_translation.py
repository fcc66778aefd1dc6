"""Translations: shapes, published names, where they start, how far they see, their errors."""

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rainspark.models.nowcasting.translation import MixerTranslation, TranslationName, build_translation
from tests.models.drawing import draw, relative, shake

CHANNELS = (48, 24, 12, 6)
NAMES: tuple[TranslationName, ...] = ("identity", "linear", "mixer")


def _maps(coarsest: int = 2, seed: int = 0) -> list[Tensor]:
    sizes = [coarsest * 2**level for level in range(len(CHANNELS))]
    return [
        draw(2, width, size, size + size // 2, seed=seed + level)
        for level, (width, size) in enumerate(zip(CHANNELS, sizes, strict=True))
    ]


def _mixer(width: int = 32, num_blocks: tuple[int, ...] = (2, 1, 1, 1)) -> MixerTranslation:
    torch.manual_seed(0)
    return MixerTranslation(CHANNELS, width, num_blocks).double()


def _stir(mixer: MixerTranslation) -> None:
    """Weights as after some training: its last ones start at 0."""
    shake(mixer)
    for layer in mixer.leave:
        torch.nn.init.normal_(cast(Any, layer).weight, std=0.3)


@pytest.mark.parametrize("name", NAMES)
def test_maps_keep_their_shapes_and_all_weights_learn(name: TranslationName) -> None:
    translation = build_translation(name, CHANNELS).double()
    if isinstance(translation, MixerTranslation):
        _stir(translation)
    maps = _maps()
    translated = translation(maps)
    assert [found.shape for found in translated] == [given.shape for given in maps]
    if name == "identity":
        assert all(torch.equal(found, given) for found, given in zip(translated, maps, strict=True))
        assert not list(translation.parameters())
        return
    torch.autograd.backward(torch.stack([found.square().mean() for found in translated]).sum())
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in translation.parameters())


def test_linear_is_the_published_stack() -> None:
    """One 3x3 convolution and tanh at the two coarsest levels, two at the others, under the published names."""
    translation = build_translation("linear", CHANNELS).double()
    state = translation.state_dict()
    names = [
        f"net.{layer}.{kind}" for layer in ("0.0", "1.0", "2.0", "2.2", "3.0", "3.2") for kind in ("weight", "bias")
    ]
    assert list(state) == names
    for level, (found, given) in enumerate(zip(translation(_maps()), _maps(), strict=True)):
        expected = given
        for layer in (0,) if level < 2 else (0, 2):
            weight, bias = state[f"net.{level}.{layer}.weight"], state[f"net.{level}.{layer}.bias"]
            expected = F.conv2d(expected, weight, bias, padding=1).tanh()
        assert relative(found, expected) < 1e-12


def test_mixer_starts_as_the_identity() -> None:
    mixer = _mixer()
    assert all(torch.equal(found, given) for found, given in zip(mixer(_maps()), _maps(), strict=True))


def test_mixer_sees_further_than_storms_move() -> None:
    """A pixel of the finest map depends on coarse features 70 image pixels and more away."""
    mixer = MixerTranslation(CHANNELS).double().eval()
    _stir(mixer)
    maps = [draw(1, width, 8 * 2**level, 8 * 2**level).requires_grad_() for level, width in enumerate(CHANNELS)]
    torch.autograd.backward(mixer(maps)[3][0, 0, 0, 0])
    reaches = []
    for level, given in enumerate(maps):
        assert given.grad is not None
        columns = given.grad[0].abs().sum((0, 1)).nonzero()
        reaches.append((int(columns.max()) + 1) * 32 // 2**level)
    assert reaches[0] >= 256
    assert reaches[1] >= 70
    assert reaches == sorted(reaches, reverse=True)


def test_mixer_tells_fine_levels_of_coarse_ones_only() -> None:
    mixer = _mixer().eval()
    _stir(mixer)
    before = mixer(_maps())
    for level in range(4):
        maps = _maps()
        maps[level] = maps[level] + 1.0
        changed = [not torch.equal(a, b) for a, b in zip(mixer(maps), before, strict=True)]
        assert changed == [other >= level for other in range(4)]


def test_unknown_name() -> None:
    with pytest.raises(
        ValueError, match="translation 'linearA' is not known; expected 'identity', 'linear' or 'mixer'"
    ):
        build_translation(cast(Any, "linearA"), CHANNELS)
