"""What an evaluation's runs have seen of the windows that it scores: refused, or named in the report."""

from collections.abc import Iterator

from ...data.errors import ConfigError, DataError
from ..checkpoint.seen import SeenFrames, WindowTimes, starting_states
from ..forecasting.forecaster import RunForecaster
from ..settings.data import GUARD_H
from ..settings.evaluation import EvaluateConfig


def frames_seen(run: RunForecaster) -> SeenFrames:
    """Read which frames a run has seen.

    Raises:
        DataError: Its checkpoint does not record them.
    """
    seen = SeenFrames.read(run.data)
    if seen is None:
        raise DataError(
            f"{run.path}: does not record the times of its training, validation and test parts; train it again"
        )
    return seen


def check_overlaps(config: EvaluateConfig, run: RunForecaster, windows: WindowTimes, source: str) -> list[str]:
    """Refuse windows that a run has seen, or report them where they are asked for.

    Args:
        config: The evaluation.
        run: The run.
        windows: What is scored.
        source: The radar product that is scored.

    Returns:
        What a reader of the scores has to know.

    Raises:
        ConfigError: Windows that the run, or a nowcaster that it started from, was trained on.
    """
    caveats: list[str] = []
    seen = frames_seen(run)
    if seen.has_times_of(source):
        # Frames that it was trained on; or, where there are none, how near they come.
        if shared := seen.shared("train", windows, run.name):
            caveats.append(_refuse_or_report(config, shared, run.name))
        elif (distance_h := windows.seconds_from(seen.spans["train"]) / 3600) < GUARD_H:
            caveats.append(
                f"Only {distance_h:.2g} hours lie between the train part of {run.name} and the nearest window: "
                "one rain system may be in both, and other weather may be forecast worse."
            )
        if config.split != "validation" and (shared := seen.shared("validation", windows, run.name)):
            # A best checkpoint is chosen by these frames; a test part must hold none of them.
            chosen = f"{shared}, on which its best checkpoint was chosen."
            caveats.append(_refuse_or_report(config, shared, run.name) if config.split == "test" else chosen)
    return [*caveats, *_inherited(config, run, windows, source)]


def _inherited(config: EvaluateConfig, run: RunForecaster, windows: WindowTimes, source: str) -> Iterator[str]:
    """Compare the windows with what the runs have seen that a run's weights come from."""
    # Back from run to run, to weights of which nothing is known.
    for origin, state in starting_states(run.config.init_from):
        seen = None if state is None else SeenFrames.read(state.data)
        if state is None or seen is None:
            yield f"{run.name} started from {origin}; which rain those weights have seen is not known here."
            continue

        # A nowcaster has seen the answers; masked pretraining has seen the rain, and no forecast of it.
        shared = seen.shared("train", windows, f"{origin}, which {run.name} started from")
        if shared is None or not seen.has_times_of(source):
            continue
        if "frames_out" in state.config.get("model", {}):
            yield _refuse_or_report(config, shared, run.name)
        else:
            yield f"PRETRAINED ON IT: {shared}: its encoder has seen that rain, masked, though no forecast of it."


def _refuse_or_report(config: EvaluateConfig, shared: str, name: str) -> str:
    if not config.allow_overlap:
        raise ConfigError(
            f"{shared}: scores there would say how well it remembers. Score another split or archive, or add "
            "--allow_overlap true, and the report says so"
        )
    return f"OVERLAP: {shared}: {name} has seen the answers, and its scores are no measure of skill."
