"""Whole evaluations of tiny runs and baselines: the numbers, the files, any number of processes, and user errors."""

import json
import logging
import math
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from rainspark.data.exit_codes import ExitCode
from rainspark.data.pack.__main__ import main as pack
from rainspark.data.sources.knmi_writer import file_name, write_knmi_file
from rainspark.models.baselines.extrapolation import Extrapolation
from rainspark.models.weights.manifest import latest_verified
from rainspark.trainer.checkpoint.folder import load, save
from rainspark.trainer.processes.entry import run_entry
from tests.conftest import REPOSITORY
from tests.distributed import run_ranks
from tests.integration import runs
from tests.integration.runs import make_shards, nowcast_arguments, train
from tests.programs import launch
from tests.programs import run as run_program

THRESHOLDS = (0.1, 0.5, 2.0)
SPLIT = {"data__validation_share": 0.2, "data__test_share": 0.3, "data__guard_h": 0.25, "run__steps": 2}


@dataclass(frozen=True)
class Runs:
    """Where the archive and the runs lie.

    Attributes:
        radar: Radar files.
        shards: The same, packed.
        one: A run.
        two: A run of the other kind of model, with fewer lead times.
    """

    radar: Path
    shards: Path
    one: Path
    two: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("evaluate")
    shards = make_shards(folder, hours=6)
    ready = Runs(folder / "radar", shards, folder / "one", folder / "two")
    other = {"model__name": "smaat_unet", "model__smaat_width": 8, "model__frames_out": 2}
    for run, changes in ((ready.one, {}), (ready.two, other)):
        code = train(nowcast_arguments(shards, run, **{**SPLIT, "run__evaluate_every": 2, **changes}))
        assert code == ExitCode.DONE
    return ready


SCORED = ["persistence", "advection", "training_mean"]
FEW = ["--limit", "5", "--fit_windows", "2"]


@pytest.fixture(scope="module")
def scored(trained: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluate once what several tests hold another evaluation against; nobody writes there."""
    out = tmp_path_factory.mktemp("scored") / "out"
    assert evaluate(command(trained.shards, out, [f"run={trained.one}", *SCORED], *FEW)) == ExitCode.DONE
    return out


@pytest.fixture(autouse=True)
def _own_log_handlers() -> Iterator[None]:
    """The entry point sets handlers up for a process of its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def command(shards: Path, out: Path, models: list[str], *more: str) -> list[str]:
    thresholds = [f"{one:g}" for one in THRESHOLDS]
    fixed = ["--data.shards", str(shards), "--out", str(out), "--device", "cpu"]
    return [*fixed, "--models", *models, "--thresholds", *thresholds, "--scales", "1", "5", *more]


def evaluate(argv: list[str]) -> int:
    return run_entry(lambda: runs.evaluate(argv))


def evaluate_on(_rank: int, commands: list[list[str]]) -> list[int]:
    return [evaluate(argv) for argv in commands]


def scores_of(out: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((out / "scores.json").read_text())
    return contents


@pytest.fixture
def refused(trained: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Give a function that expects an evaluation to end with a code and a message, and to write nothing."""

    def check(code: ExitCode, message: str, models: list[str], *more: str, shards: Path = trained.shards) -> None:
        assert evaluate(command(shards, tmp_path / "out", models, *more)) == code
        text = capsys.readouterr().err
        assert re.search(message, text, re.DOTALL), text
        assert not (tmp_path / "out" / "scores.json").exists()

    return check


def radar_frames(folder: Path, stop_s: float, start_s: float = 0) -> dict[int, np.ndarray]:
    """Read the counts of radar files by their times."""
    frames = {}
    for path in sorted(folder.glob("*.h5")):
        time_s = int(datetime.strptime(path.stem[-12:], "%Y%m%d%H%M").replace(tzinfo=UTC).timestamp())
        if start_s <= time_s < stop_s:
            with h5py.File(path) as file:
                frames[time_s] = file["image1/image_data"][:]
    return frames


def write_archive(folder: Path, counts: Callable[[int], np.ndarray], *, minutes: int = 5) -> Path:
    """Write and pack 40 frames of another year."""
    (folder / "radar").mkdir(parents=True)
    for number in range(40):
        time_s = 1_609_459_200 + 60 * minutes * number
        write_knmi_file(folder / "radar" / file_name(time_s), counts(number).astype(np.uint16), time_s)
    argv = ["knmi", str(folder / "radar"), "--out", str(folder / "shards"), "--cadence-min", str(minutes)]
    # The files hold sums over 5 minutes, whatever lies between them.
    assert pack(argv if minutes == 5 else [*argv, "--allow-period"]) == 0
    return folder / "shards"


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 60, (64, 64))


def test_two_runs_and_all_baselines_in_one_pass(
    trained: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(trained.one), f"smaat_unet={trained.two}", "persistence", "advection", "extrapolation"]
    models += ["training_mean", "damped_extrapolation"]
    out, report = tmp_path / "out", tmp_path / "page"
    more = ["--report", str(report), "--compare_to", "persistence", "--protocol", "published", "--fit_windows", "3"]
    more += ["--limit", "6"]
    assert evaluate(command(trained.shards, out, models, *more)) == ExitCode.DONE
    text = capsys.readouterr().out
    contents = scores_of(out)
    names = ["one", "smaat_unet", "persistence", "advection", "extrapolation", "training_mean", "damped_extrapolation"]
    assert list(contents["models"]) == names
    about = contents["about"]
    assert (about["split"], about["frames_in"], about["frames_out"]) == ("test", 4, 2)
    recorded = load(trained.one).state.data["spans"]["test"]
    assert about["spans"] == recorded
    assert about["models"]["one"]["step"] == load(trained.one / "best").state.step
    assert all(0 <= factor <= 1 for factor in about["models"]["damped_extrapolation"]["factors"])
    assert contents["models"]["one"]["published_protocol"]["label"].startswith("SmaAt-UNet's protocol")
    for name in names:
        with np.load(out / "rows" / f"{name}.npz") as rows:
            assert len(rows["hits"]) == contents["models"]["one"]["num_windows"] == 6
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == {*about["files"], "scores.json", "scores.csv", "scores.md"}
    assert len([name for name in about["files"] if name.startswith("pictures/case-") and name.endswith(".png")]) == 3
    for shown in ("## Rain above 0.5 mm/h", "## Mean squared error", "## By the published protocol", "| smaat_unet |"):
        assert shown in text
    assert any("one forecasts 3 frames; the first 2 are scored" in line for line in about["caveats"])
    page = (report / "report.html").read_text()
    assert "one forecasts 3 frames" in page
    assert "By the published protocol" in page
    assert page.count("data:image/gif;base64,") == 1
    assert "http" not in page.split("What the scores mean")[0].replace("http-equiv", "")
    for name, where in (("all tables", out / "scores.md"), ("report", report / "report.html")):
        assert f"{name:<12} {where}" in text


def test_persistence_scores_are_those_of_a_plain_count_of_the_radar_files(trained: Runs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stated = ["--split", "validation", "--data.validation_share", "0.4", "--data.guard_h", "0.5", "--frames_out", "3"]
    assert evaluate(command(trained.shards, out, ["persistence"], *stated)) == ExitCode.DONE
    contents = scores_of(out)
    (span,) = contents["about"]["spans"]
    frames = radar_frames(trained.radar, span["stop_s"], span["start_s"])
    times = sorted(frames)
    starts = [time for time in times if all(time + 300 * k in frames for k in range(4))]
    assert contents["models"]["persistence"]["num_windows"] == len(starts) > 20
    for record in contents["models"]["persistence"]["contingency"]:
        step, limit = round(record["lead_min"] / 5), record["threshold_mmh"]
        table = {"hits": 0, "misses": 0, "false_alarms": 0, "correct_negatives": 0}
        for start in starts:
            now, then = frames[start], frames[start + 300 * step]
            known = then != 65535
            # In whole counts of 0.01 mm per 5 minutes: 0.12 mm/h each.
            forecast = (np.where(now == 65535, 0, now) * 12 > round(limit * 100))[known]
            observed = (then * 12 > round(limit * 100))[known]
            table["hits"] += int((forecast & observed).sum())
            table["misses"] += int((~forecast & observed).sum())
            table["false_alarms"] += int((forecast & ~observed).sum())
            table["correct_negatives"] += int((~forecast & ~observed).sum())
        assert {name: record[name] for name in table} == table
    squares = [
        np.square((frames[start + 900].astype(float) - frames[start]) * 0.12)[frames[start + 900] != 65535]
        for start in starts
    ]
    (mse,) = [
        record["value"]
        for record in contents["models"]["persistence"]["scores"]
        if (record["score"], record["lead_min"]) == ("mse", 15)
    ]
    wet = [sum(((frames[s + 300 * k] > 0) & (frames[s + 300 * k] < 65535)).mean() for k in (1, 2, 3)) for s in starts]
    cases = contents["about"]["cases"]
    assert [case["why"] for case in cases] == ["the most rain", "the largest change", "as much rain as the median"]
    assert cases[0]["time_s"] == starts[int(np.argmax(wet))]
    assert len({case["time_s"] for case in cases}) == 3
    # The radar is rounded once, to the float32 that models see.
    assert mse == pytest.approx(np.concatenate(squares).mean(), rel=1e-6)


def test_the_training_mean_is_the_mean_of_the_training_part(trained: Runs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--split", "validation", "--fit_windows", "1000", "--frames_in", "1"]
    stated = ["--data.validation_share", "0.3", "--data.guard_h", "0", "--frames_out", "2"]
    argv = command(trained.shards, out, ["mean=training_mean", "persistence"], *more, *stated)
    assert evaluate(argv) == ExitCode.DONE
    contents = scores_of(out)
    (span,) = contents["about"]["spans"]
    frames = [counts * 0.12 for counts in radar_frames(trained.radar, span["start_s"]).values()]
    targets = [frames[start + lead] for start in range(len(frames) - 2) for lead in (1, 2)]
    assert contents["about"]["models"]["mean"]["mean_mmh"] == pytest.approx(np.mean(targets), rel=1e-6)
    assert contents["mse_comparison"][0]["training_mean"] == contents["mse_comparison"][0]["mse"]


@pytest.mark.slow
def test_two_processes_write_the_bytes_that_one_writes(trained: Runs, scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    argv = command(trained.shards, out, [f"run={trained.one}", *SCORED], *FEW)
    assert run_ranks(evaluate_on, 2, [argv], init_group=False) == [[0], [0]]
    for name in ("scores.json", "scores.csv", "scores.md", *scores_of(scored)["about"]["files"]):
        assert (out / name).read_bytes() == (scored / name).read_bytes(), name
    assert {path.name for path in out.iterdir()} == {path.name for path in scored.iterdir()}


def test_neither_order_nor_company_changes_a_models_scores(trained: Runs, scored: Path, tmp_path: Path) -> None:
    assert evaluate(command(trained.shards, tmp_path, ["advection", f"run={trained.one}"], *FEW)) == ExitCode.DONE
    one, other = scores_of(scored)["models"], scores_of(tmp_path)["models"]
    assert list(other) == ["advection", "run"]
    for name in other:
        assert other[name] == one[name]


def test_a_second_evaluation_replaces_the_first_and_nothing_else(trained: Runs, scored: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(scored, tmp_path / "out"))
    before = set(scores_of(out)["about"]["files"])
    own = [out / "notes.txt", out / "rows" / "mine.npz", out / "pictures" / "mine.png"]
    for path in own:
        path.write_text("mine")
    # What scores from elsewhere name besides is not removed on their word.
    contents = scores_of(out)
    contents["about"]["files"] += ["rows", "rows/../notes.txt", "notes.txt", "rows/a\x00.npz", 7]
    (out / "scores.json").write_text(json.dumps(contents))
    time_s = contents["about"]["cases"][-1]["time_s"]
    when = f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%dT%H:%M}"
    assert evaluate(command(trained.shards, out, [f"b={trained.one}"], *FEW, "--cases", when)) == ExitCode.DONE
    after = set(scores_of(out)["about"]["files"])
    assert "rows/run.npz" in before - after
    assert not any((out / name).exists() for name in before - after)
    assert all((out / name).exists() for name in after)
    assert [path.read_text() for path in own] == ["mine"] * 3
    assert [case["why"] for case in scores_of(out)["about"]["cases"]] == ["chosen"]


def poisoned(run: Path, folder: Path) -> Path:
    """Copy a run's best checkpoint with one weight that is no number."""
    saved = load(run / "best")
    name = next(name for name in reversed(saved.model) if name.endswith("bias"))
    model = {**saved.model, name: torch.full_like(saved.model[name], math.nan)}
    save(folder / "best", saved.state, model, {}, keep_last=2)
    return folder


def test_forecasts_that_are_no_number_are_counted_and_shown(
    trained: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = poisoned(trained.one, tmp_path / "broken")
    out, page = tmp_path / "out", tmp_path / "page"
    argv = command(trained.shards, out, [str(broken), "persistence"], "--limit", "2", "--report", str(page))
    assert evaluate(argv) == ExitCode.DONE
    contents = scores_of(out)
    model = contents["models"]["broken"]
    assert model["num_nonfinite"] == model["num_valid"] > 0
    assert all(record["hits"] == 0 for record in model["contingency"])
    line = f"broken: {model['num_nonfinite']} of {model['num_valid']} forecast values are not finite"
    assert line in capsys.readouterr().out
    assert line in (page / "report.html").read_text()
    assert "are not finite" in (out / "scores.md").read_text()


def test_a_dry_split_is_finished_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_archive(tmp_path, lambda _: np.zeros((64, 64)))
    page = tmp_path / "page"
    models = ["persistence", "advection", "extrapolation"]
    assert evaluate(command(shards, tmp_path / "out", models, "--split", "all", "--report", str(page))) == ExitCode.DONE
    line = "No rain above 0.1 mm/h was observed in the whole split"
    assert line in capsys.readouterr().out
    assert line in (page / "report.html").read_text()
    values = scores_of(tmp_path / "out")["models"]["extrapolation"]["scores"]
    assert {record["value"] for record in values if record["score"] == "csi"} == {None}
    assert {record["value"] for record in values if record["score"] == "mse"} == {0.0}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("persistence --thresholds x", ExitCode.CONFIG, "thresholds.*float"),
        ("persistence --compare_to radar", ExitCode.CONFIG, "compare_to is 'radar'.*persistence"),
        ("persistence --split test", ExitCode.CONFIG, "split is test, and there is no such part.*data.test_share"),
        ("persistence --frames_out 40", ExitCode.DATA, "windows of 41 frames.*1 to 24"),
        ("extrapolation --frames_in 2", ExitCode.CONFIG, "frames_in is 2, and extrapolation takes 3"),
        ("persistence --cases 2020-05-01", ExitCode.CONFIG, "no scored forecast starts at.*nearest"),
        ("training_mean", ExitCode.CONFIG, "training_mean is fitted.*split is train"),
        ("training_mean --split all", ExitCode.CONFIG, "training_mean is fitted.*split is all"),
        ("persistence --data.min_rain_fraction 1 --split all", ExitCode.DATA, "split 'all'.*no window.*highest rain"),
    ],
)
def test_what_a_user_can_get_wrong_without_a_run(
    refused: Callable[..., None], words: str, code: ExitCode, message: str
) -> None:
    models, dashes, more = words.partition(" --")
    split = [] if "--split" in words else ["--split", "train"]
    refused(code, message, models.split(), "--data.guard_h", "0", *split, *f"{dashes.strip()}{more}".split())


def test_windows_that_a_run_was_trained_on_are_refused_or_loudly_named(
    trained: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., None]
) -> None:
    out, page = tmp_path / "out", tmp_path / "page"
    models = [str(trained.one), "persistence"]
    for split in ("train", "all"):
        message = "share frames with the train part of one.*2020-06-01.*--allow_overlap"
        refused(ExitCode.CONFIG, message, models, "--split", split, "--limit", "3")
    more = ["--split", "all", "--limit", "3", "--allow_overlap", "true", "--report", str(page)]
    assert evaluate(command(trained.shards, tmp_path / "overlap", models, *more)) == ExitCode.DONE
    assert "OVERLAP" in capsys.readouterr().out
    assert "OVERLAP" in (page / "report.html").read_text()
    # The same times in another archive are the same rain.
    other = tmp_path / "other"
    pack(["knmi", str(trained.radar), "--out", str(other), "--crop", "0:32,0:64"])
    message = "share frames with the train part of one"
    refused(ExitCode.CONFIG, message, [str(trained.one)], "--split", "all", shards=other)
    # Frames of another size are scored, and it is said; so is the guard that training had none of.
    assert evaluate(command(other, out, [str(trained.one)], "--limit", "2")) == ExitCode.DONE
    text = capsys.readouterr().out
    assert re.search("one was trained on another part of the map: 64 x 64 pixels, .*; this is 32 x 64 pixels", text)
    assert "hours lie between the train part of one and the nearest window" in text


def test_what_a_user_can_get_wrong_with_a_run(trained: Runs, tmp_path: Path, refused: Callable[..., None]) -> None:
    one = str(trained.one)
    refused(ExitCode.CONFIG, "data.test_share is set, but the runs' records", [one], "--data.test_share", "0.5")
    refused(ExitCode.CONFIG, "frames_out is 9, and one forecasts 3 frames", [one], "--frames_out", "9")
    refused(ExitCode.DATA, "index.json is missing", [one], shards=tmp_path / "none")
    (tmp_path / "file").write_text("")
    refused(ExitCode.CONFIG, "out .*file is a file", [one], "--out", str(tmp_path / "file"))

    damaged = Path(shutil.copytree(trained.one, tmp_path / "damaged"))
    newest = latest_verified(damaged / "best" / "checkpoints")
    assert newest is not None
    for folder in newest.parent.iterdir():
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(ExitCode.CHECKPOINT, "model.safetensors.*damaged", [str(damaged)])


def test_runs_of_other_splits_are_refused(trained: Runs, tmp_path: Path, refused: Callable[..., None]) -> None:
    untested, elsewhere = tmp_path / "untested", tmp_path / "elsewhere"
    small = {**SPLIT, "optim__warmup_steps": 0, "run__steps": 1, "model__name": "smaat_unet", "model__smaat_width": 4}
    for folder, test_share in ((untested, 0), (elsewhere, 0.4)):
        argv = nowcast_arguments(trained.shards, folder, **{**small, "data__test_share": test_share})
        assert train(argv) == ExitCode.DONE

    refused(ExitCode.CONFIG, "untested was trained without a test part", [str(untested), "persistence"])
    message = "one and elsewhere were trained with different test parts.*score them one by one"
    refused(ExitCode.CONFIG, message, [str(trained.one), str(elsewhere)])


def test_an_event_kept_aside_is_scored_and_baselines_are_fitted_on_the_runs_own_archive(
    trained: Runs, tmp_path: Path, refused: Callable[..., None]
) -> None:
    aside = write_archive(tmp_path / "aside", noise)
    models, more = [str(trained.one), "training_mean"], ["--split", "all", "--limit", "4"]
    assert evaluate(command(aside, tmp_path / "scored", models, *more)) == ExitCode.DONE
    about = scores_of(tmp_path / "scored")["about"]
    assert about["spans"] == []
    assert about["models"]["training_mean"]["mean_mmh"] < 2 < 60 / 2 * 0.12  # the storms' mean, not the noise's

    slower = write_archive(tmp_path / "slower", noise, minutes=10)
    message = "one was trained on pixels of 1 km every 300 s, and the shards hold pixels of 1 km every 600 s"
    refused(ExitCode.DATA, f"{message}.*--allow_other_grid", models[:1], "--split", "all", shards=slower)
    allowed = ["--split", "all", "--limit", "2", "--allow_other_grid", "true"]
    assert evaluate(command(slower, tmp_path / "allowed", models[:1], *allowed)) == ExitCode.DONE
    line = "one was trained on pixels of 1 km every 300 s, and this is pixels of 1 km every 600 s"
    assert any(line in caveat for caveat in scores_of(tmp_path / "allowed")["about"]["caveats"])
    # The run's own shards are gone: there is nothing to fit on.
    moved = trained.shards.rename(trained.shards.with_name("moved"))
    try:
        message = "training_mean is fitted on the training part.*bring back the run's own"
        refused(ExitCode.DATA, message, models, *more, shards=aside)
    finally:
        moved.rename(trained.shards)


@pytest.mark.slow
def test_ctrl_c_ends_without_a_traceback_and_leaves_nothing(trained: Runs, tmp_path: Path) -> None:
    argv = command(trained.shards, tmp_path / "out", ["persistence", "extrapolation"], "--split", "all")
    words = [sys.executable, "trainer/evaluate.py", *argv, "--frames_out", "12"]

    def open_to_signals() -> None:
        # What runs in the background of a script ignores Ctrl-C, and so do its children.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        words, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, preexec_fn=open_to_signals
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "writing to" in line:
                break
        process.send_signal(signal.SIGINT)
        text = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert text == f"interrupted: nothing was written, and what {tmp_path / 'out'} held before is unchanged\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_launcher_starts_two_processes(trained: Runs, scored: Path, tmp_path: Path) -> None:
    argv = command(trained.shards, tmp_path / "out", [f"run={trained.one}", *SCORED], *FEW)
    ended = run_program(launch("2", argv, "evaluate"))
    assert ended.returncode == ExitCode.DONE, ended.stderr
    assert "2 process(es)" in ended.stderr
    assert ended.stdout.count("done: 5 windows") == 1
    assert (tmp_path / "out" / "scores.json").read_bytes() == (scored / "scores.json").read_bytes()


def sliding(number: int) -> np.ndarray:
    """Rain of smooth random rates, in counts, that moves to the left by 3 pixels a frame; a corner is missing."""
    random = np.random.default_rng(7)
    wide = torch.from_numpy(random.gamma(1.5, 15.0, (1, 1, 16, 50)))
    smooth = torch.nn.functional.interpolate(wide, scale_factor=4, mode="bicubic")[0, 0].numpy()
    counts = smooth.clip(min=0).round()[:, 3 * number : 3 * number + 64]
    counts[:10, :10] = 65535
    return counts


@pytest.mark.parametrize("rule", ["dry", "leave_out"])
def test_what_extrapolation_cannot_know_counts_as_the_setting_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str
) -> None:
    shards = write_archive(tmp_path, sliding)
    stated = ["--split", "all", "--frames_out", "3", "--limit", "4", "--unknown", rule]
    out = tmp_path / "out"
    assert evaluate(command(shards, out, ["persistence", "extrapolation"], *stated)) == ExitCode.DONE
    contents, printed = scores_of(out), capsys.readouterr().out
    measured = 4 * 3 * (64 * 64 - 100)
    unknown = contents["about"]["unknown"]
    assert (unknown["rule"], unknown["num_measured"]) == (rule, measured)
    assert unknown["num_by_model"] == {"extrapolation": unknown["num_by_any"]}
    # 3, 6 and 9 columns of 64 flow in, and what the missing corner leaves behind.
    assert 0.08 < unknown["num_by_any"] / measured < 0.13
    scored = measured - (unknown["num_by_any"] if rule == "leave_out" else 0)
    assert [contents["models"][name]["num_valid"] for name in ("persistence", "extrapolation")] == [scored, scored]
    line = f"{unknown['num_by_any']} of {measured} measured pixels"
    assert line in printed
    assert line in (out / "scores.md").read_text()

    # A plain count of persistence on the pixels that the rule leaves.
    with np.load(out / "rows" / "persistence.npz") as rows:
        issue_s, hits, misses = rows["issue_s"].tolist(), rows["hits"][..., 0], rows["misses"][..., 0]
    frames = {1_609_459_200 + 300 * number: sliding(number) for number in range(40)}
    for at, time_s in enumerate(issue_s):
        past = np.stack([frames[time_s - 300 * back] for back in (2, 1, 0)])
        valid_bthw = torch.from_numpy(past != 65535)[None]
        rain_bthw = torch.from_numpy(np.where(past == 65535, 0, past * 0.12)).float()[None]
        known_bthw = torch.isfinite(Extrapolation().forecast(rain_bthw, valid_bthw, 3))
        for lead in range(3):
            then = frames[time_s + 300 * (lead + 1)]
            counted = then != 65535
            if rule == "leave_out":
                counted &= known_bthw[0, lead].numpy()
            rains = (then * 12 > round(THRESHOLDS[0] * 100)) & counted
            forecast = np.where(past[-1] == 65535, 0, past[-1]) * 12 > round(THRESHOLDS[0] * 100)
            assert hits[at, lead] == (rains & forecast).sum()
            assert misses[at, lead] == (rains & ~forecast).sum()
