"""Name the constants of rain units, each with its source, and turn mm/h into the space that models see and back."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from .errors import ConfigError, DataError

# Only annotations need torch here: packing and launch read these constants without waiting for its import.
if TYPE_CHECKING:
    import torch

MISSING_COUNT: Final = 65535
"""The missing code in shards, and KNMI's own: calibration_missing_data of its composites."""

INTERVALS_AN_HOUR: Final = 12
"""5-minute intervals in an hour."""

KNMI_MMH_PER_COUNT: Final = 0.12
"""mm/h a count of KNMI's 5-minute accumulations: "GEO=0.01*PV+0.0" mm per 5 min, times 12."""

SCALES_MMH: Final = (1e-6, 100.0)
"""Least and largest plausible scale, mm/h a count: finer splits hairs, coarser knows no drizzle."""

NL50_MAX_MM_5MIN: Final = 47.83
"""Largest 5-minute depth of the NL-50 years 2016 to 2018, in mm: the published scale (SmaAt-UNet, SpaT-SparK)."""


@dataclass(frozen=True, kw_only=True)
class ZR:
    """Z = a R**b, with Z in mm^6/m^3 and R in mm/h (Marshall and Palmer 1948: a = 200, b = 1.6)."""

    a: float
    b: float

    def rain_mmh(self, reflectivity_dbz: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Turn dBZ, 10 log10 Z, of any shape into mm/h."""
        exponent = (np.asarray(reflectivity_dbz, np.float64) / 10.0 - math.log10(self.a)) / self.b
        # Beyond every radar's range, and within float64's.
        return np.power(10.0, np.clip(exponent, -30.0, 30.0))


def parse_zr(text: str) -> ZR:
    """Read a Z-R relation such as "200,1.6"; raises DataError for what is none."""
    try:
        a, b = (float(number) for number in text.split(","))
    except ValueError:
        a = b = math.nan
    if not (1 <= a <= 10_000 and 0.5 <= b <= 5):
        raise DataError(f"--zr {text}: expected A,B of Z = A R**B, A of 1 to 10000, B of 0.5 to 5, such as 200,1.6")
    return ZR(a=a, b=b)


@dataclass(frozen=True, kw_only=True)
class ModelSpace:
    """The space that the model sees: rain in mm/h, scaled or as a logarithm.

    Args:
        kind: `linear`: rain / scale; `log`: log(1 + rain / scale).
        scale_mmh: The scale in mm/h. The published models' is 47.83 mm per 5 min, 573.96 mm/h.
        clip_mmh: Rain above it counts as this much, null for no limit.
    """

    kind: Literal["linear", "log"] = "log"
    scale_mmh: float = 1.0
    clip_mmh: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are no rain rates."""
        for name, value in (("scale_mmh", self.scale_mmh), ("clip_mmh", self.clip_mmh)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"model.space.{name} is {value}; expected a finite rain rate above 0 mm/h")

    def from_mmh(self, rain_mmh: "torch.Tensor") -> "torch.Tensor":
        """Turn mm/h, >= 0, any shape, into model space."""
        clipped = rain_mmh if self.clip_mmh is None else rain_mmh.clamp(max=self.clip_mmh)
        scaled = clipped / self.scale_mmh
        return scaled.log1p() if self.kind == "log" else scaled

    def to_mmh(self, values: "torch.Tensor") -> "torch.Tensor":
        """Turn model space back into mm/h; a model's values below "no rain" come out below 0."""
        return (values.expm1() if self.kind == "log" else values) * self.scale_mmh
