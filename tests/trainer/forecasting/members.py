"""A small made ensemble: members that rain in patches, some of them without a number at a few pixels."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rainspark.data.frames import Grid
from rainspark.data.sources.knmi_writer import KNMI_PROJECTION
from rainspark.trainer.forecasting.content import Content, Provenance
from rainspark.trainer.forecasting.forecaster import RunForecaster
from rainspark.trainer.forecasting.probabilities import Ensemble, make_ensemble
from rainspark.trainer.settings.forecast import EnsembleOptions

REFERENCE_S = 1_282_780_800
"""2010-08-26T00:00:00Z."""
GRID = Grid(rows=13, cols=11, pixel_km=1.0, x0_km=225.0, y0_km=-3934.0, projection=KNMI_PROJECTION)
OPTIONS = EnsembleOptions(
    members=5, seed=3, thresholds_mmh=(0.1, 1.0, 5.0), sum_thresholds_mm=(0.5, 2.0), radii_km=(0.0, 2.0, 4.5)
)


def seen_pixels() -> npt.NDArray[np.bool_]:
    """Mark all pixels but those of a corner, which no radar looks at."""
    seen_hw = np.ones((GRID.rows, GRID.cols), dtype=bool)
    seen_hw[:3, :4] = False
    return seen_hw


def make_members(num_members: int = 5, num_leads: int = 4, *, failing: bool = False) -> npt.NDArray[np.float32]:
    """Make members; where asked for, two of them fail at some pixels."""
    random = np.random.default_rng(num_members)
    shape = (num_members, num_leads, GRID.rows, GRID.cols)
    members = random.gamma(0.4, 5.0, shape).astype(np.float32) * (random.random(shape) < 0.3)
    if failing:
        members[1, 0, 5, 5] = np.nan
        members[1, 2, 5:8, 5] = np.inf
        members[3, 2, 6, 5] = -np.inf
    return members


def make_small(*, failing: bool = False, num_leads: int = 4) -> Ensemble:
    """Make an ensemble of five members."""
    members = make_members(5, num_leads, failing=failing)
    return make_ensemble(members, seen_pixels(), OPTIONS, cadence_s=900, pixel_km=GRID.pixel_km)


def content_of(ensemble: Ensemble, **changes: Any) -> Content:
    """Give what the files of an ensemble are written from."""
    arguments: dict[str, Any] = {
        "rain_mmh_thw": ensemble.mean_mmh_thw,
        "reference_time_s": REFERENCE_S,
        "cadence_s": 900,
        "grid": GRID,
        "provenance": Provenance(model="a model", source="KNMI RAD_NL25_RAU_5mi", licence="CC BY 4.0", history="made"),
        "ensemble": ensemble,
    }
    return Content(**(arguments | changes))


class MadeEnsemble(RunForecaster):
    """A run whose members are its one forecast times noise of (seed, issue time, member)."""

    failing: ClassVar[int | None] = None
    """A member that gives no number in its first rows; -1: all, anywhere."""

    @property
    def is_ensemble(self) -> bool:
        """It forecasts members."""
        return True

    def forecast_members(
        self,
        rain_mmh_bthw: Tensor,
        valid_bthw: Tensor | None,
        frames_out: int | None = None,
        *,
        members: int,
        seed: int = 0,
        issue_s_b: Sequence[int],
    ) -> Tensor:
        """Give (b, members, t, rows, cols) in mm/h."""
        one_bthw = self.forecast(rain_mmh_bthw, valid_bthw, frames_out)
        noise = [
            [np.random.Generator(np.random.Philox([seed, issue_s, member])).gamma(2.0, size=one_bthw.shape[1:])
             for member in range(members)]
            for issue_s in issue_s_b
        ]  # fmt: skip
        members_bmthw = (one_bthw[:, None] + 0.5) * torch.tensor(np.array(noise), dtype=torch.float32)
        if self.failing is not None:
            failing = slice(None) if self.failing < 0 else self.failing
            members_bmthw[:, failing, :, slice(None) if self.failing < 0 else slice(12, 15)] = torch.nan
        return members_bmthw
