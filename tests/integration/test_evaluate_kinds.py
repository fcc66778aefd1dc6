"""Whole evaluations of every kind of forecast: fields, members, probabilities, files made elsewhere, and classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rainspark.data.exit_codes import ExitCode
from rainspark.data.shards.index import Index
from rainspark.trainer.contestants.workers import Workers
from rainspark.trainer.forecasting.content import Content, Provenance
from rainspark.trainer.forecasting.netcdf import write_forecast
from rainspark.trainer.settings.data import ArchiveConfig
from rainspark.trainer.training.windows import open_archive
from rainspark.trainer.verification.ensemble import EnsembleRows
from rainspark.trainer.verification.rows import Rows
from tests.distributed import run_ranks
from tests.integration.runs import make_shards, nowcast_arguments, train
from tests.integration.test_evaluate import _own_log_handlers as _own_log_handlers
from tests.integration.test_evaluate import command, evaluate, evaluate_on, scores_of, sliding, write_archive

FIRST_S = 1_609_459_200
KINDS = ["sprog", "st=steps:members=3", "lagrangian_probability", "persistence"]
SPLIT = ["--split", "all", "--frames_out", "2"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an archive of 40 frames that slide by three pixels, a corner missing."""
    return write_archive(tmp_path_factory.mktemp("kinds"), sliding)


def argv_of(shards: Path, out: Path, models: list[str], *more: str, cache: str = "none") -> list[str]:
    return command(shards, out, models, *SPLIT, "--cache", cache, "--workers", "1", *more)


@pytest.fixture(scope="module")
def scored(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Evaluate once what others are held against: the scores, and what was kept."""
    folder = tmp_path_factory.mktemp("scored")
    argv = argv_of(shards, folder / "out", KINDS, "--limit", "4", cache=str(folder / "cache"))
    assert evaluate(argv) == ExitCode.DONE
    return folder / "out", folder / "cache"


def same_files(one: Path, other: Path) -> None:
    names = ["scores.json", "scores.csv", "scores.md", *scores_of(one)["about"]["files"]]
    for name in names:
        if name != "scores.json":
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = (json.loads((folder / "scores.json").read_text()) for folder in (one, other))
    assert first == second


def test_fields_members_and_probabilities_stand_side_by_side(scored: tuple[Path, Path]) -> None:
    out, _ = scored
    rows = {path.name for path in (out / "rows").iterdir()}
    assert {"sprog.npz", "st mean.npz", "st.ensemble.npz", "lagrangian_probability.ensemble.npz"} <= rows
    ensemble = EnsembleRows.load(out / "rows" / "st.ensemble.npz")
    probabilities = EnsembleRows.load(out / "rows" / "lagrangian_probability.ensemble.npz")
    field, mean = Rows.load(out / "rows" / "sprog.npz"), Rows.load(out / "rows" / "st mean.npz")
    assert (ensemble.members, probabilities.members, len(ensemble)) == (3, 0, 4)
    # All are scored on the same pixels.
    for other in (ensemble.sums["num_valid"], probabilities.sums["num_valid"], mean.num_valid):
        np.testing.assert_array_equal(other, field.num_valid)
    assert field.num_nonfinite.sum() == mean.num_nonfinite.sum() == ensemble.sums["num_nonfinite"].sum() == 0
    unknown = scores_of(out)["about"]["unknown"]
    assert set(unknown["num_by_model"]) == {"sprog", "st", "lagrangian_probability"}
    assert scores_of(out)["about"]["models"]["st"] == {"kind": "steps", "members": 3, "levels": 6}


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_bytes(shards: Path, scored: tuple[Path, Path], tmp_path: Path) -> None:
    argv = argv_of(shards, tmp_path / "two", KINDS, "--limit", "4")
    argv[argv.index("--workers") + 1] = "2"
    assert evaluate(argv) == ExitCode.DONE
    same_files(scored[0], tmp_path / "two")


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_ranks_writes_the_same_bytes(
    shards: Path, scored: tuple[Path, Path], tmp_path: Path, ranks: int
) -> None:
    argv = argv_of(shards, tmp_path / "ranks", KINDS, "--limit", "4", cache=str(scored[1]))
    assert run_ranks(evaluate_on, ranks, [argv], timeout_s=400, init_group=False) == [[0]] * ranks
    same_files(scored[0], tmp_path / "ranks")


def test_a_second_evaluation_calls_nothing(
    shards: Path, scored: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: Any) -> Callable[[], Any]:
        raise AssertionError("pysteps was asked again")

    monkeypatch.setattr(Workers, "start", start)
    argv = argv_of(shards, tmp_path / "again", KINDS, "--limit", "4", cache=str(scored[1]))
    assert evaluate(argv) == ExitCode.DONE
    same_files(scored[0], tmp_path / "again")


def frame(index: Index, number: int) -> npt.NDArray[np.float32]:
    """Give the archive's rain of a frame as the evaluator sees it, 0 where missing."""
    counts = sliding(number % 40)
    return np.where(counts == 65535, 0, counts.astype(np.float32) * np.float32(index.scale_mmh))


def write_persistence(folder: Path, shards: Path, numbers: range, *, cadence_s: int = 300) -> None:
    """Write what persistence forecasts from some frames, as files of ours."""
    _, index = open_archive(ArchiveConfig(shards=str(shards)), 1)
    folder.mkdir()
    for number in numbers:
        content = Content(
            rain_mmh_thw=np.stack([frame(index, number)] * 3),
            reference_time_s=FIRST_S + 300 * number,
            cadence_s=cadence_s,
            grid=index.grid.cropped(index.crop),
            provenance=Provenance(model="m", source="s", licence="l", history="h"),
        )
        write_forecast(folder / f"{number:02d}.nc", content)


def test_forecasts_made_elsewhere_are_scored_where_they_are(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_persistence(tmp_path / "theirs", shards, range(10, 20))
    argv = argv_of(shards, tmp_path / "out", [f"theirs={tmp_path / 'theirs'}", "persistence"])
    assert evaluate(argv) == ExitCode.DONE
    contents, printed = scores_of(tmp_path / "out"), capsys.readouterr().out
    line = (
        f"theirs: 28 of 38 windows have no forecast in {tmp_path / 'theirs'}: they are left out for every model alike"
    )
    assert line in printed
    assert any(line in caveat for caveat in contents["about"]["caveats"])
    theirs, ours = (contents["models"][name] for name in ("theirs", "persistence"))
    assert theirs["num_windows"] == 10
    # What persistence gives where nothing was measured is dry, and so it was written.
    assert theirs == ours
    assert contents["about"]["models"]["theirs"]["forecasts"] == 10


def test_classes_take_part(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_models.py").write_text(
        "class Persistence:\n"
        "    frames_in = 1\n"
        "    def forecast(self, rain, valid, frames_out):\n"
        "        return rain[:, -1:].repeat(1, frames_out, 1, 1)\n"
        "class Ensemble:\n"
        "    frames_in, members = 1, 2\n"
        "    def forecast_members(self, rain, valid, frames_out, *, issue_s_b):\n"
        "        members = rain[:, -1:, None].repeat(1, 2, frames_out, 1, 1)\n"
        "        members[:, 1, :, 40, 40] = float('nan')\n"
        "        return members\n"
    )
    models = ["persistence", "own=own_models:Persistence", "two=own_models:Ensemble"]
    assert evaluate(argv_of(shards, tmp_path / "out", models, "--limit", "3")) == ExitCode.DONE
    contents = scores_of(tmp_path / "out")
    assert contents["models"]["own"] == contents["models"]["persistence"]
    # One pixel of one member failed, in 3 windows of 2 lead times.
    rows = EnsembleRows.load(tmp_path / "out" / "rows" / "two.ensemble.npz")
    assert rows.sums["num_nonfinite"].sum() == 6
    assert any("two mean: 6 of" in caveat for caveat in contents["about"]["caveats"])


@pytest.mark.parametrize(
    ("models", "more", "code", "message"),
    [
        (["steps:member=3"], [], ExitCode.CONFIG, "steps has no option 'member'"),
        (["persistence", "mine=no_such_module:Model"], [], ExitCode.CONFIG, "no_such_module cannot be imported"),
        (
            ["lagrangian_probability"],
            [],
            ExitCode.CONFIG,
            "lagrangian_probability forecast no rain but probabilities; add",
        ),
        (["persistence"], ["--members", "8"], ExitCode.CONFIG, "members is 8, and none of the models is a run that"),
        (["persistence"], ["--workers", "0"], ExitCode.CONFIG, "workers is 0; it must be 1 or more"),
        (["sprog"], ["--frames_in", "2"], ExitCode.CONFIG, "frames_in is 2, and sprog takes 3"),
    ],
)
def test_what_a_user_can_get_wrong(
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    models: list[str],
    more: list[str],
    code: ExitCode,
    message: str,
) -> None:
    argv = [word for word in argv_of(shards, tmp_path / "out", models) if word not in ("--workers", "1")]
    assert evaluate([*argv, *more]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("numbers", "changes", "code", "message"),
    [
        (range(100, 102), {}, ExitCode.DATA, "none of its 2 forecasts, issued 2021-01-01T08:20:00Z to"),
        (range(10, 12), {"cadence_s": 600}, ExitCode.DATA, "10.nc: its lead times are 10, 20, 30... min;"),
    ],
)
def test_forecasts_of_other_times_are_refused(
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    numbers: range,
    changes: dict[str, Any],
    code: ExitCode,
    message: str,
) -> None:
    write_persistence(tmp_path / "theirs", shards, numbers, **changes)
    assert evaluate(argv_of(shards, tmp_path / "out", [str(tmp_path / "theirs")])) == code
    assert message in capsys.readouterr().err


def test_a_run_that_is_an_ensemble_forecasts_members(tmp_path: Path) -> None:
    storms = make_shards(tmp_path, hours=6)
    part = {"data__validation_share": 0.2, "data__test_share": 0.3, "data__guard_h": 0.25, "run__steps": 2}
    ensemble: dict[str, object] = {"model__head": "cascade", "model__translation": "identity", "model__loss": "crps"}
    ensemble |= {"model__ensemble": True, "run__choose_by": "loss"}
    assert train(nowcast_arguments(storms, tmp_path / "run", **part, **ensemble)) == ExitCode.DONE

    for name, members in (("three", "3"), ("two", "2")):
        argv = command(storms, tmp_path / name, [f"own={tmp_path / 'run'}"], "--limit", "2", "--members", members)
        assert evaluate(argv) == ExitCode.DONE
    rows = EnsembleRows.load(tmp_path / "three" / "rows" / "own.ensemble.npz")
    assert (rows.members, len(rows), rows.sums["num_nonfinite"].sum()) == (3, 2, 0)
    assert scores_of(tmp_path / "three")["about"]["models"]["own"]["members"] == 3
    assert EnsembleRows.load(tmp_path / "two" / "rows" / "own.ensemble.npz").members == 2
    assert (tmp_path / "three" / "rows" / "own mean.npz").is_file()
