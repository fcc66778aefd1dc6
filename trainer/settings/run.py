"""Settings of where a run lies, how long it is, and how often it reports."""

from dataclasses import dataclass
from typing import Literal

from ...data.errors import ConfigError
from .ranges import check_number


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lies, how long it is, and how often it reports.

    Args:
        dir: Folder of the run: configuration, metrics, checkpoints, pictures. The same folder again goes on from there.
        steps: Global batches to train on.
        log_every: Steps between two lines of metrics.
        evaluate_every: Steps between two held-out evaluations, each with a picture; the last step always has one.
        save_every: Steps between two checkpoints; a stop and the last step always save one. A save that fails is a
            warning; two in a row, or the last one, end the run.
        keep_last: Checkpoints kept, 2 or more.
        keep_every: Checkpoints after multiples of so many steps stay for ever besides, in the folder and in the second
            place; a multiple of save_every, null for none.
        checkpoint_url: A second place for the checkpoints, a folder or a store (s3://, gs://, az://): each is copied
            there, and a run whose folder is behind or gone goes on from there. One place a run; None: the folder only.
        push_deadline_s: Seconds that the copy of one checkpoint to that place may take, above 0; what is cut off is a
            warning, and the next save tries again.
        max_nonfinite: Steps with a loss or gradient that is not finite, or without a valid pixel, in a row, after which
            the run stops.
        allow_plan_change: On resume, accept another micro-batch, lanes or block: order and batch statistics change.
        progress: A bar where the terminal shows one, else log lines; or one of the two.
    """

    dir: str
    steps: int = 1000
    log_every: int = 10
    evaluate_every: int = 500
    save_every: int = 500
    keep_last: int = 3
    keep_every: int | None = None
    checkpoint_url: str | None = None
    push_deadline_s: float = 60.0
    max_nonfinite: int = 5
    allow_plan_change: bool = False
    progress: Literal["auto", "bar", "lines"] = "auto"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.dir.strip():
            raise ConfigError(f"run.dir is {self.dir!r}; name the folder of the run, such as runs/first")
        for name in ("steps", "log_every", "evaluate_every", "save_every", "keep_every", "max_nonfinite"):
            check_number(f"run.{name}", getattr(self, name), least=1)
        check_number("run.keep_last", self.keep_last, least=2)
        check_number("run.push_deadline_s", self.push_deadline_s, above=0)
        if self.keep_every is not None and self.keep_every % self.save_every:
            raise ConfigError(
                f"run.keep_every is {self.keep_every} and run.save_every {self.save_every}: checkpoints are made "
                "after multiples of save_every, so keep_every must be one of those"
            )


@dataclass(frozen=True, kw_only=True)
class NowcastRunConfig(RunConfig):
    """Where a nowcaster's run lies, how long it is, and which of its checkpoints is the best.

    Args:
        choose_by: What makes a checkpoint the best, on the validation part: `csi`: the mean CSI over 0.5, 1 and 2 mm/h,
            all lead times together; `mse`: the squared error in (mm/h)^2; `loss`: the loss it is trained with.
    """

    choose_by: Literal["csi", "mse", "loss"] = "csi"
