"""What an archive holds, in words and numbers: the summary that `pack`, `inspect` and `reshard` print."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from ..errors import DataError
from ..frames import iso_time
from ..json_checks import demand
from ..sequences import Runs, split_at_gaps
from ..units import MISSING_COUNT
from .index import INDEX_NAME, Index, of_source
from .origins import Origin, describe
from .palette import RAIN_LEVELS_MMH
from .timeline import frame_bases, origin_frames, owned_windows, rain_fractions, ready_origins
from .totals import NUM_CLASSES, RainTotals

RAIN_SHARES: Final = (0.0, 0.2, 0.5)
"""Least rain fractions of a window's last frame that are counted: all, NL-20, NL-50."""
GAPS_LISTED: Final = 5
NO_CHANGE_MMH: Final = 5e-5
"""Changes below this are those of floats that stand for the same number."""


def rain_of(index: Index, source: str) -> RainTotals:
    """Take an index's statistics of one source and check that they can be those of its frames.

    Raises:
        DataError: Naming the key.
    """
    rain = index.statistics.get(source)
    if rain is None:
        raise DataError(f"{INDEX_NAME}: statistics: no sums of the source {source}; pack the archive again")

    # Sums hang together with each other and with the frames of the index.
    frames = sum(entry.num_starts for entry in index.sequences if index.origins[entry.origin].source == source)
    possible = {
        "frames": rain.frames == frames,
        "pixels": rain.pixels == frames * index.rows * index.cols,
        "valid": rain.valid <= rain.pixels,
        "wet": rain.wet <= rain.valid,
        "max_count": rain.max_count < MISSING_COUNT and (rain.max_count > 0) == (rain.wet > 0),
        "sum_counts": rain.wet <= rain.sum_counts <= rain.wet * rain.max_count,
        "rain_classes": len(rain.rain_classes) == NUM_CLASSES and sum(rain.rain_classes) == rain.valid,
    }
    for name, holds in possible.items():
        key = f"{name} in the statistics of {INDEX_NAME}"
        demand(holds, key, getattr(rain, name), f"that of {frames} frames: copy or pack the archive again")
    return rain


def count_windows(index: Index, length: int, min_rain_fraction: float) -> int:
    """Count the windows of `length` frames whose last frame has at least this rain fraction."""
    sequence, start = owned_windows(index, range(len(index.sequences)), length)
    # From the number of a window's last frame among all frames of the archive.
    last = rain_fractions(index)[frame_bases(index)[sequence] + start + length - 1]
    return int(np.count_nonzero(last >= min_rain_fraction))


def runs_of(index: Index, origin: int = 0) -> Runs:
    """Find the gap-free runs of one origin and the gaps between them, in time order."""
    own = [entry for entry in index.sequences if entry.origin == origin]
    frames = origin_frames(own, cadence_s=index.cadence_s, num_pixels=index.rows * index.cols)
    return split_at_gaps(frames.times_s.tolist(), index.cadence_s)


def summarise(index: Index) -> str:
    """Write the summary, from the index alone; raises DataError for statistics that cannot be."""
    stored = sum(entry.num_frames for entry in index.sequences)
    distinct = sum(entry.num_starts for entry in index.sequences)
    num_bytes = sum(shard.num_bytes for shard in index.shards)
    lines = [
        *(line for source in index.sources for line in _source_lines(of_source(index, source))),
        f"sequences     {len(index.sequences)} of at most {index.max_frames} frames in "
        f"{_counted(len(index.shards), 'shard')}",
        *_window_lines(index),
        f"bytes         {num_bytes:,} in shards, {num_bytes / stored:,.0f} a stored frame, "
        f"{stored / distinct:.2f} stored frames a frame",
        f"fingerprint   {index.fingerprint}",
    ]
    return "\n".join(lines) + "\n"


def _source_lines(index: Index) -> Iterator[str]:
    """Describe one source from an index that holds nothing else."""
    origin = index.origins[0]
    yield f"source        {index.source} ({index.licence})"
    if not index.sequences:
        yield "frames        none"
        return

    rain = rain_of(index, index.source)
    several = len(index.origins) > 1
    ready = len(ready_origins(index)) == len(index.origins)
    first_s = min(entry.start_s for entry in index.sequences)
    last_s = max(entry.start_s + (entry.num_frames - 1) * index.cadence_s for entry in index.sequences)
    times = f"every {index.cadence_s / 60:g} min, {iso_time(first_s)} to {iso_time(last_s)}"
    if ready:
        yield f"frames        {rain.frames} ready windows of {index.window} {times}; the rain is their first frames'"
    else:
        yield f"frames        {rain.frames} {times}" + (", all parts together" if several else "")

    area = f"{len(index.origins)} parts such as {origin.crop}" if several else f"crop {origin.crop}"
    yield (
        f"pixels        {index.rows} x {index.cols}, {area} of {origin.grid.rows} x {origin.grid.cols}, "
        f"{origin.scale_mmh:g} mm/h a count"
    )
    yield f"values        {_values(origin)}"
    if not ready:
        yield from _gap_lines(index)
    yield from _rain_lines(origin.scale_mmh, rain)


def _values(origin: Origin) -> str:
    """Say what a value stands for in time, and how it was read."""
    if origin.period_s is None:
        period = "rain rates; the source does not say over how long"
    elif origin.period_s == 0:
        period = "rain rates of the moment"
    else:
        period = f"mean rain rates over {origin.period_s / 60:g} min"
    return period if origin.recipe is None else f"{period}, read as {describe(origin.recipe)}"


def _gap_lines(index: Index) -> Iterator[str]:
    # Tiles of one grid have the same times, most often: the gaps of the first one stand for all.
    series = runs_of(index)
    missing = f" ({sum(gap.num_missing for gap in series.gaps)} frames missing)" if series.gaps else ""
    yield f"gaps          {len(series.gaps)}{missing}" + (" in the first part" if len(index.origins) > 1 else "")
    for gap in series.gaps[:GAPS_LISTED]:
        yield f"              {gap}"
    if len(series.gaps) > GAPS_LISTED:
        yield f"              ... and {len(series.gaps) - GAPS_LISTED} more"

    # Packed for shorter windows: none of the longest ones fits.
    short = [run.num_frames for run in series.runs if run.num_frames < index.window]
    frames = f" ({sum(short)} frames, packed for shorter windows)" if short else ""
    count = f"{len(short)} of {len(series.runs)}"
    yield f"short runs    {count} gap-free runs are shorter than {index.window} frames{frames}"


def _window_lines(index: Index) -> Iterator[str]:
    header = "windows       last frame's rain  " + "".join(f">= {share:>4.0%}    " for share in RAIN_SHARES)
    yield header.rstrip()
    for length in sorted({12, 24, index.window}):
        if length <= index.window:
            counts = "".join(f"{count_windows(index, length, share):>7,}    " for share in RAIN_SHARES)
            yield f"              of {length:>3} frames      {counts}".rstrip()


def _rain_lines(scale_mmh: float, rain: RainTotals) -> Iterator[str]:
    if not rain.valid:
        yield "rain          every pixel is missing"
        return

    yield (
        f"rain          {rain.wet / rain.valid:.1%} of valid pixels wet (above 0, so {scale_mmh:g} mm/h or more), mean "
        f"{rain.sum_counts * scale_mmh / rain.valid:.3f} mm/h, largest "
        f"{rain.max_count * scale_mmh:.1f} mm/h, {1 - rain.valid / rain.pixels:.1%} of pixels missing"
    )
    # Classes without a pixel are left out.
    edges = [f"below {RAIN_LEVELS_MMH[0]:g}", *(f"from {level:g}" for level in RAIN_LEVELS_MMH)]
    shares = [count / rain.valid for count in rain.rain_classes]
    classes = ", ".join(f"{edge}: {share:.2%}" for edge, share in zip(edges, shares, strict=True) if share)
    yield f"              share of valid pixels by mm/h: {classes}"

    if rain.rounding is not None:
        error_mmh = rain.rounding.max_error_mmh
        changes = f"at most {error_mmh:.4f} mm/h off" if error_mmh >= NO_CHANGE_MMH else "no rate changed"
        if rain.rounding.clamped:
            changes += f"; {_counted(rain.rounding.clamped, 'pixel')} above 655.34 mm/h set to it"
        if rain.rounding.discarded:
            changes += f"; {_counted(rain.rounding.discarded, 'pixel')} no rain rate (negative, infinite), now missing"
        yield f"rounding      to counts of 0.01 mm/h: {changes}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
