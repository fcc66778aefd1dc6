"""A picture of what lies in an archive: frames spread over its time, in rain colours."""

import io
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from ..frames import iso_time
from ..store.storage import Storage
from ..units import MISSING_COUNT
from .decode import decode_frame, read_sequence
from .index import Index, SequenceEntry
from .palette import DRY_COLOUR, MISSING_COLOUR, RAIN_COLOURS, RAIN_LEVELS_MMH, rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: Final = 6
TILE_INCHES: Final = 2.0


def draw_contact_sheet(storage: Storage, index: Index, num_frames: int = 24) -> bytes:
    """Draw frames spread evenly over an archive's own, with their times and the rain scale, as a PNG.

    Raises:
        DataError: A shard is missing, or the bytes of a frame that is drawn do not match the index.
    """
    # Imported here: packing and reading need no pictures, and matplotlib takes a second to come.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # As many tiles as frames, six in a row; a PNG of bounded size.
    chosen = _spread(index, num_frames)
    columns = min(COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    # A very long or flat frame is drawn small inside its tile: a picture has bounds too.
    height = TILE_INCHES * min(max(index.rows / index.cols, 0.1), 4.0)
    figure = Figure(figsize=(TILE_INCHES * columns + 0.2, (height + 0.25) * rows + 1.1), dpi=120)
    figure.suptitle(_heading(index, len(chosen)), fontsize=10, parse_math=False)

    for number, (entry, frame) in enumerate(chosen, start=1):
        counts_hw = read_frame(storage, index, entry, frame)
        missing = counts_hw == MISSING_COUNT
        rain_mmh = np.where(missing, 0, counts_hw) * np.float64(index.origins[entry.origin].scale_mmh)
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(rgb(rain_mmh, missing), interpolation="nearest")
        axes.set_title(_title(index, entry, frame), fontsize=7 if len(index.origins) == 1 else 6, pad=2)
        axes.set_xticks([])
        axes.set_yticks([])

    _add_legend(figure)
    bottom, top = 0.65 / figure.get_figheight(), 1 - 0.5 / figure.get_figheight()
    figure.subplots_adjust(left=0.01, right=0.99, bottom=bottom, top=top, wspace=0.03, hspace=0.14)
    picture = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(picture, format="png")
    return picture.getvalue()


def read_frame(storage: Storage, index: Index, entry: SequenceEntry, frame: int) -> npt.NDArray[np.uint16]:
    """Read and verify one frame, uint16 (rows, cols)."""
    counts_hw = np.empty((index.rows, index.cols), np.uint16)
    decode_frame(index, entry, read_sequence(storage, index, entry), frame, counts_hw)
    return counts_hw


def _heading(index: Index, num_drawn: int) -> str:
    """Name the sources, with numbers where there are several, and count the frames."""
    sources = index.sources
    names = index.source if len(sources) == 1 else ", ".join(f"{i}: {name}" for i, name in enumerate(sources, start=1))
    num_frames = sum(entry.num_starts for entry in index.sequences)
    return f"{names}: {num_drawn} of {num_frames} frames, end times UTC"


def _title(index: Index, entry: SequenceEntry, frame: int) -> str:
    """Format a frame's time, and where there are several, the number of its source and its rows and columns."""
    time = iso_time(entry.start_s + frame * index.cadence_s)
    title = f"{time[:10]} {time[11:16]}"
    origin = index.origins[entry.origin]
    if len(index.origins) > 1:
        title += f"  {origin.crop}"
    return title if len(index.sources) == 1 else f"{index.sources.index(origin.source) + 1}: {title}"


def _spread(index: Index, num_frames: int) -> list[tuple[SequenceEntry, int]]:
    """Choose (sequence, frame) evenly over the distinct frames, in time order."""
    sequences = sorted(index.sequences, key=lambda entry: entry.start_s)
    # Number the owned frames over all sequences, and find the sequence of each number.
    ends = np.cumsum([entry.num_starts for entry in sequences])
    chosen = np.unique(np.linspace(0, ends[-1] - 1, min(num_frames, int(ends[-1]))).round().astype(np.int64))
    at = np.searchsorted(ends, chosen, side="right")
    return [(sequences[i], int(frame - ends[i] + sequences[i].num_starts)) for i, frame in zip(at, chosen, strict=True)]


def _add_legend(figure: "Figure") -> None:
    from matplotlib.patches import Patch

    # A count of 0.12 mm/h is the lowest class that there is, so "dry" means below its bound.
    labels = [f"dry, < {RAIN_LEVELS_MMH[0]:g}", *(f">= {level:g}" for level in RAIN_LEVELS_MMH), "missing"]
    colours = [DRY_COLOUR, *RAIN_COLOURS, MISSING_COLOUR]
    handles = [Patch(facecolor=c, edgecolor="#808080", label=t) for c, t in zip(colours, labels, strict=True)]
    figure.legend(handles=handles, loc="lower center", ncols=6, fontsize=7, title="rain rate in mm/h", title_fontsize=7)
