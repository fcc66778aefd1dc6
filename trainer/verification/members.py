"""What is counted where the members of an ensemble lie beside the radar."""

import math
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .crps import POOLS_PX, crps_sums, pooled, sort_members, spread_sums, whole_blocks
from .fss import BoolArray, FloatArray
from .pixels import count_pixels
from .ranks import tie_breaker
from .rows import Settings, WindowId
from .spectrum import band_density, bands_of, can_be_taken, to_dbr

SPECTRA: Final = ("dbr", "mmh")


def count_ensemble(
    settings: Settings,
    window: WindowId,
    lead: int,
    members_mhw: npt.NDArray[np.floating],
    observed_hw: npt.NDArray[np.floating],
    valid_hw: BoolArray | None,
) -> dict[str, Any]:
    """Count and sum up one lead time of an ensemble.

    Args:
        settings: What is scored.
        window: The window.
        lead: The number of the lead time.
        members_mhw: Rain in mm/h, (members, rows, cols); where one member is not finite the forecast has failed.
        observed_hw: Rain in mm/h, finite where valid.
        valid_hw: True where the radar measured; None: everywhere.

    Returns:
        The numbers that trainer.verification.ensemble.EnsembleRows lists, for this window and lead time.
    """
    finite_hw = np.isfinite(members_mhw).all(axis=0)
    measured_hw = np.ones_like(finite_hw) if valid_hw is None else valid_hw
    counted_hw = finite_hw & measured_hw
    num_valid, num_failed = np.count_nonzero(measured_hw), np.count_nonzero(measured_hw & ~finite_hw)

    # What does not count is dry from here on. In C order: sums go in the order of memory.
    if not counted_hw.all():
        members_mhw, observed_hw = np.where(counted_hw, members_mhw, 0), np.where(measured_hw, observed_hw, 0)
    radar_hw = observed_hw.astype(np.float64, order="C")
    rain_mhw = members_mhw.astype(np.float64, order="C")

    pixels = count_pixels(settings, tie_breaker(window, lead), rain_mhw, radar_hw, valid_hw, counted_hw)
    counts: dict[str, Any] = {
        "num_valid": num_valid,
        "num_nonfinite": num_failed,
        **pixels.sums,
        **_pools(pixels.crps, rain_mhw, radar_hw, measured_hw),
        **_spectra(rain_mhw, pixels.mean_hw, radar_hw, valid_hw),
    }
    if not num_failed:
        return counts

    # A failed pixel is forecast with the probability that is wrong for certain, and has no error that could be summed.
    failed_n = radar_hw[measured_hw & ~finite_hw]
    events = np.array([np.count_nonzero(failed_n > threshold_mmh) for threshold_mmh in settings.thresholds_mmh])
    counts["class_forecasts"][:, 0] += events
    counts["class_forecasts"][:, -1] += num_failed - events
    counts["class_events"][:, 0] += events
    return {field: _spoilt(value) for field, value in counts.items()}


def _spoilt(value: Any) -> Any:
    """Replace sums by NaN, and leave counts as they are."""
    array = np.asarray(value)
    return np.full_like(array, math.nan) if np.issubdtype(array.dtype, np.floating) else value


def _pools(
    of_pixels: FloatArray, rain_mhw: FloatArray, radar_hw: FloatArray, valid_hw: BoolArray
) -> dict[str, npt.NDArray[Any]]:
    """Sum up CRPS, spread and skill of means over blocks without a missing pixel, beside those of single pixels."""
    sums, blocks = [of_pixels], [np.count_nonzero(valid_hw)]
    for side, pool in pairwise(POOLS_PX):
        # The means of the last blocks serve the next ones.
        rain_mhw = pooled(rain_mhw, pool // side)
        radar_hw = pooled(radar_hw[None], pool // side)[0]
        valid_hw = whole_blocks(valid_hw, pool // side)
        sorted_mn, observed_n = sort_members(rain_mhw[:, valid_hw]), radar_hw[valid_hw]
        sums.append(np.array([*crps_sums(sorted_mn, observed_n), *spread_sums(sorted_mn, observed_n)]))
        blocks.append(np.count_nonzero(valid_hw))
    names = ("crps_error", "crps_pairs", "variance", "mean_squared_error")
    return {"num_blocks": np.array(blocks), **dict(zip(names, np.transpose(sums), strict=True))}


def _spectra(
    rain_mhw: FloatArray, mean_hw: FloatArray, radar_hw: FloatArray, valid_hw: BoolArray | None
) -> dict[str, npt.NDArray[Any]]:
    """Compute the power spectral densities of the radar, of the members in the mean, and of the members' mean."""
    taken = can_be_taken(valid_hw)
    counts: dict[str, Any] = {"spectrum_frames": bands_of(*radar_hw.shape) * taken}
    # Added in an order that depends on what they hold alone, members are exchangeable to the last bit.
    members_hw = sorted(rain_mhw, key=lambda member_hw: member_hw.tobytes()) if taken else []
    for unit in SPECTRA:
        density = {name: np.zeros(len(counts["spectrum_frames"])) for name in ("observed", "mean", "members")}
        if taken:
            taken_of = to_dbr if unit == "dbr" else np.asarray
            density = {
                "observed": band_density(taken_of(radar_hw)),
                "mean": band_density(taken_of(mean_hw)),
                "members": band_density(*(taken_of(field_hw) for field_hw in members_hw)),
            }
        counts |= {f"psd_{name}_{unit}": value for name, value in density.items()}
    return counts
