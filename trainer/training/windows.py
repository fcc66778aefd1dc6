"""Which windows a run trains on, which it holds out, and what that is recorded as."""

import json
import logging
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...data.errors import ConfigError, DataError
from ...data.json_checks import canonical
from ...data.sequences import TimeSpan, split_spans
from ...data.shards.index import Index, load_index, of_source
from ...data.store.cache import CachedStorage
from ...data.store.storage import Storage, open_storage
from ...data.stream.stream import Stream
from ...data.windows.mixing import BatchLayout, default_block_bytes, default_lanes
from ...data.windows.selection import WindowTable, lost_to_gaps, select_windows
from ...models.masking import num_visible
from ...models.patches import PATCH, misfit
from ..checkpoint.learned import Learned
from ..checkpoint.seen import WindowTimes, listed
from ..settings.data import ArchiveConfig, WindowsConfig
from ..settings.experiment import FinetuneConfig, TrainingConfig

LOG = logging.getLogger(__name__)
SECONDS_AN_HOUR = 3600
MEGABYTE = 1_000_000
GIGABYTE = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The archive of a run, split in time.

    Attributes:
        storage: Where the shards lie.
        index: What they hold.
        train: Windows to train on.
        held_out: Windows to evaluate on while training; None where nothing is held out.
        test: Windows that are never read while training; None where there is no such part.
        spans: Times of the parts "train", "validation" and "test".
    """

    storage: Storage
    index: Index
    train: WindowTable
    held_out: WindowTable | None
    test: WindowTable | None
    spans: dict[str, tuple[TimeSpan, ...]]

    def names(self, window_b: np.ndarray) -> list[str]:
        """Name training windows as KEY:first frame."""
        return [self.train.name(int(window), self.index) for window in window_b]

    def described(self) -> dict[str, Any]:
        """Describe as plain JSON what the run learns from, for a forecast or a score of it."""
        index = self.index
        scales_mmh = {origin.scale_mmh for origin in index.origins}
        return {
            "source": index.source,
            "sources": list(index.sources),
            "licence": index.licence,
            "fingerprint": index.fingerprint,
            # Of several places or radars there is none: what is learned then is bound to no part of the map.
            "grid": index.grid.cropped(index.crop).to_json() if len(index.origins) == 1 else None,
            "cadence_s": index.cadence_s,
            "readers": {source: _learned(of_source(index, source)) for source in index.sources},
            "scale_mmh": scales_mmh.pop() if len(scales_mmh) == 1 else None,
            "spans": {split: [asdict(span) for span in spans] for split, spans in self.spans.items()},
        }


def _learned(index: Index) -> dict[str, Any]:
    """Describe how frames of an index's one source were read, and from which grid, as plain JSON."""
    origin = index.origins[0]
    learned = Learned(
        recipe=origin.recipe,
        grid=origin.grid,
        crop=origin.crop if len(index.origins) == 1 else None,
        period_s=origin.period_s,
    )
    plain: dict[str, Any] = json.loads(canonical(learned))
    return plain


def window_times(index: Index, table: WindowTable) -> WindowTimes:
    """Look up the end times of the windows' frames."""
    start_s = np.array([entry.start_s for entry in index.sequences], np.int64)
    first_s = start_s[table.sequence] + table.start.astype(np.int64) * index.cadence_s
    return WindowTimes(first_s=first_s, num_frames=table.window, cadence_s=index.cadence_s)


def split_archive(index: Index, config: ArchiveConfig) -> dict[str, tuple[TimeSpan, ...]]:
    """Split an archive in time by the settings: spans of "train", "validation" and "test", () for none.

    Raises:
        DataError: Shares and guard that the archive is too short for.
    """
    stated = config.stated_spans()
    if stated is not None:
        return stated

    first_s = min(entry.start_s for entry in index.sequences)
    last_s = max(entry.start_s + (entry.num_frames - 1) * index.cadence_s for entry in index.sequences)
    validation_share, test_share = config.split_shares
    guard_h = config.split_guard_h

    try:
        return split_spans(
            first_s,
            last_s,
            validation_share=validation_share,
            test_share=test_share,
            guard_s=round(guard_h * SECONDS_AN_HOUR),
        )
    except DataError as error:
        raise DataError(
            f"data.validation_share {validation_share}, data.test_share {test_share} with data.guard_h {guard_h}: "
            f"{error}"
        ) from error


def open_archive(config: ArchiveConfig, shards_at_once: int) -> tuple[Storage, Index]:
    """Open an archive, behind the cache that the settings ask for, and check its index.

    Args:
        config: The archive; of its index the source that it chooses is left.
        shards_at_once: How many shards are read at the same time, by one process.

    Raises:
        ConfigError: A cache for what lies on this machine, or one that holds too few shards.
        DataError: The index does not verify, or has no such source.
    """
    storage = open_storage(config.shards, deadline_s=config.deadline_s)
    index = load_index(storage)
    if config.source is not None:
        try:
            index = of_source(index, config.source)
        except DataError as error:
            raise DataError(f"{storage.url}: data.source: {error}") from error
    return _cached(storage, index, config, shards_at_once), index


def _cached(storage: Storage, index: Index, config: ArchiveConfig, shards_at_once: int) -> Storage:
    """Put the cache before a remote storage, where one is asked for."""
    if config.cache_dir is None:
        return storage
    if storage.folder is not None:
        raise ConfigError(
            f"data.cache_dir is set, and data.shards, {storage.url}, is a folder on this machine already: no effect; "
            "leave it out"
        )
    # The shards that are read at one time have to fit in together.
    limit_bytes = round(config.cache_gb * GIGABYTE)
    largest = sorted((shard.num_bytes for shard in index.shards), reverse=True)[:shards_at_once]
    if sum(largest) > limit_bytes:
        raise ConfigError(
            f"data.cache_gb is {config.cache_gb:g}, and the {len(largest)} shards that are read at the same time "
            f"(lanes + 1) take {math.ceil(sum(largest) / MEGABYTE) / 1000:g}: they would push each other out; raise it "
            "to that at least, best to what the whole archive takes, or take fewer lanes"
        )
    files = {shard.name: (shard.num_bytes, shard.sha256) for shard in index.shards}
    return CachedStorage(storage, Path(config.cache_dir), limit_bytes, files)


def open_windows(config: WindowsConfig, window: int) -> Windows:
    """Read the index, split the archive in time, and select the windows of each part.

    Args:
        config: The archive and its split.
        window: Frames a window.

    Raises:
        DataError: The index does not verify, or a part that was asked for has no window.
    """
    storage, index = open_archive(config, (config.lanes or default_lanes(config.micro)) + 1)
    spans = split_archive(index, config)
    train = _part(index, config, window, spans, "train")
    held_out = _part(index, config, window, spans, "validation") if spans["validation"] else None
    # Selected here too, so that a test part without a window is found before days of training.
    test = _part(index, config, window, spans, "test") if spans["test"] else None
    if config.guard_h == 0 and (spans["validation"] or spans["test"]):
        LOG.warning("data.guard_h is 0: one rain system may stand in both the training and the held-out part")
    if config.select_rule == "smaat_compat":
        num_lost = sum(lost_to_gaps(index, train.selection).values())
        LOG.info("smaat_compat: %d windows to train on; %d across gaps cannot be rebuilt", len(train), num_lost)
    return Windows(storage=storage, index=index, train=train, held_out=held_out, test=test, spans=spans)


def check_frames(config: TrainingConfig, index: Index) -> None:
    """Refuse frames that the model cannot take, before it is built.

    Raises:
        DataError: Frames that are smaller than the crop, or without one no whole number of patches.
        ConfigError: A mask ratio that hides no patch of so few.
    """
    rows, cols = index.rows, index.cols
    crop = None
    advice = "pack with such a crop"
    if isinstance(config, FinetuneConfig):
        crop = config.data.crop
        advice = f"set data.crop, or {advice}"
    if problem := misfit(rows, cols, crop=crop):
        raise DataError(f"{config.data.shards}: {problem}; {advice}")

    # A mask that hides nothing would leave nothing to learn from, or have no effect.
    mask_ratio = config.model.mask_ratio
    grid_hw = (crop or rows) // PATCH, (crop or cols) // PATCH
    if mask_ratio > 0 and num_visible(grid_hw, mask_ratio) == grid_hw[0] * grid_hw[1]:
        raise ConfigError(
            f"model.mask_ratio {mask_ratio} hides none of the {grid_hw[0]} x {grid_hw[1]} patches of a training "
            "window: raise it, or set it to 0"
        )


def _part(
    index: Index, config: WindowsConfig, window: int, spans: dict[str, tuple[TimeSpan, ...]], part: str
) -> WindowTable:
    """Select the windows of a part; an error names the settings that made it."""
    try:
        return select_windows(index, config.selection(window, spans[part]))
    except DataError as error:
        # Where the archive holds no such window in any part, no other split helps.
        try:
            select_windows(index, config.selection(window))
        except DataError as of_all:
            raise DataError(f"{config.shards}: {of_all}") from error

        if config.train_times is not None:
            origin = f"data.{part}_times"
            advice = "State other times"
        else:
            shares = f"data.validation_share {config.validation_share}, data.test_share {config.test_share}"
            origin = f"{shares}, data.guard_h {config.guard_h}"
            more = "Hold out less" if part == "train" else f"Hold out more, set data.{part}_share 0"
            advice = f"{more}, or shorten data.guard_h" if config.guard_h else more
            if len(index.sources) > 1:
                advice += "; where its sources are of different years, state data.train_times and the other parts'"
        name = {"train": "training", "validation": "held-out", "test": "test"}[part]
        raise DataError(
            f"the {name} part ({listed(spans[part])}; {origin}) has no window: {error}. {advice}"
        ) from error


def open_stream(windows: Windows, config: WindowsConfig, *, seed: int, rank: int, world_size: int, pin: bool) -> Stream:
    """Make this rank's stream of training batches.

    Raises:
        ConfigError: The batch sizes, lanes and the world size do not fit one another; the text names those that do.
    """
    # What is not stated follows from the batch sizes.
    lanes = config.lanes or default_lanes(config.micro)
    block_bytes = default_block_bytes(config.global_batch, lanes)
    if config.block_mb is not None:
        block_bytes = round(config.block_mb * MEGABYTE)

    layout = BatchLayout(
        seed=seed,
        global_batch=config.global_batch,
        micro_batch=config.micro,
        lanes=lanes,
        block_bytes=block_bytes,
        weights=config.weights,
    )
    return Stream(
        windows.storage,
        windows.index,
        windows.train,
        layout,
        rank=rank,
        world_size=world_size,
        options=replace(config.reading, pin_memory=pin),
    )


def absent_sources(windows: Windows) -> list[str]:
    """Describe each source that the training or the held-out part has no window of, and what follows."""
    index = windows.index
    findings = []
    for split, name, table, effect in (
        ("train", "training", windows.train, "nothing is learned from it"),
        ("validation", "held-out", windows.held_out, "held-out figures do not cover it"),
    ):
        if table is None:
            continue
        present = {index.origins[index.sequences[row].origin].source for row in np.unique(table.sequence)}
        findings += [
            f"no window of {source} is in the {name} part ({listed(windows.spans[split])}), so that {effect}"
            for source in index.sources
            if source not in present
        ]
    return findings


def wettest(index: Index, table: WindowTable) -> WindowTable:
    """Take the window with the most rain, the one worth a picture."""
    # Rain of every window of a sequence at once: a running sum over its frames.
    totals = {
        int(number): np.convolve(index.sequences[int(number)].rain_fraction, np.ones(table.window), "valid")
        for number in np.unique(table.sequence)
    }
    shares = [totals[int(number)][int(start)] for number, start in zip(table.sequence, table.start, strict=True)]
    row = slice(int(np.argmax(shares)), int(np.argmax(shares)) + 1)
    return replace(table, sequence=table.sequence[row], start=table.start[row])
