"""No window delivered while training holds a frame of the test split: by time stamp and by hash of its pixels."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rainspark.data.exit_codes import ExitCode
from rainspark.data.frames import iso_time
from rainspark.data.sequences import TimeSpan
from rainspark.data.stream.stream import Batch, evaluation_batches
from rainspark.trainer.checkpoint.folder import load
from rainspark.trainer.forecasting.forecaster import load_forecaster
from rainspark.trainer.settings.experiment import FinetuneConfig
from rainspark.trainer.settings.parse import parse_config
from rainspark.trainer.training.finetuning import Finetuning
from rainspark.trainer.training.windows import Windows, open_stream, open_windows
from tests.integration.runs import nowcast_arguments, train

WINDOW, EPOCHS = 7, 3
Frame = tuple[int, str]
# The archive: 2020-06-01T00:00 to 04:55.
DAY = "2020-06-01T"
SPLITS: dict[str, dict[str, Any]] = {
    "shares without a guard": {"test_share": 0.2, "validation_share": 0.2, "guard_h": 0},
    "shares with a guard": {"test_share": 0.2, "validation_share": 0.2, "guard_h": 0.25},
    "shares without a held-out part": {"test_share": 0.3, "validation_share": 0, "guard_h": 0.25},
    "times, the test between": {
        "train_times": f'["{DAY}00:00/{DAY}01:30", "{DAY}03:30/{DAY}05:00"]',
        "validation_times": f'["{DAY}02:40/{DAY}03:20"]',
        "test_times": f'["{DAY}01:35/{DAY}02:35"]',
        "validation_share": 0.1,
        "guard_h": 0,
    },
    "times, the test first": {
        "train_times": f'["{DAY}02:00/{DAY}05:00"]',
        "test_times": f'["{DAY}00:00/{DAY}01:00"]',
        "validation_share": 0.1,
        "guard_h": 1,
    },
}


HOURS = 5


def arguments(shards: Path, run: Path, **settings: object) -> list[str]:
    """Build the command line of a small model, on whole frames: what it learns says nothing here."""
    return nowcast_arguments(shards, run, model__name="smaat_unet", model__smaat_width=2, **settings)


def digest(counts_hw: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(counts_hw).tobytes()).hexdigest()


def frames_of(windows: Windows, table: Any, batches: Iterator[Batch]) -> set[Frame]:
    """End time and pixel hash of every frame of every window in some batches."""
    frames: set[Frame] = set()
    for batch in batches:
        for counts_thw, row in zip(batch.counts_bthw.numpy(), batch.window_b.tolist(), strict=True):
            if row < 0:
                continue
            entry = windows.index.sequences[int(table.sequence[row])]
            first_s = entry.start_s + int(table.start[row]) * windows.index.cadence_s
            times = range(first_s, first_s + len(counts_thw) * windows.index.cadence_s, windows.index.cadence_s)
            frames |= {(time, digest(counts_hw)) for time, counts_hw in zip(times, counts_thw, strict=True)}
    return frames


def archive_of(shards: Path) -> dict[int, str]:
    """Pixel hash of every frame, by end time, of an archive that is not split at all."""
    argv = arguments(shards, shards / "none", data__validation_share=0)
    whole = open_windows(parse_config(argv, FinetuneConfig, prog="test").data, 1)
    batches = evaluation_batches(whole.storage, whole.index, whole.train, micro_batch=16)
    return dict(frames_of(whole, whole.train, batches))


def delivered(config: FinetuneConfig) -> tuple[set[Frame], set[Frame], Windows]:
    """Frames of all training windows of some epochs, and of all evaluation windows, read as a run reads them."""
    windows = open_windows(config.data, WINDOW)
    stream = open_stream(windows, config.data, seed=config.seed, rank=0, world_size=1, pin=False)
    with closing(stream.steps(0, EPOCHS * stream.steps_per_epoch)) as steps:
        trained = frames_of(windows, windows.train, (batch for step in steps for batch in step))
    held_out: set[Frame] = set()
    if windows.held_out is not None:
        batches = evaluation_batches(windows.storage, windows.index, windows.held_out, micro_batch=4)
        held_out = frames_of(windows, windows.held_out, batches)
    return trained, held_out, windows


def inside(time_s: int, spans: tuple[TimeSpan, ...]) -> bool:
    return any(span.start_s <= time_s < span.stop_s for span in spans)


@pytest.mark.parametrize("name", SPLITS)
def test_no_frame_of_the_test_split_is_delivered(shards: Path, tmp_path: Path, name: str) -> None:
    settings = {f"data__{key}": value for key, value in SPLITS[name].items()}
    config = parse_config(arguments(shards, tmp_path, **settings), FinetuneConfig, prog="test")
    archive = archive_of(shards)
    assert len(archive) == 60
    assert len(set(archive.values())) == 60, "equal frames would make a hash say nothing"
    trained, held_out, windows = delivered(config)
    test = {(time, pixels) for time, pixels in archive.items() if inside(time, windows.spans["test"])}
    assert len(test) >= WINDOW
    assert trained <= set(archive.items())
    assert len(trained) > WINDOW
    assert bool(held_out) == bool(windows.spans["validation"])
    for seen in (trained, held_out):
        shown = sorted(iso_time(time) for time, _ in seen & test)
        assert not {time for time, _ in seen} & {time for time, _ in test}, shown
        assert not {pixels for _, pixels in seen} & {pixels for _, pixels in test}, shown
    assert not {pixels for _, pixels in trained} & {pixels for _, pixels in held_out}
    guard_s = config.data.guard_h * 3600
    for seen, unseen in ((trained, test), (held_out, test), (trained, held_out)):
        if seen and unseen:
            assert min(abs(a - b) for a, _ in seen for b, _ in unseen) > guard_s


@pytest.mark.parametrize("name", ["shares with a guard", "times, the test between"])
def test_a_real_run_reads_nothing_else_and_records_its_split(shards: Path, tmp_path: Path, name: str) -> None:
    """Everything that a run decodes goes through its task: its batches, and what the checkpoints record of it."""
    settings = {f"data__{key}": value for key, value in SPLITS[name].items()}
    run, seen = tmp_path / "run", set[str]()
    opened: list[Windows] = []

    def watch(finetuning: Finetuning) -> None:
        opened.append(finetuning.windows)
        task = finetuning.task
        prepare, prepare_held_out = task.prepare, task.prepare_held_out

        def note(batch: Batch) -> None:
            real = batch.counts_bthw.numpy()[batch.window_b >= 0]
            seen.update(digest(counts_hw) for counts_thw in real for counts_hw in counts_thw)

        def watched(batch: Batch) -> Any:
            note(batch)
            return prepare(batch)

        def watched_held_out(batch: Batch) -> Any:
            note(batch)
            return prepare_held_out(batch)

        task.prepare, task.prepare_held_out = watched, watched_held_out  # type: ignore[method-assign]

    argv = arguments(shards, run, run__steps=12, run__evaluate_every=6, data__evaluation_windows=100, **settings)
    assert train(argv, change=watch) == ExitCode.DONE
    (windows,) = opened
    archive = archive_of(shards)
    test = {pixels for time, pixels in archive.items() if inside(time, windows.spans["test"])}
    assert len(seen) > 2 * WINDOW
    assert not seen & test
    for saved in (load(run).state.data, load(run / "best").state.data, load_forecaster(run).data):
        spans = {part: tuple(TimeSpan(**span) for span in own) for part, own in saved["spans"].items()}
        assert spans == windows.spans
        assert all(spans[part] for part in ("train", "validation", "test"))
