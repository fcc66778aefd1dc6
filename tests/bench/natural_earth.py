"""Make trainer/forecasting/natural_earth.npz, the coasts and borders that maps show, in half a megabyte.

Natural Earth 4.1 at 1:10 000 000 (public domain) comes as TopoJSON in the npm package world-atlas:

    npm pack world-atlas@2.0.2 && tar xzf world-atlas-2.0.2.tgz
    python -m tests.bench.natural_earth package/countries-10m.json trainer/forecasting/natural_earth.npz

TopoJSON holds every line once: what two countries share is a border, the rest is coast. Lines lose the points that lie
within half a kilometre of what remains (Douglas and Peucker 1973), islands below 3 km and Antarctica are left out.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rainspark.trainer.forecasting.map_lines import STEPS_PER_DEGREE

TOLERANCE_KM = 0.5
SMALLEST_KM = 3.0
SOUTHERNMOST_DEG = -60.0
LONGEST_DEG = 1.0
"""A straight line on one map is curved on another: long ones get points between, which also keeps steps in 16 bits."""
KM_PER_DEGREE = 111.2

Points = npt.NDArray[np.float64]


def simplified(points_km: Points, tolerance_km: float) -> npt.NDArray[np.bool_]:
    """Mark the points of a line, (points, 2), that Douglas and Peucker keep."""
    keep = np.zeros(len(points_km), bool)
    keep[[0, -1]] = True
    spans = [(0, len(points_km) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue

        # How far the points between lie from the chord; from its one end where it is a ring's.
        offsets = points_km[first + 1 : last] - points_km[first]
        chord = points_km[last] - points_km[first]
        length = np.hypot(*chord)
        across = np.abs(offsets[:, 0] * chord[1] - offsets[:, 1] * chord[0])
        distances = across / length if length else np.hypot(offsets[:, 0], offsets[:, 1])
        farthest = first + 1 + int(np.argmax(distances))
        if distances.max() > tolerance_km:
            keep[farthest] = True
            spans += [(first, farthest), (farthest, last)]
    return keep


def split_at_date_line(points: Points) -> list[Points]:
    """Cut out what runs along 180 degrees or from there to -180: it is where a map ends, and no coast."""
    along = (np.abs(points[:-1, 0]) > 179.98) & (np.abs(points[1:, 0]) > 179.98)
    around = np.abs(np.diff(points[:, 0])) > 180
    pieces = np.split(np.arange(len(points)), np.flatnonzero(along | around) + 1)
    return [points[piece] for piece in pieces if len(piece) > 1]


def reduced(points: Points) -> Points | None:
    """Simplify a line of (longitude, latitude) and put points into its long steps; None where it is too small."""
    scale = np.array([np.cos(np.radians(points[:, 1].mean())), 1.0]) * KM_PER_DEGREE
    points_km = points * scale
    if points[:, 1].max() < SOUTHERNMOST_DEG or np.ptp(points_km, axis=0).max() < SMALLEST_KM:
        return None
    kept = points[simplified(points_km, TOLERANCE_KM)]
    counts = np.ceil(np.abs(np.diff(kept, axis=0)).max(axis=1) / LONGEST_DEG).astype(int).clip(min=1)
    at = np.concatenate([[0.0], np.cumsum(np.repeat(1 / counts, counts))])
    every = np.arange(len(kept))
    return np.stack([np.interp(at, every, kept[:, axis]) for axis in (0, 1)], axis=1)


def read_lines(path: Path) -> tuple[list[Points], list[bool]]:
    """Read TopoJSON as lines of (longitude, latitude) in degrees, and whether each is a border."""
    topology: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    uses: Counter[int] = Counter()

    def count(arcs: Any) -> None:
        if isinstance(arcs, int):
            # A negative number is the line that it is the complement of, backwards.
            uses[max(arcs, ~arcs)] += 1
        else:
            for inner in arcs:
                count(inner)

    for country in topology["objects"]["countries"]["geometries"]:
        count(country.get("arcs", []))
    scale, corner = (np.array(topology["transform"][key]) for key in ("scale", "translate"))
    lines, are_borders = [], []
    for number, arc in enumerate(topology["arcs"]):
        for piece in split_at_date_line(np.cumsum(np.array(arc), axis=0) * scale + corner):
            line = reduced(piece)
            if line is not None:
                lines.append(line)
                are_borders.append(uses[number] > 1)
    return lines, are_borders


def main() -> None:
    """Read, reduce, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topojson", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()

    # Whole steps from point to point, each line's first point from the one before: bytes apart, they compress best.
    lines, are_borders = read_lines(options.topojson)
    points = np.concatenate([np.round(line * STEPS_PER_DEGREE) for line in lines]).astype(np.int32)
    lengths = np.array([len(line) for line in lines], np.int32)
    firsts = np.cumsum(lengths) - lengths
    steps = np.diff(points, axis=0, prepend=0)
    steps[firsts] = 0
    low_high = steps.astype("<i2").T[..., None].copy().view(np.uint8)
    np.savez_compressed(
        options.out,
        first=points[firsts],
        lengths=lengths,
        low=low_high[..., 0],
        high=low_high[..., 1],
        is_border=np.array(are_borders),
    )
    print(f"{len(lines)} lines, {len(points)} points, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
