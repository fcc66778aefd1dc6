"""Turn rain rates into counts of 0.01 mm/h, and measure what that changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .json_checks import Count, Limits
from .units import MISSING_COUNT

QUANTUM_MMH: Final = 0.01
"""mm/h a count of sources that are requantised."""
MAX_COUNT: Final = MISSING_COUNT - 1
"""Largest count of a measurement, 655.34 mm/h at that scale: no gauge on Earth holds a higher rate for minutes."""
MAX_DISCARDED: Final = 0.001
"""Largest share of a frame's pixels that may be no rain rate, one pixel in any case: real files hold single ones."""

MAX_CLAMPED: Final = 0.05
"""Largest share of a frame's pixels that may lie above the range: hail and clutter do, codes of no data are more."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """What requantising to counts changed; nothing in sources of counts.

    Attributes:
        max_error_mmh: Largest change of a pixel that lies within the counts' range.
        clamped: Pixels above the range, set to its largest count.
        discarded: Pixels that were no rain rate, set missing; None for none, which is what older archives state.
    """

    max_error_mmh: Annotated[float, Limits(ge=0)] = 0.0
    clamped: Count = 0
    discarded: Annotated[int, Limits(ge=1)] | None = None

    def plus(self, other: "Rounding") -> "Rounding":
        """Merge two: the larger change, and all clamped and discarded pixels."""
        return Rounding(
            max_error_mmh=max(self.max_error_mmh, other.max_error_mmh),
            clamped=self.clamped + other.clamped,
            discarded=(self.discarded or 0) + (other.discarded or 0) or None,
        )


NO_ROUNDING: Final = Rounding()


def requantise(
    rain_mmh: npt.NDArray[np.floating[Any]],
    pixel_of: Callable[[int], tuple[int, ...]],
    *,
    frame_pixels: int | None = None,
    before: Rounding = NO_ROUNDING,
) -> tuple[npt.NDArray[np.uint16], Rounding]:
    """Turn rain rates into counts of 0.01 mm/h; a rate that is no number becomes missing.

    Rates above 655.34 mm/h become that rate, and are counted. A rate that is negative beyond half a count, or infinite,
    becomes missing and is counted: single pixels hold a producer's code. More of them mean that the whole frame is
    something else than rain.

    Args:
        rain_mmh: mm/h, (values,).
        pixel_of: Names the pixel of a value by its position.
        frame_pixels: Pixels of the whole frame, where these are a part of it; None where they are all.
        before: What requantising the frame's other parts changed; merged into what is returned.

    Raises:
        DataError: More pixels of the frame are no rate than 1 in 1000, or above the range than 1 in 20, and more than
            one.
    """
    # What rounds to 0 from below is 0; what lies lower is no rain rate.
    wrong = (rain_mmh < -QUANTUM_MMH / 2) | np.isinf(rain_mmh)
    num_wrong = int(np.count_nonzero(wrong))
    pixels = frame_pixels or rain_mmh.size
    most = max(1, int(pixels * MAX_DISCARDED))
    if num_wrong and num_wrong + (before.discarded or 0) > most:
        first = int(np.argmax(wrong))
        raise DataError(
            f"pixel {pixel_of(first)} is {rain_mmh[first]:g} mm/h (one of {num_wrong}); expected finite rates of 0 and "
            f"more in all but {most} of the frame's pixels: remove the file, or tell its producer"
        )

    # The error is that of pixels inside the range; the others are counted instead.
    missing = np.isnan(rain_mmh) | wrong
    exact = np.where(missing, 0.0, rain_mmh) / QUANTUM_MMH
    rounded = np.clip(np.rint(exact), 0, MAX_COUNT)
    above = exact > MAX_COUNT + 0.5
    num_above = int(np.count_nonzero(above))
    if num_above and num_above + before.clamped > max(1, int(pixels * MAX_CLAMPED)):
        first = int(np.argmax(above))
        raise DataError(
            f"pixel {pixel_of(first)} is {rain_mmh[first]:g} mm/h (one of {num_above}); expected rates of up to "
            f"{MAX_COUNT * QUANTUM_MMH:g} in 95% of the frame's pixels: its units are others, or the number stands for "
            "no data, which the file does not state"
        )
    error = float(np.max(np.abs(rounded - exact), initial=0.0, where=~above)) * QUANTUM_MMH

    counts = rounded.astype(np.uint16)
    counts[missing] = MISSING_COUNT
    changed = Rounding(max_error_mmh=error, clamped=num_above, discarded=num_wrong if num_wrong else None)
    return counts, before.plus(changed)
