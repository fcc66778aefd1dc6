"""A forecast in pictures: a still a lead time and an animation; of an ensemble probabilities, members, plumes."""

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...data.store.storage import open_storage
from ..pictures.animation import write_animation
from ..pictures.ensembles import Plume, member_stamps, plume_picture, probability_maps
from ..pictures.forecasts import Case, forecast_frames, radar_credit
from ..pictures.panels import png_bytes
from .content import MAPS_NAME, Forecast
from .grid import site_pixel
from .map_lines import map_lines
from .probabilities import Ensemble, hourly_sums, hours_of

FRAMES_FOLDER: Final = "frames"
ANIMATION_NAME: Final = "forecast.gif"
STAMPS_NAME: Final = "members.png"
LIGHT_MMH: Final = 1.0
HEAVY_MMH: Final = 5.0
"""Rain whose probability is drawn, as far as it was asked for: else the nearest thresholds."""

SHARES: Final = (
    "A probability is the share of the members with more rain: at the pixel, or anywhere within the distance"
)
NEARBY_KM: Final = 10.0


def draw(forecast: Forecast, out: Path) -> list[Path]:
    """Draw a forecast's pictures into a folder.

    Returns:
        What was written; a folder stands for its files.

    Raises:
        DataError: A picture cannot be written.
    """
    case = Case(
        radar_mmh_thw=forecast.latest.rain_mmh_thw,
        radar_valid_thw=forecast.latest.valid_thw,
        forecasts_mmh={forecast.model: forecast.rain_mmh_thw},
        reference_time_s=forecast.reference_time_s,
        cadence_s=forecast.cadence_s,
        pixel_km=forecast.latest.grid.pixel_km,
        map=map_lines(forecast.latest.grid),
        credit=radar_credit(forecast.latest.source, forecast.latest.licence),
    )
    # A still picture a lead time for whoever needs one, and all of them in motion.
    what = "forecast" if forecast.ensemble is None else f"mean of {forecast.ensemble.num_members} members"
    title = f"{forecast.model}: {what} from {case.clock(0)}"

    storage = open_storage(out / FRAMES_FOLDER)
    for lead, picture in enumerate(forecast_frames(case, forecast.model, title), start=1):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        storage.write(f"forecast_{forecast.stamp}_{lead * forecast.cadence_s // 60:03d}min.png", buffer.getvalue())

    write_animation(out / ANIMATION_NAME, case, title)
    written = [out / FRAMES_FOLDER, out / ANIMATION_NAME]
    return written if forecast.ensemble is None else [*written, *_draw_ensemble(forecast, forecast.ensemble, case, out)]


def _draw_ensemble(forecast: Forecast, ensemble: Ensemble, case: Case, out: Path) -> list[Path]:
    """Draw probabilities at three lead times, the members at the middle one, and a plume a site."""
    title = f"{forecast.model}: {ensemble.num_members} members from {case.clock(0)}"
    leads = sorted({max(1, round(share * case.num_leads)) for share in (0.25, 0.5, 1)})
    middle = leads[len(leads) // 2]
    rain = replace(case, forecasts_mmh={"mean of the members": ensemble.mean_mmh_thw})
    members_mhw = ensemble.members_mmh_mthw[:, middle - 1]
    figures = {
        MAPS_NAME: probability_maps(rain, _probabilities(ensemble, leads), leads=leads, title=f"{title}\n{SHARES}"),
        STAMPS_NAME: member_stamps(case, members_mhw, lead=middle, title=title),
    }

    for number, site in enumerate(ensemble.options.sites, start=1):
        row, col = site_pixel(site, forecast.latest.grid)
        # Where no radar looked there is nothing to draw: a service goes on without the plume.
        if case.seen_hw[row, col]:
            word = re.sub(r"[^A-Za-z0-9.-]+", "_", site.name).strip("_.") or f"{number}"
            name = f"plume_{word}.png"
            plume = _plume(case, ensemble, row, col)
            figures[f"plume_{word}_{number}.png" if name in figures else name] = plume_picture(
                case, plume, title=f"{site}: {title}"
            )

    storage = open_storage(out)
    for name, figure in figures.items():
        storage.write(name, png_bytes(figure))
    return [out / name for name in figures]


def _probabilities(ensemble: Ensemble, leads: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
    """Choose what is drawn of the probabilities: light and heavy rain, and heavy rain nearby."""
    options = ensemble.options
    columns = {}
    # The user's own thresholds and radii may be others: the nearest ones stand in.
    for threshold_mmh, radius_km in ((LIGHT_MMH, 0.0), (HEAVY_MMH, 0.0), (HEAVY_MMH, NEARBY_KM)):
        at = _nearest(options.thresholds_mmh, threshold_mmh)
        near = _nearest(options.radii_km, radius_km)
        heading = f"more than {options.thresholds_mmh[at]:g} mm/h"
        if options.radii_km[near]:
            heading += f" within {options.radii_km[near]:g} km"
        columns[heading] = np.stack([ensemble.exceeding.probability(at, near, lead - 1) for lead in leads])
    return columns


def _nearest(values: Sequence[float], wanted: float) -> int:
    return min(range(len(values)), key=lambda at: abs(values[at] - wanted))


def _plume(case: Case, ensemble: Ensemble, row: int, col: int) -> Plume:
    """Take what is drawn of one pixel, and sum it up in a line."""
    members_mt = ensemble.members_mmh_mthw[:, :, row, col]
    measured_t = case.radar_valid_thw[:, row, col]

    # The first hour, which is known best, or all lead times where they are less.
    hour = hours_of(case.num_leads, case.cadence_s)[0]
    sums_mm = hourly_sums(members_mt[:, hour, None, None], case.cadence_s).ravel()
    low, middle, high = np.nanquantile(sums_mm, (0.1, 0.5, 0.9))
    minutes = (hour.stop - hour.start) * case.cadence_s / 60
    summary = f"Sum of {minutes:g} min: median {middle:.1f} mm, 10 to 90% {low:.1f} to {high:.1f} mm"
    return Plume(
        radar_mmh_t=np.where(measured_t, case.radar_mmh_thw[:, row, col], np.nan),
        members_mmh_mt=members_mt,
        quantiles=ensemble.options.quantiles,
        quantiles_mmh_qt=ensemble.quantiles_mmh_qthw[:, :, row, col],
        summary=summary,
    )
