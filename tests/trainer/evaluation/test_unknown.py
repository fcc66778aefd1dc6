"""Counting what models cannot know: against loops, in any order, and in the words that reports use."""

from dataclasses import replace
from functools import reduce
from itertools import permutations

import numpy as np
import pytest

from rainspark.trainer.evaluation.tables import build_tables
from rainspark.trainer.evaluation.unknown import Unknown, count_unknown, unknown_by_any
from tests.trainer.evaluation.cases import KINDS, MODELS, evaluation_of

SHAPE = (3, 7, 5)


def _masks(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    random = np.random.default_rng(seed)
    return {"a": random.random(SHAPE) < 0.3, "b": random.random(SHAPE) < 0.1}, random.random(SHAPE) < 0.8


@pytest.mark.parametrize("is_whole", [False, True])
def test_counts_are_those_of_a_loop(is_whole: bool) -> None:
    masks, valid = _masks(0)
    if is_whole:
        valid = np.ones(SHAPE, bool)
    counts = {"a": 0, "b": 0, "any": 0, "measured": 0}
    for place in np.ndindex(*SHAPE):
        if valid[place]:
            counts["measured"] += 1
            counts["a"] += bool(masks["a"][place])
            counts["b"] += bool(masks["b"][place])
            counts["any"] += bool(masks["a"][place] or masks["b"][place])
    unknown = count_unknown(masks, None if is_whole else valid, int(np.prod(SHAPE)))
    assert (unknown.num_measured, unknown.num_by_any) == (counts["measured"], counts["any"])
    assert unknown.num_by_model == {"a": counts["a"], "b": counts["b"]}
    both = unknown_by_any(masks)
    assert both is not None
    assert int((both & valid).sum()) == counts["any"]


def test_models_that_know_everything_leave_nothing_out() -> None:
    assert unknown_by_any({}) is None
    unknown = count_unknown({}, None, 100)
    assert (unknown.num_measured, unknown.num_by_any, unknown.num_by_model) == (100, 0, {})
    assert unknown.lines("dry") == unknown.lines("leave_out") == []


def test_the_order_of_windows_does_not_matter() -> None:
    pieces = [count_unknown(*_masks(seed), int(np.prod(SHAPE))) for seed in range(3)]
    pieces.append(Unknown())
    totals = [reduce(Unknown.plus, order) for order in permutations(pieces)]
    assert all(total == totals[0] for total in totals)
    assert totals[0].num_measured == sum(piece.num_measured for piece in pieces)


def test_tables_say_how_many_and_how_they_count() -> None:
    unknown = Unknown(num_measured=1000, num_by_model={"extrapolation": 183, "b": 0}, num_by_any=183)
    left = evaluation_of(MODELS, kinds=KINDS, unknown=unknown)
    assert "**183 of 1000 measured pixels (18.3%) are left out for every model alike" in build_tables(left).markdown()
    dry = replace(left, config=replace(left.config, unknown="dry"))
    text = build_tables(dry).markdown()
    assert "**extrapolation cannot know 183 of 1000 measured pixels (18.3%)" in text
    assert "they count as dry for it" in text
    left_out = unknown.lines("leave_out")
    assert left_out == [
        "183 of 1000 measured pixels (18.3%) are left out for every model alike: extrapolation cannot know them (there "
        "flows in what lay outside the frame or was not measured)."
    ]
    assert "cannot know" not in build_tables(evaluation_of(MODELS, kinds=KINDS)).markdown()
