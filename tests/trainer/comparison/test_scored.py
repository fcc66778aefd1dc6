"""Which products of ensembles are shown, what all are compared with, and that pairs share their resamples."""

import numpy as np

from rainspark.trainer.comparison.scored import rain_rows, score_ensembles, score_models, shown_lines
from rainspark.trainer.verification.intervals import resample
from rainspark.trainer.verification.rows import compute
from tests.trainer.evaluation.cases import ENSEMBLES, FIELDS, SETTINGS, ensemble_evaluation

MODELS = {"first": FIELDS["sprog"], "ours mean": FIELDS["ours mean"], "steps mean": FIELDS["steps mean"]}


def test_events_stand_behind_the_mean_of_their_ensemble_and_probabilities_at_the_end() -> None:
    scored = score_models(MODELS, ENSEMBLES, num_draws=20)
    events = [f"p>0.{tenth}" for tenth in range(1, 10)]
    expected = ["first", "ours mean", *(f"ours {p}" for p in events), "steps mean", *(f"steps {p}" for p in events)]
    assert [model.name for model in scored] == [*expected, *(f"stated {p}" for p in events)]
    assert list(rain_rows(scored)) == ["first", "ours mean", "steps mean"]
    assert {model.ensemble for model in scored} == {None, "ours", "steps", "stated"}
    assert [model.product for model in scored[:3]] == [None, "mean", "p>0.1"]


def test_of_each_ensemble_the_events_of_the_highest_csi_are_shown_at_every_threshold() -> None:
    scored = score_models(MODELS, ENSEMBLES, num_draws=20)
    lines = shown_lines(scored)
    assert list(lines) == ["first", "ours mean", "ours best p", "steps mean", "steps best p", "stated best p"]
    for ensemble in ENSEMBLES:
        events = [model for model in scored if model.ensemble == ensemble and model.product != "mean"]
        assert list(lines[f"{ensemble} best p"]) == list(SETTINGS.thresholds_mmh)
        for threshold_mmh in SETTINGS.thresholds_mmh[:2]:
            csi = {model.name: compute(model.rows).at("csi", threshold_mmh=threshold_mmh) for model in events}
            shown = lines[f"{ensemble} best p"][threshold_mmh]
            assert csi[shown.name] == max(csi.values())
            assert [model.name for model in events if threshold_mmh in model.shown_at] == [shown.name]
    # What is not shown has intervals all the same, and no draws that take memory.
    hidden = [model for model in scored if not model.shown_at]
    assert hidden
    assert {model.draws for model in hidden} == {None}
    assert all(model.interval.num_draws == 20 for model in hidden)


def test_an_ensemble_that_all_are_compared_with_stands_for_its_mean() -> None:
    scored = {model.name: model for model in score_models(MODELS, ENSEMBLES, compare_to="ours", num_draws=20)}
    assert scored["ours mean"].difference is None
    difference = scored["first"].difference
    assert difference is not None
    expected = compute(MODELS["first"]).values["csi"] - compute(MODELS["ours mean"]).values["csi"]
    np.testing.assert_array_equal(difference.value["csi"], expected)
    assert scored["steps p>0.5"].difference is not None


def test_fields_and_ensembles_are_resampled_alike() -> None:
    evaluation = ensemble_evaluation()
    ours, block_s = evaluation.ensembles[0], evaluation.scored[0].interval.block_s
    drawn = resample(ENSEMBLES["ours"], num_draws=50, block_s=block_s)
    assert drawn.draws is not None
    figure = ours.figure("crps_fair", lead_min=30, pool_px=4)
    np.testing.assert_array_equal(np.asarray(figure.draws), drawn.draws["crps_fair"][:, 1, 1])
    field = evaluation.scored[0].figure("fss", lead_min=30, threshold_mmh=2.0, scale_px=5)
    of_field = resample(evaluation.scored[0].rows, num_draws=50, block_s=block_s).draws
    assert of_field is not None
    np.testing.assert_array_equal(np.asarray(field.draws), of_field["fss"][:, 1, 1, 1])
    # Lists are drawn and not resampled.
    assert ours.draws is not None
    assert not {"rank_share", "class_frequency", "psd_members_dbr"} & set(ours.draws)
    assert {"rank_share", "class_frequency", "psd_members_dbr"} <= set(ours.scores.values)
    assert score_ensembles({}) == []
