"""Brier score, its decomposition, reliability table and ROC: equal to `scores`, pysteps and plain sums over pixels."""

import operator

import numpy as np
import numpy.typing as npt
import pytest
import scores.probability
import xarray as xr

from rainspark.trainer.verification.ensemble import EnsembleScores, compute, merge, score_members, score_probabilities
from rainspark.trainer.verification.reliability import NUM_CLASSES
from tests.trainer.verification.ensembles import SHAPE, SMALL, mask, smooth_rain, tied_rain, window

Pixels = npt.NDArray[np.float64]


def members_case(share_valid: float) -> tuple[EnsembleScores, Pixels, Pixels, Pixels]:
    """Score an ensemble of 6 in two windows: scores; members, radar and share of members above 2 mm/h by pixel."""
    rows, members, radar = [], [], []
    for number in range(2):
        ensemble, observed = tied_rain(number, 6, *SHAPE), tied_rain(9 + number, *SHAPE)
        # A forecast with some skill: half of the members' rain is the radar's.
        ensemble = (ensemble + observed) / 2
        valid = mask(number, share_valid)
        rows.append(score_members(SMALL, window(number), ensemble, observed, valid))
        members.append(ensemble[:, valid])
        radar.append(observed[valid])
    x, y = np.concatenate(members, axis=1), np.concatenate(radar)
    return compute(merge(*rows)), x, y, (x > 2.0).mean(axis=0)


def probabilities_case(share_valid: float) -> tuple[EnsembleScores, Pixels, Pixels]:
    """Score probabilities in two windows: scores; probability and radar by pixel."""
    rows, probability, radar = [], [], []
    for number in range(2):
        observed, valid = smooth_rain(9 + number, *SHAPE), mask(number, share_valid)
        rng = np.random.default_rng(number)
        forecast = np.clip(rng.random((2, *SHAPE)) * 0.7 + 0.3 * (observed > 2.0), 0, 1)
        forecast[:, :, 0] = np.round(rng.random((2, 2, SHAPE[2])) * NUM_CLASSES) / NUM_CLASSES
        rows.append(score_probabilities(SMALL, window(number), forecast, observed, valid))
        probability.append(forecast[1][valid])
        radar.append(observed[valid])
    return compute(merge(*rows)), np.concatenate(probability), np.concatenate(radar)


@pytest.mark.parametrize("share_valid", [1.0, 0.8])
def test_brier_score_of_members_equals_scores_plain_and_fair(share_valid: float) -> None:
    ours, x, y, _ = members_case(share_valid)
    forecast, radar = xr.DataArray(x, dims=("member", "pixel")), xr.DataArray(y, dims=("pixel",))
    for threshold_mmh in SMALL.thresholds_mmh:
        for score, fair in (("brier", False), ("brier_fair", True)):
            theirs = scores.probability.brier_score_for_ensemble(
                forecast, radar, "member", threshold_mmh, event_threshold_operator=operator.gt, fair_correction=fair
            )
            assert ours.at(score, threshold_mmh=threshold_mmh) == pytest.approx(theirs.item(), abs=1e-10)


@pytest.mark.parametrize("share_valid", [1.0, 0.8])
def test_decomposition_adds_up_and_its_terms_equal_plain_sums(share_valid: float) -> None:
    ours, _, y, share = members_case(share_valid)
    alone, probability, radar = probabilities_case(share_valid)
    for values, p, event, classes in (
        (ours, share, y > 2.0, np.round(share * 6).astype(int)),
        (alone, probability, radar > 2.0, np.minimum((probability * NUM_CLASSES).astype(int), NUM_CLASSES - 1)),
    ):
        terms = {
            name: values.at(name, threshold_mmh=2.0)
            for name in ("reliability", "resolution", "uncertainty", "within_variance", "within_covariance")
        }
        expected = dict.fromkeys(terms, 0.0)
        expected["uncertainty"] = event.mean() * (1 - event.mean())
        for number in np.unique(classes):
            inside = classes == number
            weight, off = inside.mean(), p[inside] - p[inside].mean()
            expected["reliability"] += weight * (p[inside].mean() - event[inside].mean()) ** 2
            expected["resolution"] += weight * (event[inside].mean() - event.mean()) ** 2
            expected["within_variance"] += weight * np.square(off).mean()
            expected["within_covariance"] += 2 * weight * (off * (event[inside] - event[inside].mean())).mean()
        assert terms == pytest.approx(expected, abs=1e-10)
        total = terms["reliability"] - terms["resolution"] + terms["uncertainty"]
        total += terms["within_variance"] - terms["within_covariance"]
        brier = values.at("brier", threshold_mmh=2.0)
        assert brier == pytest.approx(np.square(p - event).mean(), abs=1e-10)
        assert brier == pytest.approx(total, abs=1e-10)
        assert values.at("brier_skill", threshold_mmh=2.0) == pytest.approx(1 - brier / terms["uncertainty"], abs=1e-10)
    # The classes of an ensemble hold one probability each; those of probabilities do not.
    assert abs(ours.at("within_variance", threshold_mmh=2.0)) < 1e-15
    assert alone.at("within_variance", threshold_mmh=2.0) > 1e-5


@pytest.mark.parametrize("share_valid", [1.0, 0.8])
def test_brier_score_of_probabilities_equals_scores(share_valid: float) -> None:
    ours, probability, radar = probabilities_case(share_valid)
    theirs = scores.probability.brier_score(xr.DataArray(probability), xr.DataArray((radar > 2.0).astype(float)))
    assert ours.at("brier", threshold_mmh=2.0) == pytest.approx(theirs.item(), abs=1e-10)


@pytest.mark.parametrize("share_valid", [1.0, 0.8])
def test_reliability_table_equals_pysteps(share_valid: float) -> None:
    probscores = pytest.importorskip("pysteps.verification.probscores")
    ours, probability, radar = probabilities_case(share_valid)
    # pysteps takes the upper bound of a class into it: probabilities on bounds are moved by less than its own margin.
    theirs = probscores.reldiag_init(2.0, n_bins=NUM_CLASSES, min_count=0)
    theirs["bin_edges"] = np.linspace(0, 1, NUM_CLASSES + 1) - 1e-12
    theirs["bin_edges"][-1] = 1
    probscores.reldiag_accum(theirs, probability, radar)
    x, y = probscores.reldiag_compute(theirs)
    np.testing.assert_allclose(ours.at("class_probability", threshold_mmh=2.0), x, atol=1e-10)
    np.testing.assert_allclose(ours.at("class_frequency", threshold_mmh=2.0), y, atol=1e-10)
    share = ours.at("class_share", threshold_mmh=2.0)
    np.testing.assert_allclose(share, theirs["sample_size"] / len(probability), atol=1e-10)
    assert share.sum() == pytest.approx(1)


@pytest.mark.parametrize("share_valid", [1.0, 0.8])
def test_roc_equals_pysteps_and_scores(share_valid: float) -> None:
    ours, x, y, share = members_case(share_valid)
    event = xr.DataArray((y > 2.0).astype(float))
    thresholds = np.arange(7) / 6
    # Its thresholds are the probabilities that occur, all seven, and infinity.
    theirs = scores.probability.roc_curve_data(xr.DataArray(share), event)
    np.testing.assert_allclose(ours.at("roc_hit_rate", threshold_mmh=2.0), theirs.POD.values[:-1], atol=1e-10)
    np.testing.assert_allclose(ours.at("roc_false_alarm_rate", threshold_mmh=2.0), theirs.POFD.values[:-1], atol=1e-10)
    assert ours.at("roc_area", threshold_mmh=2.0) == pytest.approx(theirs.AUC.item(), abs=1e-10)

    probscores = pytest.importorskip("pysteps.verification.probscores")
    # pysteps calls rain on the threshold an event.
    roc = probscores.ROC_curve_init(np.nextafter(2.0, 3.0), n_prob_thrs=7)
    roc["prob_thrs"] = thresholds - 1e-9
    probscores.ROC_curve_accum(roc, share, y)
    false_alarm_rate, hit_rate, _ = probscores.ROC_curve_compute(roc, compute_area=True)
    np.testing.assert_allclose(ours.at("roc_hit_rate", threshold_mmh=2.0), hit_rate, atol=1e-10)
    np.testing.assert_allclose(ours.at("roc_false_alarm_rate", threshold_mmh=2.0), false_alarm_rate, atol=1e-10)

    # The area is the chance that an event has the higher probability, equal ones counting half.
    yes, no = share[y > 2.0][:, None], share[y <= 2.0][None]
    assert ours.at("roc_area", threshold_mmh=2.0) == pytest.approx(np.mean((yes > no) + (yes == no) / 2), abs=1e-10)
    assert ours.at("base_rate", threshold_mmh=2.0) == pytest.approx((y > 2.0).mean())
    assert ours.at("num_events", threshold_mmh=2.0) == (y > 2.0).sum()
    assert x.shape[1] == len(y)


def test_probability_one_and_bounds_of_classes_are_counted_once() -> None:
    forecast = np.broadcast_to(np.array([0.0, 0.05, 0.5, 0.95, 1.0]), (2, 2, 4, 5))
    rows = score_probabilities(SMALL, window(0), forecast, np.zeros((2, 4, 5)), None)
    counts = rows.numbers["class_forecasts"][0, 0, 0]
    assert {number: count for number, count in enumerate(counts.tolist()) if count} == {0: 4, 1: 4, 10: 4, 19: 8}
