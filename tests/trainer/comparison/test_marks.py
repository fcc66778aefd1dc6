"""What may be called the best: a figure told apart from every other one in pairs, by the resamples that all share."""

import math
from dataclasses import replace

import numpy as np
import pytest

from rainspark.trainer.comparison.marks import Aim, Figure, Mark, marks_of
from rainspark.trainer.verification.intervals import MIN_BLOCKS

RANDOM = np.random.default_rng(0)
WEATHER = RANDOM.standard_normal(400)
"""What is the same for all models in a resample."""


def figure(value: float, noise: float = 0.0, *, weather: float = 0.1) -> Figure:
    """Make a figure whose resamples share the weather, and have some noise of their own."""
    draws = value * (1 + weather * WEATHER) + noise * RANDOM.standard_normal(400)
    return Figure(value=value, draws=draws, num_blocks=MIN_BLOCKS)


def test_pairs_tell_apart_what_the_intervals_of_the_two_do_not() -> None:
    close = [figure(0.50), figure(0.49)]
    (low, high), (other_low, other_high) = (each.interval()[:2] for each in close)
    assert low < other_high
    assert other_low < high
    assert marks_of(close, "↑") == [Mark.BEST, None]


@pytest.mark.parametrize(
    ("aim", "values", "expected"),
    [
        ("↑", [0.2, 0.5, math.nan], [None, Mark.BEST, None]),
        ("↓", [0.2, 0.5, 0.3], [Mark.BEST, None, None]),
        ("→1", [0.5, 1.6, 0.1], [None, Mark.BEST, None]),
        ("→1", [0.0, 2.5, 0.1], [None, Mark.BEST, None]),
    ],
)
def test_the_best_is_what_the_aim_says(aim: Aim, values: list[float], expected: list[Mark | None]) -> None:
    figures = [figure(value, weather=1e-3) for value in values]
    assert marks_of(figures, aim) == expected


def test_what_is_not_told_apart_from_the_best_value_is_marked_with_it_and_what_is_worse_is_not() -> None:
    figures = [figure(0.50, 0.05), figure(0.48, 0.05), figure(0.1, 0.05)]
    assert marks_of(figures, "↑") == [Mark.LEADING, Mark.LEADING, None]
    # Two models that are the same cannot be told apart, whatever the weather does.
    assert marks_of([figure(0.5), figure(0.5), figure(0.1)], "↑") == [Mark.LEADING, Mark.LEADING, None]


def test_without_resamples_and_without_another_figure_nothing_is_marked() -> None:
    assert marks_of([Figure(value=0.5), Figure(value=0.1)], "↑") == [None, None]
    assert marks_of([figure(0.5), Figure(value=0.1)], "↑") == [None, None]
    assert marks_of([figure(0.5)], "↑") == [None]
    assert marks_of([figure(0.5), figure(math.nan)], "↑") == [None, None]


def test_of_few_days_or_blocks_nothing_is_marked() -> None:
    far_apart = [figure(0.5, weather=1e-3), figure(0.1, weather=1e-3)]
    assert marks_of(far_apart, "↑") == [Mark.BEST, None]
    assert marks_of([replace(each, num_blocks=MIN_BLOCKS - 1) for each in far_apart], "↑") == [None, None]


def test_a_mark_is_what_the_interval_of_the_difference_says() -> None:
    for gap in (0.0, 0.05, 0.08, 0.1, 0.2):
        figures = [figure(0.5 + gap, 0.03), figure(0.5, 0.03)]
        low, high, above_zero = figures[0].less(figures[1]).interval()
        drawn = np.asarray(figures[0].draws) - np.asarray(figures[1].draws)
        np.testing.assert_allclose((low, high), np.quantile(drawn, (0.025, 0.975)))
        assert above_zero == pytest.approx((drawn > 0).mean())
        assert (marks_of(figures, "↑")[0] is Mark.BEST) == (low > 0)


def test_skill_is_one_less_the_ratio_draw_by_draw_and_does_not_exist_over_zero() -> None:
    own, reference = figure(0.2, 0.01), figure(0.4, 0.01)
    skill = own.skill(reference)
    assert skill.value == pytest.approx(0.5)
    np.testing.assert_allclose(np.asarray(skill.draws), 1 - np.asarray(own.draws) / np.asarray(reference.draws))
    assert math.isnan(own.skill(Figure(value=0.0)).value)
    assert all(map(math.isnan, own.skill(Figure(value=0.0)).interval()))
    # Draws without a value are left out of the interval.
    draws = np.array([math.nan, 1.0, 2.0, 3.0])
    assert Figure(value=2.0, draws=draws).interval() == pytest.approx((1.05, 2.95, 1.0))
