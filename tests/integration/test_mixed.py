"""Two radars in one set of shards: pretraining with weights, fine-tuning, and what needs one of them asks for it."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.exit_codes import ExitCode
from rainspark.models.weights.manifest import CheckpointError
from rainspark.trainer.forecasting.forecaster import load_forecaster
from tests.data.mixed import pack_mixed
from tests.integration.runs import arguments, command_line, evaluate, metrics, nowcast_arguments, train
from tests.integration.test_fields import plan

HALVES = '{"Fine": 0.5, "KNMI": 0.5}'


def drifting_squares() -> dict[str, np.ndarray]:
    """Make 40 and 90 frames of drifting squares of rain."""
    rng = np.random.default_rng(0)

    def run(num_frames: int, most: int) -> np.ndarray:
        frames = np.zeros((num_frames, 64, 64), np.uint16)
        for t in range(num_frames):
            wide = 20 + t % 40
            frames[t, t % 24 : t % 24 + wide, 5 : 5 + wide] = rng.integers(1, most, (wide, wide))[: 64 - t % 24, :59]
        return frames

    return {"Fine": run(40, 600), "KNMI": run(90, 50)}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack both, at two scales."""
    folder = tmp_path_factory.mktemp("mixed")
    pack_mixed(folder, drifting_squares(), scales_mmh=(0.01, 0.12), window=24, max_frames=48, num_shards=3)
    return folder


WHOLE = {"data__validation_share": 0, "data__guard_h": 0}


def test_pretraining_reads_both_as_the_weights_say(
    mixed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, object] = {**WHOLE, "run__steps": 4, "run__evaluate_every": 4, "data__weights": HALVES}
    with caplog.at_level(logging.INFO):
        assert train(arguments(mixed, tmp_path / "run", **settings)) == ExitCode.DONE
    # 37 and 87 windows of 4 frames; an epoch is 15 global batches of 8.
    assert "sources: Fine: 37 windows, 60 an epoch, 1.6 times each; KNMI: 87 windows, 60 an epoch" in caplog.text
    assert all(np.isfinite(line["loss"]) for line in metrics(tmp_path / "run") if "loss" in line)
    with pytest.raises(CheckpointError, match=r"data.weights.KNMI: saved 0.5, asked 0.6"):
        train(arguments(mixed, tmp_path / "run", **{**settings, "data__weights": '{"Fine": 0.5, "KNMI": 0.6}'}))


def test_shares_that_lanes_cannot_give_are_told(mixed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, object] = {**WHOLE, "run__steps": 1, "run__evaluate_every": 1, "optim__warmup_steps": 0}
    with caplog.at_level(logging.INFO):
        train(arguments(mixed, tmp_path / "run", **settings))
    assert "whole lanes of each source: Fine 0.5 instead of 0.298; KNMI 0.5 instead of 0.702" in caplog.text


def planned(mixed: Path, tmp_path: Path, **settings: object) -> dict[str, Any]:
    found: dict[str, Any] = plan(arguments(mixed, tmp_path, **{**WHOLE, **settings}))[0]
    return found


def test_source_weights_and_selections_change_the_plan(mixed: Path, tmp_path: Path) -> None:
    base = planned(mixed, tmp_path)
    assert base["windows"] == 37 + 87
    one = planned(mixed, tmp_path, data__source="KNMI")
    assert (one["windows"], one["selection"]["sources"]) == (87, ["KNMI"])
    assert planned(mixed, tmp_path, data__weights=HALVES)["weights"] == {"Fine": 0.5, "KNMI": 0.5}
    window = {"data__window": 20}
    strict = planned(mixed, tmp_path, **window, data__select="nl20")
    assert strict["selection"] | {"min_rain_fraction": 0.2, "target_frame": 17, "rule": "strict"} == strict["selection"]
    nl50 = planned(mixed, tmp_path, **window, data__select="nl50")
    last = planned(mixed, tmp_path, **window, data__select="nl50", data__target_frame=-1)
    compat = planned(mixed, tmp_path, **window, data__select="nl50", data__select_rule="smaat_compat")
    assert nl50["windows"] < strict["windows"]
    assert [one["selection"]["target_frame"] for one in (nl50, last)] == [17, -1]
    assert compat["selection"]["rule"] == "smaat_compat"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"data__source": "OPERA"}, DataError, r"data.source: the source 'OPERA' is not in .*: Fine; KNMI"),
        ({"data__source": "KNMI", "data__weights": HALVES}, ConfigError, r"data.weights has no effect beside data.sou"),
        ({"data__weights": '{"OPERA": 1}'}, ConfigError, r"a weight is set for the source 'OPERA'.*: Fine; KNMI"),
        ({"data__weights": '{"Fine": "much"}'}, ConfigError, r"weights"),
        ({"data__micro_batch": 2, "data__lanes": 1}, ConfigError, r"on 1 lanes.*numbers of lanes that work: 2"),
        ({"data__select": "nl50"}, ConfigError, r"data.select nl50 is about frame 17.*set data.target_frame"),
        ({"data__select": "nl50", "data__min_rain_fraction": 0.5}, ConfigError, r"leave one of them out"),
        ({"data__select": "nl30"}, ConfigError, r"nl30"),
        ({"data__select_rule": "smaat_compat"}, ConfigError, r"data.select_rule smaat_compat has no effect"),
        ({"data__cache_dir": "/tmp/nowhere"}, ConfigError, r"is a folder on this machine already: no effect"),
        ({"data__cache_gb": 3}, ConfigError, r"no data.cache_dir is set: no effect"),
        ({"data__readers": 0}, ConfigError, r"data.readers is 0"),
        ({"data__quarantine": -1}, ConfigError, r"data.quarantine is -1"),
        ({"data__deadline_s": 0}, ConfigError, r"data.deadline_s is 0.0; it must be above 0"),
    ],
)
def test_what_cannot_be_read_says_why(
    mixed: Path, tmp_path: Path, settings: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(arguments(mixed, tmp_path, **{**WHOLE, **settings}))


@pytest.fixture(scope="module")
def tuned(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("tuned") / "run"
    settings: dict[str, object] = {"data__weights": HALVES, "data__validation_share": 0.3, "data__guard_h": 0}
    small = {"model__name": "smaat_unet", "model__smaat_width": 2, "run__steps": 2}
    assert train(nowcast_arguments(mixed, run, **settings, **small)) == ExitCode.DONE
    return run


def score(shards: Path, out: Path, run: Path, baseline: str, *more: str) -> dict[str, Any]:
    """Score a run and a baseline; return what the scores say of how they came about."""
    settings = {"data.shards": shards, "out": out, "scales": 1, "thresholds": 0.5, "device": "cpu"}
    assert evaluate([*command_line(settings), "--models", str(run), baseline, *more]) == ExitCode.DONE
    about: dict[str, Any] = json.loads((out / "scores.json").read_text())["about"]
    return about


ON_KNMI = ("--data.source", "KNMI", "--split", "validation")


def test_a_nowcaster_of_two_radars_is_scored_on_one(mixed: Path, tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"scores are made of one radar and place; .*choose one of its sources \(data.so"
    ):
        score(mixed, tmp_path / "both", tuned, "persistence", "--split", "validation")
    about = score(mixed, tmp_path / "one", tuned, "persistence", *ON_KNMI)
    assert about["archive"]["source"] == "KNMI"
    assert "was trained on several radars or parts of a grid (Fine, KNMI), and this is KNMI" in json.dumps(about)


def test_baselines_are_fitted_on_what_is_scored_of_a_mix(mixed: Path, tuned: Path, tmp_path: Path) -> None:
    """Also where the archive that is scored is another one than the run's: the run's own holds its training part."""
    alone = tmp_path / "alone"
    last = {"KNMI": drifting_squares()["KNMI"][-30:]}
    pack_mixed(alone, last, scales_mmh=(0.12,), window=24, max_frames=48, num_shards=1)
    of_mix = score(mixed, tmp_path / "mix", tuned, "training_mean", *ON_KNMI)
    of_alone = score(alone, tmp_path / "scores", tuned, "training_mean", "--split", "all", "--allow_overlap", "true")
    means = [about["models"]["training_mean"]["mean_mmh"] for about in (of_mix, of_alone)]
    assert means[0] == means[1]


def test_pixels_of_another_size_than_any_of_its_radars_are_told(tuned: Path, tmp_path: Path) -> None:
    finer = tmp_path / "finer"
    last = {"KNMI": drifting_squares()["KNMI"][-30:]}
    pack_mixed(finer, last, scales_mmh=(0.12,), window=24, max_frames=48, num_shards=1, pixel_km=0.5)
    words = ("--split", "all", "--limit", "1", "--allow_overlap", "true")
    with pytest.raises(DataError, match=r"pixels of 1 km every 300 s, and the shards hold pixels of 0.5 km"):
        score(finer, tmp_path / "refused", tuned, "persistence", *words)
    about = score(finer, tmp_path / "scores", tuned, "persistence", *words, "--allow_other_grid", "true")
    assert "was trained on pixels of 1 km every 300 s, and this is pixels of 0.5 km every 300 s" in json.dumps(about)


def test_a_forecast_needs_one_grid(tuned: Path) -> None:
    forecaster = load_forecaster(tuned)
    assert forecaster.data["grid"] is None
    assert forecaster.data["scale_mmh"] is None
    with pytest.raises(DataError, match=r"trained on several radars or parts of a grid \(Fine, KNMI\).*--data.source"):
        _ = forecaster.grid
