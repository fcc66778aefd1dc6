"""Events forecast from probabilities: the same tables as a plain count of members and of probabilities gives."""

import numpy as np
import pytest

from rainspark.trainer.comparison.products import EVENT_COUNTS, EventRows, event_products
from rainspark.trainer.verification.contingency import table_scores
from rainspark.trainer.verification.ensemble import score_members, score_probabilities
from rainspark.trainer.verification.rows import Settings, WindowId, compute, merge

SETTINGS = Settings(leads_min=(5, 10), thresholds_mmh=(0.5, 2.0), scales_px=(1,))
WINDOWS = [WindowId(3600 * number, f"a:{number}") for number in range(3)]


def rain(seed: int, *shape: int) -> np.ndarray:
    """Make rain, half of it in steps, so that members tie."""
    values = np.random.default_rng(seed).gamma(0.6, 2.0, shape)
    return np.where(np.random.default_rng(seed + 1).random(shape) < 0.5, np.round(values * 4) / 4, values)


def plain_counts(forecast: np.ndarray, observed: np.ndarray, valid: np.ndarray) -> dict[str, int]:
    """Count one table pixel by pixel."""
    names = {(True, True): "hits", (False, True): "misses", (True, False): "false_alarms"}
    counts = dict.fromkeys(EVENT_COUNTS, 0)
    for yes, event in zip(forecast[valid].tolist(), observed[valid].tolist(), strict=True):
        counts[names.get((yes, event), "correct_negatives")] += 1
    return counts


def check(products: dict[str, EventRows], share_kthw: np.ndarray, observed_thw: np.ndarray, valid: np.ndarray) -> None:
    """Compare all products of one window with plain counts of a share that exceeds the threshold."""
    for name, product in products.items():
        enough = float(name.removeprefix("p>"))
        for lead in range(2):
            for k, threshold_mmh in enumerate(SETTINGS.thresholds_mmh):
                # A tenth has no exact value: as far as the tenth millionth.
                forecast = share_kthw[k, lead] > enough + 1e-7
                expected = plain_counts(forecast, observed_thw[lead] > threshold_mmh, valid[lead])
                assert {count: int(product.counts[count][0, lead, k]) for count in EVENT_COUNTS} == expected


@pytest.mark.parametrize("members", [1, 2, 5, 10, 16])
def test_members_are_counted_and_the_event_is_forecast_where_more_than_a_tenth_of_them_have_it(members: int) -> None:
    ensemble, observed, valid = rain(members, members, 2, 9, 11), rain(99, 2, 9, 11), rain(5, 2, 9, 11) > 0.1
    products = event_products(score_members(SETTINGS, WINDOWS[0], ensemble, observed, valid))
    assert list(products) == [f"p>0.{tenth}" for tenth in range(1, 10)]
    share = np.stack([(ensemble > threshold).mean(axis=0) for threshold in SETTINGS.thresholds_mmh])
    check(products, share, observed, valid)


def test_probabilities_alone_are_counted_too() -> None:
    observed, valid = rain(99, 2, 9, 11), rain(5, 2, 9, 11) > 0.1
    probabilities = np.random.default_rng(3).random((2, 2, 9, 11))
    products = event_products(score_probabilities(SETTINGS, WINDOWS[0], probabilities, observed, valid))
    check(products, probabilities, observed, valid)


def test_windows_are_united_and_scored_as_fields_are() -> None:
    pieces = []
    for window in WINDOWS:
        seed = window.issue_s
        pieces.append(score_members(SETTINGS, window, rain(seed, 4, 2, 9, 11), rain(seed + 7, 2, 9, 11), None))
    products = event_products(merge(*pieces))
    alone = [event_products(piece)["p>0.4"] for piece in pieces]
    for name in EVENT_COUNTS:
        np.testing.assert_array_equal(products["p>0.4"].counts[name], merge(*alone[::-1]).counts[name])
    scores = compute(products["p>0.4"])
    totals = [products["p>0.4"].counts[name].sum(axis=0).astype(float) for name in EVENT_COUNTS]
    for score, values in table_scores(*totals).items():
        np.testing.assert_allclose(scores.values[score][:2], values)
    assert scores.at("csi", threshold_mmh=0.5) == pytest.approx(
        float(totals[0].sum(axis=0)[0] / (totals[0] + totals[1] + totals[2]).sum(axis=0)[0])
    )
