"""The score files: everything in strict JSON, and one value a line in CSV."""

import csv
import io
import json
import math
from typing import Any

import pytest

from rainspark.trainer.evaluation.files import scores_csv, scores_json
from rainspark.trainer.evaluation.result import Evaluation
from rainspark.trainer.verification.intervals import resample
from rainspark.trainer.verification.rows import compute
from tests.trainer.evaluation.cases import (
    ENSEMBLES,
    KINDS,
    MODELS,
    SETTINGS,
    ensemble_evaluation,
    evaluation_of,
    rows_of,
)


def json_of(evaluation: Evaluation, about: dict[str, Any] | None = None) -> Any:
    """Write an evaluation as JSON and read it back, NaN refused."""

    def refuse_constant(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(scores_json(evaluation, about or {}), parse_constant=refuse_constant)


def position_of(record: dict[str, Any]) -> tuple[int, ...]:
    """Find where a record's value stands in the arrays of the scores."""
    axes = zip(("lead_min", "threshold_mmh", "scale_px"), SETTINGS.to_json().values(), strict=True)
    return tuple([*values, "all"].index(record[key]) for key, values in axes if record[key] is not None)


def test_json_and_csv_hold_every_score() -> None:
    evaluation = evaluation_of(MODELS, compare_to="persistence")
    contents = json_of(evaluation, about={"split": "test"})
    lines = list(csv.DictReader(io.StringIO(scores_csv(evaluation.scored))))
    assert contents["about"] == {"split": "test"}
    assert contents["settings"]["thresholds_mmh"] == [0.5, 2.0, 50.0]
    assert list(contents["models"]) == list(MODELS)
    for name, rows in MODELS.items():
        model, interval = contents["models"][name], resample(rows, num_draws=50).interval()
        assert (model["num_windows"], model["num_nonfinite"], model["num_valid"]) == (3, 0, 900)
        assert model["days"] == ["2020-09-14", "2020-09-15", "2020-09-16"]
        assert model["published_protocol"]["lead_min"] == 60
        assert "SmaAt-UNet's protocol" in model["published_protocol"]["label"]
        assert sum(model["rain_rates"]["radar"]) == 900
        assert len(model["rain_rates"]["radar"]) == len(model["rain_rates"]["edges_mmh"]) + 1
        counts = ("hits", "misses", "false_alarms", "correct_negatives")
        assert {sum(record[key] for key in counts) for record in model["contingency"]} == {300}

        in_csv = [line for line in lines if line["model"] == name]
        assert len(model["scores"]) == len(in_csv) == 4 * (6 + 9 * 3 + 3 * 2)
        for record, line in zip(model["scores"], in_csv, strict=True):
            for key, values in (("value", compute(rows).values), ("low", interval.low)):
                value = float(values[record["score"]][position_of(record)])
                assert record[key] == (None if math.isnan(value) else value)
            # Empty where there is nothing, and else the same number to the last bit.
            shown = {key: "" if value is None else str(value) for key, value in record.items()}
            assert line == {"model": name, **shown, "pool_px": "", "item": ""}
    assert any(record["value"] is None for record in contents["models"]["persistence"]["scores"]), "no NaN was tried"

    assert contents["differences"]["to"] == "persistence"
    assert list(contents["differences"]["models"]) == ["good | one", "training_mean", "blur"]
    better = contents["differences"]["models"]["good | one"]["scores"]
    (csi,) = [r for r in better if (r["score"], r["lead_min"], r["threshold_mmh"]) == ("csi", "all", 2.0)]
    assert csi["low"] > 0
    assert csi["above_zero"] == 1


def test_ensembles_stand_in_both_files_with_every_score_and_every_list() -> None:
    evaluation = ensemble_evaluation(compare_to="steps")
    contents = json_of(evaluation)
    lines = list(csv.DictReader(io.StringIO(scores_csv(evaluation.scored, evaluation.ensembles))))
    assert list(contents["ensembles"]) == list(ENSEMBLES)
    assert [contents["ensembles"][name]["members"] for name in ENSEMBLES] == [4, 5, 0]
    leads = [*SETTINGS.leads_min, "all"]
    for name, rows in ENSEMBLES.items():
        model, scores = contents["ensembles"][name], compute(rows)
        in_csv = [line for line in lines if line["model"] == name]
        for record in model["scores"]:
            place = {key: record[key] for key in ("threshold_mmh", "scale_px", "pool_px") if record[key] is not None}
            lead_min = None if record["lead_min"] == "all" else record["lead_min"]
            value = float(scores.at(record["score"], lead_min=lead_min, **place))
            assert record["value"] == (None if math.isnan(value) else value)
        for record in model["lists"]:
            threshold = {} if record["threshold_mmh"] is None else {"threshold_mmh": record["threshold_mmh"]}
            lead_min = None if record["lead_min"] == "all" else record["lead_min"]
            expected = scores.at(record["score"], lead_min=lead_min, **threshold).tolist()
            assert record["values"] == [None if math.isnan(value) else value for value in expected]
        # A line a score, and one an entry of a list; together they are all that there is.
        num_entries = sum(len(record["values"]) for record in model["lists"])
        assert len(in_csv) == len(model["scores"]) + num_entries == sum(value.size for value in scores.values.values())
        assert {record["score"] for record in model["scores"] + model["lists"]} == set(scores.values)

    # Events of every tenth stand beside the fields, with their counts and without errors.
    events = contents["models"]["steps p>0.7"]
    assert events["ensemble"] == "steps"
    assert {record["score"] for record in events["scores"]} >= {"csi", "bias"}
    assert not {record["score"] for record in events["scores"]} & {"mse", "fss"}
    assert "rain_rates" not in events
    assert contents["differences"]["to"] == "steps mean"
    rates = {(rate["lead_min"], rate["threshold_mmh"]): rate["num_events"] for rate in contents["base_rates"]}
    assert set(rates) == {(lead, threshold) for lead in leads for threshold in SETTINGS.thresholds_mmh}
    (table,) = [r for r in events["contingency"] if (r["lead_min"], r["threshold_mmh"]) == (30, 2.0)]
    assert rates[30, 2.0] == table["hits"] + table["misses"]

    skill = {(record["model"], record["reference"], record["score"]) for record in contents["skill"]}
    assert {("ours", "steps", "crps_skill"), ("persistence", "steps", "crps_skill")} <= skill
    assert ("ours mean", "sprog", "csi_difference") in skill
    assert not [model for model, reference, _ in skill if model == reference]
    assert all(record["low"] <= record["value"] <= record["high"] for record in contents["skill"] if record["low"])


def test_mean_squared_error_is_called_skill_only_below_both_references() -> None:
    broken = {"broken": rows_of(1.0, bad=True), **MODELS}
    contents = json_of(evaluation_of(broken, kinds=KINDS))
    records = {(record["model"], record["lead_min"]): record for record in contents["mse_comparison"]}
    assert len(records) == 5 * 4
    # Blur lies below the mean's error, and above the damped extrapolation's.
    mse = {name: compute(rows).at("mse") for name, rows in MODELS.items()}
    assert mse["persistence"] < mse["blur"] < mse["training_mean"]
    assert records["good | one", "all"]["training_mean"] == pytest.approx(mse["training_mean"])
    skilled = {key for key, record in records.items() if record["skill"]}
    assert skilled == {("good | one", lead) for lead in (15, 30, 60, "all")} | {("broken", 30), ("broken", 60)}
    # A forecast that is not finite has no squared error, and so no verdict.
    assert contents["models"]["broken"]["num_nonfinite"] == 4
    assert (records["broken", 15]["mse"], records["broken", 15]["skill"]) == (None, None)
    assert {record["skill"] for record in json_of(evaluation_of(MODELS))["mse_comparison"]} == {None}
