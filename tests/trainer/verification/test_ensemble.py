"""Rows of ensembles: every score listed, exact merging, exchangeable members, and what fails."""

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rainspark.trainer.verification.ensemble import EnsembleRows, compute, merge, score_members, score_probabilities
from rainspark.trainer.verification.ensemble_scores import ENSEMBLE_AXES
from rainspark.trainer.verification.rows import Settings
from tests.trainer.verification.ensembles import SHAPE, SMALL, mask, same, scored, smooth_rain, tied_rain, window


def probabilities(number: int) -> EnsembleRows:
    """Score random probabilities."""
    forecast = np.random.default_rng([number, 3]).random((2, *SHAPE)) ** 2
    return score_probabilities(SMALL, window(number), forecast, tied_rain(number, *SHAPE), mask(number, 0.9))


def test_every_score_is_listed_with_its_axes() -> None:
    values = compute(scored(0)).values
    assert set(values) == set(ENSEMBLE_AXES)
    lengths = {"l": 3, "t": 2, "s": 2, "p": 3, "k": 6, "r": 6, "w": 18}
    for score, value in values.items():
        assert value.shape == tuple(lengths[axis] for axis in ENSEMBLE_AXES[score]), score
    alone = compute(probabilities(0)).values
    for score, value in alone.items():
        assert value.shape == tuple({**lengths, "k": 20}[axis] for axis in ENSEMBLE_AXES[score]), score
    assert {"brier", "roc_area", "class_frequency"} < set(alone)
    assert not {"crps", "brier_fair", "fss_probability"} & set(alone)


def test_scores_are_looked_up_by_lead_time_threshold_scale_and_pool() -> None:
    scores = compute(scored(0))
    assert scores.at("crps", lead_min=10, pool_px=4) == scores.values["crps"][1, 1]
    assert scores.at("brier", threshold_mmh=2.0) == scores.values["brier"][-1, 1]
    assert (
        scores.at("fss_probability", lead_min=5, threshold_mmh=2.0, scale_px=4)
        == (scores.values["fss_probability"][0, 1, 1])
    )
    assert scores.at("rank_share", lead_min=5).shape == (6,)


@hypothesis_settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(6)), cuts=st.lists(st.integers(0, 6), max_size=4))
def test_any_pieces_in_any_order_merge_to_the_same_bits(order: Sequence[int], cuts: Sequence[int]) -> None:
    for make in (scored, probabilities):
        windows = [make(i) for i in order]
        pieces = [merge(*windows[a:b]) for a, b in pairwise([0, *sorted(cuts), len(windows)]) if a < b]
        whole, merged = merge(*(make(i) for i in range(6))), merge(*pieces)
        assert same(merged, whole)
        assert merged.windows == sorted(window(i) for i in range(6))
        for name, value in compute(merged).values.items():
            assert value.tobytes() == compute(whole).values[name].tobytes(), name


@hypothesis_settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(5)))
def test_members_are_exchangeable_to_the_bit(order: Sequence[int]) -> None:
    for draw in (tied_rain, smooth_rain):
        ensemble, observed = draw(1, 5, *SHAPE), draw(2, *SHAPE)
        rows = score_members(SMALL, window(0), ensemble, observed, None)
        assert same(rows, score_members(SMALL, window(0), ensemble[list(order)], observed, None))


def test_layout_and_type_of_the_input_change_nothing() -> None:
    ensemble, observed, valid = smooth_rain(1, 5, *SHAPE), smooth_rain(2, *SHAPE), mask(0, 0.9)
    for missing in (valid, None):
        rows = score_members(SMALL, window(0), ensemble, observed, missing)
        turned = [np.asfortranarray(array) for array in (ensemble, observed)]
        assert same(rows, score_members(SMALL, window(0), turned[0], turned[1], missing))
        single = ensemble.astype(np.float32)
        rows = score_members(SMALL, window(0), single, observed, missing)
        assert same(rows, score_members(SMALL, window(0), single.astype(np.float64), observed, missing))
    # What lies where the radar did not measure is not looked at.
    blank = np.where(valid, ensemble, math.nan), np.where(valid, observed, math.nan)
    rows = score_members(SMALL, window(0), ensemble, observed, valid)
    assert same(rows, score_members(SMALL, window(0), *blank, valid))


def test_large_and_small_windows_are_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble, observed = tied_rain(1, 5, *SHAPE), tied_rain(2, *SHAPE)
    at_once = score_members(SMALL, window(0), ensemble, observed, None)
    # In pieces of 100 pixels, thirteen a lead time, as a domain of 300 x 300 is cut.
    monkeypatch.setattr("rainspark.trainer.verification.pixels._CHUNK", 100)
    pieces = score_members(SMALL, window(0), ensemble, observed, None)
    for field, array in at_once.numbers.items():
        if not field.startswith("ranks"):
            np.testing.assert_allclose(pieces.numbers[field], array, rtol=1e-12, err_msg=field)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_in_one_member_is_counted_and_improves_nothing(bad: float) -> None:
    ensemble, observed, valid = tied_rain(1, 5, *SHAPE), tied_rain(2, *SHAPE), mask(0, 0.8)
    whole = score_members(SMALL, window(0), ensemble, observed, valid)
    broken = ensemble.copy()
    broken[3, 1] = np.where(np.random.default_rng(1).random(SHAPE[1:]) < 0.3, bad, ensemble[3, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = score_members(SMALL, window(0), broken, observed, valid)
        scores = compute(rows)
    failed = valid[1] & ~np.isfinite(broken[3, 1])
    assert rows.numbers["num_nonfinite"][0].tolist() == [0, failed.sum()]
    assert rows.numbers["num_valid"].tolist() == whole.numbers["num_valid"].tolist()

    # Of probabilities the failed pixel has the one that is wrong for certain: 0 before an event, 1 before none.
    for k, threshold_mmh in enumerate(SMALL.thresholds_mmh):
        event = observed[1] > threshold_mmh
        probability = np.where(failed, ~event, (broken[:, 1] > threshold_mmh).mean(axis=0))
        brier = np.square(probability - event)[valid[1]].mean()
        assert scores.values["brier"][1, k] == pytest.approx(brier, abs=1e-12)
        assert (scores.values["brier"] >= compute(whole).values["brier"] - 1e-15).all()
    # All else of this lead time, and of all of them together, is unknown.
    of_probabilities = set(compute(probabilities(0)).values) | {"brier_fair"}
    for score in set(ENSEMBLE_AXES) - of_probabilities:
        assert np.isnan(scores.values[score][1:]).all(), score
        np.testing.assert_array_equal(scores.values[score][0], compute(whole).values[score][0], err_msg=score)


@pytest.mark.parametrize("bad", [math.nan, -0.01, 1.01])
def test_a_probability_that_is_none_is_counted_as_wrong_for_certain(bad: float) -> None:
    forecast, observed = np.full((2, *SHAPE), 0.25), tied_rain(2, *SHAPE)
    forecast[0, 1, :6] = bad
    rows = score_probabilities(SMALL, window(0), forecast, observed, None)
    assert rows.numbers["num_nonfinite"].tolist() == [[0, 6 * SHAPE[2]]]
    for k, threshold_mmh in enumerate(SMALL.thresholds_mmh):
        event = observed[1] > threshold_mmh
        error = np.square(0.25 - event)
        error[:6] = 1
        assert compute(rows).at("brier", lead_min=10, threshold_mmh=threshold_mmh) == pytest.approx(error.mean())
        assert rows.numbers["class_forecasts"][0, 1, k].sum() == observed[1].size


def test_no_rain_and_no_valid_pixel_give_nan_without_a_warning() -> None:
    dry = np.zeros(SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = compute(score_members(SMALL, window(0), np.zeros((5, *SHAPE)), dry, None))
        blind = compute(score_members(SMALL, window(0), np.zeros((5, *SHAPE)), dry, np.zeros(SHAPE, bool)))
        alone = compute(score_probabilities(SMALL, window(0), np.zeros((2, *SHAPE)), dry, None))
    for score in ("crps", "crps_fair", "twcrps", "brier", "brier_fair", "spread", "mean_rmse", "reliability"):
        assert (scores.values[score] == 0).all(), score
    for score in ("spread_skill", "fss_probability", "roc_area", "brier_skill", "rank_share_wet"):
        assert np.isnan(scores.values[score]).all(), score
    # The rank among equals is a draw: the histogram over all pixels of a dry day is flat by construction.
    assert scores.values["rank_share"].min() > 0.1
    for score, value in blind.values.items():
        assert (value == 0).all() if score == "num_events" else np.isnan(value).all(), score
    assert (alone.values["brier"] == 0).all()


def test_rows_are_read_as_they_were_written_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    for rows in (merge(scored(0), scored(1)), probabilities(0)):
        rows.save(path)
        assert same(EnsembleRows.load(path), rows)
    with np.load(path) as file:
        contents = dict(file)
    np.savez(path, **{**contents, "schema": np.int64(99)})
    with pytest.raises(ValueError, match=r"rows\.npz: schema 99; expected 1"):
        EnsembleRows.load(path)
    for text in (b"", b"PK", b"PK\x03\x04rubbish"):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"rows\.npz: not the sums"):
            EnsembleRows.load(path)


def test_rows_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        scored(0).sums["ranks"][0] = 0


def test_ensembles_of_several_sizes_are_not_merged() -> None:
    with pytest.raises(ValueError, match="5 and 6 members"):
        merge(scored(0), scored(1, members=6))


@pytest.mark.parametrize("share_valid", [1.0, 0.8])
def test_fss_of_probabilities_is_that_of_fractions_of_members_and_pixels(share_valid: float) -> None:
    settings = Settings(leads_min=(5, 10), thresholds_mmh=(0.5, 2.0), scales_px=(1, 3, 7))
    ensemble, observed = tied_rain(1, 5, *SHAPE), tied_rain(2, *SHAPE)
    valid = mask(0, share_valid) if share_valid < 1 else np.ones(SHAPE, bool)
    scores = compute(score_members(settings, window(0), ensemble, observed, valid if share_valid < 1 else None))
    for lead, lead_min in enumerate(settings.leads_min):
        for threshold_mmh in settings.thresholds_mmh:
            for scale_px in settings.scales_px:
                # The fraction of valid pixels in the neighbourhood, times its share inside the domain, pixel by pixel.
                reach = scale_px // 2
                errors, squares = 0.0, 0.0
                for row, col in np.argwhere(valid[lead]):
                    box = (slice(max(row - reach, 0), row + reach + 1), slice(max(col - reach, 0), col + reach + 1))
                    inside = valid[lead][box]
                    share = inside.size / scale_px**2
                    forecast = (ensemble[:, lead][:, *box][:, inside] > threshold_mmh).mean() * share
                    event = (observed[lead][box][inside] > threshold_mmh).mean() * share
                    errors, squares = errors + (forecast - event) ** 2, squares + forecast**2 + event**2
                ours = scores.at("fss_probability", lead_min=lead_min, threshold_mmh=threshold_mmh, scale_px=scale_px)
                assert ours == pytest.approx(1 - errors / squares, abs=1e-12)
