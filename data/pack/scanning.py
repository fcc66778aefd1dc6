"""Keep the frames of a span of time, and survey them in their order: a few objects of a store at once."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Final

from ..errors import DataError
from ..frames import iso_time
from ..sequences import Run, TimeSpan
from ..sources.source import FileRef, Found, FrameRef, Source, Surveyed

OBJECTS_AT_ONCE: Final = 8
"""Objects of a store that are surveyed at once; each is held as a whole, a few MB of most radars'."""


def inside(found: Found, span: TimeSpan | None) -> Found:
    """Keep the frames of a span of time; of ready windows those that lie in it as a whole."""
    if span is None:
        return found

    # A frame that stands alone is a window of one.
    runs = found.windows
    if runs is None:
        runs = tuple(Run(first=number, num_frames=1) for number in range(len(found.refs)))
    kept = [
        frames
        for frames in (found.refs[run.first : run.first + run.num_frames] for run in runs)
        if all(span.start_s <= ref.end_time_s < span.stop_s for ref in frames)
    ]
    if not kept:
        first, last = (iso_time(found.refs[number].end_time_s) for number in (0, -1))
        raise DataError(f"no frames of {span}; expected some between {first} and {last}: check --from and --to")

    # Windows follow each other without the frames that were left out.
    length = len(kept[0])
    return replace(
        found,
        refs=tuple(ref for window in kept for ref in window),
        windows=None
        if found.windows is None
        else tuple(Run(first=n * length, num_frames=length) for n in range(len(kept))),
    )


def surveyed_ahead(source: Source, refs: Sequence[FrameRef]) -> Iterator[tuple[FrameRef, Callable[[], Surveyed]]]:
    """Survey frames in their order; a few objects of a store at once, for each of them takes a while to come."""
    if not any(isinstance(ref, FileRef) and ref.file.stored is not None for ref in refs):
        yield from ((ref, partial(source.survey, ref)) for ref in refs)
        return

    executor = ThreadPoolExecutor(OBJECTS_AT_ONCE, thread_name_prefix="survey")
    try:
        # No more are read than are waited for: memory stays that of a few objects.
        pending: deque[tuple[FrameRef, Future[Surveyed]]] = deque()
        for ref in refs:
            pending.append((ref, executor.submit(source.survey, ref)))
            if len(pending) == OBJECTS_AT_ONCE:
                first, future = pending.popleft()
                yield first, future.result
        yield from ((ref, future.result) for ref, future in pending)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
