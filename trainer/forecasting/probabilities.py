"""What an ensemble says: how likely rain above thresholds is, here and nearby, its quantiles and its mean.

All members are equally likely, so that a probability is the share of the members for which something holds. What a
member gave no finite number for is left out: the share is of the others.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import psutil

from ...data.errors import DataError
from ..settings.forecast import EnsembleOptions

HOUR_S: Final = 3600
STEPS_PER_MMH: Final = 128
"""Members are rounded to 1/128 mm/h, an error of at most 0.004 mm/h (KNMI's radar counts 0.12): 16 bits hold the counts
and a float32 the rate exactly, so that whoever counts a file's members gets its probabilities."""

MOST_MMH: Final = 65534 / STEPS_PER_MMH
"""Higher rates, which no rain reaches, become this one: 65535 is for what is missing."""

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shares:
    """How many members something holds for, of how many that say anything.

    Attributes:
        counts: Members for which it holds, (..., rows, cols), by thresholds and times.
        of: Members that gave a finite number, of a shape that broadcasts with it.
    """

    counts: Counts
    of: Counts

    def probability(self, *index: int) -> Floats:
        """Give the probability, 0 to 1, of what an index picks; NaN where no member says anything."""
        counts, of = np.broadcast_arrays(self.counts, self.of)
        chosen_of = of[index]
        share = counts[index] / np.maximum(chosen_of, 1).astype(np.float32)
        return np.where(chosen_of > 0, share, np.float32(np.nan))


@dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble:
    """The members of a forecast and what follows from them.

    Attributes:
        members_mmh_mthw: Rain in mm/h, float32, as `round_rain` gives it; NaN where missing.
        options: Thresholds, radii and quantiles.
        mean_mmh_thw: Mean of the members.
        quantiles_mmh_qthw: By quantile of the options, interpolated between members.
        exceeding: Members with rain above a threshold within a radius, (thresholds, radii, leads, rows, cols).
        sums_exceeding: Members whose sum of an hour is above a threshold, (sum thresholds, hours, rows, cols).
        nonfinite_m: Pixels over all leads for which a member gave no finite number where others, or a radar, did.
    """

    members_mmh_mthw: Floats
    options: EnsembleOptions
    mean_mmh_thw: Floats
    quantiles_mmh_qthw: Floats
    exceeding: Shares
    sums_exceeding: Shares
    nonfinite_m: npt.NDArray[np.int64]

    @property
    def num_nonfinite(self) -> int:
        """Count the members' pixels that are no finite number, over all leads."""
        return int(self.nonfinite_m.sum())

    @property
    def num_members(self) -> int:
        """Count the members."""
        return len(self.members_mmh_mthw)


def check_memory(options: EnsembleOptions, num_leads: int, rows: int, cols: int) -> None:
    """Refuse more members than the machine has memory for, before any is made; raises DataError.

    Counted are the members as the model gives them and as they are rounded, and the fields that follow from them.
    """
    fields = 2 * options.members + len(options.quantiles) + 1
    num_bytes = num_leads * rows * cols * (4 * fields + len(options.thresholds_mmh) * len(options.radii_km))
    free_bytes = psutil.virtual_memory().available
    if num_bytes > free_bytes:
        raise DataError(
            f"--members {options.members} of {num_leads} x {rows} x {cols} pixels take {num_bytes / 1e9:.1f} GB of "
            f"memory, and {free_bytes / 1e9:.1f} GB are free; ask for fewer, or forecast a smaller --crop"
        )


def make_ensemble(
    members_mmh_mthw: npt.NDArray[np.floating],
    seen_hw: npt.NDArray[np.bool_],
    options: EnsembleOptions,
    *,
    cadence_s: int,
    pixel_km: float,
) -> Ensemble:
    """Round members and compute what follows from them.

    Args:
        members_mmh_mthw: Rain in mm/h, at least two members; what is not finite is missing, of that member alone.
        seen_hw: True where a radar looked: elsewhere all members are missing.
        options: Thresholds, radii and quantiles.
        cadence_s: Seconds between leads.
        pixel_km: Side of a pixel.
    """
    num_members, *shape = members_mmh_mthw.shape
    radii_px = [radius_km / pixel_km for radius_km in options.radii_km]
    members = np.empty((num_members, *shape), np.float32)
    nonfinite_tm = np.empty((shape[0], num_members), np.int64)
    mean = np.empty(shape, np.float32)
    quantiles = np.empty((len(options.quantiles), *shape), np.float32)
    counts = np.empty((len(options.thresholds_mmh), len(radii_px), *shape), np.uint8)
    of = np.empty(shape, np.uint8)

    def fill(lead: int) -> None:
        fields_mhw = round_rain(members_mmh_mthw[:, lead])
        nonfinite_tm[lead] = np.count_nonzero(np.isnan(fields_mhw) & seen_hw, axis=(1, 2))
        fields_mhw[:, ~seen_hw] = np.nan
        members[:, lead] = fields_mhw

        is_known_mhw = np.isfinite(fields_mhw)
        of[lead] = is_known_mhw.sum(axis=0, dtype=np.uint8)
        mean[lead] = mean_of(fields_mhw, of[lead])
        quantiles[:, lead] = quantiles_of(fields_mhw, of[lead], options.quantiles)
        counts[:, :, lead] = count_exceeding(fields_mhw, is_known_mhw, options.thresholds_mmh, radii_px)

    # A lead a core: numpy lets other threads run while it computes, and what is computed on the way stays small.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(shape[0])))

    sums_mnhw = hourly_sums(members, cadence_s)
    sum_of_nhw = np.isfinite(sums_mnhw).sum(axis=0, dtype=np.uint8)
    sum_counts = [(sums_mnhw > threshold_mm).sum(axis=0, dtype=np.uint8) for threshold_mm in options.sum_thresholds_mm]
    return Ensemble(
        members_mmh_mthw=members,
        options=options,
        mean_mmh_thw=mean,
        quantiles_mmh_qthw=quantiles,
        exceeding=Shares(counts=counts, of=of),
        sums_exceeding=Shares(counts=np.stack(sum_counts), of=sum_of_nhw),
        nonfinite_m=nonfinite_tm.sum(axis=0),
    )


def round_rain(rain_mmh: npt.NDArray[np.floating]) -> Floats:
    """Round rain to steps of 1 / STEPS_PER_MMH, at most MOST_MMH; what is not finite becomes NaN."""
    rounded = np.where(np.isfinite(rain_mmh), rain_mmh, np.float32(np.nan)).astype(np.float32, copy=False)
    np.clip(rounded, 0, np.float32(MOST_MMH), out=rounded)
    rounded *= np.float32(STEPS_PER_MMH)
    np.rint(rounded, out=rounded)
    rounded /= np.float32(STEPS_PER_MMH)
    return rounded


def hours_of(num_leads: int, cadence_s: int) -> list[slice]:
    """List the leads of each whole hour; leads that make up less than an hour are one."""
    per_hour = min(max(HOUR_S // cadence_s, 1), num_leads)
    return [slice(first, first + per_hour) for first in range(0, num_leads - per_hour + 1, per_hour)]


def hourly_sums(members_mmh_mthw: Floats, cadence_s: int) -> npt.NDArray[np.float64]:
    """Sum the rain of each hour, or of all leads where they are less: mm, (members, hours, rows, cols)."""
    hours = hours_of(members_mmh_mthw.shape[1], cadence_s)
    rates_mmh = [members_mmh_mthw[:, hour].sum(axis=1, dtype=np.float64) for hour in hours]
    return np.stack(rates_mmh, axis=1) * cadence_s / HOUR_S


def mean_of(fields_mhw: Floats, of_hw: Counts) -> Floats:
    """Average the members that are finite; NaN where none is."""
    total_hw = np.nansum(fields_mhw, axis=0, dtype=np.float64)
    mean_hw: Floats = np.where(of_hw > 0, total_hw / np.maximum(of_hw, 1), np.nan).astype(np.float32)
    return mean_hw


def quantiles_of(fields_mhw: Floats, of_hw: Counts, quantiles: Sequence[float]) -> Floats:
    """Interpolate quantiles linearly between the sorted members that are finite (type 7 of Hyndman and Fan, 1996).

    Args:
        fields_mhw: Members, NaN where missing.
        of_hw: How many are finite.
        quantiles: 0 to 1.

    Returns:
        (quantiles, rows, cols), rounded as members are; NaN where no member is finite.
    """
    # NaN is sorted to the end.
    sorted_mhw = np.sort(fields_mhw, axis=0)
    last_hw = np.maximum(of_hw, 1).astype(np.float32) - 1
    values = []
    for quantile in quantiles:
        position_hw = last_hw * np.float32(quantile)
        below_hw = np.floor(position_hw).astype(np.intp)
        low, high = (
            np.take_along_axis(sorted_mhw, index_hw[None], axis=0)[0]
            for index_hw in (below_hw, np.ceil(position_hw).astype(np.intp))
        )
        values.append(low + (high - low) * (position_hw - below_hw))
    return round_rain(np.stack(values))


def count_exceeding(
    fields_mhw: Floats, is_known_mhw: npt.NDArray[np.bool_], thresholds_mmh: Sequence[float], radii_px: Sequence[float]
) -> Counts:
    """Count the members that have rain above each threshold within each radius.

    A member counts at the pixels where it is finite itself; what is missing nearby exceeds nothing. So a probability
    rises with the radius, and falls with the threshold.

    Args:
        fields_mhw: Members in mm/h, NaN where missing.
        is_known_mhw: Where they are finite.
        thresholds_mmh: Rising.
        radii_px: In pixels; 0 is the pixel alone.

    Returns:
        (thresholds, radii, rows, cols)
    """
    counts = np.zeros((len(thresholds_mmh), len(radii_px), *fields_mhw.shape[1:]), np.uint8)
    for field_hw, is_known_hw in zip(fields_mhw, is_known_mhw, strict=True):
        # How many thresholds a pixel exceeds: the most of a disc says it for all thresholds at once.
        classes_hw = np.zeros(field_hw.shape, np.uint8)
        for threshold_mmh in thresholds_mmh:
            classes_hw += field_hw > np.float32(threshold_mmh)

        for number, radius_px in enumerate(radii_px):
            nearby_hw = disc_maximum(classes_hw, radius_px) * is_known_hw
            for rank in range(len(thresholds_mmh)):
                counts[rank, number] += nearby_hw > rank
    return counts


def disc_maximum(values_hw: Counts, radius_px: float) -> Counts:
    """Take the largest value of the disc around each pixel: of all pixels whose centres lie within a radius of its own.

    A disc is a row segment for each distance north or south. Segments grow towards the middle, so that the maxima of
    each come from those of the next shorter one. The part of a disc that lies outside the frame holds nothing.
    """
    reach = math.floor(radius_px + 1e-9)
    if reach == 0:
        return values_hw
    rows, _ = values_hw.shape
    result_hw = np.zeros_like(values_hw)
    segment_hw = values_hw.copy()
    half_width = 0

    for down in range(reach, -1, -1):
        # Lengthen the segments to the disc's width at this distance from the middle.
        while half_width < math.floor(math.sqrt(max(radius_px**2 - down**2, 0)) + 1e-9):
            half_width += 1
            np.maximum(segment_hw[:, half_width:], values_hw[:, :-half_width], out=segment_hw[:, half_width:])
            np.maximum(segment_hw[:, :-half_width], values_hw[:, half_width:], out=segment_hw[:, :-half_width])

        # They reach the pixels so far below and above them.
        inside = max(rows - down, 0)
        np.maximum(result_hw[down:], segment_hw[:inside], out=result_hw[down:])
        np.maximum(result_hw[:inside], segment_hw[down:], out=result_hw[:inside])
    return result_hw
