"""Events forecast from probabilities: an ensemble as a forecaster of yes and no, from counts that are there already."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from ..verification.contingency import table_scores
from ..verification.ensemble import EnsembleRows
from ..verification.fss import FloatArray
from ..verification.reliability import NUM_CLASSES
from ..verification.rows import IntArray, Scores, Windowed

EVENT_COUNTS: Final = ("hits", "misses", "false_alarms", "correct_negatives")
MEAN: Final = "mean"
TENTHS: Final = range(1, 10)
"""Thresholds of probability: p>0.1 to p>0.9."""


def product_name(ensemble: str, product: str) -> str:
    """Name what is made of an ensemble among the single fields."""
    return f"{ensemble} {product}"


@dataclass(frozen=True, kw_only=True, eq=False)
class EventRows(Windowed[Scores]):
    """Counts of events that are forecast where their probability is high enough; no rain rates, and so no errors.

    Attributes:
        counts: By the names of EVENT_COUNTS, (windows, lead times, thresholds).
    """

    counts: Mapping[str, npt.NDArray[np.int64]]

    @property
    def numbers(self) -> Mapping[str, npt.NDArray[Any]]:
        """The counts by name."""
        return self.counts

    def having(self, issue_s: IntArray, name: npt.NDArray[np.str_], numbers: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Make rows of the same model for other windows."""
        return replace(self, issue_s=issue_s, name=name, counts=numbers)

    def scores_of_sums(self, sums: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Compute the scores of the contingency table, with one more lead time: all of them pooled."""
        return table_scores(
            *(np.concatenate([sums[name], sums[name].sum(axis=1, keepdims=True)], axis=1) for name in EVENT_COUNTS)
        )

    def scores(self, values: Mapping[str, FloatArray]) -> Scores:
        """Put scores beside what was scored."""
        return Scores(settings=self.settings, values=values)


def event_products(rows: EnsembleRows) -> dict[str, EventRows]:
    """Forecast rain above each threshold where its probability is above 0.1, 0.2 and so on, by "p>0.1" and so on.

    Of an ensemble the probability is the share of its members. Probabilities alone are counted in classes that begin at
    multiples of 1/20: one that is 0.3 exactly counts as above it.

    Args:
        rows: Of the ensemble or of the probabilities.
    """
    forecasts, events = rows.sums["class_forecasts"], rows.sums["class_events"]
    # From each class up: pixels that would be forecast if it were the lowest one that is enough.
    above, hits_above = (np.flip(np.flip(each, -1).cumsum(axis=-1), -1) for each in (forecasts, events))
    products = {}
    for tenth in TENTHS:
        lowest = tenth * NUM_CLASSES // 10 if rows.members == 0 else tenth * rows.members // 10 + 1
        hits, forecast = hits_above[..., lowest], above[..., lowest]
        # All that rained was forecast by the lowest class; what is left of each is the rest of the table.
        misses = hits_above[..., 0] - hits
        false_alarms = forecast - hits
        counts = {
            "hits": hits,
            "misses": misses,
            "false_alarms": false_alarms,
            "correct_negatives": above[..., 0] - hits - misses - false_alarms,
        }
        products[f"p>0.{tenth}"] = EventRows(
            settings=rows.settings, issue_s=rows.issue_s, name=rows.name, counts=counts
        )
    return products
