"""Which windows of an evaluation are worth a picture, and the pictures' contents."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...data.errors import ConfigError
from ..pictures.forecasts import Case
from ..settings.evaluation import EvaluateConfig
from .contestants import WindowRain
from .plan import Plan

FloatArray = npt.NDArray[np.float64]
_WHY: Final = ("the most rain", "the largest change", "as much rain as the median")


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
    row_n = plan.rows(config.limit)
    issue_n = plan.issue_s(row_n)
    if config.case_times_s is None:
        return _telling(plan, row_n, issue_n)
    chosen: dict[int, Chosen] = {}
    for text, time_s in zip(config.cases or (), config.case_times_s, strict=True):
        place = int(np.argmin(np.abs(issue_n - time_s)))
        if issue_n[place] != time_s:
            nearest = datetime.fromtimestamp(int(issue_n[place]), UTC)
            raise ConfigError(
                f"cases: no scored forecast starts at {text}; the nearest one starts at {nearest:%Y-%m-%dT%H:%M}"
            )
        chosen[time_s] = Chosen(row=int(row_n[place]), why="chosen", issue_s=time_s)
    return list(chosen.values())


def _telling(plan: Plan, row_n: npt.NDArray[np.int64], issue_n: npt.NDArray[np.int64]) -> list[Chosen]:
    """Take the wettest window, the one that changes most, and a middling one: apart in time where that is possible."""
    wet, change = _rain_shares(plan, row_n)
    away = np.abs(wet - np.median(wet))
    window_s = (plan.frames_in + plan.frames_out) * plan.index.cadence_s
    free = np.ones(len(row_n), bool)
    chosen: list[Chosen] = []
    for why, worth in zip(_WHY, (wet, change, -away), strict=True):
        left = free & ~np.isin(issue_n, [one.issue_s for one in chosen])
        apart = left.copy()
        for one in chosen:
            apart &= np.abs(issue_n - one.issue_s) >= window_s
        left = apart if apart.any() else left
        if left.any():
            place = int(np.argmax(np.where(left, worth, -np.inf)))
            chosen.append(Chosen(row=int(row_n[place]), why=why, issue_s=int(issue_n[place])))
    return chosen


def _rain_shares(plan: Plan, row_n: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    """Give each window's mean share of rainy pixels in its future, and how far that moves from the last past frame."""
    table, wet, change = plan.table, np.zeros(len(row_n)), np.zeros(len(row_n))
    for number, row in enumerate(row_n.tolist()):
        shares = np.asarray(plan.index.sequences[int(table.sequence[row])].rain_fraction, np.float64)
        first = int(table.start[row]) + plan.frames_in
        future = shares[first : first + plan.frames_out]
        wet[number], change[number] = future.mean(), np.abs(future - shares[first - 1]).max()
    return wet, change


def case_of(plan: Plan, chosen: Chosen, window: WindowRain, forecasts: Mapping[str, npt.NDArray[np.floating]]) -> Case:
    """Put a window and its forecasts together for the pictures.

    Args:
        plan: The evaluation's.
        chosen: The window.
        window: Its rain.
        forecasts: By model, mm/h, (lead times, rows, cols).
    """
    return Case(
        radar_mmh_thw=_array(window.past_mmh_bthw),
        radar_valid_thw=_valid(window.past_mmh_bthw, window.past_valid_bthw),
        forecasts_mmh=forecasts,
        observed_mmh_thw=_array(window.future_mmh_bthw),
        observed_valid_thw=_valid(window.future_mmh_bthw, window.future_valid_bthw),
        reference_time_s=chosen.issue_s,
        cadence_s=plan.index.cadence_s,
        pixel_km=plan.index.grid.pixel_km,
    )


def _array(frames_bthw: Tensor) -> npt.NDArray[np.floating]:
    values: npt.NDArray[np.floating] = frames_bthw[0].numpy()
    return values


def _valid(frames_bthw: Tensor, valid_bthw: Tensor | None) -> npt.NDArray[np.bool_]:
    if valid_bthw is None:
        return np.ones(tuple(frames_bthw.shape[1:]), bool)
    values: npt.NDArray[np.bool_] = valid_bthw[0].numpy()
    return values
