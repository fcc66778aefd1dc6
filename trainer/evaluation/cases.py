"""Which windows of an evaluation are worth a picture, and the pictures' contents."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from ...data.errors import ConfigError
from ..settings.evaluation import EvaluateConfig
from .plan import Plan

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A window to draw.

    Attributes:
        row: Of the window table.
        why: In a few words.
        issue_s: End of its last past frame, epoch seconds.
    """

    row: int
    why: str
    issue_s: int

    @property
    def stem(self) -> str:
        """Name its files, without an ending."""
        return f"case-{datetime.fromtimestamp(self.issue_s, UTC):%Y%m%dT%H%MZ}"


def choose_cases(plan: Plan, config: EvaluateConfig) -> list[Chosen]:
    """Choose the windows to draw among the scored ones, each once.

    Raises:
        ConfigError: A stated time at which no scored window's forecast starts, with the nearest one.
    """
    row_n = plan.row_n
    issue_n = plan.issue_s[row_n]
    if config.case_times_s is None:
        return _choose_typical(plan, row_n, issue_n)

    # Stated times: each must be the issue time of a scored window.
    chosen: dict[int, Chosen] = {}
    for text, time_s in zip(config.cases or (), config.case_times_s, strict=True):
        at = int(np.argmin(np.abs(issue_n - time_s)))
        if issue_n[at] != time_s:
            nearest = datetime.fromtimestamp(int(issue_n[at]), UTC)
            raise ConfigError(
                f"cases: no scored forecast starts at {text}; the nearest one starts at {nearest:%Y-%m-%dT%H:%M}"
            )
        chosen[time_s] = Chosen(row=int(row_n[at]), why="chosen", issue_s=time_s)
    return list(chosen.values())


def _choose_typical(plan: Plan, row_n: npt.NDArray[np.int64], issue_n: npt.NDArray[np.int64]) -> list[Chosen]:
    """Take the wettest window, the one that changes most, and a middling one: apart in time where that is possible."""
    wet, change = _rain_shares(plan, row_n)
    window_s = (plan.frames_in + plan.frames_out) * plan.index.cadence_s
    # What makes a window worth a picture, by the reason that is given for it.
    worths = {
        "the most rain": wet,
        "the largest change": change,
        "as much rain as the median": -np.abs(wet - np.median(wet)),
    }
    chosen: list[Chosen] = []
    for why, worth in worths.items():
        distances_s = [np.abs(issue_n - case.issue_s) for case in chosen]
        nearest_s = np.min(distances_s, axis=0) if chosen else np.full(len(row_n), window_s)
        # At least not the same window, and best one that shares no frame with another.
        candidates = nearest_s >= window_s if (nearest_s >= window_s).any() else nearest_s > 0
        if candidates.any():
            at = int(np.argmax(np.where(candidates, worth, -np.inf)))
            chosen.append(Chosen(row=int(row_n[at]), why=why, issue_s=int(issue_n[at])))
    return chosen


def _rain_shares(plan: Plan, row_n: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    """Give each window's mean share of rainy pixels in its future, and how far that moves from the last past frame."""
    table = plan.table
    wet = np.zeros(len(row_n))
    change = np.zeros(len(row_n))
    for number, row in enumerate(row_n.tolist()):
        shares = np.asarray(plan.index.sequences[int(table.sequence[row])].rain_fraction, np.float64)
        # The index holds the share of rainy pixels of every frame: nothing is decoded here.
        first = int(table.start[row]) + plan.frames_in
        future = shares[first : first + plan.frames_out]
        wet[number] = future.mean()
        change[number] = np.abs(future - shares[first - 1]).max()
    return wet, change
