"""What the files of a forecast hold: rain, its times and pixels, and who made it from what."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from ...data.frames import Grid, iso_time
from .latest import Latest
from .probabilities import Ensemble, hours_of

MAPS_NAME: Final = "probabilities.png"
"""The picture of an ensemble that says most: how likely rain is, on maps."""

NOT_A_MEASUREMENT: Final = (
    "A forecast by a model, not a measurement. Rain rates are means over the interval that ends at the valid "
    "time. Missing: no radar saw the pixel in any input frame, or the model gave no finite number."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast:
    """A forecast and what it was made from.

    Attributes:
        rain_mmh_thw: Rain in mm/h, float32 (leads, rows, cols), of an ensemble the mean; NaN where no radar saw the
            pixel in any input frame.
        num_nonfinite: Pixels that the radar saw and the model gave no finite number for, over all leads and members.
        latest: The radar frames.
        cadence_s: Seconds between leads.
        model: The model's name.
        ensemble: The members and what follows from them; None for one forecast.
    """

    rain_mmh_thw: npt.NDArray[np.float32]
    num_nonfinite: int
    latest: Latest
    cadence_s: int
    model: str
    ensemble: Ensemble | None = None

    @property
    def reference_time_s(self) -> int:
        """End of the last radar frame, epoch seconds UTC."""
        return self.latest.end_times_s[-1]

    @property
    def stamp(self) -> str:
        """The same time as file names carry it."""
        return datetime.fromtimestamp(self.reference_time_s, UTC).strftime("%Y%m%d%H%M")

    @property
    def note(self) -> str:
        """What users of the forecast have to know about it; "" where all frames were there and all members finite."""
        notes = []
        bridged_s = self.latest.bridged_s
        # Carried rain stands in for what no radar sent.
        if bridged_s:
            notes.append(
                f"{len(bridged_s)} of {len(self.latest.end_times_s)} input frames were missing or damaged and were "
                f"bridged by carrying rain along: {', '.join(map(iso_time, bridged_s))}."
            )
        if self.ensemble is not None and self.num_nonfinite:
            counts = enumerate(self.ensemble.nonfinite_m.tolist())
            texts = ", ".join(f"{count} of member {member}" for member, count in counts if count)
            notes.append(
                f"{self.num_nonfinite} pixels of members are no finite number ({texts}): there the member is left out."
            )
        return " ".join(notes)


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
        ensemble: Its members and what follows from them, where `rain_mmh_thw` is their mean; None for one forecast.
    """

    rain_mmh_thw: npt.NDArray[np.floating]
    reference_time_s: int
    cadence_s: int
    grid: Grid
    provenance: Provenance
    ensemble: Ensemble | None = None

    @property
    def comment(self) -> str:
        """What the files say to whoever takes them for a measurement, about their one field, and about their input."""
        words = [NOT_A_MEASUREMENT, self.provenance.note]
        if self.ensemble is not None:
            members, seed = self.ensemble.num_members, self.ensemble.options.seed
            words.insert(
                1, f"An ensemble of {members} members of seed {seed}; where there is one field, it is their mean."
            )
        return " ".join(word for word in words if word)

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
