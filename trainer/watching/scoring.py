"""Score published forecasts against the radar that came after them, beside extrapolation from the same frames."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ...data.sources.files import Place
from ...models.baselines.extrapolation import Extrapolation
from ...models.baselines.simple import Advection
from ..forecasting.latest import Area, read_latest
from ..forecasting.netcdf import read_rain
from ..forecasting.readers import Radar
from ..verification.rows import Rows, Settings, WindowId, compute, merge, score_window
from .publishing import stamp_of

THRESHOLDS_MMH: Final = (0.5, 2.0, 5.0)
SCALES_PX: Final = (1, 17)
DAY_S: Final = 86_400
OURS: Final = "forecast"
"""What the files of the model's own scores are called."""


@dataclass(eq=False, kw_only=True)
class Scoring:
    """The scores of one radar's published cycles.

    Attributes:
        folder: Where they are kept, a file a cycle and model.
        radar: The radar.
        cadence_s: Seconds from frame to frame.
        leads: Frames of a forecast.
        area: Which pixels are forecast.
        name: The model's.
    """

    folder: Path
    radar: Radar
    cadence_s: int
    leads: int
    area: Area
    name: str
    _rows: dict[Path, Rows] = field(default_factory=dict, init=False)
    _summary: tuple[frozenset[Path], dict[str, Any]] | None = field(default=None, init=False)

    def is_scored(self, time_s: int) -> bool:
        """Find out whether a cycle was scored, or cannot be."""
        return self._path(time_s, OURS).exists()

    def times_s(self, time_s: int) -> list[int]:
        """List the times of the frames that a cycle is scored from: the last ones that it knew, and all lead times."""
        return [time_s + number * self.cadence_s for number in range(1 - _baseline().frames_in, self.leads + 1)]

    def score(self, time_s: int, forecast: Path, places: Iterable[Place]) -> None:
        """Score a published cycle and extrapolation from its last frames.

        Args:
            time_s: The cycle's time.
            forecast: Its NetCDF file.
            places: The radar files of the last three frames up to its time, and of all lead times.

        Raises:
            DataError: A frame is missing or cannot be read.
        """
        baseline = _baseline()
        frames_in = baseline.frames_in
        latest = read_latest(
            places,
            radar=self.radar,
            cadence_s=self.cadence_s,
            frames_in=frames_in + self.leads,
            area=self.area,
            before_s=time_s + self.leads * self.cadence_s + 1,
        )
        forecast_mmh_thw = read_rain(forecast)
        past_bthw = torch.from_numpy(latest.rain_mmh_thw[:frames_in])[None]
        valid_bthw = torch.from_numpy(latest.valid_thw[:frames_in])[None]

        # What extrapolation cannot know, it must not be scored on, and then the model neither.
        with torch.no_grad():
            carried_bthw = baseline.forecast(past_bthw, valid_bthw, self.leads)
            if isinstance(baseline, Extrapolation):
                known_bthw = torch.isfinite(carried_bthw)
            else:
                known_bthw = valid_bthw.any(dim=1, keepdim=True).expand_as(carried_bthw)
        valid_thw = latest.valid_thw[frames_in:] & known_bthw[0].numpy()

        observed_mmh_thw = latest.rain_mmh_thw[frames_in:]
        settings = Settings(
            leads_min=tuple(self.cadence_s / 60 * lead for lead in range(1, self.leads + 1)),
            thresholds_mmh=THRESHOLDS_MMH,
            scales_px=SCALES_PX,
        )
        window = WindowId(issue_s=time_s, name=stamp_of(time_s))
        # The model's last: a cycle whose file is there has both.
        forecasts = {baseline.name: carried_bthw[0].numpy(), OURS: forecast_mmh_thw}
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, rain_mmh_thw in forecasts.items():
            filled_mmh_thw = np.where(valid_thw, rain_mmh_thw, np.float32(0))
            rows = score_window(settings, window, filled_mmh_thw, observed_mmh_thw, valid_thw)
            rows.save(self._path(time_s, name))

    def summarise(self, now_s: int) -> dict[str, Any]:
        """Pool the scores of the cycles of the day up to a time; without any, of no cycles."""
        oldest = stamp_of(now_s - DAY_S)
        paths = frozenset(path for path in self.folder.glob("*-*.npz") if path.name >= oldest)
        if self._summary is not None and self._summary[0] == paths:
            return self._summary[1]

        # Every file is read once.
        self._rows = {path: rows for path, rows in self._rows.items() if path in paths}
        for path in paths - self._rows.keys():
            # One that a full disk has cut is no score.
            with suppress(ValueError, OSError):
                self._rows[path] = Rows.load(path)

        baseline = _baseline().name
        scores: dict[str, Any] = {}
        num_cycles = 0
        for file_word, name in ((OURS, self.name), (baseline, baseline)):
            rows = [rows for path, rows in self._rows.items() if path.name.endswith(f"-{file_word}.npz")]
            if rows:
                scores[name] = _table(merge(*rows))
                num_cycles = len(rows)
        summary = {"cycles": num_cycles, "models": scores}
        self._summary = paths, summary
        return summary

    def drop_before(self, time_s: int) -> None:
        """Remove the scores of cycles before a time."""
        for path in self.folder.glob("*.npz"):
            if path.name < stamp_of(time_s):
                path.unlink(missing_ok=True)

    def _path(self, time_s: int, name: str) -> Path:
        return self.folder / f"{stamp_of(time_s)}-{name}.npz"


def _baseline() -> Extrapolation | Advection:
    """Take pysteps' extrapolation where it is installed, else our own."""
    with suppress(ImportError):
        return Extrapolation()
    return Advection()


def _table(rows: Rows) -> Mapping[str, float]:
    """Compute the scores that a status page shows: by lead time and threshold, and all together."""
    scores = compute(rows)
    leads = rows.settings.leads_min
    shown = {f"{lead:g} min": lead for lead in dict.fromkeys((leads[(len(leads) - 1) // 2], leads[-1]))}
    table = {
        f"CSI > {threshold:g} mm/h at {text}": scores.at("csi", lead_min=lead, threshold_mmh=threshold)
        for text, lead in shown.items()
        for threshold in THRESHOLDS_MMH
    }
    threshold_mmh, scale_px = THRESHOLDS_MMH[0], SCALES_PX[-1]
    table |= {
        f"FSS {scale_px} px > {threshold_mmh:g} mm/h at {text}": scores.at(
            "fss", lead_min=lead, threshold_mmh=threshold_mmh, scale_px=scale_px
        )
        for text, lead in shown.items()
    }
    return table | {"MSE, (mm/h)^2": scores.at("mse"), "mean error, mm/h": scores.at("mean_error")}
