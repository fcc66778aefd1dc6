"""Tables of ensembles: every figure is that of the rows, fields stand beside it, and base rates stand above it."""

import re

import numpy as np
import pytest

from rainspark.trainer.comparison.score_tables import events
from rainspark.trainer.comparison.tables import Section, Table
from rainspark.trainer.evaluation.tables import build_tables
from rainspark.trainer.verification.rows import compute
from tests.trainer.evaluation.cases import ENSEMBLES, FIELDS, MODELS, ensemble_evaluation, evaluation_of, rows_of

TABLES = build_tables(ensemble_evaluation(compare_to="persistence"))
SCORES = {name: compute(rows) for name, rows in ENSEMBLES.items()}


def section(heading: str) -> Section:
    return next(each for each in TABLES.sections if each.heading == heading)


def lines_of(table: Table) -> dict[str, dict[str, str]]:
    """Give a table's texts by row and column."""
    titles = [column.title for column in table.columns]
    return {row[0].text: {title: cell.text for title, cell in zip(titles, row, strict=True)} for row in table.rows}


def test_the_crps_stands_by_lead_time_and_by_block_with_fields_beside_it() -> None:
    by_lead, by_pool = section("CRPS: probabilities of rain amounts").tables
    lines = lines_of(by_lead)
    # In the user's order; the means of ensembles are no contestants, and probabilities know no amounts.
    assert list(lines) == ["sprog", "persistence", "ours", "steps"]
    assert list(lines["ours"]) == ["Model", "15 min ↓", "30 min ↓", "60 min ↓", "All lead times ↓"]
    for lead_min in (15, 30, 60, None):
        title = "All lead times ↓" if lead_min is None else f"{lead_min} min ↓"
        for name in ("ours", "steps"):
            crps = SCORES[name].at("crps_fair", lead_min=lead_min)
            assert float(lines[name][title]) == pytest.approx(crps, rel=5e-3)
        error = compute(FIELDS["sprog"]).at("mae", lead_min=lead_min)
        assert float(lines["sprog"][title]) == pytest.approx(error, rel=5e-3)
    pooled = lines_of(by_pool)
    assert float(pooled["ours"]["4 x 4 px ↓"]) == pytest.approx(SCORES["ours"].at("crps_fair", pool_px=4), rel=5e-3)
    assert pooled["sprog"]["4 x 4 px ↓"] == "-"
    assert re.fullmatch(r"\[0\.\d+, 0\.\d+\]", by_lead.rows[0][1].details[0])


def test_skill_is_over_steps_and_over_what_the_user_compares_with() -> None:
    headings = [each.heading for each in TABLES.amounts]
    assert headings[1:] == ["CRPS skill over persistence", "CRPS skill over steps"]
    lines = lines_of(section("CRPS skill over steps").tables[0])
    assert list(lines) == ["sprog", "persistence", "ours"]
    skill = 1 - SCORES["ours"].at("crps_fair", lead_min=30) / SCORES["steps"].at("crps_fair", lead_min=30)
    assert float(lines["ours"]["30 min"]) == pytest.approx(skill, abs=6e-4)
    pooled = 1 - SCORES["ours"].at("crps_fair", pool_px=4) / SCORES["steps"].at("crps_fair", pool_px=4)
    assert float(lines["ours"]["4 x 4 px"]) == pytest.approx(pooled, abs=6e-4)
    # A single field has no CRPS of blocks that anything could be measured by.
    titles = [column.title for column in section("CRPS skill over persistence").tables[0].columns]
    assert titles == ["Model", "15 min", "30 min", "60 min", "All lead times"]


def test_every_csi_is_compared_with_s_prog_too() -> None:
    assert [each.heading for each in TABLES.certainty] == [
        "CSI and how sure it is, all lead times",
        "CSI less that of persistence, all lead times",
        "CSI less that of sprog, all lead times",
    ]
    lines = lines_of(TABLES.certainty[2].tables[0])
    difference = compute(FIELDS["ours mean"]).at("csi", threshold_mmh=2.0) - compute(FIELDS["sprog"]).at(
        "csi", threshold_mmh=2.0
    )
    assert float(lines["ours mean"]["> 2 mm/h"]) == pytest.approx(difference, abs=6e-4)
    assert "sprog" not in lines
    assert {"ours best p", "steps best p", "stated best p"} <= set(lines)


def test_spread_ranks_and_weighted_crps_are_those_of_the_rows() -> None:
    weighted = lines_of(section("CRPS above thresholds").tables[0])
    assert list(weighted) == ["ours", "steps"]
    twcrps = SCORES["steps"].at("twcrps_fair", threshold_mmh=2.0)
    assert float(weighted["steps"]["> 2 mm/h ↓"]) == pytest.approx(twcrps, rel=5e-3)
    by_lead, more = map(lines_of, section("Spread and error").tables)
    for shown, values in (
        (by_lead["ours"]["30 min →1"], SCORES["ours"].at("spread_skill", lead_min=30)),
        (more["ours"]["4 x 4 px →1"], SCORES["ours"].at("spread_skill", pool_px=4)),
        (more["ours"]["Rank distance, wet ↓"], SCORES["ours"].at("rank_distance_wet")),
        (more["steps"]["Error of the mean, mm/h ↓"], SCORES["steps"].at("mean_rmse")),
    ):
        assert float(shown) == pytest.approx(values, rel=5e-3)


def test_probabilities_have_a_table_a_threshold_that_the_radar_exceeded() -> None:
    tables = section("Probabilities of rain").tables
    assert [table.caption for table in tables] == ["Rain above 0.5 mm/h", "Rain above 2 mm/h"]
    lines = lines_of(tables[1])
    assert list(lines) == ["ours", "steps", "stated"]
    for name, scores in SCORES.items():
        # What is stated as a probability is as good as it is: only few members make a score worse by chance.
        brier = scores.at("brier" if name == "stated" else "brier_fair", threshold_mmh=2.0)
        assert float(lines[name]["Brier ↓"]) == pytest.approx(brier, rel=5e-3)
        skill = 1 - brier / scores.at("uncertainty", threshold_mmh=2.0)
        assert float(lines[name]["Brier skill ↑"]) == pytest.approx(skill, abs=6e-4)
        assert float(lines[name]["ROC area ↑"]) == pytest.approx(scores.at("roc_area", threshold_mmh=2.0), abs=6e-4)
    fss = SCORES["ours"].at("fss_probability", threshold_mmh=2.0, scale_px=5)
    assert float(lines["ours"]["FSS 5 px ↑"]) == pytest.approx(fss, abs=6e-4)
    assert lines["stated"]["FSS 5 px ↑"] == "-"


def test_how_much_it_rained_stands_beside_every_table() -> None:
    rows = FIELDS["ours mean"]
    for each in TABLES.sections:
        for table in each.tables:
            assert "6 windows of 6 days." in table.note, each.heading
    observed = np.concatenate([np.random.default_rng(day).gamma(0.7, 2.0, (3, 10, 10))[None] for day in range(6)])
    for lead_min, caption, leads in ((30, "30 min", observed[:, 1]), (None, "All lead times", observed)):
        num, of = int((leads > 2.0).sum()), leads.size
        assert events(rows, 2.0, lead_min) == (num, of)
        (table,) = [each for each in TABLES.by_threshold[2.0].tables if each.caption == caption]
        assert table.note.startswith(f"Radar above 2 mm/h: {num / of:.2%} of the pixels ({num} of {of:,}); ")
    radar = TABLES.certainty[0].tables[0].rows[-1]
    assert [cell.text for cell in radar][2] == f"{(observed > 2.0).mean():.2%}"
    mean = f"Radar: {observed.mean():.3g} mm/h in the mean, {(observed > 0.5).mean():.2%} of the pixels above 0.5 mm/h"
    assert section("Mean squared error").tables[0].note.startswith(mean)


def test_without_ensembles_there_are_no_such_tables_and_with_probabilities_alone_no_amounts() -> None:
    assert not build_tables(evaluation_of(MODELS)).amounts
    assert not build_tables(evaluation_of(MODELS)).probabilities
    alone = build_tables(evaluation_of({"a": FIELDS["sprog"]}, ensembles={"stated": ENSEMBLES["stated"]}))
    assert not alone.amounts
    assert [each.heading for each in alone.probabilities] == ["Probabilities of rain"]


def test_the_summary_says_whose_amounts_are_best_and_by_how_much() -> None:
    evaluation = ensemble_evaluation()
    crps = {name: SCORES[name].at("crps_fair") for name in ("ours", "steps")}
    fields = {name: compute(FIELDS[name]).at("mae") for name in ("sprog", "persistence")}
    best = min(crps | fields, key=lambda name: (crps | fields)[name])
    value = (crps | fields)[best]
    text = evaluation.summary
    assert re.search(rf"CRPS (of|is lowest for) {best}, {value:#.3g} mm/h", text)
    assert f"skill over steps {1 - value / crps['steps']:.3f} [" in text
    single = {name: rows_of(0.9, num_days=1) for name in ("a", "b")}
    assert "without an interval none can be called the best" in evaluation_of(single).summary
    few = {"a": rows_of(0.95), "b": rows_of(0.8)}
    assert "of fewer than 5 days or blocks none can be called the best" in evaluation_of(few).summary
