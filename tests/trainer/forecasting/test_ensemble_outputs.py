"""`rainspark forecast --members`: what is written and drawn, what is said of failed members, and what is refused."""

from pathlib import Path

import netCDF4
import numpy as np
import pytest
from PIL import Image

from rainspark.data.exit_codes import ExitCode
from rainspark.data.sources.knmi_writer import write_knmi_file
from rainspark.data.units import MISSING_COUNT
from rainspark.trainer.forecasting import outputs
from rainspark.trainer.forecasting.forecaster import load_forecaster
from rainspark.trainer.processes.entry import run_entry
from rainspark.trainer.settings.forecast import make_parser
from rainspark.trainer.settings.model import NowcastConfig
from tests.trainer.forecasting.members import MadeEnsemble
from tests.trainer.watching.tiny import FRAMES_IN, FRAMES_OUT, SIZE, counts_of, make_run, radar_name, time_of

STAMP = "202001010010"
INSIDE, OUTSIDE, UNSEEN = "Here=52.52,4.94", "52.1,15.2", "52.75,4.69"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def radar(tmp_path: Path) -> Path:
    """Write frames whose first rows no radar sees."""
    folder = tmp_path / "radar"
    folder.mkdir()
    for number, counts in enumerate(counts_of(FRAMES_IN)):
        counts[:10] = MISSING_COUNT
        write_knmi_file(folder / radar_name(number), counts, time_of(number))
    return folder


@pytest.fixture
def ensemble(monkeypatch: pytest.MonkeyPatch) -> type[MadeEnsemble]:
    """Let any run that is loaded forecast made members."""

    def load(folder: Path, **options: str) -> MadeEnsemble:
        return MadeEnsemble(**vars(load_forecaster(folder, **options)))

    monkeypatch.setattr(outputs, "load_forecaster", load)
    monkeypatch.setattr(MadeEnsemble, "failing", None)
    return MadeEnsemble


def _forecast(run: Path, radar: Path, out: Path, *words: str) -> int:
    argv = ["--run", str(run), "--input", str(radar), "--out", str(out), *words]
    return run_entry(lambda: outputs.run(make_parser().parse_args(argv), argv))


def _members(out: Path) -> np.ndarray:
    with netCDF4.Dataset(out / f"forecast_{STAMP}.nc") as file:
        return np.asarray(file["rainfall_rate"][:].filled(np.nan))


@pytest.mark.usefixtures("ensemble")
def test_members_are_written_and_drawn(
    run: Path, radar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    places = ("--place", INSIDE, "--place", "52.52,4.95", "--place", "Here=52.51,4.94")
    assert _forecast(run, radar, out, "--members", "6", *places) == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == [
        "forecast.gif",
        f"forecast_{STAMP}.nc",
        f"frames/forecast_{STAMP}_005min.png",
        f"frames/forecast_{STAMP}_010min.png",
        "members.png",
        "plume_2.png",
        "plume_Here.png",
        "plume_Here_3.png",
        "probabilities.png",
    ]
    printed = capsys.readouterr().out
    assert str(out / "probabilities.png") in printed
    assert "tiny: 6 members, 2020-01-01T00:15:00Z to 2020-01-01T00:20:00Z from 3 radar files" in printed
    assert "warning" not in printed
    for path in out.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 300

    with netCDF4.Dataset(out / f"forecast_{STAMP}.nc") as file:
        members = file["rainfall_rate"][:].filled(np.nan)
        assert members.shape == (6, 2, SIZE, SIZE)
        np.testing.assert_allclose(file["rainfall_rate_mean"][:].filled(np.nan), members.mean(axis=0), rtol=1e-6)
        assert file["rainfall_rate"].num_not_finite == 0
    assert np.isnan(members[:, :, :10]).all()
    assert np.isfinite(members[:, :, 10:]).all()


@pytest.mark.usefixtures("ensemble")
def test_the_seed_decides_the_members(run: Path, radar: Path, tmp_path: Path) -> None:
    options = ["--no-pictures", "--thresholds", "2", "--sum-thresholds", "3", "--radius-km", "0", "2"]
    options += ["--quantiles", "0.2", "0.8", "--members"]
    for name, words in {"a": ("4",), "b": ("4", "--seed", "0"), "c": ("4", "--seed", "1")}.items():
        assert _forecast(run, radar, tmp_path / name, *options, *words) == 0
    first, again, other = (_members(tmp_path / name) for name in "abc")
    np.testing.assert_array_equal(first, again)
    assert (first[:, :, 10:] != other[:, :, 10:]).any()
    with netCDF4.Dataset(tmp_path / "a" / f"forecast_{STAMP}.nc") as file:
        axes = {name: file[name][:].tolist() for name in ("threshold", "sum_threshold", "radius", "quantile")}
        assert axes == {"threshold": [2], "sum_threshold": [3], "radius": [0, 2], "quantile": [0.2, 0.8]}
        assert file["probability"].shape == (1, 2, 2, SIZE, SIZE)


def test_a_failed_member_is_named_in_the_file_and_to_the_user(
    run: Path, radar: Path, tmp_path: Path, ensemble: type[MadeEnsemble], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ensemble, "failing", 2)
    assert _forecast(run, radar, tmp_path / "out", "--members", "3") == 0
    count = 2 * 3 * SIZE
    note = f"{count} pixels of members are no finite number ({count} of member 2): there the member is left out."
    assert f"warning: {note}" in capsys.readouterr().out
    with netCDF4.Dataset(tmp_path / "out" / f"forecast_{STAMP}.nc") as file:
        assert file.comment.endswith(note)
        assert file["rainfall_rate"].num_not_finite == count
        mean = file["rainfall_rate_mean"][:].filled(np.nan)
        members = file["rainfall_rate"][:].filled(np.nan)
    np.testing.assert_allclose(mean[:, 12:15], members[:2, :, 12:15].mean(axis=0), rtol=1e-6)

    monkeypatch.setattr(ensemble, "failing", -1)
    assert _forecast(run, radar, tmp_path / "none", "--members", "3") == ExitCode.NONFINITE
    assert "not one pixel of the forecast is a finite number" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("ensemble")
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--members", "1"], ExitCode.CONFIG, "'1' is no whole number of 2 or more"),
        (["--place", INSIDE], ExitCode.CONFIG, "--place: has an effect with --members only"),
        (["--members", "2", "--place", INSIDE, "--no-pictures"], ExitCode.CONFIG, "png is left out of the products"),
        (["--members", "2", "--place", INSIDE, "--products", "netcdf"], ExitCode.CONFIG, "leave out --place, or add"),
        (
            ["--members", "2", "--place", OUTSIDE],
            ExitCode.DATA,
            "52.1 N, 15.2 E lies outside the",
        ),
        (["--members", "2", "--place", UNSEEN], ExitCode.DATA, "no radar looked there in any input frame"),
    ],
)
def test_what_an_ensemble_cannot_give_is_refused(
    run: Path, radar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str],
    code: ExitCode, message: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert _forecast(run, radar, out, *words) == code
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_run_that_was_trained_as_an_ensemble_gives_the_same_members_in_any_number(
    radar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = NowcastConfig(
        encoder="resnet18",
        frames_in=FRAMES_IN,
        frames_out=FRAMES_OUT,
        decoder_width=32,
        translation="identity",
        head="cascade",
        ensemble=True,
        loss="crps",
    )
    trained = make_run(tmp_path / "trained", tmp_path, model)
    for name, words in {"few": ("2",), "more": ("4", "--seed", "0"), "other": ("2", "--seed", "9")}.items():
        assert _forecast(trained, radar, tmp_path / name, "--no-pictures", "--members", *words) == 0
    assert "warning" not in capsys.readouterr().out
    few, more, other = (_members(tmp_path / name) for name in ("few", "more", "other"))
    np.testing.assert_array_equal(few, more[:2])
    assert (few[0, :, 10:] != few[1, :, 10:]).any()
    assert (few[:, :, 10:] != other[:, :, 10:]).any()
    # Without --members it forecasts one field, as any run does.
    assert _forecast(trained, radar, tmp_path / "one", "--no-pictures") == 0
    assert _members(tmp_path / "one").shape == (FRAMES_OUT, SIZE, SIZE)


def test_a_run_of_one_forecast_gives_no_members(
    run: Path, radar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _forecast(run, radar, tmp_path / "out", "--members", "20") == ExitCode.CONFIG
    error = capsys.readouterr().err
    assert "--members 20: tiny gives one forecast, and no ensemble; train one with rainspark finetune --config" in error
    assert "finetune_ensemble --init_from" in error
    assert not (tmp_path / "out").exists()
