"""The data of a run: which windows of which archive, in which batches, read how."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from ...data.errors import ConfigError, DataError
from ...data.sequences import TimeSpan
from ...data.stream.options import ONE_PASS, ReadOptions
from ...data.windows.selection import Published, Rule, Selection, choose
from .ranges import MOST_FRAMES, check_number

VALIDATION_SHARE: Final = 0.1
GUARD_H: Final = 24.0
MOST_THREADS: Final = 1024
"""More than any machine's cores; a system starts some ten thousand of them a process."""
MOST_BLOCK_MB: Final = 100_000.0
"""More than a lane reads in a day."""
SPLIT_KEYS: Final = ("validation_share", "test_share", "guard_h", "train_times", "validation_times", "test_times")
"""Settings that split an archive in time."""


@dataclass(frozen=True, kw_only=True)
class ArchiveConfig:
    """Which windows of which archive are read, and how: what training and evaluation both ask for.

    The archive is split in time: by shares (training first, then validation, then test, with the guard between them),
    or by stated times. A window belongs to a part when all its frames do.

    Args:
        shards: Where packed shards lie (`rainspark pack`): a folder, or s3://, gs://, az:// or https://.
        source: Read only this source of a mixed archive. Null: all of them.
        select: `nl50`, `nl20`: the published selections, at least 50% or 20% of rainy pixels.
        select_rule: `strict`: the window's own target frame decides. `smaat_compat`: the frame after the window does,
            as in the published data sets.
        min_rain_fraction: Share of rainy pixels that a window needs to be taken, 0 to 1, instead of `select`.
        target_frame: The frame of the window that decides, counted from 0; -1 is the last. Null: 17 (the published
            frame 18) with `select`, else the last.
        validation_share: Share of the archive's time that training holds out, 0 to below 1. Null: 0.1, or what the
            scored runs recorded.
        test_share: Last share of the archive's time, never seen in training, 0 to below 1. Null: 0, or what the
            scored runs recorded.
        guard_h: Hours left out between the parts, so that one rain system is not in two of them. Null: 24, or
            what the scored runs recorded.
        train_times: Frames to train on, instead of shares: a list of START/STOP, UTC, START included and STOP not, such
            as '["2016-01-01T00:00/2019-01-01T00:00"]'.
        validation_times: Likewise, frames that are held out while training. Only with `train_times`.
        test_times: Likewise, frames that are never looked at while training. Only with `train_times`.
        decoded_mb: Megabytes of decoded frames kept a process.
        threads: Threads a process that read, verify and decode.
        prefetch_mb: Megabytes of compressed sequences under way or held ahead a process.
        readers: Threads a process that read. Null: `threads` for a folder, 8 for a store.
        deadline_s: Seconds after which an operation on a store that still fails is an error.
        cache_dir: Folder on this machine's disk that keeps shards of a store, for all processes. Null: none.
        cache_gb: Gigabytes that the cache may take.
    """

    shards: str
    source: str | None = None
    select: Published | None = None
    select_rule: Rule = "strict"
    min_rain_fraction: float = 0.0
    target_frame: int | None = None
    validation_share: float | None = None
    test_share: float | None = None
    guard_h: float | None = None
    train_times: tuple[str, ...] | None = None
    validation_times: tuple[str, ...] | None = None
    test_times: tuple[str, ...] | None = None
    decoded_mb: float = 256.0
    threads: int = 2
    prefetch_mb: float = 512.0
    readers: int | None = None
    deadline_s: float = 300.0
    cache_dir: str | None = None
    cache_gb: float = 50.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        # Counts, sizes and shares.
        for name in ("threads", "readers"):
            check_number(f"data.{name}", getattr(self, name), least=1, most=MOST_THREADS)
        for name in ("decoded_mb", "prefetch_mb", "deadline_s", "cache_gb"):
            check_number(f"data.{name}", getattr(self, name), above=0)
        for name in ("validation_share", "test_share"):
            check_number(f"data.{name}", getattr(self, name), least=0, below=1)
        check_number("data.min_rain_fraction", self.min_rain_fraction, least=0, most=1)
        check_number("data.guard_h", self.guard_h, least=0)

        if self.cache_dir is None and self.cache_gb != ArchiveConfig.cache_gb:
            raise ConfigError(
                f"data.cache_gb is {self.cache_gb}, and no data.cache_dir is set: no effect; leave it out"
            )
        self._check_times()

    @property
    def one_pass(self) -> ReadOptions:
        """Give the threads and the memory that reading once, in order, may take."""
        return replace(
            ONE_PASS,
            threads=self.threads,
            readers=self.readers,
            decoded_mb=self.decoded_mb,
            prefetch_mb=self.prefetch_mb,
        )

    @property
    def stated_split(self) -> list[str]:
        """Name the settings of the split that are stated."""
        return [name for name in SPLIT_KEYS if getattr(self, name) is not None]

    @property
    def split_shares(self) -> tuple[float, float]:
        """Give the shares of the validation and the test part, stated or by default."""
        validation = VALIDATION_SHARE if self.validation_share is None else self.validation_share
        return validation, self.test_share or 0.0

    @property
    def split_guard_h(self) -> float:
        """Give the hours between the parts, stated or by default."""
        return GUARD_H if self.guard_h is None else self.guard_h

    def selection(self, window: int, spans: tuple[TimeSpan, ...] = ()) -> Selection:
        """Give the selection of windows of so many frames.

        Raises:
            ConfigError: Settings that contradict one another, or the length of the window.
        """
        try:
            chosen = choose(
                window=window,
                select=self.select,
                min_rain_fraction=self.min_rain_fraction,
                rule=self.select_rule,
                target_frame=self.target_frame,
                spelt=lambda name: f"data.{name}",
            )
        except (ConfigError, DataError) as error:
            raise ConfigError(str(error).replace("the target frame", "data.target_frame")) from error
        return replace(chosen, spans=spans, sources=() if self.source is None else (self.source,))

    def _check_times(self) -> None:
        """Read the stated times once, so that a slip ends the run before anything is opened."""
        for name in ("validation_times", "test_times"):
            if getattr(self, name) is not None and self.train_times is None:
                raise ConfigError(f"data.{name} is set and data.train_times is not; state the times of training too")
        # A recipe may state the default share; only another one contradicts stated times.
        for name, default in (("validation_share", VALIDATION_SHARE), ("test_share", 0.0)):
            if self.train_times is not None and getattr(self, name) not in (None, 0, default):
                raise ConfigError(
                    f"data.{name} is {getattr(self, name)}, but data.train_times states the parts' times, and no share "
                    f"has an effect beside them: set data.{name} to 0 (a recipe may have set it), or leave "
                    "data.train_times out"
                )
        self.stated_spans()

    def stated_spans(self) -> dict[str, tuple[TimeSpan, ...]] | None:
        """Give the stated times as spans of "train", "validation" and "test"; None where shares decide.

        Raises:
            ConfigError: A text that is no span, or parts that are nearer to each other than the guard.
        """
        if self.train_times is None:
            return None

        spans: dict[str, tuple[TimeSpan, ...]] = {}
        for split in ("train", "validation", "test"):
            texts = getattr(self, f"{split}_times") or ()
            spans[split] = tuple(parse_span(f"data.{split}_times", text) for text in texts)
        if not spans["train"]:
            raise ConfigError("data.train_times holds no span; expected at least one START/STOP")

        # Spans of different parts keep the guard's distance, each pair compared once.
        guard_s = round(self.split_guard_h * 3600)
        named = [(split, span) for split, split_spans in spans.items() for span in split_spans]
        for position, (split, span) in enumerate(named):
            for other_split, other in named[:position]:
                is_near = span.start_s < other.stop_s + guard_s and other.start_s < span.stop_s + guard_s
                if other_split != split and is_near:
                    raise ConfigError(
                        f"data.{other_split}_times {other} and data.{split}_times {span} overlap or are nearer to each "
                        f"other than data.guard_h {self.split_guard_h:g} hours; move them apart, or shorten the guard"
                    )
        return spans


@dataclass(frozen=True, kw_only=True)
class WindowsConfig(ArchiveConfig):
    """Which windows are trained on, in which batches, and with which memory.

    The archive is split in time: by shares (training first, then validation, then test, with the guard between them),
    or by stated times. A window belongs to a part when all its frames do.

    Args:
        validation_share: Share of the archive's time that is held out while training, 0 (nothing) to below 1.
        test_share: Last share of the archive's time, never looked at while training, 0 to below 1.
        guard_h: Hours left out between the parts, so that one rain system is not in two of them.
        decoded_mb: Megabytes of decoded frames kept a process.
        weights: Share of each source's windows in every batch, '{"NAME": 0.5, "OTHER": 0.5}'. Null: as it has windows.
        global_batch: Windows an update.
        micro_batch: Windows a forward pass, over ALL ranks; batch statistics are theirs. Null: the global batch.
        lanes: Parallel readers of the plan, a divisor of the micro-batch. Null: the largest one up to 16.
        block_mb: Compressed megabytes of neighbouring sequences that a lane shuffles at a time. Null: enough for a
            global batch to hold many days.
        prefetch_steps: Global batches prepared ahead.
        quarantine: Damaged sequences that a rank may leave out before the run stops; their windows count as missing.
        augment: Random flips and, on square frames, quarter turns.
        evaluation_windows: Held-out windows that an evaluation uses at most, evenly spread over them.
    """

    validation_share: float = VALIDATION_SHARE
    test_share: float = 0.0
    guard_h: float = GUARD_H
    decoded_mb: float = 1024.0
    weights: dict[str, float] | None = None
    global_batch: int = 256
    micro_batch: int | None = None
    lanes: int | None = None
    block_mb: float | None = None
    prefetch_steps: int = 2
    quarantine: int = 0
    augment: bool = True
    evaluation_windows: int = 256

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("global_batch", "micro_batch", "lanes", "prefetch_steps", "evaluation_windows"):
            check_number(f"data.{name}", getattr(self, name), least=1)
        check_number("data.quarantine", self.quarantine, least=0)
        check_number("data.block_mb", self.block_mb, above=0, most=MOST_BLOCK_MB)
        if self.source is not None and self.weights is not None:
            raise ConfigError("data.weights has no effect beside data.source, which reads one source; leave one out")

    @property
    def reading(self) -> ReadOptions:
        """Give the threads, the memory and the tolerated losses that training allows a rank."""
        return replace(self.one_pass, prefetch_steps=self.prefetch_steps, quarantine=self.quarantine)

    @property
    def micro(self) -> int:
        """Windows of one forward pass over all ranks."""
        return self.micro_batch or self.global_batch


@dataclass(frozen=True, kw_only=True)
class DataConfig(WindowsConfig):
    """The windows of masked pretraining.

    Args:
        window: Frames a window; they are the input channels.
    """

    window: int = 12

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_number("data.window", self.window, least=1, most=MOST_FRAMES)
        self.selection(self.window)


@dataclass(frozen=True, kw_only=True)
class NowcastDataConfig(WindowsConfig):
    """The windows of a nowcaster: as many frames as it takes in and gives out.

    Args:
        crop: Side in pixels of the square that is cut out of every training window at a random place, a multiple of
            32. Null: whole frames. Evaluation is always on whole frames.
    """

    crop: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.crop is not None and (self.crop < 32 or self.crop % 32):
            raise ConfigError(f"data.crop is {self.crop}; a multiple of 32 pixels, or null for whole frames")


def parse_span(name: str, text: str) -> TimeSpan:
    """Read a span of frame end times such as 2016-01-01T00:00/2019-01-01T00:00 (UTC, the second one excluded).

    Args:
        name: The setting, for the error.
        text: The span.

    Raises:
        ConfigError: It is no span, or ends before it begins.
    """
    try:
        start, stop = (epoch_s(word.strip()) for word in text.split("/"))
    except ValueError as error:
        raise ConfigError(
            f"{name}: {text!r} is no span of time; expected START/STOP in UTC, such as "
            "2016-01-01T00:00/2019-01-01T00:00"
        ) from error
    if start >= stop:
        raise ConfigError(f"{name}: {text!r} ends before it begins; expected START/STOP with START before STOP")
    return TimeSpan(start_s=start, stop_s=stop)


def epoch_s(text: str) -> int:
    """Read a time, UTC unless it says otherwise, as seconds since 1970; raises ValueError for what is none."""
    moment = datetime.fromisoformat(text)
    return int((moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp())
