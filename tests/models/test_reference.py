"""The reference cases: what the published models compute, from weights under the published names."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from rainspark.models.decoder import Activation
from rainspark.models.encoder import build_encoder
from rainspark.models.spark import Loss, SparK, num_terms
from rainspark.models.weights.transfer import init_from
from tests.models.published import load_inputs, write_published

LOSSES: dict[str, Loss] = {"recon_loss": "masked", "l2_loss": "all"}


@pytest.fixture(scope="module")
def inputs(shared_dir: Path) -> ModuleType:
    return load_inputs(shared_dir)


def _published_model(case: dict[str, Any], inputs: ModuleType, folder: Path) -> SparK:
    """The case's model, started from a `.pth` as the published code saves it."""
    model = SparK(build_encoder(case["model"], case["channels"]), decoder_width=case["width"])
    path = folder / "published.pth"
    write_published(model, inputs, case["size"], path)
    report = init_from(model, path)
    assert (report.missing, report.unused) == ((), ())
    assert set(report.dropped) >= {"module.imn_m", "module.imn_s", "module.norm_black"}
    return model


@pytest.mark.parametrize("number", range(4))
def test_losses_gradients_and_reconstructions(
    number: int, inputs: ModuleType, shared_dir: Path, tmp_path: Path
) -> None:
    case = json.loads((shared_dir / "reference" / "pretrain.json").read_text())[number]
    grid = case["size"] // 32
    frames = inputs.frames(100 + number, case["batch"], case["channels"], case["size"])
    visible = inputs.visible(200 + number, case["batch"], grid, case["mask_ratio"])
    visible_bv = np.stack([np.flatnonzero(mask) for mask in visible])
    expected = np.load(shared_dir / "reference" / "pretrain.npz")[f"rec{number}"]
    model = _published_model(case, inputs, tmp_path)
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        model.to(dtype).train(case["train"])
        model.load_state_dict(initial)
        output = model(torch.from_numpy(frames).to(dtype), torch.from_numpy(visible_bv))
        for key, loss in LOSSES.items():
            model.loss = loss
            terms = num_terms(model.loss, visible_bv, None, case["batch"], grid * grid)
            value = model.loss_sum(output) / terms
            assert value.item() == pytest.approx(case[key], rel=tolerance)
            if dtype == torch.float32:
                continue
            model.zero_grad()
            torch.autograd.backward(value, retain_graph=True)
            norms = {key: tensor.grad.norm() for key, tensor in model.named_parameters() if tensor.grad is not None}
            total = float(torch.stack(list(norms.values())).norm())
            conv1 = float(norms["sparse_encoder.sp_cnn.conv1.weight"])
            assert conv1 == pytest.approx(case[f"{key}_gnorm_conv1"], rel=1e-6)
            assert total == pytest.approx(case[f"{key}_gnorm_total"], rel=1e-6)
        if dtype == torch.float64:
            found = model.reconstruct(output)[:, :, ::8, ::8].detach().numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_the_two_published_decoders_differ(inputs: ModuleType, tmp_path: Path) -> None:
    """SparK's ReLU6 and SpaT-SparK's leaky ReLU leave no trace in a checkpoint: the argument must have its effect."""
    frames = torch.from_numpy(inputs.frames(100, 1, 1, 64))
    outputs = []
    activations: tuple[Activation, ...] = ("leaky_relu", "relu6")
    for activation in activations:
        model = SparK(build_encoder("resnet18", 1), decoder_width=64, decoder_activation=activation)
        state = {
            name: torch.from_numpy(np.array(inputs.weight(name, tuple(tensor.shape))))
            for name, tensor in model.state_dict().items()
            if not name.endswith("tracked")
        }
        torch.save(state, tmp_path / "bare.pth")
        init_from(model, tmp_path / "bare.pth")
        outputs.append(model(frames, torch.tensor([[0, 3]])).prediction_blp)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
