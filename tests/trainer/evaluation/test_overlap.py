"""What runs have seen of the windows: refused, reported, or no matter; and where their grids lie."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from rainspark.data.errors import ConfigError
from rainspark.data.frames import Crop, Grid
from rainspark.data.sequences import TimeSpan
from rainspark.data.shards.index import Index, load_index
from rainspark.data.sources.source import SYNTHETIC
from rainspark.data.store.storage import open_storage
from rainspark.trainer.checkpoint.folder import save
from rainspark.trainer.checkpoint.seen import WindowTimes, starting_states
from rainspark.trainer.checkpoint.state import TrainState
from rainspark.trainer.evaluation.overlap import check_overlaps
from rainspark.trainer.evaluation.plan import _place_caveats
from rainspark.trainer.forecasting.forecaster import RunForecaster
from rainspark.trainer.settings.evaluation import EvaluateConfig, parse_evaluation
from rainspark.trainer.settings.experiment import FinetuneConfig, PretrainConfig, TrainingConfig
from rainspark.trainer.settings.parse import as_dict, parse_config
from tests.integration import runs

HOUR = 3600
FIRST_S = np.arange(100 * HOUR, 102 * HOUR, 300)
"""Windows of two hours, 6 frames each."""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return load_index(open_storage(runs.make_shards(tmp_path_factory.mktemp("overlap"), hours=3, size=32)))


def described(start_h: float, stop_h: float, source: str = SYNTHETIC) -> dict[str, Any]:
    span = TimeSpan(start_s=round(start_h * HOUR), stop_s=round(stop_h * HOUR))
    return {"source": source, "spans": {"train": [asdict(span)], "validation": [], "test": []}}


def run(data: dict[str, Any], init_from: Path | None = None) -> RunForecaster:
    words = ["--data.shards", "s", "--run.dir", "r"] + ([] if init_from is None else ["--init_from", str(init_from)])
    config = parse_config(words, FinetuneConfig, prog="test")
    return RunForecaster(name="a", config=config, data=data, model=nn.Identity(), step=1, path=Path("r"))


def saved(folder: Path, cls: type[FinetuneConfig] | type[PretrainConfig], data: dict[str, Any], *more: str) -> Path:
    config: TrainingConfig = parse_config(["--data.shards", "s", "--run.dir", "r", *more], cls, prog="test")
    settings = as_dict(config)
    state = TrainState(
        step=1, epoch=0, seed=0, config=settings, data=data, plan={}, loss_scale=None, optimizer_steps={}, versions={}
    )
    save(folder, state, nn.Linear(1, 1).state_dict(), {}, keep_last=2)
    return folder


def asked(*more: str) -> EvaluateConfig:
    return parse_evaluation(["--data.shards", "S", "--out", "O", "--models", "a", *more])


def caveats(config: EvaluateConfig, model: RunForecaster, index: Index) -> list[str]:
    return check_overlaps(config, model, WindowTimes(first_s=FIRST_S, num_frames=6, cadence_s=300), index.source)


def test_one_shared_frame_is_refused_and_one_frame_less_is_reported(index: Index) -> None:
    last_s = int(FIRST_S[-1]) + 5 * 300
    everything = asked("--split", "all")
    with pytest.raises(ConfigError, match=r"1 of 24 windows share frames with the train part of a"):
        caveats(everything, run(described(last_s / HOUR, 200)), index)
    (line,) = caveats(everything, run(described((last_s + 1) / HOUR, 200)), index)
    assert line.startswith("Only 0.00028 hours lie between")
    with pytest.raises(ConfigError, match="1 of 24 windows"):
        caveats(asked(), run(described(50, 100 + 1 / HOUR)), index)
    assert "Only 0 hours lie between" in caveats(asked(), run(described(50, 100)), index)[0]
    assert caveats(asked(), run(described(50, 76)), index) == []
    assert "23 hours" in caveats(asked(), run(described(50, 77)), index)[0]


def test_times_of_made_up_storms_are_no_times_of_measured_rain(index: Index) -> None:
    assert caveats(asked(), run(described(0, 200, "KNMI RAD_NL25_RAU_5mi")), index) == []


def test_a_mix_has_seen_the_times_of_all_its_sources(index: Index) -> None:
    sources = ["KNMI RAD_NL25_RAU_5mi", SYNTHETIC]
    mix = {**described(0, 200, ", ".join(sources)), "sources": sources}
    measured = replace(index, origins=(replace(index.origins[0], source=sources[0]),))
    for scored in (index, measured):
        with pytest.raises(ConfigError, match="24 of 24 windows share frames with the train part of a"):
            caveats(asked(), run(mix), scored)
    assert caveats(asked(), run({**mix, "sources": sources[:1]}), index) == []


def test_weights_that_have_seen_the_windows_are_followed_back(tmp_path: Path, index: Index) -> None:
    clean = described(0, 50)
    nowcaster = saved(tmp_path / "nowcaster", FinetuneConfig, described(90, 110))
    with pytest.raises(ConfigError, match=r"24 of 24 windows share frames with the train part of .*nowcaster, which a"):
        caveats(asked(), run(clean, nowcaster), index)
    between = saved(tmp_path / "between", FinetuneConfig, clean, "--init_from", str(nowcaster))
    with pytest.raises(ConfigError, match="nowcaster, which a started from"):
        caveats(asked(), run(clean, between), index)
    (line,) = caveats(asked("--allow_overlap", "true"), run(clean, between), index)
    assert line.startswith("OVERLAP")
    pretrained = saved(tmp_path / "pretrained", PretrainConfig, described(90, 110))
    (line,) = caveats(asked(), run(clean, pretrained), index)
    assert line.startswith("PRETRAINED ON IT: 24 of 24 windows share frames")
    (line,) = caveats(asked(), run(clean, tmp_path / "gone.pth"), index)
    assert "gone.pth; which rain those weights have seen is not known here" in line


def test_runs_that_start_from_each_other_come_to_an_end(tmp_path: Path) -> None:
    folder = saved(tmp_path / "x", FinetuneConfig, described(0, 1), "--init_from", str(tmp_path / "x"))
    assert len(list(starting_states(str(folder)))) == 1


def test_places_on_the_map_are_named_by_their_corners() -> None:
    whole = Grid(rows=765, cols=700, pixel_km=1.0, projection="+proj=stere", x0_km=0.0, y0_km=-3650.0)
    own, here = (whole.cropped(Crop(row0=r, row1=r + 288, col0=c, col1=c + 288)) for r, c in ((100, 200), (260, 180)))
    assert _place_caveats("a", own, own) == []
    assert _place_caveats("a", own, here) == [
        "a was trained on another part of the map: 288 x 288 pixels, x 200 to 488 km, y -4038 to -3750 km; this is "
        "288 x 288 pixels, x 180 to 468 km, y -4198 to -3910 km."
    ]
