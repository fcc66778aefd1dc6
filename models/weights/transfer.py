"""Weights in and out: published SparK / SpaT-SparK checkpoints and our own in, encoders for timm out.

Nothing that is read here can run code: `.pth` files are read with `weights_only=True`, others are safetensors.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ...data.whole_file import write_whole
from ..encoder import timm_shapes
from .files import ENCODER_PREFIX, Weights, read_weights
from .manifest import CheckpointError

# (kind of block, blocks a stage) of the encoders in `models.encoder.ENCODERS`.
ARCHITECTURES = {
    (2, (2, 2, 2, 2)): "resnet18",
    (3, (2, 2, 2, 2)): "resnet26",
    (2, (3, 4, 6, 3)): "resnet34",
    (3, (3, 4, 6, 3)): "resnet50",
    (3, (3, 4, 23, 3)): "resnet101",
}


@dataclass(frozen=True, kw_only=True)
class InitReport:
    """What `init_from` did.

    Attributes:
        source: the file that was read.
        loaded: names that the model took over.
        missing: names of the model that the file does not hold (in their shape); they keep their initial values.
        unused: names of the file that the model does not have (in their shape).
        dropped: see `Weights.dropped`.
    """

    source: Path
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    dropped: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for a log."""
        lines = [f"{len(self.loaded)} tensors from {self.source}"]
        for what, names in (
            ("not found, left as initialised", self.missing),
            ("not used", self.unused),
            ("dropped", self.dropped),
        ):
            if names:
                lines.append(f"{what}: {', '.join(names)}")
        return lines


def init_from(model: nn.Module, source: Path, *, may_differ: tuple[str, ...] = ()) -> InitReport:
    """Start a model from weights; names what it did not find and what it did not use.

    Args:
        model: changed in place.
        source: see `read_weights`.
        may_differ: beginnings of names (`dense_decoder.proj.`) whose tensors are left out, and reported as not found
            and as not used, where their shape differs: layers that follow the number of frames to forecast.

    Raises:
        CheckpointError: other shapes that differ, nothing that matches, values that are not finite, or a file that
            cannot be read.
    """
    # What the model knows by name, in its shape where that has to be.
    weights = read_weights(source)
    own = model.state_dict()
    shared = {
        name: tensor
        for name, tensor in weights.tensors.items()
        if name in own and not (name.startswith(may_differ) and tensor.shape != own[name].shape)
    }
    if not shared:
        raise CheckpointError(
            f"{weights.source}: none of its {len(weights.tensors)} tensors ({_some(weights.tensors)}) belongs to this "
            f"model ({_some(own)}); give a checkpoint of the same kind of model"
        )

    differing = [
        f"{name} is {tuple(tensor.shape)} in the file and {tuple(own[name].shape)} in the model"
        for name, tensor in shared.items()
        if tensor.shape != own[name].shape
    ]
    if differing:
        raise CheckpointError(
            f"{weights.source}: {len(differing)} tensors have another shape: {'; '.join(differing[:5])}; expected "
            "weights of the same encoder, input channels and decoder width"
        )

    check_finite(weights.source, shared)
    model.load_state_dict(shared, strict=False)
    return InitReport(
        source=weights.source,
        loaded=tuple(shared),
        missing=tuple(name for name in own if name not in shared),
        unused=tuple(name for name in weights.tensors if name not in shared),
        dropped=weights.dropped,
    )


def encoder_for_timm(weights: Weights) -> dict[str, Tensor]:
    """The encoder's tensors under timm's names, float32, contiguous.

    Raises:
        CheckpointError: no encoder among them, or one that is not finite.
    """
    encoder = {name: tensor for name, tensor in weights.tensors.items() if name.startswith(ENCODER_PREFIX)}
    if not encoder:
        raise CheckpointError(
            f"{weights.source}: holds no encoder (names that begin with {ENCODER_PREFIX}); it holds "
            f"{_some(weights.tensors)}"
        )
    check_finite(weights.source, encoder)
    return {
        name.removeprefix(ENCODER_PREFIX): (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in encoder.items()
    }


def architecture_of(encoder: Mapping[str, Tensor], source: Path) -> str:
    """timm's name of the encoder that `source` holds, told from the tensors' names and shapes.

    Raises:
        CheckpointError: no covered encoder, or tensors that timm's network of that name could not load; the first is
            named.
    """
    # The kind of block and how many a stage has tell one encoder from another.
    blocks = {match.groups() for name in encoder if (match := re.match(r"layer([1-4])\.(\d+)\.", name))}
    stages = Counter(stage for stage, _ in blocks)
    counts = (stages["1"], stages["2"], stages["3"], stages["4"])
    convs = 3 if "layer1.0.conv3.weight" in encoder else 2
    covered = ", ".join(ARCHITECTURES.values())
    if (convs, counts) not in ARCHITECTURES:
        raise CheckpointError(
            f"{source}: encoder has {counts} blocks of {convs} convolutions; expected one of {covered}"
        )
    architecture = ARCHITECTURES[convs, counts]
    difference = _difference(encoder, architecture)
    if difference:
        raise CheckpointError(
            f"{source}: encoder has the blocks of {architecture}, but {difference}: timm could not load it; expected "
            f"exactly the tensors of one of {covered}"
        )
    return architecture


def _difference(encoder: Mapping[str, Tensor], architecture: str) -> str | None:
    """The first name or shape in which tensors differ from those of timm's network, or None."""
    stem = encoder.get("conv1.weight")
    in_chans = stem.shape[1] if stem is not None and stem.ndim == 4 else 1
    expected = timm_shapes(architecture, max(in_chans, 1))
    for name, shape in expected.items():
        if name not in encoder:
            return f"{name} is missing"
        if tuple(encoder[name].shape) != shape:
            return f"{name} is {tuple(encoder[name].shape)} instead of {shape}"
    return next((f"it has {name} too" for name in encoder if name not in expected), None)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], *, force: bool) -> None:
    """Write a safetensors file: whole, or not at all.

    Raises:
        CheckpointError: not named `.safetensors`, it exists already and `force` is off, or its folder does not.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: expected a name that ends in .safetensors: readers go by it; give another --out"
        )
    if path.exists() and not force:
        raise CheckpointError(f"{path} exists; give another --out, or --force to replace it")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path.parent} is no folder; make it first, or give another --out")
    # Copies: the format refuses tensors that share memory.
    own = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    payload = safetensors.torch.save(own, {"format": "pt"})
    write_whole(path, payload)


def check_finite(source: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse values that are NaN or infinite as float32, which is what weights travel in."""
    broken = {name: tensor for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()}
    if broken:
        verb = "is" if len(broken) == 1 else "are"
        raise CheckpointError(f"{source}: {_some(broken)} {verb} not finite; use an earlier checkpoint")


def _some(names: Mapping[str, Any]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
