"""The tables: every figure in its place, the best ones marked, and Markdown that says the same."""

import re

import numpy as np
import pytest

from rainspark.trainer.comparison.marks import Mark
from rainspark.trainer.comparison.tables import Cell, Table
from rainspark.trainer.evaluation.tables import build_tables
from rainspark.trainer.verification.rows import Rows, Settings, WindowId, compute, score_window
from tests.trainer.evaluation.cases import FACTORS, KINDS, MODELS, evaluation_of, rows_of


def texts(table: Table) -> list[list[str]]:
    """Give a table's head and rows as text."""
    head = [column.title for column in table.columns]
    return [head, *([" ".join([cell.text, *cell.details]) for cell in row] for row in table.rows)]


def test_a_section_a_threshold_and_a_table_a_lead_time() -> None:
    tables = build_tables(evaluation_of(MODELS)).by_threshold
    assert [section.heading for section in tables.values()] == [f"Rain above {t} mm/h" for t in ("0.5", "2", "50")]
    assert [table.caption for table in tables[2.0].tables] == ["All lead times", "30 min", "60 min"]
    head, first, *_ = texts(tables[2.0].tables[1])
    names = ["Model", "CSI", "Bias", "FSS", "HSS", "POD", "FAR", "pMSE", "Accuracy", "Precision", "Recall", "F1"]
    assert [re.split(r"[ ,]", title)[0] for title in head] == names
    assert "".join(title[-1] for title in head[1:]) == "↑1↑↑↑↓↓↑↑↑↑"

    scores = compute(MODELS["good | one"])
    shown = dict(zip(names, first, strict=True))
    assert shown["Model"] == "good | one"
    assert float(shown["pMSE"]) == pytest.approx(scores.at("mse", lead_min=30), rel=1e-3)
    assert float(shown["CSI"]) == pytest.approx(scores.at("csi", lead_min=30, threshold_mmh=2.0), abs=5e-4)
    fss = scores.at("fss", lead_min=30, threshold_mmh=2.0, scale_px=5)
    assert float(shown["FSS"]) == pytest.approx(fss, abs=5e-4)
    # Nothing reaches 50 mm/h: no score exists but the error and the share of right answers.
    *dry, mse, accuracy, precision, recall, f1 = texts(tables[50.0].tables[2])[1][1:]
    assert {*dry, precision, recall, f1} == {"-"}
    assert (float(mse) > 0, accuracy) == (True, "1.000")


def test_intervals_and_differences_stand_beside_the_csi() -> None:
    certainty, differences = build_tables(evaluation_of(MODELS, compare_to="persistence")).certainty
    assert "resamples of 3 days (UTC); of so few days" in certainty.text
    assert re.fullmatch(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", texts(certainty.tables[0])[1][1])
    assert texts(certainty.tables[0])[-1][0] == "radar: pixels above it"
    assert differences.heading == "CSI less that of persistence, all lead times"
    lines = texts(differences.tables[0])
    assert [line[0] for line in lines] == ["Model", "good | one", "training_mean", "blur", "radar: pixels above it"]
    assert lines[1][1].endswith("] 100%")

    single = evaluation_of({name: rows_of(0.9, num_days=1) for name in "ab"}, compare_to="b")
    for section in build_tables(single).certainty:
        assert "o interval: the only window is of one day, 2020-09-14" in section.text
        assert "[" not in texts(section.tables[0])[1][1]


def test_squared_errors_stand_beside_the_references_and_none_is_best() -> None:
    section = build_tables(evaluation_of(MODELS, kinds=KINDS)).squared_error
    verdicts = {(line[0], line[1]): line[5] for line in texts(section.tables[0])[1:]}
    assert len(verdicts) == 4 * 3
    assert {key for key, verdict in verdicts.items() if verdict == "skill"} == {
        ("good | one", lead) for lead in ("30 min", "60 min", "All lead times")
    }
    assert not any(cell.mark for row in section.tables[0].rows for cell in row)
    unknown = build_tables(evaluation_of(MODELS)).squared_error
    assert {line[5] for line in texts(unknown.tables[0])[1:]} == {"-"}
    assert "Not scored here, so that nothing is: damped_extrapolation." in unknown.text


def test_the_published_protocol_is_labelled_or_left_out() -> None:
    section = build_tables(evaluation_of(MODELS)).published
    assert texts(section.tables[0])[0][-1] == "HSS/2 ↑"
    assert "half of the true one" in section.text
    settings = Settings(leads_min=(5,), thresholds_mmh=(1.0,), scales_px=(1,))
    rain = np.random.default_rng(0).gamma(0.7, 2.0, (1, 6, 6))
    section = build_tables(evaluation_of({"a": score_window(settings, WindowId(0, "a:0"), rain, rain, None)})).published
    assert (section.text, section.tables) == ("Not computed: 0.5 mm/h is not among the thresholds.", ())


def test_markdown_holds_every_table() -> None:
    broken = {name: rows_of(factor, num_days=6) for name, factor in FACTORS.items()}
    broken["broken"] = rows_of(1.0, bad=True, num_days=6)
    tables = build_tables(evaluation_of(broken, compare_to="good | one"))
    text = tables.markdown()
    assert "**broken: 4 of 1800 forecast values are not finite.**" in text
    assert "nan" not in text.lower()
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    cells = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    marks = {"best": "**{}**", "leading": "{} ≈", None: "{}"}
    written = [
        [" ".join([marks[cell.mark].format(cell.text), *cell.details]) for cell in row]
        for section in tables.sections
        for table in section.tables
        for row in [[Cell(text=column.title) for column in table.columns], *table.rows]
    ]
    assert cells == written
    marked = [cell.mark for table in tables.by_threshold[0.5].tables for row in table.rows for cell in row]
    assert Mark.LEADING in marked
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert [heading.replace("\\|", "|") for heading in headings] == [section.heading for section in tables.sections]


def summary(kinds: dict[str, str], models: dict[str, Rows]) -> str:
    return evaluation_of(models, kinds=kinds).summary


def test_rain_everywhere_is_not_called_the_best_forecast() -> None:
    text = summary({}, {"wet": rows_of(1e3, num_days=6), "good": rows_of(0.7, num_days=6)})
    assert "wet: 0." not in text.partition("good forecasts")[0]
    assert "good forecasts rain above 0.5 mm/h best" in text
    assert "No model's frequency bias" in summary({}, {"dry": rows_of(1e-2)})


def test_the_next_best_stands_beside_the_best() -> None:
    kinds = {"near": "extrapolation", "last": "persistence"}
    factors = {"good": 1.0, "near": 0.95, "poor": 0.8, "last": 0.75}
    models = {name: rows_of(factor, noise=0.2, num_days=6) for name, factor in factors.items()}
    csi = {name: compute(rows).at("csi", threshold_mmh=0.5) for name, rows in models.items()}
    best, *others = sorted(csi, key=lambda name: -csi[name])
    text = summary(kinds, models)
    assert (
        f"are not told apart as the best for rain above 0.5 mm/h over all lead times: CSI {csi[best]:.3f} for {best}"
        in text
    )
    assert re.findall(r"; (\w+): 0\.\d{3}", text) == [name for name in others if name in (others[0], "last")]
