"""Forecast probabilities beside what happened: counts a class of probability, and the scores made of them."""

from typing import Final

import numpy as np
import numpy.typing as npt

from .contingency import ratio
from .fss import FloatArray

NUM_CLASSES: Final = 20
"""Classes of forecasts that are probabilities alone, each 1/20 wide; the last one holds 1."""


def class_sums(probability_n: FloatArray, event_n: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[np.generic]]:
    """Count and sum up probabilities a class: the numbers that `probability_scores` reads, each (classes,).

    Args:
        probability_n: Forecast probability of the event, 0 to 1.
        event_n: Whether it was observed.
    """
    class_n = np.minimum((probability_n * NUM_CLASSES).astype(np.intp), NUM_CLASSES - 1)
    observed_n = class_n[event_n]
    return {
        "class_forecasts": np.bincount(class_n, minlength=NUM_CLASSES),
        "class_events": np.bincount(observed_n, minlength=NUM_CLASSES),
        "class_probability": np.bincount(class_n, probability_n, NUM_CLASSES),
        "class_squared": np.bincount(class_n, np.square(probability_n), NUM_CLASSES),
        "class_events_probability": np.bincount(observed_n, probability_n[event_n], NUM_CLASSES),
    }


def member_class_sums(sums: dict[str, FloatArray], members: int) -> dict[str, FloatArray]:
    """Complete the counts of an ensemble: its probabilities are shares of members, equal within a class.

    Args:
        sums: `class_forecasts` and `class_events`, (..., members + 1).
        members: Of the ensemble.
    """
    share = np.arange(members + 1) / members
    return {
        "class_forecasts": sums["class_forecasts"],
        "class_events": sums["class_events"],
        "class_probability": sums["class_forecasts"] * share,
        "class_squared": sums["class_forecasts"] * np.square(share),
        "class_events_probability": sums["class_events"] * share,
    }


def probability_scores(sums: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Compute the Brier score with its decomposition, the reliability table, and the ROC.

    Brier = reliability - resolution + uncertainty + within-class variance - within-class covariance: Stephenson, Coelho
    and Jolliffe (2008), Two extra components in the Brier score decomposition, doi:10.1175/2007WAF2006116.1, equation
    7. An ensemble's classes hold one probability each: their last two are 0.

    ROC: Mason (1982); its area by trapezoids is the chance that an event gets a higher probability than a non-event,
    equal ones counting half: Mason and Graham (2002), doi:10.1256/003590002320603584.

    Args:
        sums: As `class_sums` returns them, (..., classes).
    """
    forecasts, events = sums["class_forecasts"], sums["class_events"]
    number, num_events = forecasts.sum(axis=-1), events.sum(axis=-1)
    probability, frequency = ratio(sums["class_probability"], forecasts), ratio(events, forecasts)
    base_rate = ratio(num_events, number)

    # A class without a forecast adds nothing.
    def mean(each: FloatArray) -> FloatArray:
        return ratio(np.where(forecasts > 0, each, 0.0).sum(axis=-1), number)

    brier = mean(sums["class_squared"] - 2 * sums["class_events_probability"] + events)
    uncertainty = base_rate * (1 - base_rate)
    within = sums["class_squared"] - sums["class_probability"] * probability
    together = 2 * (sums["class_events_probability"] - events * probability)

    # Forecast where the class is this one or above: from the last class down.
    hit_rate = ratio(_from_above(events), num_events[..., None] + np.zeros_like(events))
    none = _from_above(forecasts - events)
    false_alarm_rate = ratio(none, (number - num_events)[..., None] + np.zeros_like(events))
    return {
        "num_events": num_events,
        "base_rate": base_rate,
        "brier": brier,
        "reliability": mean(forecasts * np.square(probability - frequency)),
        "resolution": mean(forecasts * np.square(frequency - base_rate[..., None])),
        "uncertainty": uncertainty,
        "within_variance": mean(within),
        "within_covariance": mean(together),
        "brier_skill": 1 - ratio(brier, uncertainty),
        "roc_area": _area(false_alarm_rate, hit_rate),
        "class_share": ratio(forecasts, number[..., None] + np.zeros_like(forecasts)),
        "class_probability": probability,
        "class_frequency": frequency,
        "roc_hit_rate": hit_rate,
        "roc_false_alarm_rate": false_alarm_rate,
    }


def fair_brier(sums: dict[str, FloatArray], brier: FloatArray, members: int) -> FloatArray:
    """Compute the Brier score that an ensemble of unlimited size would have: Ferro (2014), doi:10.1002/qj.2270.

    The plain one less the mean of k (m - k) / (m^2 (m - 1)); of one member it is the plain one.
    """
    if members == 1:
        return brier
    count = np.arange(members + 1)
    weights = count * (members - count) / (members**2 * (members - 1))
    return brier - ratio((sums["class_forecasts"] * weights).sum(axis=-1), sums["class_forecasts"].sum(axis=-1))


def _from_above(counts: FloatArray) -> FloatArray:
    """Sum up the classes from each one to the last."""
    return counts[..., ::-1].cumsum(axis=-1)[..., ::-1]


def _area(false_alarm_rate: FloatArray, hit_rate: FloatArray) -> FloatArray:
    """Integrate the hit rate over the false alarm rate by trapezoids, from (0, 0) to (1, 1)."""
    ends = [np.concatenate([rate, np.zeros_like(rate[..., :1])], axis=-1) for rate in (false_alarm_rate, hit_rate)]
    return -np.sum(np.diff(ends[0], axis=-1) * (ends[1][..., 1:] + ends[1][..., :-1]) / 2, axis=-1)
