"""Rank histograms: how many members lie below the radar, with ties broken by a seeded rule."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...data.randomness import generator
from .fss import BoolArray, FloatArray
from .rows import IntArray, WindowId

WET_MMH: Final = 0.1
"""Below this it counts as dry in the histogram of wet pixels, as in pysteps' examples."""
_SEED: Final = 0


def tie_breaker(window: WindowId, lead: int) -> np.random.Generator:
    """Make the random numbers that break ties: Philox from the window and the number of the lead time."""
    return generator(_SEED, "rank ties", window.issue_s, lead, *window.name.encode())


def drawn_ranks(sorted_mn: FloatArray, observed_n: FloatArray, random: np.random.Generator) -> IntArray:
    """Count the ranks of the radar among the members, 0 (all members above it) to m.

    Rank histogram: Hamill (2001), doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2. Where the radar equals members
    it gets one of the ranks beside them, each equally likely. Where radar and members are all dry, that is a draw
    which says nothing: on dry days the histogram over all pixels is flat by construction. So there is a second one, of
    pixels where the radar or a member has at least WET_MMH, which takes all below it as equal, as
    pysteps.verification.ensscores.rankhist does with X_min.

    Args:
        sorted_mn: Members in mm/h, rising along the first axis, (members, pixels).
        observed_n: Rain in mm/h.
        random: Breaks the ties.

    Returns:
        Counts of the ranks of all pixels and of wet ones, (2, members + 1).
    """
    members = len(sorted_mn)
    uniform_n = random.random(len(observed_n))
    below_n = count_members(sorted_mn < observed_n)
    tied_n = count_members(sorted_mn == observed_n)
    ranks_n = _draw(below_n, tied_n, uniform_n)

    # A dry radar pixel ties with all members that are dry too, and lies above none.
    dry_n = observed_n < WET_MMH
    num_dry_n = count_members(sorted_mn < WET_MMH)
    wet_n = ~dry_n | (num_dry_n < members)
    wet_ranks_n = _draw(np.where(dry_n, 0, below_n), np.where(dry_n, num_dry_n, tied_n), uniform_n)
    return np.stack([np.bincount(each_n, minlength=members + 1) for each_n in (ranks_n, wet_ranks_n[wet_n])])


def dry_ranks(members: int, num_dry: int, random: np.random.Generator) -> IntArray:
    """Count the ranks of pixels where the radar and all members are 0: they are draws."""
    return np.bincount(random.integers(0, members + 1, num_dry), minlength=members + 1)


def count_members(mask_mn: BoolArray) -> npt.NDArray[np.unsignedinteger]:
    """Count the members of each pixel for which something holds."""
    dtype = np.uint8 if len(mask_mn) < 256 else np.uint16
    return np.asarray(np.add.reduce(mask_mn.view(np.uint8), axis=0, dtype=dtype))


def _draw(below_n: npt.NDArray[Any], tied_n: npt.NDArray[Any], uniform_n: FloatArray) -> npt.NDArray[np.intp]:
    """Draw one of the ranks from `below` to `below + tied`; a product just below a whole number may round up to it."""
    return below_n + np.minimum((uniform_n * (tied_n + 1.0)).astype(np.intp), tied_n)
