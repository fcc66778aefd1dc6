"""Files of weights: where they lie, how they are read without running code, and under which names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .manifest import MODEL_FILE, CheckpointError, chosen_weights

ENCODER_PREFIX = "sparse_encoder.sp_cnn."
# Registered in SparK's constructor as "deprecated and would never be used" (`spark.py`).
DEAD_BUFFERS = frozenset({"imn_m", "imn_s", "norm_black"})
# Where published files keep the state dict: SparK's pretraining checkpoints, its released encoders, timm's.
WRAPPERS = ("module", "state_dict", "model")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights under our names.

    Attributes:
        tensors: by name.
        dropped: names that the file holds and that nobody uses (dead buffers, classifier, what is no tensor).
        source: the file that was read.
    """

    tensors: dict[str, Tensor]
    dropped: tuple[str, ...]
    source: Path


def read_weights(source: Path) -> Weights:
    """Read weights from a run's folder, a checkpoint's folder, a `.safetensors` or a `.pth` file.

    Of a run the best checkpoint is taken where one was chosen, of a checkpoint the averaged weights where it has them.

    Raises:
        CheckpointError: nothing there, damaged, holding code, holding no weights, one weight under two names, tensors
            that are not plain numbers in memory, or a checkpoint folder whose manifest does not verify.
    """
    path = _weights_file(source)
    raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle_free(path)
    tensors, dropped = published_to_ours(raw, path)
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; expected a state dict of names and tensors")
    for name, tensor in tensors.items():
        if kind := _not_plain(tensor):
            raise CheckpointError(
                f"{path}: {name} is a {kind} tensor; expected a dense one of real numbers: convert it"
            )
    return Weights(tensors=tensors, dropped=dropped, source=path)


def published_to_ours(raw: Mapping[str, Any], source: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Rename a published state dict; returns the tensors and the names that were dropped.

    Known layouts: a bare state dict; one under `module`, `state_dict` or `model`; names with `module.` before them;
    SparK's and SpaT-SparK's names (ours too); an encoder alone, under `sp_cnn.` or timm's bare names.

    Raises:
        CheckpointError: two names of `source` stand for one of ours.
    """
    dropped: list[str] = []
    for wrapper in WRAPPERS:
        inner = raw.get(wrapper)
        if isinstance(inner, Mapping):
            dropped += [str(name) for name in raw if name != wrapper]
            raw = inner
            break

    # One name of ours for every tensor, whichever layout it comes from.
    tensors: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    bare_encoder = not any("." in str(name) and "sp_cnn." in str(name) for name in raw)
    for key, value in raw.items():
        name = str(key).removeprefix("module.")
        if name in DEAD_BUFFERS or not isinstance(value, Tensor) or name.startswith("fc."):
            dropped.append(str(key))
            continue

        if name.startswith("sp_cnn."):
            name = "sparse_encoder." + name
        elif bare_encoder and re.match(r"(conv1|bn1|layer[1-4])\.", name):
            name = ENCODER_PREFIX + name

        if name in tensors:
            raise CheckpointError(
                f"{source}: {origins[name]} and {key} both stand for {name}; expected one of them: delete the other"
            )
        tensors[name], origins[name] = value, str(key)
    return tensors, tuple(dropped)


def _weights_file(source: Path) -> Path:
    """Find the file that holds the weights of a run or a checkpoint, or check that a file can hold some."""
    if not source.exists():
        raise CheckpointError(
            f"{source} does not exist; expected a run's folder, a checkpoint's folder, or a weights file"
        )
    if source.is_file():
        if source.suffix not in (".safetensors", ".pth", ".pt"):
            raise CheckpointError(f"{source}: expected a .safetensors, .pth or .pt file")
        return source

    path = chosen_weights(source)
    if path == source:
        raise CheckpointError(f"{source}: no whole checkpoint with {MODEL_FILE}; give a run's or a checkpoint's folder")
    return path


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error


def _read_pickle_free(path: Path) -> Mapping[str, Any]:
    """Read a `.pth` file with torch's restricted reader: it builds tensors and plain containers, and calls nothing."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path}: refused: besides tensors it names the code {refused.group(1)}, which would run on a full "
                "load; ask its author for a file of tensors only (or safetensors)"
            ) from error
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read as a PyTorch weights file: {first[:300]}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; expected a state dict of names and tensors")
    return content


def _not_plain(tensor: Tensor) -> str | None:
    """What makes a tensor more than plain numbers in memory, or None."""
    if tensor.layout != torch.strided:
        return "sparse or nested"
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_meta:
        return "meta (it has no values)"
    return "complex" if tensor.is_complex() else None
