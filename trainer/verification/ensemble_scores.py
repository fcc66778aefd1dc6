"""The scores of ensembles and of forecast probabilities, made of sums over windows."""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from .contingency import ratio
from .fss import FloatArray
from .reliability import fair_brier, member_class_sums, probability_scores

_POOLED: Final = ("crps", "crps_fair", "spread", "mean_rmse", "spread_skill")
_THRESHOLDS: Final = (
    *("num_events", "base_rate", "brier", "brier_fair", "reliability", "resolution", "uncertainty"),
    *("within_variance", "within_covariance", "brier_skill", "roc_area", "twcrps", "twcrps_fair"),
)
_CLASSES: Final = ("class_share", "class_probability", "class_frequency", "roc_hit_rate", "roc_false_alarm_rate")
_BANDS: Final = tuple(
    f"psd_{name}_{unit}"
    for unit in ("dbr", "mmh")
    for name in ("observed", "members", "mean", "ratio_members", "ratio_mean")
)

ENSEMBLE_AXES: Final[Mapping[str, str]] = {
    **dict.fromkeys(_POOLED, "lp"),
    **dict.fromkeys(_THRESHOLDS, "lt"),
    "fss_probability": "lts",
    **dict.fromkeys(_CLASSES, "ltk"),
    **dict.fromkeys(("rank_distance", "rank_distance_wet"), "l"),
    **dict.fromkeys(("rank_share", "rank_share_wet"), "lr"),
    **dict.fromkeys(_BANDS, "lw"),
}
"""The scores and their axes: l(ead times) and one more place for all of them pooled, t(hresholds), s(cales of the FSS),
p(ools: trainer.verification.crps.POOLS_PX), k (classes of probability), r(anks 0 to members), w(avelength bands
between trainer.verification.spectrum.WAVELENGTH_EDGES_PX)."""


def scores_of_ensemble_sums(sums: Mapping[str, FloatArray], members: int) -> dict[str, FloatArray]:
    """Compute scores of sums over windows.

    Args:
        sums: By the names of trainer.verification.ensemble.EnsembleRows, with one more axis in front: (n, lead times,
            ...).
        members: Of the ensemble; 0: probabilities alone, which have the scores of probabilities and no other.

    Returns:
        By the names of ENSEMBLE_AXES, (n, lead times + 1, ...).
    """
    # All lead times pooled are one more lead time.
    pooled = {field: np.concatenate([each, each.sum(axis=1, keepdims=True)], axis=1) for field, each in sums.items()}
    if members == 0:
        return probability_scores(pooled)

    probabilities = probability_scores(member_class_sums(pooled, members))
    num_valid, num_blocks = pooled["num_valid"], pooled["num_blocks"]
    crps = _crps(pooled["crps_error"], pooled["crps_pairs"], num_blocks, members, "crps")
    weighted = _crps(
        pooled["twcrps_error"],
        pooled["twcrps_pairs"],
        np.broadcast_to(num_valid[..., None], pooled["twcrps_error"].shape),
        members,
        "twcrps",
    )
    return {
        **crps,
        **_spread(ratio(pooled["variance"], num_blocks), ratio(pooled["mean_squared_error"], num_blocks), members),
        **probabilities,
        "brier_fair": fair_brier(pooled, probabilities["brier"], members),
        **weighted,
        "fss_probability": 1 - ratio(pooled["fss_numerator"], pooled["fss_denominator"]),
        **_ranks(pooled["ranks"], pooled["num_nonfinite"], members, ""),
        **_ranks(pooled["ranks_wet"], pooled["num_nonfinite"], members, "_wet"),
        **_spectra(pooled),
    }


def _crps(error: FloatArray, pairs: FloatArray, number: FloatArray, members: int, name: str) -> dict[str, FloatArray]:
    """Compute the CRPS as it is and fair; of one member both are its absolute error."""
    fair = ratio(error - pairs / max(members * (members - 1), 1), number)
    return {name: ratio(error - pairs / members**2, number), f"{name}_fair": fair}


def _spread(variance: FloatArray, squared_error: FloatArray, members: int) -> dict[str, FloatArray]:
    """Compute spread, skill and their ratio, which is 1 where members and radar cannot be told apart.

    Spread is the root of the mean unbiased variance, skill the root mean squared error of the mean, and their ratio
    sqrt((m + 1) / m) spread / skill: Fortin and others (2014), Why should ensemble spread match the RMSE of the
    ensemble mean?, equation 15, doi:10.1175/JHM-D-14-0008.1.
    """
    spread, rmse = np.sqrt(variance), np.sqrt(squared_error)
    return {
        "spread": spread,
        "mean_rmse": rmse,
        "spread_skill": math.sqrt((members + 1) / members) * ratio(spread, rmse),
    }


def _ranks(counts: FloatArray, num_failed: FloatArray, members: int, suffix: str) -> dict[str, FloatArray]:
    """Compute the shares of the ranks and their distance from flat, 0 to 2; NaN where a forecast has failed.

    Distance: the sum over ranks of |share - 1 / (m + 1)|, the reliability index of Delle Monache and others (2006),
    doi:10.1029/2005JD006917.
    """
    shares = ratio(counts, counts.sum(axis=-1, keepdims=True) + np.zeros_like(counts))
    shares = np.where(num_failed[..., None] > 0, math.nan, shares)
    return {f"rank_share{suffix}": shares, f"rank_distance{suffix}": np.abs(shares - 1 / (members + 1)).sum(axis=-1)}


def _spectra(pooled: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Compute mean spectral densities, and those of members and of their mean over that of the radar."""
    scores: dict[str, FloatArray] = {}
    for unit in ("dbr", "mmh"):
        density = {
            name: ratio(pooled[f"psd_{name}_{unit}"], pooled["spectrum_frames"])
            for name in ("observed", "members", "mean")
        }
        scores |= {f"psd_{name}_{unit}": value for name, value in density.items()}
        for name in ("members", "mean"):
            scores[f"psd_ratio_{name}_{unit}"] = ratio(density[name], density["observed"])
    return scores
