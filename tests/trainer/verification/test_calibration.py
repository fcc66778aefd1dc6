"""What the scores say of synthetic ensembles that are calibrated, too sure, too unsure, or too wet."""

import numpy as np
import pytest

from rainspark.trainer.comparison.marks import Figure
from rainspark.trainer.verification.ensemble import (
    EnsembleRows,
    EnsembleScores,
    compute,
    merge,
    score_members,
    score_probabilities,
)
from rainspark.trainer.verification.intervals import resample
from rainspark.trainer.verification.rows import Settings
from tests.trainer.verification.ensembles import window

SETTINGS = Settings(leads_min=(5,), thresholds_mmh=(0.5, 2.0), scales_px=(1, 5))
MEMBERS = 8


def scored(*, spread: float = 1.0, shift: float = 0.0) -> EnsembleScores:
    """Score members that are lognormal draws around a state, as the radar is one of spread 1 and shift 0.

    The state varies from window to window and smoothly over the pixels: forecasts have resolution.
    """
    rows = []
    for number in range(12):
        rng = np.random.default_rng(number)
        waves = np.sin(np.arange(96) / rng.uniform(6, 12))
        state = 0.8 * (waves[:, None] + waves[None]) + rng.normal(0, 0.5)
        radar = np.exp(state + rng.normal(0, 0.6, (96, 96)))
        members = np.exp(state + shift + spread * rng.normal(0, 0.6, (MEMBERS, 96, 96)))
        # A third of the frame is dry in all of them: ties, which draws decide.
        radar[:32], members[:, :32] = 0, 0
        rows.append(score_members(SETTINGS, window(number), members[:, None], radar[None], None))
    return compute(merge(*rows))


def test_a_calibrated_ensemble_is_called_calibrated() -> None:
    scores = scored()
    # The radar is as good as a member: all ranks are equally likely, 110,592 pixels of which a third are draws.
    for suffix in ("", "_wet"):
        np.testing.assert_allclose(scores.at(f"rank_share{suffix}"), 1 / 9, atol=0.004)
        assert scores.at(f"rank_distance{suffix}") < 0.03
    assert scores.at("spread_skill") == pytest.approx(1, abs=0.03)
    # Means over blocks are calibrated too.
    assert scores.at("spread_skill", pool_px=4) == pytest.approx(1, abs=0.1)
    for threshold_mmh in SETTINGS.thresholds_mmh:
        fair, plain = (scores.at(f"brier{suffix}", threshold_mmh=threshold_mmh) for suffix in ("_fair", ""))
        assert fair < plain
        assert scores.at("roc_area", threshold_mmh=threshold_mmh) > 0.8


def test_reliability_of_true_probabilities_lies_on_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    chance, drawn = rng.random((2, 1, 200, 200)), rng.random((1, 200, 200))
    chance = np.sort(chance, axis=0)[::-1]
    # Above 2 mm/h with the lower chance, above 0.5 mm/h with the higher one.
    radar = np.where(drawn < chance[1], 3.0, np.where(drawn < chance[0], 1.0, 0.0))
    true, sure = (
        compute(score_probabilities(SETTINGS, window(0), forecast, radar, None))
        for forecast in (chance, np.clip(2 * chance - 0.5, 0, 1))
    )
    for threshold_mmh in SETTINGS.thresholds_mmh:
        probability, frequency, share = (
            true.at(f"class_{name}", threshold_mmh=threshold_mmh) for name in ("probability", "frequency", "share")
        )
        # A frequency of n draws is off by sqrt(p (1 - p) / n).
        deviation = np.sqrt(probability * (1 - probability) / (share * chance[0].size))
        assert (np.abs(frequency - probability) < 4 * deviation + 1e-9).all()
        assert true.at("reliability", threshold_mmh=threshold_mmh) < 0.001
        assert sure.at("reliability", threshold_mmh=threshold_mmh) > 0.01


def test_members_of_even_chances_happen_as_often_as_the_rule_of_succession_says() -> None:
    # Chances are spread evenly over 0 to 1, members and radar are drawn by them: after k of m, (k + 1) / (m + 2).
    rng = np.random.default_rng(0)
    chance = rng.random((1, 300, 300))
    members, radar = rng.random((MEMBERS, 1, 300, 300)) < chance, rng.random((1, 300, 300)) < chance
    scores = compute(score_members(SETTINGS, window(0), members * 1.0, radar * 1.0, None))
    frequency = scores.at("class_frequency", threshold_mmh=0.5)
    np.testing.assert_allclose(frequency, (np.arange(MEMBERS + 1) + 1) / (MEMBERS + 2), atol=0.02)
    # The score of infinitely many members, the mean of p (1 - p), is 1/6; of 8 it is 1/8 of that more.
    assert scores.at("brier_fair", threshold_mmh=0.5) == pytest.approx(1 / 6, abs=0.003)
    assert scores.at("brier", threshold_mmh=0.5) == pytest.approx(1 / 6 * (1 + 1 / MEMBERS), abs=0.003)


def test_an_ensemble_that_is_too_sure_has_its_radar_outside() -> None:
    sure, calibrated = scored(spread=0.4), scored()
    assert sure.at("spread_skill") < 0.6
    for shares in (sure.at("rank_share"), sure.at("rank_share_wet")):
        assert shares[[0, -1]].min() > 1.5 * shares[1:-1].max()
    assert sure.at("rank_distance_wet") > 0.3
    assert sure.at("crps_fair") > calibrated.at("crps_fair")
    reliability = [each.at("reliability", threshold_mmh=2.0) for each in (sure, calibrated)]
    assert reliability[0] > 1.5 * reliability[1]
    # Events happen less often than a sure ensemble says, and more often than it denies.
    probability, frequency = (sure.at(f"class_{name}", threshold_mmh=2.0) for name in ("probability", "frequency"))
    assert frequency[-1] < probability[-1] - 0.02
    assert frequency[0] > probability[0] + 0.02


def test_an_ensemble_that_is_too_unsure_has_its_radar_inside() -> None:
    unsure = scored(spread=1.8)
    assert unsure.at("spread_skill") > 1.3
    shares = unsure.at("rank_share_wet")
    assert shares[[0, -1]].max() < 0.7 * shares[3:6].min()
    assert unsure.at("rank_distance_wet") > 0.2
    assert unsure.at("crps_fair") > scored().at("crps_fair")


def test_an_ensemble_that_is_too_wet_has_its_radar_below() -> None:
    wet = scored(shift=0.5)
    shares = wet.at("rank_share_wet")
    assert shares[0] > 2 / 9
    assert shares[-1] < 0.5 / 9
    assert wet.at("class_frequency", threshold_mmh=2.0)[4] < wet.at("class_probability", threshold_mmh=2.0)[4] - 0.1


def test_skill_of_a_calibrated_ensemble_over_a_sure_one_has_an_interval_above_zero() -> None:
    rng = np.random.default_rng(3)
    sure: list[EnsembleRows] = []
    calibrated: list[EnsembleRows] = []
    for number in range(24):
        state = rng.normal(0, 1, (1, 48, 48))
        radar = np.exp(state + rng.normal(0, 0.6, (1, 48, 48)))
        noise = rng.normal(0, 0.6, (MEMBERS, 1, 48, 48))
        for rows, spread in ((sure, 0.3), (calibrated, 1.0)):
            rows.append(score_members(SETTINGS, window(number), np.exp(state + spread * noise), radar, None))
    # All within a day and a bit: blocks of two hours.
    pair = [resample(merge(*rows), block_s=7200) for rows in (calibrated, sure)]
    own, baseline = (
        Figure(
            value=float(each.values["crps_fair"][-1, 0]),
            draws=np.asarray(each.draws and each.draws["crps_fair"])[:, -1, 0],
        )
        for each in pair
    )
    skill = own.skill(baseline)
    low, high, above_zero = skill.interval()
    assert 0 < low < skill.value < high < 0.5
    assert above_zero == 1
