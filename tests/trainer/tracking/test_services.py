"""The services that metrics can go to by name: what lies on the disk afterwards, and how a resume goes on."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rainspark.trainer.tracking.ids import IDS_FILE, RunIds, ServiceRun
from rainspark.trainer.tracking.services import SERVICES, prepare, ways_to_look
from rainspark.trainer.tracking.trackers import Trackers
from tests.conftest import REPOSITORY
from tests.trainer.tracking.tracked import read_back, run_python

LOGGING = """
import json, logging, sys
from pathlib import Path
from accelerate import PartialState
from rainspark.trainer.settings.tracking import TrackingConfig
from rainspark.trainer.tracking.trackers import open_trackers
logging.basicConfig(level=logging.WARNING, format="%(name)s %(message)s")
PartialState(cpu=True)
run, services, first, last, resume = Path(sys.argv[1]), json.loads(sys.argv[2]), *map(int, sys.argv[3:6])
parameters = {"model": {"encoder": "resnet18"}, "run": {"where": "s3://me:s3cr3t@bucket/x?sig=abc"}, "seed": 3}
config = TrackingConfig(services=tuple(services), close_s=120, project="rain test")
trackers = open_trackers(run, config, resume_step=resume, parameters=parameters)
for step in range(first, last + 1):
    metrics = {"train/loss": 1 / step, "csi>0.5 mm/h": 0.25}
    trackers.log(step, metrics | ({"bad": float("nan")} if step == 2 else {}))
    if step == 2:
        trackers.image(step, "reconstruction", run / "pictures" / "reconstruction-00000002.png")
trackers.close()
sys.exit("; ".join(trackers.problems) or 0)
"""


def _log(run: Path, services: list[str], first: int, last: int, resume: int) -> str:
    """Log some steps in a process of its own, from a folder of its own; return what it says."""
    folder = run.parent / "elsewhere"
    folder.mkdir(exist_ok=True)
    home = run.parent / "home"
    home.mkdir(exist_ok=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "MLFLOW", "NEPTUNE"))}
    words = ["-c", LOGGING, str(run), json.dumps(services), str(first), str(last), str(resume)]
    ended = run_python(words, {**clean, "PYTHONPATH": str(REPOSITORY), "HOME": str(home)}, folder)
    assert ended.returncode == 0, ended.stderr
    assert list(folder.iterdir()) == [], "nothing is written where the run was started"
    assert [path for path in home.rglob("*") if path.is_file()] == []
    return ended.stdout + ended.stderr


@pytest.mark.parametrize("resumes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_services_at_once_offline_and_a_resume(tmp_path: Path, resumes: bool) -> None:
    """Steps 1 to 4, then on from a checkpoint of step 3: every service holds 1 to 5 in one run, step 4 twice."""
    steps = (1, 2, 3, 4, 4, 5) if resumes else (1, 2, 3, 4)
    run = tmp_path / "my run"
    (run / "pictures").mkdir(parents=True)
    picture = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    Image.fromarray(picture).save(run / "pictures" / "reconstruction-00000002.png")
    said = _log(run, list(SERVICES), 1, 4, 0)
    assert said.count("5 March 2026") == 1
    assert f"offline data in {run / 'neptune'}" in said
    ids = json.loads((run / IDS_FILE).read_text())
    assert sorted(ids) == ["mlflow", "neptune", "wandb"]
    if resumes:
        _log(run, list(SERVICES), 4, 5, 3)
    assert json.loads((run / IDS_FILE).read_text()) == ids

    assert ways_to_look(run, list(SERVICES)) == {
        "Neptune": f"offline data in '{run}'/neptune",
        "trackio": f"TRACKIO_DIR='{run}'/trackio trackio show",
        "MLflow": f"mlflow ui --backend-store-uri sqlite:///'{run}'/mlflow/mlflow.db",
        "W&B": f"wandb sync '{run}'/wandb/offline-run-*",
    }
    assert ways_to_look(tmp_path, list(SERVICES)) == {}

    found = read_back(run, "rain test")
    assert sorted(found) == sorted(SERVICES)
    for service, kept in found.items():
        name = "csi_0.5 mm/h" if service == "mlflow" else "csi>0.5 mm/h"
        losses = [(step, value) for step, value in kept["metrics"]["train/loss"]]
        assert losses == [(step, pytest.approx(1 / step)) for step in steps], service
        assert kept["metrics"][name] == [[step, 0.25] for step in steps], service
        bad = kept["metrics"].get("bad", [])
        assert [(step, str(value)) for step, value in bad] == ([] if service == "neptune" else [(2, "nan")]), service
        where = kept["parameters"]["run.where"]
        assert where == "s3://[hidden]@bucket/x?[hidden]", service
        assert str(kept["parameters"]["seed"]) == "3", service
        assert len(kept["pictures"]) == 1, service
        assert kept["runs"] == (2 if service == "neptune" and resumes else 1), service
    for path in run.rglob("*"):
        assert not path.is_file() or b"s3cr3t" not in path.read_bytes(), path


def test_ids_are_kept_for_a_resume_only(tmp_path: Path) -> None:
    first = RunIds(tmp_path, resumed=False)
    made = first.make("wandb")
    assert first.make("wandb") == made
    first.keep("mlflow", "a")
    resumed = RunIds(tmp_path, resumed=True)
    assert (resumed.find("wandb"), resumed.find("mlflow"), resumed.find("other")) == (made, "a", None)
    anew = RunIds(tmp_path, resumed=False)
    assert anew.find("wandb") is None
    assert anew.make("wandb") != made
    assert json.loads((tmp_path / IDS_FILE).read_text()).keys() == {"wandb"}


@pytest.mark.parametrize("text", ["", "[]", '{"wandb"', "\x00"])
def test_ids_that_cannot_be_read_are_made_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / IDS_FILE).write_text(text)
    made = RunIds(tmp_path, resumed=True).make("wandb")
    assert RunIds(tmp_path, resumed=True).find("wandb") == made


def _problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, **environment: str) -> str:
    # Known to pytest, which takes them back.
    for variable in SERVICES[name].environment:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    run = ServiceRun(folder=tmp_path, project="p", name="n", parameters={}, ids=RunIds(tmp_path, resumed=False))
    trackers = Trackers([], close_s=120)
    trackers.open_service(SERVICES[name].name, prepare(name, run))
    trackers.close()
    (problem,) = trackers.problems
    return problem


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("mlflow", "MLFLOW_TRACKING_URI", "https://me:s3cr3tword@host"),
        ("wandb", "WANDB_BASE_URL", "https://s3cr3tword@host/api"),
        ("trackio", "TRACKIO_SERVER_URL", "http://host?write_token=s3cr3tword"),
    ],
)
def test_an_address_with_a_credential_is_not_given_to_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str, value: str
) -> None:
    problem = _problem(tmp_path, monkeypatch, name, **{variable: value})
    assert f"{variable} holds a user, a password or a key" in problem
    assert "s3cr3tword" not in problem


def test_wandb_never_asks_on_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    problem = _problem(tmp_path, monkeypatch, "wandb", WANDB_MODE="online", NETRC=str(tmp_path / "none"))
    assert "set WANDB_API_KEY or run `wandb login`" in problem


def test_a_package_that_is_missing_is_named_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing: dict[str, Any] = {"neptune": None}
    monkeypatch.setattr(sys, "modules", sys.modules | missing)
    problem = _problem(tmp_path, monkeypatch, "neptune")
    assert problem.startswith("Neptune was switched off after ConfigError: ")
    assert "install it: pip install -e '.[neptune]'" in problem
