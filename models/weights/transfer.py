"""Weights in and out: published SparK / SpaT-SparK checkpoints and our own in, encoders for timm out.

    python -m rainspark.models.weights export RUN_OR_CHECKPOINT --out encoder.safetensors
    python -m rainspark.models.weights import CHECKPOINT.pth [--out model.safetensors]

Nothing that is read here can run code: `.pth` files are read with `weights_only=True`, others are safetensors.
"""

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..encoder import timm_shapes
from .files import ENCODER_PREFIX, Weights, WeightsError, read_weights
from .manifest import CheckpointError

__all__ = [
    "InitReport",
    "Weights",
    "WeightsError",
    "architecture_of",
    "encoder_for_timm",
    "init_from",
    "main",
    "read_weights",
    "write_safetensors",
]

# (kind of block, blocks a stage) of the encoders in `rainspark.models.encoder.ENCODERS`.
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
        WeightsError: other shapes that differ, nothing that matches, values that are not finite, or a file that cannot
            be read.
        CheckpointError: a checkpoint folder whose manifest does not verify.
    """
    weights = read_weights(source)
    own = model.state_dict()
    shared = {
        name: tensor
        for name, tensor in weights.tensors.items()
        if name in own and not (name.startswith(may_differ) and tensor.shape != own[name].shape)
    }
    if not shared:
        raise WeightsError(
            f"{weights.source}: none of its {len(weights.tensors)} tensors ({_some(weights.tensors)}) belongs to this "
            f"model ({_some(own)}); give a checkpoint of the same kind of model"
        )
    differing = [
        f"{name} is {tuple(tensor.shape)} in the file and {tuple(own[name].shape)} in the model"
        for name, tensor in shared.items()
        if tensor.shape != own[name].shape
    ]
    if differing:
        raise WeightsError(
            f"{weights.source}: {len(differing)} tensors have another shape: {'; '.join(differing[:5])}; expected "
            "weights of the same encoder, input channels and decoder width"
        )
    _check_finite(weights.source, shared)
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
        WeightsError: no encoder among them, or one that is not finite.
    """
    found = {name: tensor for name, tensor in weights.tensors.items() if name.startswith(ENCODER_PREFIX)}
    if not found:
        raise WeightsError(
            f"{weights.source}: holds no encoder (names that begin with {ENCODER_PREFIX}); it holds "
            f"{_some(weights.tensors)}"
        )
    _check_finite(weights.source, found)
    return {
        name.removeprefix(ENCODER_PREFIX): (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in found.items()
    }


def architecture_of(encoder: Mapping[str, Tensor], source: Path) -> str:
    """timm's name of the encoder that `source` holds, told from the tensors' names and shapes.

    Raises:
        WeightsError: no covered encoder, or tensors that timm's network of that name could not load; the first is
            named.
    """
    blocks = {match.groups() for name in encoder if (match := re.match(r"layer([1-4])\.(\d+)\.", name))}
    stages = Counter(stage for stage, _ in blocks)
    counts = (stages["1"], stages["2"], stages["3"], stages["4"])
    convs = 3 if "layer1.0.conv3.weight" in encoder else 2
    covered = ", ".join(ARCHITECTURES.values())
    if (convs, counts) not in ARCHITECTURES:
        raise WeightsError(f"{source}: encoder has {counts} blocks of {convs} convolutions; expected one of {covered}")
    architecture = ARCHITECTURES[convs, counts]
    difference = _difference(encoder, architecture)
    if difference:
        raise WeightsError(
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
        WeightsError: not named `.safetensors`, it exists already and `force` is off, or its folder does not.
    """
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: expected a name that ends in .safetensors: readers go by it; give another --out")
    if path.exists() and not force:
        raise WeightsError(f"{path} exists; give another --out, or --force to replace it")
    if not path.parent.is_dir():
        raise WeightsError(f"{path.parent} is no folder; make it first, or give another --out")
    # Copies: the format refuses tensors that share memory.
    own = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    payload = safetensors.torch.save(own, {"format": "pt"})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_finite(source: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse values that are NaN or infinite as float32, which is what weights travel in."""
    broken = {name: tensor for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()}
    if broken:
        verb = "is" if len(broken) == 1 else "are"
        raise WeightsError(f"{source}: {_some(broken)} {verb} not finite; use an earlier checkpoint")


def _some(names: Mapping[str, Any]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")


def _export(arguments: argparse.Namespace) -> None:
    weights = read_weights(arguments.source)
    encoder = encoder_for_timm(weights)
    name, in_chans = architecture_of(encoder, weights.source), encoder["conv1.weight"].shape[1]
    write_safetensors(arguments.out, encoder, force=arguments.force)
    sys.stdout.write(
        f"read   {weights.source}\n"
        f"wrote  {arguments.out}: {name}, {in_chans} input channels, {len(encoder)} tensors, "
        f"{arguments.out.stat().st_size / 1e6:.1f} MB\n"
        f'load   timm.create_model("{name}", in_chans={in_chans}, num_classes=0, '
        f"checkpoint_path={str(arguments.out)!r})\n"
    )


def _import(arguments: argparse.Namespace) -> None:
    weights = read_weights(arguments.source)
    rooms = Counter(name.split(".")[0] for name in weights.tensors)
    sys.stdout.write(f"read   {weights.source}: {len(weights.tensors)} tensors\n")
    for room, count in rooms.items():
        sys.stdout.write(f"       {room}: {count}\n")
    if any(name.startswith(ENCODER_PREFIX) for name in weights.tensors):
        sys.stdout.write(f"       encoder: {architecture_of(encoder_for_timm(weights), weights.source)}\n")
    if weights.dropped:
        sys.stdout.write(f"       dropped, not used by any model: {', '.join(weights.dropped)}\n")
    if arguments.out is not None:
        _check_finite(weights.source, weights.tensors)
        write_safetensors(arguments.out, weights.tensors, force=arguments.force)
        sys.stdout.write(f"wrote  {arguments.out}; start from it with --init_from {arguments.out}\n")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code (4: weights that cannot be used)."""
    parser = argparse.ArgumentParser(prog="python -m rainspark.models.weights", description="Weights in and out.")
    commands = parser.add_subparsers(required=True)
    export = commands.add_parser("export", help="write the encoder of a run for timm.create_model")
    export.add_argument("source", type=Path, help="a run's folder, a checkpoint's folder, or a weights file")
    export.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    export.set_defaults(run=_export)
    importing = commands.add_parser("import", help="read a published SparK or SpaT-SparK checkpoint")
    importing.add_argument("source", type=Path, help="a .pth or .safetensors file")
    importing.add_argument("--out", type=Path, help="safetensors file to write, under our names")
    importing.set_defaults(run=_import)
    for command in (export, importing):
        command.add_argument("--force", action="store_true", help="replace an existing file")
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (WeightsError, CheckpointError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
