"""The forecaster's reference cases: what the published SpaT-SparK computes, from weights under its names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rainspark.models.encoder import build_encoder
from rainspark.models.losses import mse
from rainspark.models.nowcasting.nowcaster import Nowcaster
from rainspark.models.nowcasting.translation import TranslationName
from rainspark.models.weights.transfer import init_from
from tests.models.published import load_inputs, write_published

TRANSLATIONS: dict[str, TranslationName] = {"identity": "identity", "linearA": "linear"}
# Names that the published linearA has beside those of SparK, case 0.
TRANSITION_LAYERS = {"0.0", "1.0", "2.0", "2.2", "3.0", "3.2"}


@pytest.mark.parametrize("number", [0, 1])
def test_forecast_error_and_gradient(number: int, shared_dir: Path, tmp_path: Path) -> None:
    inputs = load_inputs(shared_dir)
    case = json.loads((shared_dir / "reference" / "finetune.json").read_text())[number]
    expected = np.load(shared_dir / "reference" / "finetune.npz", allow_pickle=False)[f"pred{number}"]
    grid = case["size"] // 32
    shape = (case["batch"], case["channels"], case["size"])
    frames, target = (torch.from_numpy(inputs.frames(seed + number, *shape)) for seed in (300, 500))
    visible = inputs.visible(400 + number, case["batch"], grid, case["mask_ratio"])
    masked = case["mask_ratio"] > 0
    visible_bv = torch.from_numpy(np.stack([np.flatnonzero(mask) for mask in visible])) if masked else None
    model = Nowcaster(
        build_encoder(case["model"], case["channels"]),
        frames_out=case["channels"],
        decoder_width=case["width"],
        translation=TRANSLATIONS[case["translation"]],
        head="patch",
        masks=masked,
    )
    write_published(model, inputs, case["size"], tmp_path / "published.pth")
    report = init_from(model, tmp_path / "published.pth")
    assert (report.missing, report.unused) == ((), ())
    layers = {name.removeprefix("transition.net.").rpartition(".")[0] for name in report.loaded if "transition" in name}
    assert layers == (TRANSITION_LAYERS if case["translation"] == "linearA" else set())

    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-6)):
        model.to(dtype).train(case["train"])
        model.load_state_dict(initial)
        forecast = model(frames.to(dtype), visible_bv)
        found = forecast[:, :, ::8, ::8].detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
        loss = mse(forecast, target.to(dtype)).mean()
        assert loss.item() == pytest.approx(case["mse"], rel=tolerance)
    torch.autograd.backward(loss)
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    assert float(torch.stack(norms).norm()) == pytest.approx(case["grad_norm"], rel=1e-6)
