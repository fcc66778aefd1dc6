"""Verification of rain forecasts: exact counts and sums for every window and lead time, and the scores made of them.

A window's numbers depend on that window only, merging is the union of windows, and sums go in the order of windows: so
scores are the same for any number of processes, any batch size, and any order of merging.
"""

import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ...data.store.storage import open_storage
from ...data.units import INTERVALS_AN_HOUR
from ..settings.evaluation import PUBLISHED_THRESHOLD_MMH
from .contingency import SCORE_AXES, count_lead, scores_of_sums
from .crps import POOLS_PX
from .fss import FloatArray

IntArray = npt.NDArray[np.int64]

DAY_S: Final = 86400
_SCHEMA: Final = 1
_LISTS: Final = ("leads_min", "thresholds_mmh", "scales_px")
ScoresT = TypeVar("ScoresT", covariant=True)
RowsT = TypeVar("RowsT", bound="Windowed[Any]")


class WindowId(NamedTuple):
    """What a window is known by; windows are sorted by it.

    Attributes:
        issue_s: End of the last input frame, seconds since 1970 UTC: when the forecast could be issued.
        name: Sequence and start, "KEY:start".
    """

    issue_s: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is scored.

    An event is rain ABOVE a threshold (rain > threshold, in float64). KNMI's rain comes in steps of 0.12 mm/h, so that
    none of the default thresholds lies on a step.

    Args:
        leads_min: Lead times in minutes, rising.
        thresholds_mmh: Thresholds in mm/h, rising, above 0.
        scales_px: Sides of the FSS' neighbourhoods in pixels, rising, 1 or more.
    """

    leads_min: tuple[float, ...]
    thresholds_mmh: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
    scales_px: tuple[int, ...] = (1, 5, 17, 33)

    def to_json(self) -> dict[str, list[float]]:
        """Give the lists as plain values."""
        return {name: list(getattr(self, name)) for name in _LISTS}

    @classmethod
    def from_arrays(cls, contents: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Read the lists of an .npz."""
        return cls(
            leads_min=tuple(contents["leads_min"].tolist()),
            thresholds_mmh=tuple(contents["thresholds_mmh"].tolist()),
            scales_px=tuple(contents["scales_px"].astype(int).tolist()),
        )

    def position(
        self,
        axes: str,
        *,
        lead_min: float | None = None,
        threshold_mmh: float | None = None,
        scale_px: int | None = None,
        pool_px: int = 1,
    ) -> tuple[int, ...]:
        """Find one score, or its list, in an array of axes such as "lts"; without a lead time, that of all pooled."""
        # The last place of the first axis is all lead times pooled; not every score has the other axes.
        position = [-1 if lead_min is None else self.leads_min.index(lead_min)]
        if "t" in axes:
            position.append(self.thresholds_mmh.index(threshold_mmh))
        if "s" in axes:
            position.append(self.scales_px.index(scale_px))
        if "p" in axes:
            position.append(POOLS_PX.index(pool_px))
        return tuple(position)


@dataclass(frozen=True, kw_only=True, eq=False)
class Windowed(ABC, Generic[ScoresT]):
    """Counts and sums: a row a window, sorted by window, each window once; arrays cannot be written to.

    Args:
        settings: What was scored.
        issue_s: Of the windows' ids, (windows,).
        name: Of the windows' ids, (windows,).
    """

    settings: Settings
    issue_s: IntArray
    name: npt.NDArray[np.str_]

    def __post_init__(self) -> None:
        """Protect the arrays: models, intervals and tables share them."""
        for array in (self.issue_s, self.name, *self.numbers.values()):
            array.flags.writeable = False

    def __len__(self) -> int:
        """Count the windows."""
        return len(self.issue_s)

    @property
    def windows(self) -> list[WindowId]:
        """The windows' ids, sorted."""
        return [WindowId(*both) for both in zip(self.issue_s.tolist(), self.name.tolist(), strict=True)]

    @property
    def day(self) -> IntArray:
        """The UTC day on which each window was issued, days since 1970, (windows,)."""
        return self.issue_s // DAY_S

    @property
    @abstractmethod
    def numbers(self) -> Mapping[str, npt.NDArray[Any]]:
        """The counts and sums by name, (windows, lead times, ...)."""

    @abstractmethod
    def having(self, issue_s: IntArray, name: npt.NDArray[np.str_], numbers: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Make rows of the same model for other windows."""

    @abstractmethod
    def scores_of_sums(self, sums: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Compute scores, (n, lead times + 1, ...), of sums with one more axis in front, (n, lead times, ...)."""

    @abstractmethod
    def scores(self, values: Mapping[str, FloatArray]) -> ScoresT:
        """Put scores beside what was scored."""

    def _save(self, path: Path, schema: int, **contents: Any) -> None:
        """Write an .npz of plain arrays by their names here, with the settings; it appears whole or not at all."""
        contents = {"schema": np.int64(schema), **contents, **self.settings.to_json()}
        contents |= {"issue_s": self.issue_s, "name": self.name, **self.numbers}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **contents)
        open_storage(path.parent).write(path.name, buffer.getvalue())


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows(Windowed["Scores"]):
    """Counts and sums of one model.

    Args:
        num_valid: Pixels that the radar measured, (windows, lead times) like the next six.
        num_nonfinite: Of those, pixels without a finite forecast: failed forecasts. Such a pixel is a miss where the
            event was observed and a false alarm where it was not, it is in no histogram, and it makes the sums of
            errors and of the forecast, and the FSS of its window and lead time, NaN.
        sum_error: Sum of forecast less observed over the valid pixels, mm/h.
        sum_squared_error: Sum of its square, (mm/h)^2.
        sum_absolute_error: Sum of its amount, mm/h.
        sum_forecast: Sum of the forecast, mm/h.
        sum_observed: Sum of the observed rain, mm/h.
        hits: Event forecast and observed, (windows, lead times, thresholds) like the next three.
        misses: Event observed, not forecast.
        false_alarms: Event forecast, not observed.
        correct_negatives: Neither.
        fss_numerator: Sum of (F - O)^2, (windows, lead times, thresholds, scales); see trainer.fss.
        fss_denominator: Sum of F^2 + O^2, the same shape.
        forecast_histogram: Pixels in each class between RAIN_EDGES_MMH (above the lower bound, up to the upper one),
            below the first and above the last, (windows, lead times, classes).
        observed_histogram: The same of the radar.
    """

    num_valid: IntArray
    num_nonfinite: IntArray
    sum_error: FloatArray
    sum_squared_error: FloatArray
    sum_absolute_error: FloatArray
    sum_forecast: FloatArray
    sum_observed: FloatArray
    hits: IntArray
    misses: IntArray
    false_alarms: IntArray
    correct_negatives: IntArray
    fss_numerator: FloatArray
    fss_denominator: FloatArray
    forecast_histogram: IntArray
    observed_histogram: IntArray

    @property
    def numbers(self) -> Mapping[str, npt.NDArray[Any]]:
        """The counts and sums by name, (windows, lead times, ...)."""
        return {field: getattr(self, field) for field in FIELDS}

    def having(self, issue_s: IntArray, name: npt.NDArray[np.str_], numbers: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Make rows of the same model for other windows."""
        return type(self)(settings=self.settings, issue_s=issue_s, name=name, **numbers)

    def scores_of_sums(self, sums: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Compute the scores of trainer.verification.contingency.SCORE_AXES."""
        return scores_of_sums(sums)

    def scores(self, values: Mapping[str, FloatArray]) -> "Scores":
        """Put scores beside what was scored."""
        return Scores(settings=self.settings, values=values)

    def save(self, path: Path) -> None:
        """Write an .npz of plain arrays by their names here, with the settings; it appears whole or not at all."""
        self._save(path, _SCHEMA)

    @classmethod
    def load(cls, path: Path) -> "Rows":
        """Read what `save` has written.

        Raises:
            ValueError: It is no such file.
            OSError: It cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as contents:
                if int(contents["schema"]) != _SCHEMA:
                    raise ValueError(f"{path}: schema {contents['schema']}; expected {_SCHEMA}")
                return cls(
                    settings=Settings.from_arrays(contents), **{name: contents[name] for name in (*ID_FIELDS, *FIELDS)}
                )
        except (KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not the scores of windows: {error}") from error


ID_FIELDS: Final = ("issue_s", "name")
FIELDS: Final = tuple(field.name for field in fields(Rows) if field.name not in ("settings", *ID_FIELDS))
"""Numbers of a window."""


def score_window(
    settings: Settings,
    window: WindowId,
    forecast_mmh_thw: npt.NDArray[np.floating],
    observed_mmh_thw: npt.NDArray[np.floating],
    valid_thw: npt.NDArray[np.bool_] | None,
) -> Rows:
    """Count and sum up one window's forecast: pure numpy in float64, so that nothing depends on batches or ranks.

    Args:
        settings: What is scored.
        window: The window.
        forecast_mmh_thw: Rain in mm/h, (lead times, rows, cols). Negative rain is scored as it is.
        observed_mmh_thw: Rain in mm/h, finite where valid, the same shape.
        valid_thw: True where the radar measured, the same shape; None: everywhere.
    """
    # Lead time by lead time, in float64, so that no sum depends on the type of the input.
    leads: list[dict[str, Any]] = []
    for lead in range(len(settings.leads_min)):
        valid_hw = None if valid_thw is None or valid_thw[lead].all() else valid_thw[lead]
        # In C order: sums go in the order of memory.
        forecast_hw = forecast_mmh_thw[lead].astype(np.float64, order="C")
        observed_hw = observed_mmh_thw[lead].astype(np.float64, order="C")
        leads.append(count_lead(forecast_hw, observed_hw, valid_hw, settings.thresholds_mmh, settings.scales_px))
    arrays = {field: np.array([[lead[field] for lead in leads]]) for field in FIELDS}
    return Rows(settings=settings, issue_s=np.array([window.issue_s]), name=np.array([window.name]), **arrays)


def merge(*pieces: RowsT) -> RowsT:
    """Unite pieces scored with the same settings, whatever their order; each window stands in one of them."""
    issue_s, name = (np.concatenate([getattr(piece, field) for piece in pieces]) for field in ID_FIELDS)
    # Sums go in the order of windows, so that they are the same to the last bit however the windows were dealt out.
    order = np.lexsort((name, issue_s))
    numbers = {field: np.concatenate([piece.numbers[field] for piece in pieces])[order] for field in pieces[0].numbers}
    return pieces[0].having(issue_s[order], name[order], numbers)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores of one model.

    Args:
        settings: What was scored.
        values: By name, with axes as SCORE_AXES lists them: (lead times + 1, thresholds, scales) or the first of these;
            the last place of the first axis is all lead times pooled. Errors in mm/h, `mse` in (mm/h)^2. NaN where a
            score does not exist (0/0) or, of errors and FSS, where a forecast was not finite.
    """

    axes: ClassVar[Mapping[str, str]] = SCORE_AXES
    settings: Settings
    values: Mapping[str, FloatArray]

    def position(self, score: str, **where: Any) -> tuple[int, ...]:
        """Find one score, or its list, as `Settings.position` does."""
        return self.settings.position(self.axes[score], **where)

    def at(self, score: str, **where: Any) -> Any:
        """Look up one score, or its list, at a `position`."""
        return self.values[score][self.position(score, **where)]


def compute(rows: Windowed[ScoresT]) -> ScoresT:
    """Compute all scores over all windows, summed in the order of windows; an empty selection gives NaN."""
    return rows.scores(values_of(rows))


def values_of(rows: Windowed[Any]) -> dict[str, FloatArray]:
    """Compute all scores over all windows, by name."""
    sums = {field: array.sum(axis=0)[None].astype(np.float64) for field, array in rows.numbers.items()}
    return {score: value[0] for score, value in rows.scores_of_sums(sums).items()}


@dataclass(frozen=True, kw_only=True)
class PublishedProtocol:
    """Scores as SmaAt-UNet's code computes them (see `label`), at the last frame's lead time.

    Args:
        values: `pmse` in (mm per 5 min)^2 a pixel, `accuracy`, `precision`, `recall`, `f1`, `csi`, `far`, `half_hss`.
    """

    lead_min: float
    values: Mapping[str, float]

    @property
    def label(self) -> str:
        """Describe these scores, wherever they are shown."""
        return (
            f"SmaAt-UNet's protocol: the frame at {self.lead_min:g} min only, threshold {PUBLISHED_THRESHOLD_MMH:g} "
            "mm/h, pMSE in (mm per 5 min)^2, HSS without its factor 2 (half of the true one)"
        )


def published_protocol(scores: Scores) -> PublishedProtocol | None:
    """Pick out the scores of SmaAt-UNet's protocol; None where its threshold is not scored."""
    if PUBLISHED_THRESHOLD_MMH not in scores.settings.thresholds_mmh:
        return None
    lead_min = scores.settings.leads_min[-1]
    # The protocol's errors are in mm per 5 minutes, and its HSS lacks a factor 2.
    values = {"pmse": scores.at("mse", lead_min=lead_min) / INTERVALS_AN_HOUR**2}
    for name in ("accuracy", "precision", "recall", "f1", "csi", "far", "hss"):
        value = scores.at(name, lead_min=lead_min, threshold_mmh=PUBLISHED_THRESHOLD_MMH)
        values |= {"half_hss": value / 2} if name == "hss" else {name: value}
    return PublishedProtocol(lead_min=lead_min, values=values)
