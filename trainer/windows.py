"""Which windows a run trains on, which it holds out, and what that is recorded as."""

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from data.frames import DataError
from data.plan import Selection, WindowTable, check_batches, default_block_bytes, default_lanes, select_windows
from data.sequences import TimeSpan, split_spans
from data.shards import Index, load_index
from data.storage import Storage, open_storage
from data.stream import Stream
from trainer.settings import WindowsConfig

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
        held_out: Windows to evaluate on while training; None where nothing is held out.
        spans: Times of the parts "train", "validation" and "test".
    """

    storage: Storage
    index: Index
    train: WindowTable
    held_out: WindowTable | None
    spans: dict[str, tuple[TimeSpan, ...]]

    def names(self, window_b: np.ndarray) -> list[str]:
        """Name training windows as KEY:first frame."""
        return [self.train.name(int(window), self.index) for window in window_b]

    def described(self) -> dict[str, Any]:
        """Say as plain JSON what the run learns from: what a forecast or a score has to know of it later."""
        index = self.index
        return {
            "source": index.source,
            "licence": index.licence,
            "fingerprint": index.fingerprint,
            "grid": index.grid.cropped(index.crop).to_json(),
            "cadence_s": index.cadence_s,
            "scale_mmh": index.scale_mmh,
            "spans": {part: [asdict(span) for span in some] for part, some in self.spans.items()},
        }


def split_archive(index: Index, config: WindowsConfig) -> dict[str, tuple[TimeSpan, ...]]:
    """Split an archive in time as the settings say: spans of "train", "validation" and "test", () for none.

    Raises:
        DataError: Shares and guard that the archive is too short for.
    """
    stated = config.stated_spans()
    if stated is not None:
        return stated
    first_s = min(entry.start_s for entry in index.sequences)
    last_s = max(entry.start_s + (entry.num_frames - 1) * index.cadence_s for entry in index.sequences)
    try:
        return split_spans(
            first_s,
            last_s,
            validation_share=config.validation_share,
            test_share=config.test_share,
            guard_s=round(config.guard_h * SECONDS_AN_HOUR),
        )
    except DataError as error:
        raise DataError(
            f"data.validation_share {config.validation_share}, data.test_share {config.test_share} with data.guard_h "
            f"{config.guard_h}: {error}"
        ) from error


def open_windows(config: WindowsConfig, window: int) -> Windows:
    """Read the index, split the archive in time, and select the windows of each part.

    Args:
        config: The archive and its split.
        window: Frames a window.

    Raises:
        DataError: The index does not verify, or a part that was asked for has no window.
    """
    storage = open_storage(config.shards)
    index = load_index(storage)
    spans = split_archive(index, config)
    train = _part(index, config, window, spans, "train")
    held_out = _part(index, config, window, spans, "validation") if spans["validation"] else None
    if spans["test"]:
        # Not for use here: that the test part holds no window would else be found out after days of training.
        _part(index, config, window, spans, "test")
    if config.guard_h == 0 and (spans["validation"] or spans["test"]):
        LOG.warning("data.guard_h is 0: one rain system may stand in both the training and the held-out part")
    return Windows(storage=storage, index=index, train=train, held_out=held_out, spans=spans)


def _part(
    index: Index, config: WindowsConfig, window: int, spans: dict[str, tuple[TimeSpan, ...]], part: str
) -> WindowTable:
    """Select the windows of a part; what is wrong with it is told with the settings that made it."""
    whole = part == "train" and not (config.train_times or spans["validation"] or spans["test"])
    if whole or window > index.window:
        return select_windows(index, selection(config, window, spans[part]))
    try:
        return select_windows(index, selection(config, window, spans[part]))
    except DataError as error:
        if config.train_times is not None:
            origin, advice = f"data.{part}_times", "State other times"
        elif part == "train":
            origin = f"data.validation_share {config.validation_share}, data.test_share {config.test_share}"
            advice = "Hold out less, or shorten data.guard_h"
        else:
            share = config.test_share if part == "test" else config.validation_share
            origin = f"data.{part}_share {share}, data.guard_h {config.guard_h}"
            advice = f"Hold out a larger share, shorten the guard, or set data.{part}_share 0"
        name = {"train": "training", "validation": "held-out", "test": "test"}[part]
        times = ", ".join(map(str, spans[part]))
        raise DataError(f"the {name} part ({times}; {origin}) has no window: {error}. {advice}") from error


def selection(config: WindowsConfig, window: int, spans: tuple[TimeSpan, ...]) -> Selection:
    """Select the windows of some spans as the settings say."""
    return Selection(
        window=window,
        min_rain_fraction=config.min_rain_fraction,
        target_frame=config.target_frame,
        spans=spans,
    )


def open_stream(windows: Windows, config: WindowsConfig, *, seed: int, rank: int, world_size: int, pin: bool) -> Stream:
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
