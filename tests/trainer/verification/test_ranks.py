"""Rank histograms: pysteps' without ties, chances with them, and the same draws for the same window."""

import numpy as np
import pytest

from rainspark.trainer.verification.ensemble import compute, score_members
from rainspark.trainer.verification.ranks import WET_MMH, count_members
from rainspark.trainer.verification.rows import Settings
from tests.trainer.verification.ensembles import SHAPE, SMALL, mask, smooth_rain, tied_rain, window

ONE_LEAD = Settings(leads_min=(5,), thresholds_mmh=(0.5,), scales_px=(1,))


@pytest.mark.parametrize("share_valid", [1.0, 0.8])
def test_ranks_equal_pysteps_where_nothing_ties(share_valid: float) -> None:
    ensscores = pytest.importorskip("pysteps.verification.ensscores")
    ensemble, observed, valid = smooth_rain(1, 6, *SHAPE), smooth_rain(2, *SHAPE), mask(3, share_valid)
    rows = score_members(SMALL, window(0), ensemble, observed, valid)
    shares = compute(rows).values["rank_share"]
    for lead in range(2):
        radar = np.where(valid[lead], observed[lead], np.nan)
        theirs = ensscores.rankhist(ensemble[:, lead], radar, normalize=False)
        assert rows.numbers["ranks"][0, lead].tolist() == theirs.tolist()
        np.testing.assert_allclose(shares[lead], theirs / theirs.sum(), atol=1e-15)
        # Below WET_MMH all is equal: pixels that are wet somewhere, where the radar or all members are above it.
        clear = (radar >= WET_MMH) | (ensemble[:, lead] >= WET_MMH).all(axis=0)
        wet = ensscores.rankhist(ensemble[:, lead], np.where(clear, radar, np.nan), X_min=WET_MMH, normalize=False)
        masked = score_members(
            ONE_LEAD, window(0), ensemble[:, lead : lead + 1], observed[lead : lead + 1], (valid[lead] & clear)[None]
        )
        assert masked.numbers["ranks_wet"][0, 0].tolist() == wet.tolist()


def test_a_tie_gets_each_of_its_ranks_equally_often_and_no_other() -> None:
    # One member below, two equal, one above: ranks 1, 2 and 3.
    members = np.array([1.0, 2.0, 2.0, 3.0])[:, None, None, None] * np.ones((4, 1, 100, 300))
    rows = score_members(ONE_LEAD, window(0), members, np.full((1, 100, 300), 2.0), None)
    for field in ("ranks", "ranks_wet"):
        counts = rows.numbers[field][0, 0]
        assert counts[[0, 4]].tolist() == [0, 0]
        # 30,000 draws of three: 10,000 each, give or take 3 standard deviations of 82.
        assert np.abs(counts[1:4] - 10_000).max() < 250


def test_rain_below_the_wet_limit_ties_in_the_histogram_of_wet_pixels() -> None:
    # The radar is dry, two members drizzle below the limit, one is wet: the radar ties with the two.
    members = np.array([0.02, 0.05, 4.0])[:, None, None, None] * np.ones((3, 1, 100, 300))
    rows = score_members(ONE_LEAD, window(0), members, np.zeros((1, 100, 300)), None)
    assert rows.numbers["ranks"][0, 0].tolist() == [30_000, 0, 0, 0]
    assert np.abs(rows.numbers["ranks_wet"][0, 0] - [10_000, 10_000, 10_000, 0]).max() < 250
    # Where all are below the limit nothing is counted.
    drizzle = score_members(ONE_LEAD, window(0), members[:2], np.full((1, 100, 300), 0.03), None)
    assert drizzle.numbers["ranks_wet"].sum() == 0
    assert drizzle.numbers["ranks"][0, 0].tolist() == [0, 30_000, 0]


def test_ties_are_broken_by_window_and_lead_time_alone() -> None:
    ensemble, observed = tied_rain(1, 5, 1, *SHAPE[1:]).repeat(2, axis=1), tied_rain(2, 1, *SHAPE[1:]).repeat(2, axis=0)
    ranks = [score_members(SMALL, window(n), ensemble, observed, None).numbers["ranks"][0] for n in (0, 0, 1)]
    assert ranks[0].tolist() == ranks[1].tolist()
    # Another window and another lead time have other draws.
    assert ranks[0].tolist() != ranks[2].tolist()
    assert ranks[0][0].tolist() != ranks[0][1].tolist()


def test_distance_from_flat_is_0_for_equal_shares_and_rises_to_2() -> None:
    # Every rank once: members 1, 2, 3 and radar 0.5, 1.5, 2.5, 3.5.
    members = np.arange(1.0, 4.0)[:, None, None, None] * np.ones((3, 1, 2, 2))
    flat = compute(score_members(ONE_LEAD, window(0), members, np.array([[[0.5, 1.5], [2.5, 3.5]]]), None))
    assert flat.values["rank_distance"].tolist() == [0, 0]
    low = compute(score_members(ONE_LEAD, window(0), members, np.full((1, 2, 2), 0.5), None))
    assert low.values["rank_share"][0].tolist() == [1, 0, 0, 0]
    assert low.at("rank_distance") == pytest.approx(2 * (1 - 1 / 4))
    assert low.at("rank_distance_wet") == pytest.approx(2 * (1 - 1 / 4))


def test_more_than_255_members_are_counted() -> None:
    assert count_members(np.ones((300, 4), bool)).tolist() == [300] * 4
