"""Scores: a published table, pysteps as oracle, exact merging, and what cannot be scored."""

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rainspark.trainer.verification.contingency import RAIN_EDGES_MMH
from rainspark.trainer.verification.rows import (
    FIELDS,
    Rows,
    Settings,
    WindowId,
    compute,
    merge,
    published_protocol,
    score_window,
)
from tests.trainer.verification.cases import take

SMALL = Settings(leads_min=(5, 10), thresholds_mmh=(0.5, 2.0), scales_px=(1, 4))
NOON_S = 1_600_000_200
Field = npt.NDArray[np.floating]


def rain(seed: int, *shape: int) -> Field:
    """Draw rain in mm/h, a third of it dry."""
    rng = np.random.default_rng(seed)
    return rng.gamma(0.5, 4.0, shape) * (rng.random(shape) < 0.67)


def window(number: int) -> WindowId:
    """Name the window that is issued so many hours after noon."""
    return WindowId(NOON_S + 3600 * number, f"seq{number % 3}:{number}")


def scored(number: int, model: int = 0, settings: Settings = SMALL, share_valid: float = 0.9) -> Rows:
    """Score a random window."""
    shape = (len(settings.leads_min), 12, 10)
    valid = np.random.default_rng([number, 7]).random(shape) < share_valid
    return score_window(settings, window(number), rain(1000 * model + number + 1, *shape), rain(number, *shape), valid)


def same(one: Rows, other: Rows) -> bool:
    """Tell whether rows are equal to the bit."""
    return one.settings == other.settings and all(
        getattr(one, field).tobytes() == getattr(other, field).tobytes() for field in ("issue_s", "name", *FIELDS)
    )


def test_published_table() -> None:
    # The table of http://www.cawcr.gov.au/projects/verification/ with the scores that pysteps' own tests expect of it.
    forecast = np.repeat([1.0, 1.0, 0.0, 0.0], [82, 38, 23, 222]).reshape(1, 5, 73)
    observed = np.repeat([1.0, 0.0, 1.0, 0.0], [82, 38, 23, 222]).reshape(1, 5, 73)
    settings = Settings(leads_min=(30,), thresholds_mmh=(0.5,), scales_px=(1,))
    rows = score_window(settings, window(0), forecast, observed, None)
    table = [getattr(rows, name).item() for name in ("hits", "false_alarms", "misses", "correct_negatives")]
    assert table == [82, 38, 23, 222]
    expected = {
        "accuracy": 0.83287671,
        "bias": 1.1428571,
        "pod": 0.7809524,
        "recall": 0.7809524,
        "far": 0.316667,
        "precision": 1 - 0.316667,
        "csi": 0.573426,
        "hss": 0.608871,
        "f1": 0.728889,
    }
    scores = compute(rows)
    for name, value in expected.items():
        for lead_min in (30, None):
            assert scores.at(name, lead_min=lead_min, threshold_mmh=0.5) == pytest.approx(value, abs=1e-6), name
    published = published_protocol(scores)
    assert published is not None
    assert published.values["half_hss"] == pytest.approx(0.608871 / 2, abs=1e-6)


@pytest.mark.parametrize("share_valid", [1.0, 0.8])
def test_scores_equal_pysteps_and_plain_means(share_valid: float) -> None:
    pysteps = pytest.importorskip("pysteps.verification.detcatscores")
    settings = Settings(leads_min=(5, 10, 15), scales_px=(1,))
    shape = (3, 30, 20)
    fields = [(rain(10 + i, *shape), rain(20 + i, *shape)) for i in range(4)]
    valid = [np.random.default_rng(i).random(shape) < share_valid for i in range(4)]
    windows = zip(fields, valid, strict=True)
    scores = compute(merge(*(score_window(settings, window(i), f, o, v) for i, ((f, o), v) in enumerate(windows))))

    for lead in (0, 1, 2, slice(None)):
        lead_min = settings.leads_min[lead] if isinstance(lead, int) else None
        forecast = np.concatenate([f[lead][v[lead]] for (f, _), v in zip(fields, valid, strict=True)])
        observed = np.concatenate([o[lead][v[lead]] for (_, o), v in zip(fields, valid, strict=True)])
        for threshold_mmh in settings.thresholds_mmh:
            theirs = pysteps.det_cat_fct(forecast, observed, threshold_mmh, list(TABLE.values()))
            for name, short in TABLE.items():
                ours = scores.at(name, lead_min=lead_min, threshold_mmh=threshold_mmh)
                assert ours == pytest.approx(theirs[short], rel=1e-12), (name, threshold_mmh)

        error = forecast - observed
        means = {"mse": np.mean(error**2), "rmse": np.sqrt(np.mean(error**2)), "mae": np.mean(np.abs(error))}
        means |= {"mean_error": np.mean(error), "mean_forecast": np.mean(forecast), "mean_observed": np.mean(observed)}
        for name, value in means.items():
            assert scores.at(name, lead_min=lead_min) == pytest.approx(value), name


TABLE = {"accuracy": "ACC", "f1": "F1", "csi": "CSI", "far": "FAR", "hss": "HSS", "bias": "BIAS", "pod": "POD"}


def test_fss_is_pooled_over_windows_and_lead_times_as_pysteps_accumulates() -> None:
    spatialscores = pytest.importorskip("pysteps.verification.spatialscores")
    fields = [(rain(i, 2, 12, 10), rain(50 + i, 2, 12, 10)) for i in range(3)]
    scores = compute(merge(*(score_window(SMALL, window(i), f, o, None) for i, (f, o) in enumerate(fields))))
    for lead_min, leads in ((5, [0]), (10, [1]), (None, [0, 1])):
        for threshold_mmh in SMALL.thresholds_mmh:
            for scale_px in SMALL.scales_px:
                theirs = spatialscores.fss_init(threshold_mmh, scale_px)
                for forecast, observed in fields:
                    for lead in leads:
                        spatialscores.fss_accum(theirs, forecast[lead], observed[lead])
                ours = scores.at("fss", lead_min=lead_min, threshold_mmh=threshold_mmh, scale_px=scale_px)
                assert ours == pytest.approx(spatialscores.fss_compute(theirs), abs=1e-12)


def test_rain_on_a_threshold_is_no_event_and_negative_rain_is_scored_as_it_is() -> None:
    settings = Settings(leads_min=(5,), thresholds_mmh=(1.0,), scales_px=(1,))
    observed = np.array([[[1.0, np.nextafter(1.0, 2.0), 0.0]]])
    rows = score_window(settings, window(0), np.array([[[2.0, 1.0, -3.0]]]), observed, None)
    assert [getattr(rows, n).item() for n in ("hits", "false_alarms", "misses", "correct_negatives")] == [0, 1, 1, 1]
    assert rows.sum_error.item() == pytest.approx(-2.0)
    assert rows.forecast_histogram.sum() == 3


def test_histograms_count_every_valid_pixel_in_one_class() -> None:
    settings = Settings(leads_min=(5,), thresholds_mmh=(0.3, 0.5, 2.0), scales_px=(1,))
    forecast, observed = rain(1, 1, 40, 40) * 20, rain(2, 1, 40, 40) * 20
    forecast[0, 0, : len(RAIN_EDGES_MMH)] = RAIN_EDGES_MMH
    valid = np.random.default_rng(0).random((1, 40, 40)) < 0.9
    valid[0, 0] = True
    rows = score_window(settings, window(0), forecast, observed, valid)
    bounds = (-math.inf, *RAIN_EDGES_MMH, math.inf)
    for field, histogram in ((forecast, rows.forecast_histogram), (observed, rows.observed_histogram)):
        values = field[valid]
        expected = [int(((values > low) & (values <= high)).sum()) for low, high in pairwise(bounds)]
        assert histogram[0, 0].tolist() == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_forecast_that_is_not_finite_has_failed_and_shows(bad: float) -> None:
    forecast, observed = rain(1, 2, 12, 10), rain(2, 2, 12, 10)
    valid = np.random.default_rng(0).random((2, 12, 10)) < 0.8
    broken = np.zeros_like(valid)
    broken[1] = np.random.default_rng(1).random((12, 10)) < 0.3
    whole = score_window(SMALL, window(0), forecast, observed, valid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = score_window(SMALL, window(0), np.where(broken, bad, forecast), observed, valid)
        scores = compute(rows)
    failed = broken & valid
    assert rows.num_nonfinite[0].tolist() == [0, failed[1].sum()]
    assert rows.num_valid.tolist() == whole.num_valid.tolist()
    for k, threshold_mmh in enumerate(SMALL.thresholds_mmh):
        truth, guess = observed[1] > threshold_mmh, forecast[1] > threshold_mmh
        guess[failed[1]] = ~truth[failed[1]]
        here = valid[1]
        expected = [(guess & truth & here), (guess & ~truth & here), (~guess & truth & here), (~guess & ~truth & here)]
        names = ("hits", "false_alarms", "misses", "correct_negatives")
        assert [getattr(rows, name)[0, 1, k] for name in names] == [int(one.sum()) for one in expected]
    for name in ("mse", "mae", "mean_error", "mean_forecast"):
        assert np.isnan(scores.values[name]).tolist() == [False, True, True]
    assert np.isnan(scores.values["fss"][1:]).all()
    assert not np.isnan(scores.values["fss"][0]).any()
    assert not np.isnan(scores.values["mean_observed"]).any()
    assert rows.forecast_histogram[0, 1].sum() == (valid & ~broken)[1].sum()
    # Where the radar did not measure, nobody forecast anything that could fail.
    unseen = score_window(SMALL, window(0), np.where(valid, forecast, bad), observed, valid)
    assert same(unseen, whole)


def test_no_rain_at_all_and_no_valid_pixel_give_nan_without_a_warning() -> None:
    dry = np.zeros((2, 12, 10), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = compute(score_window(SMALL, window(0), dry, dry, None))
        blind = compute(score_window(SMALL, window(0), dry, dry, np.zeros(dry.shape, bool)))
        nothing = compute(take(scored(1), []))
    assert (scores.values["accuracy"] == 1).all()
    assert (scores.values["mse"] == 0).all()
    for name in ("precision", "recall", "pod", "f1", "csi", "far", "hss", "bias", "fss"):
        assert np.isnan(scores.values[name]).all(), name
    assert all(np.isnan(value).all() for value in (*blind.values.values(), *nothing.values.values()))


def test_published_protocol_is_the_last_frame_in_its_own_units() -> None:
    rows = merge(*(scored(i) for i in range(3)))
    scores = compute(rows)
    published = published_protocol(scores)
    assert published is not None
    assert published.lead_min == 10
    assert published.values["pmse"] == pytest.approx(scores.at("mse", lead_min=10) / 144)
    assert published.values["csi"] == scores.at("csi", lead_min=10, threshold_mmh=0.5)
    assert published.values["half_hss"] * 2 == scores.at("hss", lead_min=10, threshold_mmh=0.5)
    # TP TN - FN FP over (TP + FN)(FN + TN) + (TP + FP)(FP + TN), as SmaAt-UNet's code has it.
    tp, fn, fp, tn = (
        int(getattr(rows, n)[:, 1, 0].sum()) for n in ("hits", "misses", "false_alarms", "correct_negatives")
    )
    theirs = (tp * tn - fn * fp) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn))
    assert published.values["half_hss"] == pytest.approx(theirs, rel=1e-12)
    assert "frame at 10 min only" in published.label
    assert "half of the true one" in published.label
    without = Settings(leads_min=(5, 10), thresholds_mmh=(1.0,), scales_px=(1,))
    assert published_protocol(compute(scored(0, settings=without))) is None


@hypothesis_settings(max_examples=40)
@given(order=st.permutations(range(9)), cuts=st.lists(st.integers(0, 9), max_size=4))
def test_any_parts_in_any_order_merge_to_the_same_bits(order: Sequence[int], cuts: Sequence[int]) -> None:
    windows = [scored(i) for i in order]
    bounds = [0, *sorted(cuts), len(windows)]
    parts = [merge(*windows[a:b]) for a, b in pairwise(bounds) if a < b]
    whole = merge(*(scored(i) for i in range(9)))
    merged = merge(*parts)
    assert same(merged, whole)
    assert merged.windows == sorted(window(i) for i in range(9))
    for name, value in compute(merged).values.items():
        assert value.tobytes() == compute(whole).values[name].tobytes(), name


def turned(field_thw: Field) -> Field:
    """Lay the same values out column by column."""
    return field_thw.transpose(0, 2, 1).copy().transpose(0, 2, 1)


def test_layout_and_type_of_the_input_change_nothing() -> None:
    forecast, observed = rain(1, 2, 200, 150), rain(2, 2, 200, 150)
    valid = np.random.default_rng(0).random((2, 200, 150)) < 0.9
    for mask in (valid, None):
        rows = score_window(SMALL, window(0), forecast, observed, mask)
        assert same(rows, score_window(SMALL, window(0), turned(forecast), turned(observed), mask))
        single = score_window(SMALL, window(0), forecast.astype(np.float32), observed, mask)
        double = score_window(SMALL, window(0), forecast.astype(np.float32).astype(np.float64), observed, mask)
        assert same(single, double)


def test_rows_cannot_be_written_to() -> None:
    one = scored(0)
    with pytest.raises(ValueError, match="read-only"):
        one.hits[0] = 0


def test_windows_of_one_time_and_of_one_name_are_told_apart() -> None:
    fields = (rain(1, 2, 4, 4), rain(2, 2, 4, 4), None)
    ids = [WindowId(10, "b:0"), WindowId(10, "a:0"), WindowId(5, "b:0")]
    assert merge(*(score_window(SMALL, one, *fields) for one in ids)).windows == sorted(ids)


def test_a_file_of_rows_is_read_by_numpy(tmp_path: Path) -> None:
    rows = merge(*(scored(i) for i in range(3)))
    path = tmp_path / "rows" / "model.npz"
    rows.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["model.npz"]
    with np.load(path) as file:
        assert file["thresholds_mmh"].tolist() == [0.5, 2.0]
        for field in ("issue_s", "name", *FIELDS):
            np.testing.assert_array_equal(file[field], getattr(rows, field))
