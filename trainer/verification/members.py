"""What is counted where the members of an ensemble lie beside the radar."""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .crps import crps_sums, pooled, sort_members, spread_sums, whole_blocks
from .fss import BoolArray, FloatArray, fss_sums
from .ranks import rank_counts
from .rows import Settings, WindowId
from .spectrum import WAVELENGTH_EDGES_PX, band_density, bands_of, can_be_taken, to_dbr

POOLS_PX: Final = (1, 4, 16)
"""Sides of the blocks over whose means the CRPS, spread and skill are computed; each divides the next one."""
SPECTRA: Final = ("dbr", "mmh")
FIELDS_DRAWN: Final = ("observed", "members", "mean")


def count_members(
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
        The numbers that trainer.verification.ensemble.MEMBER_FIELDS lists, for this window and lead time.
    """
    members = len(members_mhw)
    finite_hw = np.isfinite(members_mhw).all(axis=0)
    measured_hw = np.ones_like(finite_hw) if valid_hw is None else valid_hw
    counted_hw = finite_hw & measured_hw
    num_valid, num_failed = np.count_nonzero(measured_hw), np.count_nonzero(measured_hw & ~finite_hw)

    # What does not count is dry from here on; where all is dry, nothing adds to any sum but counts of pixels.
    if not counted_hw.all():
        members_mhw, observed_hw = np.where(counted_hw, members_mhw, 0), np.where(measured_hw, observed_hw, 0)
    # In C order: sums go in the order of memory.
    rain_mhw: FloatArray = members_mhw.astype(np.float64, order="C")
    radar_hw: FloatArray = observed_hw.astype(np.float64, order="C")
    wet_hw = counted_hw & ((radar_hw != 0) | (rain_mhw != 0).any(axis=0))
    wet = np.flatnonzero(wet_hw)
    sorted_mn = sort_members(rain_mhw.reshape(members, -1)[:, wet])
    observed_n = radar_hw.ravel()[wet]

    num_dry = int(num_valid - num_failed) - len(wet)
    ranks, ranks_wet = rank_counts(sorted_mn, observed_n, num_dry, window, lead)
    counts: dict[str, Any] = {
        "num_valid": num_valid,
        "num_nonfinite": num_failed,
        "ranks": ranks,
        "ranks_wet": ranks_wet,
    }
    counts |= _thresholds(settings, sorted_mn, observed_n, wet, counted_hw, valid_hw)
    counts |= _pools(sorted_mn, observed_n, rain_mhw, radar_hw, measured_hw)
    counts |= _spectra(rain_mhw, radar_hw, valid_hw)
    if not num_failed:
        return counts

    # A failed pixel is forecast with the probability that is wrong for certain, and has no error that could be summed.
    failed_n = radar_hw[measured_hw & ~finite_hw]
    for k, threshold_mmh in enumerate(settings.thresholds_mmh):
        events = np.count_nonzero(failed_n > threshold_mmh)
        counts["class_forecasts"][k, [0, -1]] += (events, num_failed - events)
        counts["class_events"][k, 0] += events
    return {field: _spoilt(value) for field, value in counts.items()}


def _spoilt(value: Any) -> Any:
    """Replace sums by NaN, and leave counts as they are."""
    array = np.asarray(value)
    return np.full_like(array, math.nan) if np.issubdtype(array.dtype, np.floating) else value


def _thresholds(
    settings: Settings,
    sorted_mn: FloatArray,
    observed_n: FloatArray,
    wet: npt.NDArray[np.intp],
    counted_hw: BoolArray,
    valid_hw: BoolArray | None,
) -> dict[str, Any]:
    """Count the members above each threshold, and sum up the threshold-weighted CRPS.

    That is the CRPS of max(x, t): Gneiting and Ranjan (2011), doi:10.1198/jbes.2010.08110, with the chaining function
    of Allen, Ginsbourger and Ziegel (2023), Evaluating forecasts for high-impact events using transformed kernel
    scores, doi:10.1137/22M1532184.
    """
    members, num_thresholds = len(sorted_mn), len(settings.thresholds_mmh)
    total = np.count_nonzero(counted_hw)
    forecasts = np.zeros((num_thresholds, members + 1), np.int64)
    events = np.zeros_like(forecasts)
    sums = np.zeros((2, num_thresholds))
    forecast_khw = np.zeros((num_thresholds, counted_hw.size), np.int32)
    observed_khw = np.zeros_like(forecast_khw)

    # Thresholds rise: what lies below one lies below the next one too, and adds nothing any more.
    for k, threshold_mmh in enumerate(settings.thresholds_mmh):
        above = np.flatnonzero((sorted_mn[-1] > threshold_mmh) | (observed_n > threshold_mmh))
        if len(above) < len(wet):
            sorted_mn, observed_n, wet = sorted_mn[:, above], observed_n[above], wet[above]

        count_n = np.add.reduce(sorted_mn > threshold_mmh, axis=0, dtype=np.int32)
        event_n = observed_n > threshold_mmh
        forecasts[k] = np.bincount(count_n, minlength=members + 1)
        forecasts[k, 0] += total - len(wet)
        events[k] = np.bincount(count_n[event_n], minlength=members + 1)
        forecast_khw[k, wet], observed_khw[k, wet] = count_n, members * event_n
        sums[:, k] = crps_sums(np.maximum(sorted_mn, threshold_mmh), np.maximum(observed_n, threshold_mmh))

    shape = (num_thresholds, *counted_hw.shape)
    fss = fss_sums(
        forecast_khw.reshape(shape), observed_khw.reshape(shape), valid_hw, settings.scales_px, members=members
    )
    return {
        "class_forecasts": forecasts,
        "class_events": events,
        "twcrps_error": sums[0],
        "twcrps_pairs": sums[1],
        "fss_numerator": fss[0],
        "fss_denominator": fss[1],
    }


def _pools(
    sorted_mn: FloatArray, observed_n: FloatArray, members_mhw: FloatArray, observed_hw: FloatArray, valid_hw: BoolArray
) -> dict[str, Any]:
    """Sum up the CRPS, spread and skill of means over blocks without a missing pixel."""
    sums, blocks = [(*crps_sums(sorted_mn, observed_n), *spread_sums(sorted_mn, observed_n))], []
    side = 1
    for pool in POOLS_PX:
        # The means of the last blocks serve the next ones.
        if pool > side:
            members_mhw = pooled(members_mhw, pool // side)
            observed_hw = pooled(observed_hw[None], pool // side)[0]
            valid_hw = whole_blocks(valid_hw, pool // side)
            side = pool
            sorted_mn, observed_n = sort_members(members_mhw[:, valid_hw]), observed_hw[valid_hw]
            sums.append((*crps_sums(sorted_mn, observed_n), *spread_sums(sorted_mn, observed_n)))
        blocks.append(np.count_nonzero(valid_hw))
    error, pairs, variance, squared = np.transpose(sums)
    return {
        "num_blocks": np.array(blocks),
        "crps_error": error,
        "crps_pairs": pairs,
        "variance": variance,
        "mean_squared_error": squared,
    }


def _spectra(members_mhw: FloatArray, observed_hw: FloatArray, valid_hw: BoolArray | None) -> dict[str, Any]:
    """Compute the power spectral densities of the radar, of the members in the mean, and of the members' mean."""
    shape = (len(WAVELENGTH_EDGES_PX) - 1,)
    taken = can_be_taken(valid_hw)
    counts: dict[str, Any] = {
        "spectrum_frames": bands_of(*observed_hw.shape) if taken else np.zeros(shape, np.int64),
        **{f"psd_{name}_{unit}": np.zeros(shape) for name in FIELDS_DRAWN for unit in SPECTRA},
    }
    if not taken:
        return counts

    # Sorted before they are added, densities do not depend on the order of members either.
    mean_hw = np.sort(members_mhw, axis=0).sum(axis=0) / len(members_mhw)
    fields_mhw = np.concatenate([observed_hw[None], mean_hw[None], members_mhw])
    for unit in SPECTRA:
        density = band_density(to_dbr(fields_mhw) if unit == "dbr" else fields_mhw)
        of_members = np.sort(density[2:], axis=0).sum(axis=0) / len(members_mhw)
        counts |= {
            f"psd_observed_{unit}": density[0],
            f"psd_mean_{unit}": density[1],
            f"psd_members_{unit}": of_members,
        }
    return counts
