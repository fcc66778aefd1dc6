"""Which radars a run can forecast, and how it says what it does not know."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.frames import Crop, Grid
from rainspark.data.sources.knmi import KnmiSource
from rainspark.data.sources.odim import OdimSource
from rainspark.data.sources.source import SYNTHETIC
from rainspark.trainer.forecasting.forecaster import RunForecaster
from rainspark.trainer.forecasting.readers import radars_of
from rainspark.trainer.settings.data import NowcastDataConfig
from rainspark.trainer.settings.experiment import FinetuneConfig
from rainspark.trainer.settings.run import NowcastRunConfig

GRID = Grid(rows=64, cols=96, pixel_km=2.0, projection="+proj=laea +lat_0=55 +lon_0=10", x0_km=0.0, y0_km=0.0)
CROP = {"row0": 0, "row1": 32, "col0": 32, "col1": 96}
ODIM = {"kind": "odim", "options": {"quantity": "RATE", "licence": "CC BY 4.0"}}


def run_of(**data: Any) -> RunForecaster:
    config = FinetuneConfig(run=NowcastRunConfig(dir="r"), data=NowcastDataConfig(shards="s"))
    about = {"cadence_s": 300, **data}
    return RunForecaster(
        name="run", config=config, data=about, model=torch.nn.Identity(), step=1, path=Path("run/best")
    )


def test_what_a_run_records_says_how_to_read() -> None:
    grid = GRID.to_json()
    readers = {
        "A": {"recipe": ODIM, "grid": grid, "crop": CROP, "period_s": 0},
        "B": {"recipe": {"kind": "knmi", "options": {}}, "grid": grid},
    }
    first, second = radars_of(run_of(readers=readers))
    assert (first.name, first.source) == ("A", OdimSource(quantity="RATE", licence="CC BY 4.0"))
    assert (first.grid, first.part) == (GRID, GRID.cropped(Crop(**CROP)))
    assert (second.name, second.source, second.part) == ("B", KnmiSource(), None)
    assert [radar.name for radar in radars_of(run_of(readers=readers), source="B")] == ["B"]


def test_storms_in_a_radars_format_are_forecast_only_by_name() -> None:
    learned = {"recipe": {"kind": "knmi", "options": {}}, "grid": GRID.to_json()}
    run = run_of(readers={"KNMI RAD_NL25_RAU_5mi": learned, SYNTHETIC: learned})
    assert [radar.name for radar in radars_of(run)] == ["KNMI RAD_NL25_RAU_5mi"]
    assert [radar.name for radar in radars_of(run, source=SYNTHETIC)] == [SYNTHETIC]
    assert [radar.name for radar in radars_of(run_of(readers={SYNTHETIC: learned}))] == [SYNTHETIC]
    # Beside a radar of another format, storms' files are known by theirs.
    other = learned | {"recipe": {"kind": "odim", "options": {}}}
    run = run_of(readers={"FMI lowest": other, SYNTHETIC: learned})
    assert [radar.name for radar in radars_of(run)] == ["FMI lowest", SYNTHETIC]


@pytest.mark.parametrize("source", ["KNMI RAD_NL25_RAU_5mi", "synthetic storms"])
def test_runs_from_before_recipes_were_recorded_read_knmi_files(source: str) -> None:
    (radar,) = radars_of(run_of(source=source, grid=GRID.to_json()))
    assert (radar.source, radar.grid, radar.part) == (KnmiSource(), None, GRID)


def test_a_reader_that_is_stated_is_taken() -> None:
    (radar,) = radars_of(run_of(source="ODIM ORG:247 RATE", grid=GRID.to_json()), reader="odim --quantity RATE")
    assert radar.source == OdimSource(quantity="RATE")


@pytest.mark.parametrize(
    ("data", "asked", "error", "message"),
    [
        ({"source": "ODIM X", "grid": GRID.to_json()}, {}, DataError, r"does not record how the files of 'ODIM X' are"),
        ({"source": "KNMI RAD_A"}, {}, DataError, "does not record the grid"),
        (
            {"source": "KNMI RAD_A"},
            {"source": "B"},
            DataError,
            r"did not learn from --source 'B'; its sources: 'KNMI RAD_A",
        ),
        ({"readers": {"A": {"grid": GRID.to_json(), "recipe": 7}}}, {}, DataError, "recipe is 7.*it was changed"),
        ({"readers": {"A": {"recipe": ODIM}}}, {}, DataError, "key grid is missing"),
        ({"readers": [1]}, {}, DataError, "what it records of its sources cannot be read"),
        (
            {"readers": {"A": {"grid": GRID.to_json()}, "B": {"grid": GRID.to_json()}}},
            {"reader": "knmi"},
            ConfigError,
            "--reader 'knmi' reads one product, and run learned from 2: choose with --source",
        ),
    ],
)
def test_what_is_not_known_is_named(
    data: dict[str, Any], asked: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        radars_of(run_of(**data), **asked)


def test_a_cadence_that_is_not_recorded_is_named() -> None:
    unknown = replace(run_of(), data={})
    with pytest.raises(DataError, match="records no cadence_s"):
        _ = unknown.cadence_s
