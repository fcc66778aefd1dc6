"""Which windows a run trains on, which it holds out, and what that is recorded as."""

import logging
from dataclasses import dataclass, replace

import numpy as np

from data.frames import DataError
from data.plan import Selection, WindowTable, check_batches, default_block_bytes, default_lanes, select_windows
from data.sequences import TimeSpan, split_spans
from data.shards import Index, load_index
from data.storage import Storage, open_storage
from data.stream import Stream
from trainer.config import DataConfig

LOG = logging.getLogger(__name__)
SECONDS_AN_HOUR = 3600
MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The archive of a run, split in time.

    Attributes:
        storage: Where the shards lie.
        index: What they hold.
        train: Windows to train on.
        held_out: Windows to evaluate on; None where nothing is held out.
        spans: Times of the parts, by name.
    """

    storage: Storage
    index: Index
    train: WindowTable
    held_out: WindowTable | None
    spans: dict[str, tuple[TimeSpan, ...]]

    def names(self, window_b: np.ndarray) -> list[str]:
        """Name training windows as KEY:first frame."""
        return [self.train.name(int(window), self.index) for window in window_b]


def open_windows(config: DataConfig) -> Windows:
    """Read the index, split the archive in time, and select the windows of each part.

    Raises:
        DataError: The index does not verify, or a part that was asked for has no window.
    """
    storage = open_storage(config.shards)
    index = load_index(storage)
    first_s = min(entry.start_s for entry in index.sequences)
    last_s = max(entry.start_s + (entry.num_frames - 1) * index.cadence_s for entry in index.sequences)
    guard_s = round(config.guard_h * SECONDS_AN_HOUR)
    try:
        spans = split_spans(first_s, last_s, validation_share=config.validation_share, test_share=0.0, guard_s=guard_s)
    except DataError as error:
        raise DataError(
            f"data.validation_share {config.validation_share} with data.guard_h {config.guard_h}: {error}"
        ) from error
    train = select_windows(index, _selection(config, spans["train"]))
    held_out = None
    if config.validation_share > 0:
        try:
            held_out = select_windows(index, _selection(config, spans["validation"]))
        except DataError as error:
            raise DataError(
                f"the held-out part (data.validation_share {config.validation_share}, data.guard_h {config.guard_h}) "
                f"has no window: {error}. Hold out a larger share, shorten the guard, or set data.validation_share 0"
            ) from error
        if guard_s == 0:
            LOG.warning("data.guard_h is 0: one rain system may stand in both the training and the held-out part")
    return Windows(storage=storage, index=index, train=train, held_out=held_out, spans=spans)


def _selection(config: DataConfig, spans: tuple[TimeSpan, ...]) -> Selection:
    return Selection(
        window=config.window,
        min_rain_fraction=config.min_rain_fraction,
        target_frame=config.target_frame,
        spans=spans,
    )


def open_stream(windows: Windows, config: DataConfig, *, seed: int, rank: int, world_size: int, pin: bool) -> Stream:
    """Make this rank's stream of training batches.

    Raises:
        BatchError: The batch sizes, lanes and the world size do not fit one another; the text names those that do.
    """
    lanes = config.lanes or default_lanes(config.micro)
    block_bytes = default_block_bytes(config.global_batch, lanes)
    if config.block_mb is not None:
        block_bytes = round(config.block_mb * MEGABYTE)
    check_batches(
        num_windows=len(windows.train),
        global_batch=config.global_batch,
        micro_batch=config.micro,
        lanes=lanes,
        world_size=world_size,
    )
    return Stream(
        windows.storage,
        windows.index,
        windows.train,
        seed=seed,
        global_batch=config.global_batch,
        micro_batch=config.micro,
        lanes=lanes,
        block_bytes=block_bytes,
        rank=rank,
        world_size=world_size,
        threads=config.threads,
        decoded_mb=config.decoded_mb,
        prefetch_steps=config.prefetch_steps,
        pin_memory=pin,
    )


def wettest(index: Index, table: WindowTable) -> WindowTable:
    """Take the window with the most rain, the one worth a picture."""
    totals = {
        int(number): np.convolve(index.sequences[int(number)].rain_fraction, np.ones(table.window), "valid")
        for number in np.unique(table.sequence)
    }
    shares = [totals[int(number)][int(start)] for number, start in zip(table.sequence, table.start, strict=True)]
    row = slice(int(np.argmax(shares)), int(np.argmax(shares)) + 1)
    return replace(table, sequence=table.sequence[row], start=table.start[row])
