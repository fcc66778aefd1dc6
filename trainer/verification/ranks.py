"""Rank histograms: how many members lie below the radar, with ties broken by a seeded rule."""

from typing import Final

import numpy as np

from ...data.randomness import generator
from .fss import FloatArray
from .rows import IntArray, WindowId

WET_MMH: Final = 0.1
"""Below this it counts as dry in the histogram of wet pixels, as in pysteps' examples."""
_SEED: Final = 0


def rank_counts(
    sorted_mn: FloatArray, observed_n: FloatArray, num_dry: int, window: WindowId, lead: int
) -> tuple[IntArray, IntArray]:
    """Count the ranks of the radar among the members.

    Rank histogram: Hamill (2001), doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2.

    A radar pixel that equals members gets one of the ranks beside them, each equally likely, by Philox from the window
    and the lead time. Where radar and members are all dry, the rank is such a draw and says nothing: on dry days the
    histogram over all pixels is flat by construction. The second histogram is that of pixels where the radar or a
    member has at least WET_MMH, and takes all below it as equal, as pysteps.verification.ensscores.rankhist does with
    X_min.

    Args:
        sorted_mn: Members in mm/h, rising along the first axis, (members, pixels).
        observed_n: Rain in mm/h.
        num_dry: Pixels besides these, where the radar and all members are 0.
        window: The window.
        lead: The number of the lead time.

    Returns:
        Counts of the ranks 0 (all members above the radar) to m, of all pixels and of wet ones.
    """
    members = len(sorted_mn)
    random = generator(_SEED, "rank ties", window.issue_s, lead, *window.name.encode())
    uniform_n = random.random(len(observed_n))
    below_n = _count(sorted_mn < observed_n)
    tied_n = _count(sorted_mn == observed_n)
    counts = np.bincount(_drawn(below_n, tied_n, uniform_n), minlength=members + 1)
    counts += np.bincount(random.integers(0, members + 1, num_dry), minlength=members + 1)

    # A dry radar pixel ties with all members that are dry too, and lies above none.
    observed_dry_n = observed_n < WET_MMH
    dry_n = _count(sorted_mn < WET_MMH)
    wet_n = ~observed_dry_n | (dry_n < members)
    wet_ranks_n = _drawn(np.where(observed_dry_n, 0, below_n), np.where(observed_dry_n, dry_n, tied_n), uniform_n)
    return counts, np.bincount(wet_ranks_n[wet_n], minlength=members + 1)


def _count(mask_mn: np.ndarray) -> np.ndarray:
    """Count the members of each pixel."""
    return np.asarray(np.add.reduce(mask_mn, axis=0, dtype=np.uint16))


def _drawn(below_n: np.ndarray, tied_n: np.ndarray, uniform_n: FloatArray) -> np.ndarray:
    """Draw one of the ranks from `below` to `below + tied`; a product just below a whole number may round up to it."""
    return np.asarray(below_n + np.minimum((uniform_n * (tied_n + 1)).astype(np.intp), tied_n))
