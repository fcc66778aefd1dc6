"""The page's tables are those of scores.md, with the best figures marked."""

import math
import re
from typing import Any

import numpy as np
import pytest

from rainspark.trainer.evaluation.html import Table
from rainspark.trainer.evaluation.page import _telling_first, read_markdown, summary_of
from rainspark.trainer.evaluation.result import Evaluation
from rainspark.trainer.evaluation.tables import ModelScores, References, markdown
from rainspark.trainer.settings.evaluation import parse_evaluation
from rainspark.trainer.verification.rows import Rows, Settings, WindowId, compute, merge, score_window

SETTINGS = Settings(leads_min=(30, 60), thresholds_mmh=(0.5, 2.0), scales_px=(1, 3))


def rows(factor: float) -> Rows:
    parts = []
    for day in range(2):
        observed = np.random.default_rng(day).gamma(0.7, 2.0, (2, 8, 8))
        forecast = factor * observed + 0.2 * np.random.default_rng([day, 1]).random(observed.shape)
        parts.append(score_window(SETTINGS, WindowId(86400 * day, "a:0"), forecast, observed, None))
    return merge(*parts)


def test_every_table_of_the_markdown_becomes_one_of_the_page() -> None:
    models = {"good | one": rows(1.0), "half": rows(0.5), "dry": rows(0.0)}
    made = [
        ModelScores.of(name, some, models["half"] if name != "half" else None, seed=0, num_draws=20)
        for name, some in models.items()
    ]
    text = markdown(made, "half", References())
    sections = {section.heading: section.blocks() for section in read_markdown(text)}
    assert list(sections)[:2] == ["Rain above 0.5 mm/h", "Rain above 2 mm/h"]
    tables = [block for blocks in sections.values() for block in blocks if isinstance(block, Table)]
    assert sum(len(table.rows) + 2 for table in tables) == sum(line.startswith("|") for line in text.splitlines())
    assert all(len(row) == len(table.head) for table in tables for row in table.rows)
    first = tables[0]
    assert first.caption == "All lead times"
    assert [row[0] for row in first.rows] == ["good | one", "half", "dry"]
    csi, bias, mse = (
        next(n for n, head in enumerate(first.head) if head.startswith(name)) for name in ("CSI", "Bias", "pMSE")
    )
    expected = models["good | one"]
    hits, misses, false_alarms = (
        int(getattr(expected, name)[:, :, 0].sum()) for name in ("hits", "misses", "false_alarms")
    )
    assert float(first.rows[0][csi]) == pytest.approx(hits / (hits + misses + false_alarms), abs=5e-4)
    assert {(0, csi), (0, bias), (0, mse)} <= first.best
    assert not any(column == 0 for _, column in first.best)
    (shown,) = _telling_first([first])
    assert isinstance(shown, Table)
    assert [head.partition(" ")[0] for head in shown.head[:4]] == ["Model", "CSI", "Bias", "FSS"]
    assert sorted(shown.head) == sorted(first.head)
    assert {(row, shown.head[column], shown.rows[row][column]) for row, column in shown.best} == {
        (row, first.head[column], first.rows[row][column]) for row, column in first.best
    }
    words = [block for blocks in sections.values() for block in blocks if isinstance(block, str)]
    assert any("resamples of 2 days" in word for word in words)


@pytest.mark.parametrize(
    ("title", "cells", "best"),
    [
        ("CSI ↑", ["0.2", "0.5", "-"], {1}),
        ("FAR ↓", ["0.2", "0.5", "0.2"], {0, 2}),
        ("Bias →1", ["0.5", "1.6", "0.000"], {1}),
        ("HSS ↑", ["-0.1", "-0.3", "-"], {0}),
        ("CSI ↑", ["-", "-", "-"], set()),
        ("Lead time", ["1", "2", "3"], set()),
        ("> 2 mm/h", ["0.1 [0.0, 0.2]", "0.3", "0.2"], set()),
    ],
)
def test_the_best_is_what_the_columns_arrow_says(title: str, cells: list[str], best: set[int]) -> None:
    lines = [f"| Model | {title} |", "| --- | ---: |", *(f"| m{n} | {cell} |" for n, cell in enumerate(cells))]
    (section,) = read_markdown("# Scores\n\nlead\n\n## A\n\n### B\n\n" + "\n".join(lines) + "\n")
    (table,) = section.blocks()
    assert isinstance(table, Table)
    assert table.best == frozenset((row, 1) for row in best)
    assert math.prod([len(table.rows), len(table.head)]) == 6


def summary(kinds: dict[str, str], factors: dict[str, float]) -> str:
    models = {name: rows(factor) for name, factor in factors.items()}
    config = parse_evaluation(["--data.shards", "S", "--out", "O", "--models", *kinds])
    plan: Any = None
    evaluation = Evaluation(config=config, plan=plan, models=models, kinds=kinds, about={}, cases=[], command="")
    return summary_of(evaluation, {name: compute(some) for name, some in models.items()})


def test_rain_everywhere_is_not_called_the_best_forecast() -> None:
    text = summary({"wet": "run", "good": "run"}, {"wet": 1e3, "good": 0.7})
    assert "wet 0." not in text.partition("good forecasts")[0]
    assert "good forecasts rain above 0.5 mm/h best" in text
    assert "No model's frequency bias" in summary({"dry": "run"}, {"dry": 1e-2})


def test_the_next_best_stands_beside_the_best() -> None:
    kinds = {"good": "run", "near": "extrapolation", "poor": "run", "last": "persistence"}
    factors = {"good": 1.0, "near": 0.95, "poor": 0.8, "last": 0.75}
    csi = {name: compute(rows(factor)).at("csi", threshold_mmh=0.5) for name, factor in factors.items()}
    order = sorted(csi, key=lambda name: -csi[name])
    text = summary(kinds, factors)
    assert f"{order[0]} forecasts rain above 0.5 mm/h best" in text
    named = re.findall(r"; (\w+) 0\.\d{3}", text)
    assert named == [name for name in order[1:] if name == order[1] or kinds[name] == "persistence"]


def test_lead_times_below_each_other_have_no_best() -> None:
    made = [ModelScores.of("a", rows(0.5), None, seed=0, num_draws=20)]
    made.append(ModelScores.of("b", rows(0.7), None, seed=0, num_draws=20))
    sections = {section.heading: section.blocks() for section in read_markdown(markdown(made, None, References()))}
    (table,) = [block for block in sections["Mean squared error"] if isinstance(block, Table)]
    assert table.best == frozenset()
