"""The score files: everything in strict JSON, one value a line in CSV, and tables that claim no more than is so."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rainspark.data.errors import ConfigError, DataError
from rainspark.trainer.evaluation.files import write_scores
from rainspark.trainer.evaluation.tables import References
from rainspark.trainer.verification.intervals import bootstrap
from rainspark.trainer.verification.rows import Rows, Settings, WindowId, compute, merge, score_window, select

SETTINGS = Settings(leads_min=(15, 30, 60), thresholds_mmh=(0.5, 2.0, 50.0), scales_px=(1, 5))
MIDNIGHT_S = 1_600_041_600  # 2020-09-14 00:00 UTC
NUM_DAYS = 3


def model(factor: float, *, noise: float = 0.3, bad: bool = False, num_days: int = NUM_DAYS) -> Rows:
    """Score a model that forecasts the radar times a factor, and some noise."""
    parts = []
    for day in range(num_days):
        observed = np.random.default_rng(day).gamma(0.7, 2.0, (3, 10, 10))
        forecast = factor * observed + noise * np.random.default_rng([day, 1]).random(observed.shape)
        if bad and day == 0:
            forecast[0, 0, :4] = math.nan
        parts.append(score_window(SETTINGS, WindowId(MIDNIGHT_S + 86400 * day, "a:0"), forecast, observed, None))
    return merge(*parts)


MODELS = {"good | one": model(0.95), "persistence": model(0.2), "training_mean": model(0.0), "blur": model(0.1)}
REFERENCES = References(damped_extrapolation="persistence")


def read_tables(text: str) -> dict[str, list[list[str]]]:
    """Split Markdown into its tables by the headings above them, each a list of rows of cells."""
    tables: dict[str, list[list[str]]] = {}
    section = part = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section, part = line[3:], ""
        elif line.startswith("### "):
            part = f" / {line[4:]}"
        elif line.startswith("|") and not line.startswith("| ---"):
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            tables.setdefault(section + part, []).append(cells)
    return tables


def refuse_constant(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def written(folder: Path, models: dict[str, Rows], **options: Any) -> tuple[Any, list[dict[str, str]], str]:
    """Write score files and read them back: JSON, CSV, Markdown."""
    write_scores(folder, models, num_draws=50, **options)
    assert sorted(path.name for path in folder.iterdir()) == ["scores.csv", "scores.json", "scores.md"]
    contents = json.loads((folder / "scores.json").read_text(encoding="utf-8"), parse_constant=refuse_constant)
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return contents, lines, (folder / "scores.md").read_text(encoding="utf-8")


def test_json_and_csv_hold_every_score(tmp_path: Path) -> None:
    contents, lines, _ = written(tmp_path / "new", MODELS, about={"split": "test"}, compare_to="persistence")
    assert contents["about"] == {"split": "test"}
    assert contents["settings"]["thresholds_mmh"] == [0.5, 2.0, 50.0]
    assert list(contents["models"]) == list(MODELS)
    for name, rows in MODELS.items():
        found, interval = contents["models"][name], bootstrap(rows, num_draws=50)
        assert interval.low is not None
        assert (found["num_windows"], found["num_nonfinite"], found["num_valid"]) == (3, 0, 900)
        assert found["days"] == ["2020-09-14", "2020-09-15", "2020-09-16"]
        assert found["published_protocol"]["lead_min"] == 60
        assert "SmaAt-UNet's protocol" in found["published_protocol"]["label"]
        assert sum(found["rain_rates"]["radar"]) == 900
        assert len(found["rain_rates"]["radar"]) == len(found["rain_rates"]["edges_mmh"]) + 1
        assert all(
            sum(one[key] for key in ("hits", "misses", "false_alarms", "correct_negatives")) == 300
            for one in found["contingency"]
        )
        in_csv = [line for line in lines if line["model"] == name]
        assert len(found["scores"]) == len(in_csv) == 4 * (6 + 9 * 3 + 3 * 2)
        for record, line in zip(found["scores"], in_csv, strict=True):
            place = [[*SETTINGS.leads_min, "all"].index(record["lead_min"])]
            if record["threshold_mmh"] is not None:
                place.append(SETTINGS.thresholds_mmh.index(record["threshold_mmh"]))
            if record["scale_px"] is not None:
                place.append(SETTINGS.scales_px.index(record["scale_px"]))
            for key, values in (("value", compute(rows).values), ("low", interval.low)):
                value = float(values[record["score"]][tuple(place)])
                assert record[key] == (None if math.isnan(value) else value)
            # Empty where there is nothing, and else the same number to the last bit.
            for key, text in line.items():
                if key != "model":
                    assert text == ("" if record[key] is None else str(record[key]))
    assert any(record["value"] is None for record in contents["models"]["persistence"]["scores"]), "no NaN was tried"
    assert contents["differences"]["to"] == "persistence"
    assert list(contents["differences"]["models"]) == ["good | one", "training_mean", "blur"]
    better = contents["differences"]["models"]["good | one"]["scores"]
    (csi,) = [r for r in better if (r["score"], r["lead_min"], r["threshold_mmh"]) == ("csi", "all", 2.0)]
    assert csi["low"] > 0
    assert csi["above_zero"] == 1


def test_markdown_has_a_table_a_threshold_in_the_published_form(tmp_path: Path) -> None:
    _, _, text = written(tmp_path, MODELS, compare_to="persistence", references=REFERENCES)
    tables = read_tables(text)
    leads = ["All lead times", "30 min", "60 min"]
    assert [name for name in tables if name.startswith("Rain above")] == [
        f"Rain above {threshold} mm/h / {lead}" for threshold in ("0.5", "2", "50") for lead in leads
    ]
    head, first, *_ = tables["Rain above 2 mm/h / 30 min"]
    assert [cell.split(",")[0].split()[0] for cell in head] == [
        *("Model", "pMSE", "Accuracy", "Precision", "Recall", "F1", "CSI", "FAR", "HSS", "Bias", "POD", "FSS")
    ]
    assert [cell[-1] for cell in head[1:]] == ["↓", "↑", "↑", "↑", "↑", "↑", "↓", "↑", "1", "↑", "↑"]
    scores = compute(MODELS["good | one"])
    assert first[0] == "good | one"
    assert float(first[1]) == pytest.approx(scores.at("mse", lead_min=30), rel=1e-3)
    assert float(first[6]) == pytest.approx(scores.at("csi", lead_min=30, threshold_mmh=2.0), abs=5e-4)
    fss = scores.at("fss", lead_min=30, threshold_mmh=2.0, scale_px=5)
    assert float(first[-1]) == pytest.approx(fss, abs=5e-4)
    # Nothing reaches 50 mm/h: no score exists but the error and the share of right answers.
    assert tables["Rain above 50 mm/h / 60 min"][1][2:] == ["1.000", *["-"] * 9]
    assert "nan" not in text.lower()
    published = tables["By the published protocol"]
    assert published[0][-1] == "HSS/2 ↑"
    assert "half of the true one" in text
    assert re.fullmatch(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", tables["CSI and how sure it is, all lead times"][1][1])
    compared = tables["CSI less that of persistence, all lead times"]
    assert [line[0] for line in compared] == ["Model", "good | one", "training_mean", "blur"]
    assert compared[1][1].endswith("] 100%")


def test_mean_squared_error_is_called_skill_only_below_both_references(tmp_path: Path) -> None:
    contents, _, text = written(tmp_path / "both", MODELS, references=REFERENCES)
    lines = read_tables(text)["Mean squared error"][1:]
    verdicts = {(line[0], line[1]): line[5] for line in lines}
    assert len(verdicts) == 4 * 3
    assert {verdicts["good | one", lead] for lead in ("30 min", "60 min", "All lead times")} == {"skill"}
    # Blur lies below the mean's error, and above the damped extrapolation's.
    mse = {name: compute(rows).at("mse") for name, rows in MODELS.items()}
    assert mse["persistence"] < mse["blur"] < mse["training_mean"]
    assert {verdict for (name, _), verdict in verdicts.items() if name != "good | one"} == {"-"}
    records = {(one["model"], one["lead_min"]): one for one in contents["mse_comparison"]}
    assert records["blur", "all"]["skill"] is False
    assert records["good | one", 15]["skill"] is True
    assert records["good | one", "all"]["training_mean"] == pytest.approx(mse["training_mean"])
    contents, _, text = written(tmp_path / "one", MODELS)
    assert {one["skill"] for one in contents["mse_comparison"]} == {None}
    assert {line[5] for line in read_tables(text)["Mean squared error"][1:]} == {"-"}
    assert "Not scored here, so that nothing is: damped_extrapolation." in text


def test_forecasts_that_are_not_finite_are_shown(tmp_path: Path) -> None:
    contents, _, text = written(tmp_path, {"broken": model(1.0, bad=True), **MODELS}, references=REFERENCES)
    assert contents["models"]["broken"]["num_nonfinite"] == 4
    assert "**broken: 4 of 900 forecast values are not finite.**" in text
    records = {(one["model"], one["lead_min"]): one for one in contents["mse_comparison"]}
    assert (records["broken", 15]["mse"], records["broken", 15]["skill"]) == (None, None)
    assert records["broken", 30]["skill"] is True
    assert read_tables(text)["Rain above 2 mm/h / All lead times"][1][1] == "-"


def test_a_single_day_says_that_there_is_no_interval(tmp_path: Path) -> None:
    models = {"a": model(0.9, num_days=1), "b": model(0.3, num_days=1)}
    contents, lines, text = written(tmp_path, models, compare_to="b")
    assert contents["models"]["a"]["intervals"]["note"].startswith(
        "no interval: the only window is of one day, 2020-09-14"
    )
    assert {(line["low"], line["high"]) for line in lines} == {("", "")}
    assert text.count("No interval: the only window is of one day, 2020-09-14") == 2
    assert "[" not in read_tables(text)["CSI and how sure it is, all lead times"][1][1]


def test_without_the_published_threshold_its_protocol_is_left_out(tmp_path: Path) -> None:
    settings = Settings(leads_min=(5,), thresholds_mmh=(1.0,), scales_px=(1,))
    field = np.random.default_rng(0).gamma(0.7, 2.0, (1, 6, 6))
    rows = score_window(settings, WindowId(MIDNIGHT_S, "a:0"), field, field, None)
    contents, _, text = written(tmp_path, {"a": rows})
    assert contents["models"]["a"]["published_protocol"] is None
    assert "Not computed: 0.5 mm/h is not among the thresholds." in text
    assert list(read_tables(text)) == [
        *("Rain above 1 mm/h / All lead times", "CSI and how sure it is, all lead times", "Mean squared error")
    ]


def test_what_cannot_be_written_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no model to write the scores of"):
        write_scores(tmp_path, {})
    with pytest.raises(ConfigError, match=r"compare_to is 'extrapolation'; the models are good \| one, persistence"):
        write_scores(tmp_path, MODELS, compare_to="extrapolation")
    fewer = select(MODELS["blur"], MODELS["blur"].windows[:2])
    with pytest.raises(DataError, match=r"window a:0 \(issued 2020-09-16 00:00 UTC\) is missing from the second model"):
        write_scores(tmp_path, {**MODELS, "fewer": fewer})
    assert not list(tmp_path.iterdir())
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(DataError, match="file"):
        write_scores(blocked, MODELS, num_draws=2)
