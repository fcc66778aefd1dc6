"""What an archive holds, in numbers: rain totals as exact integers, and the summary that `pack` and `inspect` print."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from ..counts import NO_ROUNDING, Rounding
from ..errors import DataError
from ..frames import iso_time
from ..json_checks import shown
from ..sequences import Gap
from ..units import MISSING_COUNT
from .index import Index, of_source
from .palette import RAIN_LEVELS_MMH

RAIN_SHARES: Final = (0.0, 0.2, 0.5)
"""Least rain fractions of a window's last frame that are counted: all, NL-20, NL-50."""
GAPS_LISTED: Final = 5


@dataclass(frozen=True, kw_only=True)
class RainTotals:
    """Sums over frames, all integers: the same whatever the order of adding.

    Attributes:
        frames: Frames.
        pixels: Pixels of them.
        valid: Those that are no missing ones.
        wet: Those above zero.
        sum_counts: Sum of the valid counts.
        max_count: Largest valid count.
        rain_classes: Valid pixels below 0.1 mm/h, and in each class of palette.RAIN_LEVELS_MMH.
    """

    frames: int
    pixels: int
    valid: int
    wet: int
    sum_counts: int
    max_count: int
    rain_classes: tuple[int, ...]

    @classmethod
    def none(cls) -> Self:
        """Start a sum."""
        classes = (0,) * (len(RAIN_LEVELS_MMH) + 1)
        return cls(frames=0, pixels=0, valid=0, wet=0, sum_counts=0, max_count=0, rain_classes=classes)

    @classmethod
    def of_frame(cls, counts_hw: npt.NDArray[np.uint16], scale_mmh: float) -> Self:
        """Sum up one frame, uint16 (rows, cols), 65535 missing."""
        per_count = np.bincount(counts_hw.ravel(), minlength=MISSING_COUNT + 1)[:MISSING_COUNT]
        seen = np.flatnonzero(per_count)
        # A count belongs to the class that its rate to 1e-6 mm/h lies in: 10 * 0.12 is 1.2, whatever binary says.
        first_counts = [math.ceil(round(level / scale_mmh, 6)) for level in RAIN_LEVELS_MMH]
        class_of = np.searchsorted(first_counts, seen, side="right")
        classes = np.bincount(class_of, weights=per_count[seen], minlength=len(RAIN_LEVELS_MMH) + 1)
        valid = int(per_count.sum())
        return cls(
            frames=1,
            pixels=counts_hw.size,
            valid=valid,
            wet=valid - int(per_count[0]),
            sum_counts=int(np.dot(per_count[seen], seen)),
            max_count=int(seen[-1]) if len(seen) else 0,
            rain_classes=tuple(int(count) for count in classes),
        )

    def plus(self, other: Self) -> Self:
        """Add two sums."""
        return type(self)(
            frames=self.frames + other.frames,
            pixels=self.pixels + other.pixels,
            valid=self.valid + other.valid,
            wet=self.wet + other.wet,
            sum_counts=self.sum_counts + other.sum_counts,
            max_count=max(self.max_count, other.max_count),
            rain_classes=tuple(a + b for a, b in zip(self.rain_classes, other.rain_classes, strict=True)),
        )

    def to_json(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        return {**asdict(self), "rain_classes": list(self.rain_classes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read the fields back; raises DataError when one is not there or no count."""
        checked: dict[str, Any] = {}
        for field in fields(cls):
            value = values.get(field.name) if isinstance(values, Mapping) else None
            is_list = field.name == "rain_classes"
            numbers: list[Any] = value if is_list and isinstance(value, list) else [value]
            whole = all(type(number) is int and number >= 0 for number in numbers)
            if not whole or (is_list and len(numbers) != len(RAIN_LEVELS_MMH) + 1):
                raise DataError(
                    f"statistics: key {field.name!r} is {value!r:.80}; expected counts: pack the archive again"
                )
            checked[field.name] = tuple(numbers) if is_list else value
        return cls(**checked)


def sum_totals(parts: Iterable[Mapping[str, RainTotals]]) -> dict[str, RainTotals]:
    """Add sums by source."""
    totals: dict[str, RainTotals] = {}
    for part in parts:
        for source, rain in part.items():
            totals[source] = totals[source].plus(rain) if source in totals else rain
    return totals


def totals_to_json(totals: Mapping[str, RainTotals]) -> dict[str, Any]:
    """Give sums by source as plain JSON values."""
    return {source: totals[source].to_json() for source in sorted(totals)}


def totals_from_json(values: Mapping[str, Any]) -> dict[str, RainTotals]:
    """Read sums by source back; raises DataError for what they cannot be."""
    return {source: RainTotals.from_json(value) for source, value in values.items()}


def rain_of(index: Index, source: str) -> RainTotals:
    """Read an index's statistics of one source and check that they can be those of its frames.

    Raises:
        DataError: Naming the key.
    """
    values = index.statistics.get(source)
    if not isinstance(values, dict):
        raise DataError(f"index.json: statistics: no sums of the source {source}; pack the archive again")
    rain = RainTotals.from_json(values)
    frames = sum(entry.num_starts for entry in index.sequences if index.origins[entry.origin].source == source)
    rules = {
        "frames": (rain.frames == frames, f"{frames}, the frames of the sequences"),
        "pixels": (rain.pixels == frames * index.rows * index.cols, f"frames of {index.rows} x {index.cols}"),
        "valid": (rain.valid <= rain.pixels, f"at most {rain.pixels} pixels"),
        "wet": (rain.wet <= rain.valid, f"at most {rain.valid} valid pixels"),
        "max_count": (rain.max_count < MISSING_COUNT and (rain.max_count > 0) == (rain.wet > 0), "a count of the wet"),
        "sum_counts": (rain.wet <= rain.sum_counts <= rain.wet * rain.max_count, "1 to max_count for each wet pixel"),
        "rain_classes": (sum(rain.rain_classes) == rain.valid, f"{rain.valid} valid pixels together"),
    }
    for name, (holds, expected) in rules.items():
        if not holds:
            raise DataError(
                f"index.json: statistics: key {name!r} is {values[name]!r:.80}; expected {expected}; "
                "the index was changed: copy or pack it again"
            )
    rounding_of(index, source)
    return rain


def rounding_of(index: Index, source: str) -> Rounding:
    """Read what requantising changed in a source; raises DataError for what it cannot be."""
    values = index.statistics[source].get("rounding", vars(NO_ROUNDING))
    said: dict[str, Any] = values if isinstance(values, dict) else {}
    error_mmh: Any = said.get("max_error_mmh")
    clamped: Any = said.get("clamped")
    if type(error_mmh) not in (int, float) or type(clamped) is not int or min(error_mmh, clamped) < 0 or len(said) > 2:
        raise DataError(
            f"index.json: statistics: rounding of {shown(source)} is {shown(values)}; expected max_error_mmh and "
            "clamped, 0 or more: pack the archive again"
        )
    return Rounding(max_error_mmh=float(error_mmh), clamped=clamped)


def count_windows(index: Index, length: int, min_rain_fraction: float) -> int:
    """Count the windows of `length` frames whose last frame has at least this rain fraction."""
    total = 0
    for entry in index.sequences:
        num_windows = min(entry.num_starts, entry.num_frames - length + 1)
        if num_windows > 0:
            last = np.asarray(entry.rain_fraction[length - 1 : length - 1 + num_windows])
            total += int(np.count_nonzero(last >= min_rain_fraction))
    return total


def run_lengths(index: Index, origin: int = 0) -> tuple[list[int], list[Gap]]:
    """Give the frames of each gap-free run of one origin and the gaps between runs, in time order.

    A sequence that begins no later than one frame after the end of all before it goes on with their run.
    """
    runs: list[int] = []
    gaps: list[Gap] = []
    next_s = None
    own = (entry for entry in index.sequences if entry.origin == origin)
    for entry in sorted(own, key=lambda entry: entry.start_s):
        stop_s = entry.start_s + entry.num_frames * index.cadence_s
        if next_s is not None and entry.start_s <= next_s:
            runs[-1] += max(stop_s - next_s, 0) // index.cadence_s
        else:
            if next_s is not None:
                missing = (entry.start_s - next_s) // index.cadence_s
                gaps.append(Gap(after_s=next_s - index.cadence_s, before_s=entry.start_s, num_missing=missing))
            runs.append(entry.num_frames)
        next_s = stop_s if next_s is None else max(next_s, stop_s)
    return runs, gaps


def summarise(index: Index) -> str:
    """Write the summary, from the index alone; raises DataError for statistics that cannot be."""
    stored = sum(entry.num_frames for entry in index.sequences)
    distinct = sum(entry.num_starts for entry in index.sequences)
    num_bytes = sum(shard.num_bytes for shard in index.shards)
    lines = [
        *(line for source in index.sources for line in _source_lines(of_source(index, source))),
        f"sequences     {len(index.sequences)} of at most {index.max_frames} frames in {len(index.shards)} "
        f"{'shard' if len(index.shards) == 1 else 'shards'}",
        *_window_lines(index),
        f"bytes         {num_bytes:,} in shards, {num_bytes / stored:,.0f} a stored frame, "
        f"{stored / distinct:.2f} stored frames a frame",
        f"fingerprint   {index.fingerprint}",
    ]
    return "\n".join(lines) + "\n"


def _source_lines(index: Index) -> list[str]:
    """Describe one source from an index that holds nothing else."""
    source, origin = index.source, index.origins[0]
    lines = [f"source        {source} ({index.licence})"]
    if not index.sequences:
        return [*lines, "frames        none"]
    rain = rain_of(index, source)
    several = len(index.origins) > 1
    first_s = min(entry.start_s for entry in index.sequences)
    last_s = max(entry.start_s + (entry.num_frames - 1) * index.cadence_s for entry in index.sequences)
    where = f"{len(index.origins)} parts such as {origin.crop}" if several else f"crop {origin.crop}"
    ready = _holds_ready_windows(index)
    times = f"every {index.cadence_s / 60:g} min, {iso_time(first_s)} to {iso_time(last_s)}"
    return [
        *lines,
        f"frames        {rain.frames} ready windows of {index.window} {times}; the rain below is their first frames'"
        if ready
        else f"frames        {rain.frames} {times}" + (", all parts together" if several else ""),
        f"pixels        {index.rows} x {index.cols}, {where} of {origin.grid.rows} x {origin.grid.cols}, "
        f"{origin.scale_mmh:g} mm/h a count",
        *([] if ready else _gap_lines(index)),
        *_rain_lines(origin.scale_mmh, rain),
    ]


def _holds_ready_windows(index: Index) -> bool:
    """Tell windows that were packed as they came from runs: a run's last sequence owns all its windows."""
    whole = all((entry.num_starts, entry.num_frames) == (1, index.window) for entry in index.sequences)
    return whole and index.window > 1


def _gap_lines(index: Index) -> list[str]:
    # Tiles of one grid have the same times, most often: the gaps of the first one stand for all.
    runs, gaps = run_lengths(index)
    several = len(index.origins) > 1
    short = [num_frames for num_frames in runs if num_frames < index.window]
    return [
        f"gaps          {len(gaps)}"
        + (f" ({sum(gap.num_missing for gap in gaps)} frames missing)" if gaps else "")
        + (" in the first part" if several else ""),
        *(f"              {gap}" for gap in gaps[:GAPS_LISTED]),
        *([f"              ... and {len(gaps) - GAPS_LISTED} more"] if len(gaps) > GAPS_LISTED else []),
        f"short runs    {len(short)} of {len(runs)} gap-free runs are shorter than {index.window} frames"
        + (f" ({sum(short)} frames, packed for shorter windows)" if short else ""),
    ]


def _window_lines(index: Index) -> list[str]:
    header = "windows       last frame's rain  " + "".join(f">= {share:>4.0%}    " for share in RAIN_SHARES)
    lines = [header.rstrip()]
    for length in sorted({12, 24, index.window}):
        if length <= index.window:
            counts = "".join(f"{count_windows(index, length, share):>7,}    " for share in RAIN_SHARES)
            lines.append(f"              of {length:>3} frames      {counts}".rstrip())
    return lines


def _rain_lines(scale_mmh: float, rain: RainTotals) -> list[str]:
    if not rain.valid:
        return ["rain          every pixel is missing"]
    edges = [f"below {RAIN_LEVELS_MMH[0]:g}", *(f"from {level:g}" for level in RAIN_LEVELS_MMH)]
    shares = [count / rain.valid for count in rain.rain_classes]
    classes = ", ".join(f"{edge}: {share:.2%}" for edge, share in zip(edges, shares, strict=True) if share)
    return [
        f"rain          {rain.wet / rain.valid:.1%} of valid pixels wet (above 0, so {scale_mmh:g} mm/h or more), mean "
        f"{rain.sum_counts * scale_mmh / rain.valid:.3f} mm/h, largest "
        f"{rain.max_count * scale_mmh:.1f} mm/h, {1 - rain.valid / rain.pixels:.1%} of pixels missing",
        f"              share of valid pixels by mm/h: {classes}",
    ]
