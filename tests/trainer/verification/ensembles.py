"""Ensembles for the tests of verification: random, tied, with missing pixels."""

import numpy as np
import numpy.typing as npt

from rainspark.trainer.verification.ensemble import EnsembleRows, score_members
from rainspark.trainer.verification.rows import Settings, WindowId

SMALL = Settings(leads_min=(5, 10), thresholds_mmh=(0.5, 2.0), scales_px=(1, 4))
NOON_S = 1_600_000_200
SHAPE = (2, 36, 34)
"""Lead times, rows and columns: two blocks of 16 pixels and a rest."""
Field = npt.NDArray[np.float64]


def tied_rain(seed: int, *shape: int) -> Field:
    """Draw rain in steps of 0.25 mm/h, half of it dry: members and radar tie often, and lie on thresholds."""
    rng = np.random.default_rng(seed)
    return np.round(rng.gamma(0.5, 4.0, shape) * (rng.random(shape) < 0.5) * 4) / 4


def smooth_rain(seed: int, *shape: int) -> Field:
    """Draw rain without ties and without a dry pixel."""
    return np.random.default_rng(seed).gamma(0.5, 4.0, shape)


def mask(seed: int, share_valid: float) -> npt.NDArray[np.bool_]:
    """Draw the pixels that the radar measured; at least two whole blocks of 16."""
    valid = np.random.default_rng([seed, 7]).random(SHAPE) < share_valid
    valid[:, :16, :32] = True
    return valid


def window(number: int) -> WindowId:
    """Name the window that is issued so many hours after noon."""
    return WindowId(NOON_S + 3600 * number, f"seq{number % 3}:{number}")


def scored(number: int, members: int = 5, share_valid: float = 0.9) -> EnsembleRows:
    """Score a random window."""
    ensemble, observed = tied_rain(1000 + number, members, *SHAPE), tied_rain(number, *SHAPE)
    return score_members(SMALL, window(number), ensemble, observed, mask(number, share_valid))


def same(one: EnsembleRows, other: EnsembleRows) -> bool:
    """Tell whether rows are equal to the bit."""
    arrays = [{"issue_s": rows.issue_s, "name": rows.name, **rows.numbers} for rows in (one, other)]
    return (one.settings, one.members) == (other.settings, other.members) and all(
        arrays[0][field].tobytes() == arrays[1][field].tobytes() for field in arrays[0]
    )
