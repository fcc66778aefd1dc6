"""Bootstrap over days: against a plain loop, with one day, with days that failed, and in pairs."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from rainspark.trainer.verification.ensemble import EnsembleRows, score_members
from rainspark.trainer.verification.ensemble import merge as merge_ensembles
from rainspark.trainer.verification.intervals import block_length_s, block_text, draw_blocks, resample
from rainspark.trainer.verification.rows import Rows, Settings, WindowId, compute, merge, score_window
from tests.trainer.verification.cases import take

SMALL = Settings(leads_min=(5, 10), thresholds_mmh=(0.5, 8.0), scales_px=(1, 3))
MIDNIGHT_S = 1_600_041_600  # 2020-09-14 00:00 UTC
DAY_S = 86400


def scored(issue_s: int, model: int, *, bad: bool = False) -> Rows:
    """Score a random window of one model."""
    observed = np.random.default_rng(issue_s).gamma(0.5, 3.0, (2, 8, 8))
    forecast = observed * np.random.default_rng([issue_s, model]).gamma(2.0, 0.5 + 0.1 * model, (2, 8, 8))
    if bad:
        forecast[1, 0, 0] = math.nan
    return score_window(SMALL, WindowId(issue_s, f"day:{issue_s}"), forecast, observed, None)


def times(num_days: int) -> list[int]:
    """List issue times: 3 to 5 windows a day, the first at midnight, the last in its last minute."""
    return [
        MIDNIGHT_S + DAY_S * day + second
        for day in range(num_days)
        for second in [*range(0, 600 * (2 + day % 3), 600), DAY_S - 1]
    ]


def rows_of(num_days: int, model: int, bad_day: int | None = None) -> Rows:
    """Score some days; on a bad one a forecast is not finite."""
    bad_s = None if bad_day is None else MIDNIGHT_S + DAY_S * bad_day
    return merge(*(scored(issue_s, model, bad=issue_s == bad_s) for issue_s in times(num_days)))


def slow_draws(rows: Rows, draws: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Compute the scores of every draw from a pile of windows in which a day lies as often as it was drawn."""
    values: dict[str, list[np.ndarray]] = {}
    for times_drawn in draws:
        pile = []
        for day, number in zip(np.unique(rows.day), times_drawn, strict=True):
            todays = take(rows, np.flatnonzero(rows.day == day))
            for copy in range(number):
                # Each copy is a window of its own: a day drawn twice counts twice.
                pile.append(replace(todays, name=np.array([f"{name}/{copy}" for name in todays.name])))
        for score, value in compute(merge(*pile)).values.items():
            values.setdefault(score, []).append(value)
    return values


def test_intervals_equal_a_plain_loop_over_draws() -> None:
    rows = rows_of(4, 0)
    interval = resample(rows, seed=5, num_draws=40).interval()
    assert (interval.num_days, interval.num_draws) == (4, 40)
    assert interval.note.startswith("95% percentile interval of 40 resamples of 4 days (UTC); of so few days")
    for score, draws in slow_draws(rows, draw_blocks(4, 5, 40)).items():
        low, high = np.quantile(np.array(draws), (0.025, 0.975), axis=0)
        np.testing.assert_allclose(interval.low[score], low, rtol=1e-9, atol=1e-12, err_msg=score)
        np.testing.assert_allclose(interval.high[score], high, rtol=1e-9, atol=1e-12, err_msg=score)
        assert (interval.value[score] == compute(rows).values[score]).all()


def test_draws_are_as_many_days_as_there_are_and_depend_on_the_seed_only() -> None:
    draws = draw_blocks(7, 3, 500)
    assert draws.shape == (500, 7)
    assert (draws.sum(axis=1) == 7).all()
    assert draws.mean() == 1
    # Each of 7 draws hits a day with probability 1/7: the variance of a binomial count, 6/7.
    assert draws.var() == pytest.approx(6 / 7, rel=0.1)
    assert (draws == draw_blocks(7, 3, 500)).all()
    assert (draws != draw_blocks(7, 4, 500)).any()


def test_a_single_day_has_no_interval_and_says_so() -> None:
    one = rows_of(1, 0)
    for rows, words in (
        (one, "all 3 windows are of one day, 2020-09-14"),
        (take(one, [0]), "the only window is of one day, 2020-09-14"),
    ):
        for resampled in (resample(rows), resample(rows).less(resample(rows))):
            interval = resampled.interval()
            for bounds in (interval.low, interval.high, interval.above_zero):
                assert all(np.isnan(bound).all() for bound in bounds.values())
            assert interval.num_draws == 0
            assert interval.note.startswith(f"no interval: {words}")
    assert resample(one).interval().value["csi"].tolist() == compute(one).values["csi"].tolist()


def test_scores_that_do_not_exist_have_no_interval_and_days_that_failed_spoil_their_own_draws_only() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = resample(rows_of(5, 0, bad_day=2), num_draws=50).interval()
    # The forecast failed at the second lead time: its errors, and those of all lead times, are unknown.
    assert np.isnan(interval.low["mse"]).tolist() == [False, True, True]
    assert np.isnan(interval.low["fss"][:, 0, 0]).tolist() == [False, True, True]
    assert not np.isnan(interval.low["csi"]).any()
    assert np.isnan(interval.above_zero["mse"]).tolist() == [False, True, True]
    dry = np.zeros((2, 8, 8))
    rows = merge(*(score_window(SMALL, WindowId(issue_s, "a:0"), dry, dry, None) for issue_s in times(3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = resample(rows, num_draws=20).interval()
    assert np.isnan(interval.low["csi"]).all()
    assert (interval.low["accuracy"] == 1).all()


def test_draws_without_a_value_are_left_out() -> None:
    # Heavy rain on one day only: some draws hold none, and no score of it.
    rng = np.random.default_rng(0)
    heavy, light = rng.uniform(5, 12, (2, 8, 8)), rng.uniform(0, 7, (2, 8, 8))
    days = [WindowId(MIDNIGHT_S + DAY_S * day, "a:0") for day in range(3)]
    rows = merge(
        *(score_window(SMALL, day, one, one + 0.5, None) for day, one in zip(days, (heavy, light, light), strict=True))
    )
    interval = resample(rows, num_draws=200).interval()
    only = compute(take(rows, [0])).values["csi"]
    np.testing.assert_allclose(interval.low["csi"][:, 1], only[:, 1])
    np.testing.assert_allclose(interval.high["csi"][:, 1], only[:, 1])


def test_paired_difference_uses_the_same_draws_for_both() -> None:
    rows_a, rows_b = rows_of(4, 0), rows_of(4, 3)
    resampled_a, resampled_b = (resample(rows, seed=2, num_draws=30) for rows in (rows_a, rows_b))
    interval = resampled_a.less(resampled_b).interval()
    draws = draw_blocks(4, 2, 30)
    a, b = slow_draws(rows_a, draws), slow_draws(rows_b, draws)
    for score in a:
        differences = np.array(a[score]) - np.array(b[score])
        low, high = np.quantile(differences, (0.025, 0.975), axis=0)
        np.testing.assert_allclose(interval.low[score], low, rtol=1e-8, atol=1e-11, err_msg=score)
        np.testing.assert_allclose(interval.high[score], high, rtol=1e-8, atol=1e-11, err_msg=score)
        np.testing.assert_allclose(interval.above_zero[score], (differences > 0).mean(axis=0), err_msg=score)
        expected = compute(rows_a).values[score] - compute(rows_b).values[score]
        np.testing.assert_array_equal(interval.value[score], expected)
    nothing = resampled_a.less(resampled_a).interval()
    assert all((value == 0).all() for value in (*nothing.high.values(), *nothing.above_zero.values()))


def ensemble_rows(members: int, issue_times: list[int]) -> EnsembleRows:
    """Score random ensembles of the same radar."""
    rows = []
    for issue_s in issue_times:
        observed = np.random.default_rng(issue_s).gamma(0.5, 3.0, (2, 8, 8))
        factors = np.random.default_rng([issue_s, members]).gamma(2.0, 0.5, (members, 2, 8, 8))
        rows.append(score_members(SMALL, WindowId(issue_s, f"day:{issue_s}"), observed * factors, observed, None))
    return merge_ensembles(*rows)


def test_blocks_of_hours_give_a_single_day_an_interval_that_names_them() -> None:
    # Ten hours of one day, a window every 40 minutes: five blocks of three windows.
    rows = merge(*(scored(MIDNIGHT_S + 2400 * number, 0) for number in range(15)))
    assert block_length_s(rows) == 7200
    interval = resample(rows, seed=3, num_draws=30, block_s=7200).interval()
    assert (interval.num_days, interval.num_blocks, interval.block_s, interval.num_draws) == (1, 5, 7200, 30)
    assert interval.note.startswith(
        "95% percentile interval of 30 resamples of 5 blocks of 2 hours of 1 day, 2020-09-14 (UTC); it is about this "
        "weather and not about other days"
    )

    # Each draw is a pile of whole blocks: the scores of three windows as often as their block was drawn.
    piles = []
    for times_drawn in draw_blocks(5, 3, 30):
        pile = [
            replace(take(rows, range(3 * block, 3 * block + 3)), name=np.array([f"{copy}:{i}" for i in range(3)]))
            for copy, block in enumerate(np.repeat(np.arange(5), times_drawn))
        ]
        piles.append(compute(merge(*pile)).values["csi"])
    low, high = np.quantile(np.array(piles), (0.025, 0.975), axis=0)
    np.testing.assert_allclose(interval.low["csi"], low, rtol=1e-9)
    np.testing.assert_allclose(interval.high["csi"], high, rtol=1e-9)

    few = resample(take(rows, range(12)), block_s=7200).interval()
    assert few.note == "no interval: 4 blocks of 2 hours of 1 day, 2020-09-14 (UTC); at least 5 are drawn from"
    assert np.isnan(few.low["csi"]).all()


@pytest.mark.parametrize(
    ("step_s", "num_windows", "length_s", "text"),
    [
        (DAY_S, 5, DAY_S, "24 hours"),
        (DAY_S // 2, 8, 7200, "2 hours"),
        (600, 30, 3600, "1 hour"),
        (600, 15, 1800, "30 minutes"),
        # Two hours are too few half hours, and two windows are two days.
        (600, 12, DAY_S, "24 hours"),
        (DAY_S, 2, DAY_S, "24 hours"),
    ],
)
def test_the_longest_blocks_are_drawn_of_which_there_are_enough(
    step_s: int, num_windows: int, length_s: int, text: str
) -> None:
    rows = merge(*(scored(MIDNIGHT_S + step_s * number, 0) for number in range(num_windows)))
    assert block_length_s(rows) == length_s
    assert block_text(length_s) == text
    if length_s < DAY_S:
        assert f"blocks of {text}" in resample(rows, num_draws=20, block_s=length_s).interval().note


def test_intervals_of_ensembles_equal_a_plain_loop_over_draws() -> None:
    rows = ensemble_rows(3, times(4))
    interval = resample(rows, seed=5, num_draws=20).interval()
    values: dict[str, list[np.ndarray]] = {}
    for times_drawn in draw_blocks(4, 5, 20):
        weights = times_drawn[np.unique(rows.day, return_inverse=True)[1]]
        chosen = np.repeat(np.arange(len(rows)), weights)
        numbers = {field: array[chosen] for field, array in rows.numbers.items()}
        for score, value in compute(rows.having(rows.issue_s[chosen], rows.name[chosen], numbers)).values.items():
            values.setdefault(score, []).append(value)
    for score in ("crps_fair", "twcrps", "spread_skill", "brier", "roc_area", "rank_share", "psd_ratio_members_dbr"):
        exists = ~np.isnan(interval.value[score])
        low, high = np.quantile(np.array(values[score])[:, exists], (0.025, 0.975), axis=0)
        np.testing.assert_allclose(interval.low[score][exists], low, rtol=1e-9, err_msg=score)
        np.testing.assert_allclose(interval.high[score][exists], high, rtol=1e-9, err_msg=score)


def test_differences_leave_out_what_two_ensembles_have_in_other_classes() -> None:
    issue_times = times(4)
    own, baseline = (resample(ensemble_rows(members, issue_times), num_draws=30) for members in (3, 5))
    less = own.less(baseline)
    assert "rank_share" not in less.values
    np.testing.assert_array_equal(less.values["crps"], own.values["crps"] - baseline.values["crps"])
    assert set(own.less(own).values) == set(own.values)
