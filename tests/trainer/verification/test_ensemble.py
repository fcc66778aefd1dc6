"""Scores of ensembles: scoringrules and plain means as oracles, what fails, and exact merging."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scoringrules
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rainspark.trainer.verification.ensemble import EnsembleRows, compute, merge, score_members, score_probabilities
from rainspark.trainer.verification.ensemble_scores import ENSEMBLE_AXES
from rainspark.trainer.verification.rows import Settings, WindowId

SMALL = Settings(leads_min=(5, 10), thresholds_mmh=(0.5, 2.0), scales_px=(1, 4))
NOON_S = 1_600_000_200
Field = npt.NDArray[np.floating]


def rain(seed: int, *shape: int) -> Field:
    """Draw rain in steps of 0.25 mm/h, half of it dry: members and radar tie often."""
    rng = np.random.default_rng(seed)
    return np.round(rng.gamma(0.5, 4.0, shape) * (rng.random(shape) < 0.5) * 4) / 4


def window(number: int) -> WindowId:
    """Name the window that is issued so many hours after noon."""
    return WindowId(NOON_S + 3600 * number, f"seq{number % 3}:{number}")


def scored(number: int, members: int = 5, share_valid: float = 0.9) -> EnsembleRows:
    """Score a random window."""
    valid = np.random.default_rng([number, 7]).random((2, 20, 18)) < share_valid
    ensemble, observed = rain(1000 + number, members, 2, 20, 18), rain(number, 2, 20, 18)
    return score_members(SMALL, window(number), ensemble, observed, valid)


def same(one: EnsembleRows, other: EnsembleRows) -> bool:
    """Tell whether rows are equal to the bit."""
    arrays = [{"issue_s": rows.issue_s, "name": rows.name, **rows.numbers} for rows in (one, other)]
    return (one.settings, one.members) == (other.settings, other.members) and all(
        arrays[0][field].tobytes() == arrays[1][field].tobytes() for field in arrays[0]
    )


@pytest.mark.parametrize("share_valid", [1.0, 0.8])
@pytest.mark.parametrize("members", [1, 2, 5, 8])
def test_crps_equals_scoringrules(members: int, share_valid: float) -> None:
    ensemble, observed = rain(1, members, 2, 30, 20), rain(2, 2, 30, 20)
    valid = np.random.default_rng(0).random((2, 30, 20)) < share_valid
    scores = compute(score_members(SMALL, window(0), ensemble, observed, valid))
    for lead, lead_min in ((0, 5), (1, 10), (slice(None), None)):
        y, x = observed[lead][valid[lead]], np.moveaxis(ensemble[:, lead][:, valid[lead]], 0, -1)
        plain = scoringrules.crps_ensemble(y, x, estimator="nrg").mean()
        fair = (
            np.abs(x - y[:, None]).mean() if members == 1 else scoringrules.crps_ensemble(y, x, estimator="fair").mean()
        )
        assert scores.at("crps", lead_min=lead_min) == pytest.approx(plain, abs=1e-12)
        assert scores.at("crps_fair", lead_min=lead_min) == pytest.approx(fair, abs=1e-12)
        for threshold_mmh in SMALL.thresholds_mmh:
            theirs = scoringrules.twcrps_ensemble(y, x, a=threshold_mmh, estimator="nrg").mean()
            ours = scores.at("twcrps", lead_min=lead_min, threshold_mmh=threshold_mmh)
            assert ours == pytest.approx(theirs, abs=1e-12)


def test_one_member_repeated_has_its_absolute_error_as_crps() -> None:
    forecast, observed = rain(1, 1, 2, 20, 18), rain(2, 2, 20, 18)
    error = np.abs(forecast[0] - observed).mean()
    for members in (1, 2, 7):
        scores = compute(score_members(SMALL, window(0), forecast.repeat(members, axis=0), observed, None))
        assert scores.at("crps") == pytest.approx(error, rel=1e-14)
        assert scores.at("crps_fair") == pytest.approx(error, rel=1e-14)
        assert np.isnan(scores.at("spread")) if members == 1 else scores.at("spread") == 0


def test_every_score_is_listed_with_its_axes() -> None:
    values = compute(scored(0)).values
    assert set(values) == set(ENSEMBLE_AXES)
    lengths = {"l": 3, "t": 2, "s": 2, "p": 3, "k": 6, "r": 6, "w": 18}
    for score, value in values.items():
        assert value.shape == tuple(lengths[axis] for axis in ENSEMBLE_AXES[score]), score
    probabilities = score_probabilities(SMALL, window(0), rain(3, 2, 2, 8, 8) / 99, rain(4, 2, 8, 8), None)
    assert set(compute(probabilities).values) <= set(ENSEMBLE_AXES)


@hypothesis_settings(max_examples=20)
@given(order=st.permutations(range(6)), cuts=st.lists(st.integers(0, 6), max_size=4))
def test_any_pieces_in_any_order_merge_to_the_same_bits(order: Sequence[int], cuts: Sequence[int]) -> None:
    windows = [scored(i) for i in order]
    pieces = [merge(*windows[a:b]) for a, b in pairwise([0, *sorted(cuts), len(windows)]) if a < b]
    whole = merge(*(scored(i) for i in range(6)))
    assert same(merge(*pieces), whole)
    assert whole.windows == sorted(window(i) for i in range(6))


@given(order=st.permutations(range(5)))
def test_members_are_exchangeable_to_the_bit(order: Sequence[int]) -> None:
    ensemble, observed = rain(1, 5, 2, 20, 18), rain(2, 2, 20, 18)
    one = score_members(SMALL, window(0), ensemble, observed, None)
    assert same(one, score_members(SMALL, window(0), ensemble[list(order)], observed, None))


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    probabilities = score_probabilities(SMALL, window(0), rain(3, 2, 2, 8, 8) / 99, rain(4, 2, 8, 8), None)
    for rows in (merge(scored(0), scored(1)), probabilities):
        rows.save(tmp_path / "rows.npz")
        assert same(EnsembleRows.load(tmp_path / "rows.npz"), rows)
    (tmp_path / "rows.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"rows\.npz: not the sums"):
        EnsembleRows.load(tmp_path / "rows.npz")
