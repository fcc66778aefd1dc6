"""The announcements of a run, written from plain data: its first lines in the log, and its last ones on the screen."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.windows.mixing import SourceShare
from ..settings.experiment import TrainingConfig
from ..tracking.services import ways_to_look
from ..tracking.trackers import METRICS_FILE

LOG = logging.getLogger(__name__)
PICTURES_FOLDER = "pictures"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run is and what it learns from.

    Attributes:
        model: The model's name and form.
        num_parameters: Numbers that it holds.
        device: What a process computes on.
        processes: How many there are.
        started_s: When this attempt began, on this process' monotonic clock.
        num_windows: Windows to train on.
        num_held_out: Windows to evaluate on.
        steps_per_epoch: Updates in which each window is read about once.
        data: Archive and parts, as checkpoints record them.
    """

    model: str
    num_parameters: int
    device: str
    processes: int
    started_s: float
    num_windows: int
    num_held_out: int
    steps_per_epoch: int
    data: Mapping[str, Any]


def announce_run(config: TrainingConfig, facts: RunFacts) -> None:
    """Log what is about to run."""
    stage = "" if config.engine.zero_stage is None else f"ZeRO {config.engine.zero_stage}, "
    LOG.info(
        f"{facts.model}, {facts.num_parameters / 1e6:.1f} million parameters; {facts.device}, {facts.processes} "
        f"process(es), {stage}{config.engine.precision}"
    )
    LOG.info(
        f"{facts.num_windows} windows of {config.window} frames to train on, {facts.num_held_out} held out; global "
        f"batch {config.data.global_batch}, {facts.steps_per_epoch} steps an epoch; writing to {config.run.dir}"
    )


def announce_sources(shares: Sequence[SourceShare], absent: Sequence[str]) -> None:
    """Log how the sources of a mixed archive are read; warn of what is not as it was asked for.

    Args:
        shares: What each source has of a batch.
        absent: For each source that a part of the archive has no window of: which, where, and what follows.
    """
    for finding in absent:
        LOG.warning(
            f"{finding}; state data.train_times and the other parts' so that each has some of it, or choose data.source"
        )
    if len(shares) > 1:
        LOG.info("sources: %s", "; ".join(map(str, shares)))
        # Lanes are whole: what was asked for may not divide into them.
        changed = [share for share in shares if abs(share.share - share.asked) > 1e-6]
        if changed:
            LOG.warning(
                "every batch has whole lanes of each source: %s; more data.lanes come nearer",
                "; ".join(f"{share.source} {share.share:.3g} instead of {share.asked:.3g}" for share in changed),
            )


def places_to_look(config: TrainingConfig, weights: Path | None, copy: str | None) -> dict[str, str]:
    """Name what a run's folder holds.

    Args:
        config: The run.
        weights: The newest checkpoint.
        copy: The newest copy of one in the second place.
    """
    folder = Path(config.run.dir)
    places = {"weights": f"{weights}/model.safetensors", "metrics": str(folder / METRICS_FILE)}
    if copy is not None:
        places["copied to"] = copy
    if config.tracking.tensorboard:
        places["TensorBoard"] = str(folder / "tensorboard")
    places |= ways_to_look(folder, config.tracking.services)
    if pictures := sorted((folder / PICTURES_FOLDER).glob("*.png")):
        places["picture"] = str(pictures[-1])
    return places
