"""Verification of ensembles and of probabilities: sums and counts for every window and lead time, and their scores.

The discipline is that of `rows`: a window's numbers depend on that window only and on no order of members, merging is
the union of windows, and sums go in the order of windows.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from .ensemble_scores import ENSEMBLE_AXES, scores_of_ensemble_sums
from .fss import FloatArray
from .members import count_ensemble
from .reliability import class_sums
from .rows import IntArray, Scores, Settings, Windowed, WindowId
from .rows import compute as compute
from .rows import merge as merge_rows

_SCHEMA: Final = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsembleRows(Windowed["EnsembleScores"]):
    """Counts and sums of one ensemble, or of forecast probabilities: a row a window, sorted by window.

    A pixel fails where a member is not finite (a probability: not finite, or outside 0 to 1). It counts in `num_valid`
    and `num_nonfinite`, it stands in the class of probability that is wrong for certain (0 where the event was
    observed, 1 where it was not), and it makes all sums of its window and lead time NaN: CRPS, spread and skill, rank
    histograms, FSS and spectra of all windows together are NaN then. So a failure never improves a score.

    Attributes:
        members: Of the ensemble, 1 or more; 0: probabilities alone.
        sums: By name, (windows, lead times, ...). Of probabilities `num_valid`, `num_nonfinite`, and the `class_...`
            (thresholds, classes) of trainer.verification.reliability. Of an ensemble:
            `num_blocks`, `crps_error`, `crps_pairs`, `variance`, `mean_squared_error`: (pools), see crps;
            `twcrps_error`, `twcrps_pairs`: (thresholds), the same above each threshold;
            `class_forecasts`, `class_events`: (thresholds, members + 1), pixels and events by the number of members;
            `fss_numerator`, `fss_denominator`: (thresholds, scales);
            `ranks`, `ranks_wet`: (members + 1), see ranks;
            `spectrum_frames`, `psd_...`: (wavelength bands), see spectrum.
    """

    members: int
    sums: Mapping[str, npt.NDArray[Any]]

    @property
    def numbers(self) -> Mapping[str, npt.NDArray[Any]]:
        """The counts and sums by name, (windows, lead times, ...)."""
        return self.sums

    def having(self, issue_s: IntArray, name: npt.NDArray[np.str_], numbers: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Make rows of the same model for other windows."""
        return replace(self, issue_s=issue_s, name=name, sums=numbers)

    def scores_of_sums(self, sums: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Compute the scores of ENSEMBLE_AXES."""
        return scores_of_ensemble_sums(sums, self.members)

    def scores(self, values: Mapping[str, FloatArray]) -> "EnsembleScores":
        """Put scores beside what was scored."""
        return EnsembleScores(settings=self.settings, members=self.members, values=values)

    def save(self, path: Path) -> None:
        """Write an .npz of plain arrays by their names here, with the settings; it appears whole or not at all."""
        self._save(path, _SCHEMA, members=np.int64(self.members))

    @classmethod
    def load(cls, path: Path) -> "EnsembleRows":
        """Read what `save` has written.

        Raises:
            ValueError: It is no such file.
            OSError: It cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                contents = {name: file[name] for name in file.files}
            schema, members = int(contents.pop("schema")), int(contents.pop("members"))
            issue_s, name = contents.pop("issue_s"), contents.pop("name")
            settings = Settings.from_arrays(contents)
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not the sums of an ensemble's windows: {error}") from error
        if schema != _SCHEMA:
            raise ValueError(f"{path}: schema {schema}; expected {_SCHEMA}")
        sums = {field: array for field, array in contents.items() if field not in settings.to_json()}
        return cls(settings=settings, members=members, issue_s=issue_s, name=name, sums=sums)


def score_members(
    settings: Settings,
    window: WindowId,
    members_mmh_mthw: npt.NDArray[np.floating],
    observed_mmh_thw: npt.NDArray[np.floating],
    valid_thw: npt.NDArray[np.bool_] | None,
) -> EnsembleRows:
    """Count and sum up one window's ensemble: numpy in float64, so that nothing depends on batches, ranks or the order.

    Args:
        settings: What is scored.
        window: The window.
        members_mmh_mthw: Rain in mm/h, (members, lead times, rows, cols). Negative rain is scored as it is.
        observed_mmh_thw: Rain in mm/h, finite where valid, (lead times, rows, cols).
        valid_thw: True where the radar measured, the same shape; None: everywhere.
    """
    leads = []
    for lead in range(len(settings.leads_min)):
        valid_hw = None if valid_thw is None or valid_thw[lead].all() else valid_thw[lead]
        leads.append(
            count_ensemble(settings, window, lead, members_mmh_mthw[:, lead], observed_mmh_thw[lead], valid_hw)
        )
    return _row(settings, len(members_mmh_mthw), window, leads)


def score_probabilities(
    settings: Settings,
    window: WindowId,
    probabilities_kthw: npt.NDArray[np.floating],
    observed_mmh_thw: npt.NDArray[np.floating],
    valid_thw: npt.NDArray[np.bool_] | None,
) -> EnsembleRows:
    """Count and sum up one window's probabilities of rain above each threshold.

    Args:
        settings: What is scored.
        window: The window.
        probabilities_kthw: 0 to 1, (thresholds, lead times, rows, cols).
        observed_mmh_thw: Rain in mm/h, finite where valid, (lead times, rows, cols).
        valid_thw: True where the radar measured, the same shape; None: everywhere.
    """
    leads: list[dict[str, Any]] = []
    for lead in range(len(settings.leads_min)):
        # Pixels in a row: there are neighbourhoods and spectra of members only.
        measured_hw = np.ones(observed_mmh_thw.shape[1:], bool) if valid_thw is None else valid_thw[lead]
        observed_n = observed_mmh_thw[lead][measured_hw].astype(np.float64)
        probability_kn = probabilities_kthw[:, lead][:, measured_hw].astype(np.float64)
        failed_n = ~((probability_kn >= 0) & (probability_kn <= 1)).all(axis=0)

        # A failed pixel is forecast with the probability that is wrong for certain.
        classes = []
        for k, threshold_mmh in enumerate(settings.thresholds_mmh):
            event_n = observed_n > threshold_mmh
            classes.append(class_sums(np.where(failed_n, ~event_n, probability_kn[k]), event_n))
        counts = {field: np.stack([each[field] for each in classes]) for field in classes[0]}
        leads.append({"num_valid": len(observed_n), "num_nonfinite": np.count_nonzero(failed_n), **counts})
    return _row(settings, 0, window, leads)


def _row(settings: Settings, members: int, window: WindowId, leads: list[dict[str, Any]]) -> EnsembleRows:
    """Put the lead times of one window together."""
    sums = {field: np.array([[lead[field] for lead in leads]]) for field in leads[0]}
    return EnsembleRows(
        settings=settings,
        members=members,
        issue_s=np.array([window.issue_s]),
        name=np.array([window.name]),
        sums=sums,
    )


def merge(*pieces: EnsembleRows) -> EnsembleRows:
    """Unite pieces scored with the same settings, whatever their order; each window stands in one of them.

    Raises:
        ValueError: The windows are of several numbers of members.
    """
    # Ranks and classes are as many as the members allow.
    numbers = sorted({piece.members for piece in pieces})
    if len(numbers) > 1:
        raise ValueError(
            f"windows of {' and '.join(map(str, numbers))} members; an ensemble has as many in each of its windows"
        )
    return merge_rows(*pieces)


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsembleScores(Scores):
    """Scores of one ensemble, or of forecast probabilities.

    Args:
        settings: What was scored.
        members: Of the ensemble; 0: probabilities alone.
        values: By name, with axes as ENSEMBLE_AXES lists them; the last place of the first axis is all lead times
            pooled. Probabilities alone have the scores of probabilities. NaN where a score does not exist.
    """

    axes: ClassVar[Mapping[str, str]] = ENSEMBLE_AXES
    members: int
