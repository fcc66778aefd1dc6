"""A run as a forecaster: which weights it takes, what it refuses, frames of any size."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.exit_codes import ExitCode
from rainspark.data.units import ModelSpace
from rainspark.models.nowcasting.matching import match_distribution
from rainspark.models.nowcasting.motion import advect, displacements, estimate_motion, fill_missing
from rainspark.models.weights.manifest import CheckpointError, step_folders, write_manifest
from rainspark.trainer.checkpoint.folder import load
from rainspark.trainer.forecasting.build import build_nowcaster
from rainspark.trainer.forecasting.forecaster import RunForecaster, load_forecaster, rain_of
from rainspark.trainer.settings.model import NowcastConfig
from tests.integration.runs import arguments as pretraining_arguments
from tests.integration.runs import make_shards, train
from tests.integration.runs import nowcast_arguments as arguments

FRAMES_IN, FRAMES_OUT = 4, 3


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("storms"), hours=4)


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with averaged weights whose best checkpoint is not its last one."""
    run = tmp_path_factory.mktemp("trained") / "run"
    settings = {"run__steps": 3, "run__evaluate_every": 1, "optim__ema_decay": 0.5, "model__head": "direct"}
    assert train(arguments(shards, run, **settings)) == ExitCode.DONE
    for number, path in step_folders(run / "best" / "checkpoints"):
        if number > 2:
            shutil.rmtree(path)
    return run


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def best_of(run: Path) -> Path:
    return step_folders(run / "best" / "checkpoints")[0][1]


def make_rain(rows: int = 64, cols: int = 64, windows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 5 * torch.rand(windows, FRAMES_IN, rows, cols, generator=generator).square()


def holds(forecaster: RunForecaster, weights: dict[str, torch.Tensor]) -> bool:
    own = forecaster.model.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[name], weights[name]) for name in own)


def rewrite(folder: Path, change: Any) -> None:
    state = json.loads((folder / "state.json").read_text())
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    write_manifest(folder)


def test_the_best_checkpoint_is_taken_and_says_what_it_learned_from(trained: Path) -> None:
    forecaster = load_forecaster(trained)
    best = best_of(trained)
    assert (forecaster.path, forecaster.name) == (best, "run")
    assert forecaster.step == int(best.name.removeprefix("step-"))
    assert holds(forecaster, load_file(best / "model.safetensors"))
    assert not forecaster.model.training
    assert {"grid", "cadence_s", "scale_mmh", "source", "spans"} <= forecaster.data.keys()
    assert set(forecaster.data["spans"]) == {"train", "validation", "test"}
    assert (forecaster.grid.rows, forecaster.grid.cols) == (64, 64)
    assert (forecaster.frames_in, forecaster.frames_out) == (FRAMES_IN, FRAMES_OUT)


def test_without_a_best_one_the_newest_checkpoints_average_is_taken(copied: Path) -> None:
    shutil.rmtree(copied / "best")
    forecaster = load_forecaster(copied, name="last")
    saved = load(copied)
    assert (forecaster.name, forecaster.step, forecaster.path) == ("last", 3, saved.path)
    assert holds(forecaster, saved.average)
    assert not holds(forecaster, saved.model)
    (saved.path / "ema.safetensors").unlink()
    write_manifest(saved.path)
    assert holds(load_forecaster(copied), saved.model)
    # A run that was killed before its first checkpoint after a resume leaves an empty folder there.
    (copied / "best" / "checkpoints").mkdir(parents=True)
    assert load_forecaster(copied).step == 3


def test_a_damaged_best_checkpoint_is_an_error_and_nothing_else_is_taken(copied: Path) -> None:
    best = best_of(copied)
    manifest = best / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace("sha256", "sha265", 1))
    with pytest.raises(CheckpointError, match=rf"{best.name}/MANIFEST\.json: damaged"):
        load_forecaster(copied)
    manifest.unlink()
    with pytest.raises(CheckpointError, match=rf"{best.name}: not a whole checkpoint \(no MANIFEST\.json"):
        load_forecaster(copied)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("decoder_width", 64, r"its weights are not those of the model that its settings describe: dense_decoder"),
        ("encoder", "resnet34", r"its weights are not those .*sparse_encoder"),
        ("frames_out", 5, r"its weights are not those .*dense_decoder\.proj"),
        ("translation", "linear", r"its weights are not those .*transition"),
        ("head", "sideways", r"not of a fine-tuning run .*model\.head.*sideways"),
    ],
)
def test_weights_of_another_architecture_are_refused(copied: Path, key: str, value: object, message: str) -> None:
    rewrite(best_of(copied), lambda state: state["config"]["model"].update({key: value}))
    with pytest.raises(CheckpointError, match=message):
        load_forecaster(copied)


def test_what_is_no_fine_tuning_run_is_refused(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    pretraining = tmp_path / "pretraining"
    short = {"run__steps": 1, "run__evaluate_every": 9, "optim__warmup_steps": 0}
    assert train(pretraining_arguments(shards, pretraining, **short)) == ExitCode.DONE
    for name, message in {
        "nothing": "nothing does not exist; expected the folder of a fine-tuning run",
        "file": "file is a file; expected the folder of a fine-tuning run",
        "empty": "empty: no checkpoint there",
        "pretraining": rf"not of a fine-tuning run .*finetune\.py --init_from {pretraining}",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            load_forecaster(tmp_path / name)


def test_a_run_that_does_not_record_its_grid_says_so(copied: Path) -> None:
    rewrite(best_of(copied), lambda state: state.update(data={}))
    with pytest.raises(DataError, match="does not record the grid"):
        _ = load_forecaster(copied).grid


@pytest.mark.parametrize("frames_out", [0, -1, FRAMES_OUT + 1])
def test_lead_times_that_it_does_not_have_are_refused(trained: Path, frames_out: int) -> None:
    with pytest.raises(ConfigError, match=rf"run: forecasts 3 frames, {frames_out} were asked for; ask for 1 to 3"):
        load_forecaster(trained).forecast(make_rain(), None, frames_out)


def test_fewer_lead_times_are_the_first_ones(trained: Path) -> None:
    forecaster = load_forecaster(trained)
    whole = forecaster.forecast(make_rain(), None)
    assert torch.equal(forecaster.forecast(make_rain(), None, 2), whole[:, :2])
    assert whole.shape == (2, FRAMES_OUT, 64, 64)
    assert bool((whole >= 0).all())


@pytest.mark.parametrize("match", ["none", "last_frame"])
@pytest.mark.parametrize("missing", [False, True])
def test_frames_of_any_size_are_forecast_as_if_nothing_were_measured_around_them(
    copied: Path, match: str, missing: bool
) -> None:
    rewrite(best_of(copied), lambda state: state["config"]["model"].update(match=match))
    forecaster = load_forecaster(copied)
    rain, valid = make_rain(50, 70), torch.ones(2, FRAMES_IN, 50, 70, dtype=torch.bool)
    valid[0, :, :9, :9] = not missing
    rain = torch.where(valid, rain, 0.0)
    padded, whole = torch.zeros(2, FRAMES_IN, 64, 96), torch.zeros(2, FRAMES_IN, 64, 96, dtype=torch.bool)
    padded[..., :50, :70], whole[..., :50, :70] = rain, valid
    expected = forecaster.forecast(padded, whole)[..., :50, :70]
    forecast = forecaster.forecast(rain, valid if missing else None)
    assert forecast.shape == (2, FRAMES_OUT, 50, 70)
    torch.testing.assert_close(forecast, expected, rtol=1e-5, atol=1e-6)


def test_rain_is_not_below_zero_and_what_is_no_number_stays_none() -> None:
    space = ModelSpace(kind="log", scale_mmh=0.5)
    forecast = torch.tensor([[[[-3.0, 0.0], [float("nan"), 1.0]]]])
    rain = rain_of(forecast, torch.rand(1, 2, 2, 2), None, space=space, match="none")
    assert rain[0, 0, 0].tolist() == [0.0, 0.0]
    assert bool(rain[0, 0, 1, 0].isnan())
    assert float(rain[0, 0, 1, 1]) == pytest.approx(0.5 * (torch.e - 1), rel=1e-6)


SPACE = ModelSpace(kind="log", scale_mmh=0.2)


def moving_band(missing: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Two windows of a tilted band that moves 3 pixels a frame, and where it was measured."""
    rows = torch.arange(64.0).view(1, 1, 64, 1) - 3 * torch.arange(FRAMES_IN).view(1, -1, 1, 1)
    band = 8 * torch.exp(-((rows - 20 - 0.2 * torch.arange(64.0)) ** 2) / 50)
    past = torch.cat([band, band.flip(3) * 2])
    past = torch.where(past > 0.1, past, 0.0)
    if not missing:
        return past, None
    valid = torch.ones_like(past, dtype=torch.bool)
    valid[:, :, 40:52, 10:30] = False
    return torch.where(valid, past, 0.0), valid


def carried(past: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """The last frame at each lead time, without a guess of what flows in."""
    last = past[:, -1:] if valid is None else fill_missing(past[:, -1:], valid[:, -1:])
    steps = displacements(estimate_motion(past, valid), FRAMES_OUT)
    return torch.cat([advect(last, step) for step in steps], dim=1)


@pytest.mark.parametrize("missing", [False, True])
def test_matching_takes_the_rates_of_the_last_frame_as_it_is_or_carried_on(missing: bool) -> None:
    """Also where the last frame is missing; the floor takes nothing away; halfway lies between."""
    past, valid = moving_band(missing)
    forecast = SPACE.from_mmh(make_rain()[:, :FRAMES_OUT] + 0.01)
    own = SPACE.to_mmh(forecast)
    kinds = ("last_frame", "extrapolated", "floor")
    last, extrapolated, floor = (rain_of(forecast, past, valid, space=SPACE, match=kind) for kind in kinds)
    assert torch.equal(last, match_distribution(own, past[:, -1:], None if valid is None else valid[:, -1:]))
    assert torch.equal(extrapolated, match_distribution(own, carried(past, valid), None))
    assert torch.equal(floor, torch.maximum(own, extrapolated))
    halfway = rain_of(forecast, past, valid, space=SPACE, match="halfway")
    torch.testing.assert_close(halfway, ((own + 0.2) * (last + 0.2)).sqrt() - 0.2, rtol=1e-5, atol=1e-5)

    # What a forecast says is dry stays dry, although its rank among equal ones is given a little rain.
    forecast[:, :, :60] = SPACE.from_mmh(torch.zeros(1))
    assert float(rain_of(forecast, past, valid, space=SPACE, match="last_frame")[:, :, :60].max()) > 0
    halfway = rain_of(forecast, past, valid, space=SPACE, match="halfway")
    assert float(halfway[:, :, :60].max()) == 0
    assert float(halfway[:, :, 60:].min()) > 0
    assert not torch.equal(floor, own)
    assert not torch.equal(floor, extrapolated)


@pytest.mark.parametrize("match", ["last_frame", "halfway", "extrapolated", "floor"])
def test_a_window_whose_last_frame_is_missing_keeps_its_own_rates(match: str) -> None:
    """It has none to give; the window beside it is matched as ever."""
    past, _ = moving_band(False)
    forecast = SPACE.from_mmh(make_rain()[:, :FRAMES_OUT])
    valid = torch.ones_like(past, dtype=torch.bool)
    valid[1, -1] = False
    matched = rain_of(forecast, torch.where(valid, past, 0.0), valid, space=SPACE, match=match)
    torch.testing.assert_close(matched[1], SPACE.to_mmh(forecast)[1], rtol=0, atol=0 if match != "halfway" else 1e-5)
    whole = rain_of(forecast, past, torch.ones_like(valid), space=SPACE, match=match)
    assert torch.equal(matched[0], whole[0])
    assert not torch.equal(matched[0], SPACE.to_mmh(forecast)[0])


@pytest.mark.parametrize("match", ["none", "last_frame", "halfway", "extrapolated", "floor"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_matching_hides_no_value_that_is_no_number(match: str, bad: float) -> None:
    """Neither does it spread to other frames."""
    past, valid = moving_band(True)
    forecast = SPACE.from_mmh(make_rain()[:, :FRAMES_OUT])
    expected = rain_of(forecast, past, valid, space=SPACE, match=match)
    forecast[0, 1, 5, 7] = bad
    matched = rain_of(forecast, past, valid, space=SPACE, match=match)
    assert not bool(matched[0, 1, 5, 7].isfinite())
    assert int((~matched.isfinite()).sum()) == 1
    assert torch.equal(matched[0, [0, 2]], expected[0, [0, 2]])
    assert torch.equal(matched[1], expected[1])


@pytest.mark.parametrize("match", ["last_frame", "extrapolated", "floor"])
def test_matching_to_a_dry_past(match: str) -> None:
    """Finite; dry where rates are exchanged, as it was where they are only raised."""
    forecast = SPACE.from_mmh(make_rain()[:, :FRAMES_OUT])
    matched = rain_of(forecast, torch.zeros(2, FRAMES_IN, 64, 64), None, space=SPACE, match=match)
    own = SPACE.to_mmh(forecast)
    assert torch.equal(matched, own if match == "floor" else torch.zeros_like(own))


@pytest.mark.parametrize("name", ["spat_spark", "smaat_unet"])
@pytest.mark.parametrize("recompute", [False, True])
def test_checkpointed_blocks_are_those_of_the_settings(name: Any, recompute: bool) -> None:
    small: dict[str, Any] = {"smaat_width": 4} if name == "smaat_unet" else {"encoder": "resnet18", "decoder_width": 32}
    config = NowcastConfig(name=name, checkpoint_blocks=recompute, **small)
    model = build_nowcaster(config)
    encoder = model if name == "smaat_unet" else model.get_submodule("sparse_encoder")
    assert bool(encoder.checkpoint_blocks) == recompute


@pytest.fixture(scope="module")
def ensemble(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble that started from a run of one field."""
    folder = tmp_path_factory.mktemp("ensemble")
    single = {"run__steps": 2, "model__head": "cascade", "model__translation": "identity"}
    assert train(arguments(shards, folder / "single", **single)) == ExitCode.DONE
    members = single | {"model__ensemble": True, "model__loss": "crps", "run__choose_by": "loss"}
    assert train(arguments(shards, folder / "run", init_from=folder / "single", **members)) == ExitCode.DONE
    return folder / "run"


def test_a_member_is_the_same_in_any_batch_and_any_number(ensemble: Path) -> None:
    forecaster = load_forecaster(ensemble)
    assert forecaster.is_ensemble
    rain, times = make_rain(72, 64), [1_600_000_000, 1_600_000_300]
    four = forecaster.forecast_members(rain, None, members=4, issue_s_b=times)
    assert four.shape == (2, 4, FRAMES_OUT, 72, 64)
    assert float(four.min()) >= 0
    assert not torch.equal(four[:, 0], four[:, 1])
    assert torch.equal(forecaster.forecast_members(rain, None, members=2, issue_s_b=times), four[:, :2])
    alone = forecaster.forecast_members(rain[1:], None, 2, members=3, issue_s_b=times[1:])
    assert torch.equal(alone, four[1:, :3, :2])


def test_members_differ_by_seed_and_issue_time(ensemble: Path) -> None:
    forecaster, rain = load_forecaster(ensemble), make_rain(windows=1)
    first = forecaster.forecast_members(rain, None, members=2, issue_s_b=[0])
    assert not torch.equal(forecaster.forecast_members(rain, None, members=2, seed=1, issue_s_b=[0]), first)
    assert not torch.equal(forecaster.forecast_members(rain, None, members=2, issue_s_b=[300]), first)


def test_an_ensemble_forecasts_one_field_too(ensemble: Path) -> None:
    assert load_forecaster(ensemble).forecast(make_rain(), None).shape == (2, FRAMES_OUT, 64, 64)


def test_members_of_a_run_of_one_field_are_refused(trained: Path) -> None:
    forecaster = load_forecaster(trained)
    assert not forecaster.is_ensemble
    with pytest.raises(ConfigError, match=r"forecasts one field .*8 members were asked for; train an ensemble from it"):
        forecaster.forecast_members(make_rain(), None, members=8, issue_s_b=[0, 300])


def test_an_ensemble_without_weights_of_its_noise_is_refused(ensemble: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(ensemble, tmp_path / "run"))
    best = best_of(run)
    for path in best.glob("*.safetensors"):
        weights = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("members.")}
        save_file(weights, path)
    write_manifest(best)
    text = r"an ensemble, and it holds no weights of the members' noise \(members\.drift.*finetune_ensemble --init_from"
    with pytest.raises(CheckpointError, match=text):
        load_forecaster(run)
