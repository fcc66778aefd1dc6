"""Cut a grid into tiles, frames into sequences, and the packing into units of work."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

from ..errors import DataError
from ..frames import Crop, Grid, iso_time
from ..sequences import Run, cut_run, find_runs
from ..shards.writer import PlannedSequence

MAX_UNIT_BYTES: Final = 2**31
"""Frames of a unit, uncompressed; its compressed ones, about a tenth of that, are in memory at once."""

Unit = tuple[PlannedSequence, ...]
"""Sequences of the same frames, one a tile: a frame is read once for all of them, and they stand in one shard."""


def cut_tiles(grid: Grid, crop: Crop | None, tile: int | None, stride: int | None) -> tuple[Crop, ...]:
    """Find the parts of a grid that are packed: the crop itself, or whole square tiles inside it, row by row.

    Args:
        grid: The source's grid.
        crop: Part of it; None for all.
        tile: Side of a tile, pixels; None for no tiles.
        stride: Pixels from tile to tile.

    Raises:
        DataError: The crop reaches outside the grid, or no tile fits into it.
    """
    whole = crop or Crop(row0=0, row1=grid.rows, col0=0, col1=grid.cols)
    # A tile lies in the area as a whole, or it is none.
    whole.check_inside(grid.rows, grid.cols)
    if tile is None:
        return (whole,)

    step = stride or tile
    tiles = tuple(
        Crop(row0=row, row1=row + tile, col0=col, col1=col + tile)
        for row in range(whole.row0, whole.row1 - tile + 1, step)
        for col in range(whole.col0, whole.col1 - tile + 1, step)
    )
    if not tiles:
        raise DataError(f"no tile of {tile} x {tile} pixels fits into {whole.rows} x {whole.cols}; take smaller tiles")
    return tiles


def beyond_tiles(grid: Grid, crop: Crop | None, tiles: Sequence[Crop]) -> tuple[str, ...]:
    """Note what lies beyond the last whole tiles, if anything does."""
    whole = crop or Crop(row0=0, row1=grid.rows, col0=0, col1=grid.cols)
    last = around(tiles)
    rows = whole.row1 - last.row1
    cols = whole.col1 - last.col1
    if not rows and not cols:
        return ()
    return (
        f"{len(tiles)} whole tiles of {tiles[0].rows} x {tiles[0].cols} pixels; the last {rows} rows and {cols} "
        f"columns of {whole.rows} x {whole.cols} lie beyond them and are not packed",
    )


def around(crops: Sequence[Crop]) -> Crop:
    """Find the smallest rectangle that holds all of them."""
    return Crop(
        row0=min(crop.row0 for crop in crops),
        row1=max(crop.row1 for crop in crops),
        col0=min(crop.col0 for crop in crops),
        col1=max(crop.col1 for crop in crops),
    )


def cut_sequences(
    times_s: Sequence[int], windows: Sequence[Run] | None, cadence_s: int, window: int, max_frames: int
) -> tuple[PlannedSequence, ...]:
    """Cut a source's frames into sequences, of origin 0 and with their times for keys.

    Raises:
        DataError: As `data.sequences.find_runs`.
    """
    # Ready windows stay whole, each the owner of its first frame; runs are cut so that sequences overlap.
    if windows is not None:
        pieces = [(run.first, run.num_frames, 1) for run in windows]
    else:
        pieces = [
            (run.first + piece.first, piece.num_frames, piece.num_starts)
            for run in find_runs(times_s, cadence_s).runs
            for piece in cut_run(run.num_frames, window, max_frames)
        ]

    return tuple(
        PlannedSequence(
            key=time_key(times_s[first]),
            origin=0,
            start_s=times_s[first],
            first=first,
            num_frames=num_frames,
            num_starts=num_starts,
        )
        for first, num_frames, num_starts in pieces
    )


def time_key(start_s: int) -> str:
    """Name a sequence by the end time of its first frame."""
    # Without the characters that end a name in WebDataset or on a disk.
    return iso_time(start_s).replace("-", "").replace(":", "")


def spread_tiles(
    sequences: Sequence[PlannedSequence], crops: Sequence[Crop], first_origin: int, least: int
) -> list[Unit]:
    """Make units of sequences and tiles: as many tiles in each as memory allows and the number of units does.

    Args:
        sequences: The sequences of one tile.
        crops: The tiles.
        first_origin: Position of the first tile's origin in the archive.
        least: How many units there should be, if there are tiles enough.
    """
    # Groups of tiles: small enough for memory, many enough for the units that are wanted.
    longest = max(planned.num_frames for planned in sequences)
    fit = max(1, MAX_UNIT_BYTES // (2 * crops[0].rows * crops[0].cols * longest))
    num_groups = min(len(crops), max(-(-len(crops) // fit), -(-least // len(sequences))))
    edges = [len(crops) * group // num_groups for group in range(num_groups + 1)]
    return [
        tuple(replace(planned, origin=first_origin + tile) for tile in range(begin, end))
        for planned in sequences
        for begin, end in pairwise(edges)
    ]
