"""Lay out batches: sizes that fit together, and lanes dealt to the sources of a mixed archive."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..json_checks import shown
from ..shards.index import Index
from .selection import WindowTable

# Lanes a micro-batch is laid out on by default: every world size that divides 16 then reads each sequence once.
MAX_DEFAULT_LANES = 16
# A source that is read more often an epoch has a weight by mistake, and its reading order would be laid out as often.
MAX_REPEATS = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceShare:
    """One source's share of every batch.

    Attributes:
        source: The product's name.
        row_n: int64 (n,), its windows, rows of the table.
        lanes: int64 (l,), the lanes that read it.
        asked: Share of the windows that it was to have, 0 to 1.
        share: Share of every micro-batch that it has.
        num_read: Windows of it that an epoch reads.
    """

    source: str
    row_n: npt.NDArray[np.int64]
    lanes: npt.NDArray[np.int64]
    asked: float
    share: float
    num_read: int

    def __str__(self) -> str:
        """Format the share for a log."""
        times = self.num_read / len(self.row_n)
        repeats = f", {times:.1f} times each" if times > 1 else ""
        return f"{shown(self.source)}: {len(self.row_n)} windows, {self.num_read} an epoch{repeats}"


def default_lanes(micro_batch: int) -> int:
    """Find the largest number of lanes up to 16 that divides a micro-batch."""
    return next(lanes for lanes in range(MAX_DEFAULT_LANES, 0, -1) if micro_batch % lanes == 0)


def default_block_bytes(global_batch: int, lanes: int) -> int:
    """Find how many compressed bytes a lane should shuffle together.

    2 MiB hold about one sequence of 144 rainy frames of 288 x 288 pixels: with one for every window that a lane gives
    to a global batch, most windows of a batch come from different sequences, and so from different days.
    """
    return max(16, 2 * global_batch // lanes) * 2**20


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """How one epoch's windows are laid out in batches; it decides, with the windows, which one stands where.

    Attributes:
        seed: The run's seed.
        global_batch: Windows a step, over all ranks.
        micro_batch: Windows of one forward pass, over all ranks.
        lanes: Places in the archive that a micro-batch is read from.
        block_bytes: Compressed bytes that a lane shuffles together.
        weights: Each source's share of the windows of every batch, divided by their sum; None: as many as it has.
    """

    seed: int
    global_batch: int
    micro_batch: int
    lanes: int
    block_bytes: int
    weights: Mapping[str, float] | None = None

    @property
    def micro_steps(self) -> int:
        """Count the micro-batches of a step."""
        return self.global_batch // self.micro_batch

    @property
    def windows_a_lane(self) -> int:
        """Count the windows of a micro-batch that one lane reads."""
        return self.micro_batch // self.lanes

    def check(self, num_windows: int, rank: int = 0, world_size: int = 1) -> None:
        """Check that the sizes fit together, before anything is read.

        Raises:
            ConfigError: With the values that would work.
        """
        global_batch, micro_batch = self.global_batch, self.micro_batch
        for name, value in (("global batch", global_batch), ("micro-batch", micro_batch), ("lanes", self.lanes)):
            if value < 1:
                raise ConfigError(f"the {name} is {value}; expected at least 1")

        # A step is a whole number of micro-batches.
        if global_batch % micro_batch:
            below = global_batch - global_batch % micro_batch
            near = [size for size in (below, below + micro_batch) if size]
            raise ConfigError(
                f"the global batch of {global_batch} windows is not a multiple of the micro-batch of {micro_batch}; "
                f"nearest global batches that are: {_listed(near)}"
            )

        # A micro-batch is divided evenly among lanes, and among processes.
        if micro_batch % self.lanes:
            raise ConfigError(
                f"the micro-batch of {micro_batch} windows cannot be laid out on {self.lanes} lanes; "
                f"numbers of lanes that divide it: {_listed(_divisors(micro_batch))}"
            )
        if world_size < 1 or micro_batch % world_size:
            raise ConfigError(
                f"the micro-batch of {micro_batch} windows cannot be divided among {world_size} processes; "
                f"numbers of processes that work: {_listed(_divisors(micro_batch))}"
            )

        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} of {world_size} processes; expected 0 to {world_size - 1}")

        if num_windows < global_batch:
            raise ConfigError(
                f"{num_windows} windows are selected, fewer than one global batch of {global_batch}; "
                "take a smaller global batch, a lower rain fraction, a longer time span, or more data"
            )


def mix_sources(index: Index, table: WindowTable, layout: BatchLayout) -> tuple[SourceShare, ...]:
    """Deal the lanes to the sources that the windows come from: every micro-batch then has the same mix.

    Raises:
        ConfigError: Weights of other sources, or fewer lanes than sources, with the numbers that work.
    """
    # The windows of each source, as rows of the table.
    number_of = {name: number for number, name in enumerate(index.sources)}
    source_o = np.array([number_of[origin.source] for origin in index.origins], np.int64)
    source_n = source_o[[entry.origin for entry in index.sequences]][table.sequence]
    rows = {name: np.flatnonzero(source_n == number) for name, number in number_of.items()}
    present = [name for name in number_of if len(rows[name])]

    # What each is to have: its weight, or as many windows as it holds.
    asked = {name: float(len(rows[name])) for name in present}
    if layout.weights is not None:
        _check_weights(layout.weights, index.sources, present)
        asked = {name: layout.weights[name] for name in present}
    if layout.lanes < len(asked):
        raise ConfigError(
            f"{len(asked)} sources ({'; '.join(map(shown, asked))}) are mixed in micro-batches of "
            f"{layout.micro_batch} windows on {layout.lanes} lanes, and each needs a lane of its own; "
            f"{_roomier(layout.micro_batch, len(asked))}"
        )

    counts = deal_lanes(list(asked.values()), layout.lanes)
    lane_windows = len(table) // layout.global_batch * layout.global_batch // layout.lanes
    shares = tuple(
        SourceShare(
            source=name,
            row_n=rows[name],
            lanes=lanes,
            asked=weight / sum(asked.values()),
            share=count / layout.lanes,
            num_read=lane_windows * count,
        )
        for (name, weight), count, lanes in zip(asked.items(), counts, spread_lanes(counts), strict=True)
    )

    for share in shares:
        if share.num_read > MAX_REPEATS * len(share.row_n):
            raise ConfigError(
                f"{share}; expected {MAX_REPEATS} times at most: give it less weight, take more lanes (a source has "
                "one at least), or leave it out"
            )
    return shares


def deal_lanes(weights: Sequence[float], lanes: int) -> list[int]:
    """Deal lanes in proportion to weights by largest remainders, at least one to each.

    Args:
        weights: Above 0.
        lanes: At least as many as there are weights.
    """
    counts = [1] * len(weights)
    others = list(range(len(weights)))
    left, total = lanes, sum(weights)

    # Whoever is owed less than one lane gets one, and the rest share what is then left.
    while poor := [i for i in others if weights[i] / total * left < 1]:
        others = [i for i in others if i not in poor]
        left = lanes - (len(weights) - len(others))
        total = sum(weights[i] for i in others)

    # A quota that is a whole number but for rounding is that number.
    quotas = {i: weights[i] / total * left for i in others}
    floors = {i: math.floor(quota + 1e-9) for i, quota in quotas.items()}
    rest = left - sum(floors.values())
    for rank, i in enumerate(sorted(others, key=lambda i: floors[i] - quotas[i])):
        counts[i] = floors[i] + (rank < rest)
    return counts


def spread_lanes(counts: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Choose which lanes each source reads, spread evenly: a rank's part of a batch then has about the same mix."""
    places = sorted(((i + 0.5) / count, source) for source, count in enumerate(counts) for i in range(count))
    source_of_lane = np.array([source for _, source in places], np.int64)
    return [np.flatnonzero(source_of_lane == source) for source in range(len(counts))]


def _check_weights(weights: Mapping[str, float], known: Sequence[str], present: Sequence[str]) -> None:
    """Check that weights name the sources that have windows, and only those."""
    for name, weight in weights.items():
        if name not in known:
            raise ConfigError(
                f"a weight is set for the source {name!r}, which is not in the archive; its sources: "
                f"{'; '.join(map(shown, known))}"
            )
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(
                f"the weight of {name!r} is {weight}; expected a share above 0 (to read one source only, choose it)"
            )
        if name not in present:
            raise ConfigError(
                f"a weight is set for the source {name!r}, of which no window is selected; leave it out, or select "
                "rain or times that it has"
            )

    for name in present:
        if name not in weights:
            raise ConfigError(
                f"weights are set, but none for the source {shown(name)}, which has windows too; every source needs "
                f"one: {'; '.join(map(shown, present))}"
            )


def _roomier(micro_batch: int, num_sources: int) -> str:
    fitting = [size for size in _divisors(micro_batch) if size >= num_sources]
    if fitting:
        return f"numbers of lanes that work: {_listed(fitting)}"
    return f"take a micro-batch of {num_sources} windows or more"


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(str(size) for size in sizes)
