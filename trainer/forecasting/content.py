"""What the files of a forecast hold: rain, its times and pixels, and who made it from what."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from ...data.frames import Grid

HOUR_S: Final = 3600
NOT_A_MEASUREMENT: Final = (
    "A forecast by a model, not a measurement. Rain rates are means over the interval that ends at the valid "
    "time. Missing: no radar saw the pixel in any input frame, or the model gave no finite number."
)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Who made a forecast, and from what.

    Attributes:
        model: Name of the model.
        source: The radar product that it started from.
        licence: Licence of the radar data.
        history: When the file was made, and by which command.
        institution: Where it was made.
        note: What users have to know about its input; "" for nothing.
    """

    model: str
    source: str
    licence: str
    history: str
    institution: str = "not stated"
    note: str = ""

    @property
    def comment(self) -> str:
        """What the files say to whoever takes them for a measurement, and about their input."""
        return f"{NOT_A_MEASUREMENT} {self.note}".rstrip()


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """What every file of a forecast is written from.

    Attributes:
        rain_mmh_thw: Rain in mm/h, (leads, rows, cols); what is not finite is written as missing.
        reference_time_s: End of the last radar frame that the forecast knows, epoch seconds UTC. Lead k, from 1, is
            valid at `reference_time_s + k * cadence_s` and is the mean of the interval that ends there.
        cadence_s: Seconds between leads.
        grid: Where the pixels lie.
        provenance: Who made it, and from what.
    """

    rain_mmh_thw: npt.NDArray[np.floating]
    reference_time_s: int
    cadence_s: int
    grid: Grid
    provenance: Provenance

    @property
    def num_leads(self) -> int:
        """Count the lead times."""
        return len(self.rain_mmh_thw)

    @property
    def hours(self) -> list[slice]:
        """List the leads of each whole hour; a forecast that is shorter than an hour is one."""
        return hours_of(self.num_leads, self.cadence_s)

    def name_of(self, lead_s: int) -> str:
        """Name a file of one lead time without its ending, such as forecast_201008260000_005min."""
        return f"forecast_{datetime.fromtimestamp(self.reference_time_s, UTC):%Y%m%d%H%M}_{lead_s // 60:03d}min"


def hours_of(num_leads: int, cadence_s: int) -> list[slice]:
    """List the leads of each whole hour; leads that make up less than an hour are one."""
    per_hour = min(max(HOUR_S // cadence_s, 1), num_leads)
    return [slice(first, first + per_hour) for first in range(0, num_leads - per_hour + 1, per_hour)]
