"""Reference cases of ../shared/reference: their inputs, and weights in a file as the published code saves them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn


def load_inputs(shared_dir: Path) -> ModuleType:
    """The module that draws weights, frames and masks."""
    spec = importlib.util.spec_from_file_location("reference_inputs", shared_dir / "reference" / "inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_published(model: nn.Module, inputs: ModuleType, size: int, path: Path) -> None:
    """A `.pth` with drawn weights for a model, under the names and in the wrapping of a published checkpoint."""
    state = {}
    for name, tensor in model.state_dict().items():
        counts = name.endswith("num_batches_tracked")
        value = torch.tensor(0) if counts else torch.from_numpy(np.array(inputs.weight(name, tuple(tensor.shape))))
        state[f"module.{name}"] = value
    state["module.imn_m"] = state["module.imn_s"] = torch.zeros(1, 3, 1, 1)
    state["module.norm_black"] = torch.zeros(1, 3, size, size)
    torch.save({"module": state, "args": "a text", "optimizer": {"lr": 1e-3}}, path)
