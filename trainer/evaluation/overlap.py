"""What an evaluation's runs have seen of the windows that it scores: refused, or said loudly."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...data.errors import ConfigError, DataError
from ...data.sequences import TimeSpan
from ...data.shards.index import Index
from ...models.weights.manifest import CheckpointError
from ...models.weights.transfer import WeightsError
from ..checkpoint.folder import STATE_FILE, chosen_weights
from ..checkpoint.state import parse_state
from ..forecasting.forecaster import RunForecaster
from ..settings.evaluation import EvaluateConfig

SYNTHETIC: Final = "synthetic storms"
"""The source that data.sources.knmi gives to made-up rain: its times and its grid are made up too."""

GUARD_S: Final = 24 * 3600
"""The default guard between the parts of an archive: nearer windows may hold rain of one system."""

Spans = dict[str, tuple[TimeSpan, ...]]


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """A run that another one took its weights from.

    Attributes:
        source: As `init_from` names it.
        data: What it learned from; None where that cannot be read here.
        forecasts: It was trained to forecast, not to fill masked patches.
    """

    source: str
    data: Mapping[str, Any] | None
    forecasts: bool = False


def recorded_spans(data: Mapping[str, Any], path: Path | str) -> Spans:
    """Read the times of a run's parts from what its checkpoint records.

    Raises:
        DataError: It does not say them.
    """
    spans = data.get("spans")
    try:
        return {part: tuple(TimeSpan(**span) for span in spans[part]) for part in ("train", "validation", "test")}  # type: ignore[index]
    except (TypeError, KeyError) as error:
        raise DataError(
            f"{path}: does not record the times of its training, validation and test parts; train it again"
        ) from error


def overlaps(
    config: EvaluateConfig, run: RunForecaster, first_s: npt.NDArray[np.int64], window: int, index: Index
) -> list[str]:
    """Refuse windows that a run has seen, or say it loudly where that was asked for.

    Args:
        config: The evaluation.
        run: The run.
        first_s: End times of the windows' first frames, epoch seconds.
        window: Frames a window.
        index: Of the archive that is scored.

    Raises:
        ConfigError: Windows that the run, or a nowcaster that it started from, was trained on.
    """
    parts = recorded_spans(run.data, run.path)
    caveats = []
    for part in ("train", "validation"):
        if part == config.split == "validation" or not _one_world(run.data, index):
            continue
        what = f"the {part} part of {run.name}"
        count, text = _shared(first_s, window, index.cadence_s, parts[part], what)
        if count and part == "validation" and config.split != "test":
            caveats.append(f"{text}, on which its best checkpoint was chosen.")
        elif count:
            caveats.append(_refuse_or_tell(config, text, run.name))
        elif part == "train":
            caveats += _near(first_s, window, index.cadence_s, parts[part], what)
    for ancestor in ancestors(run):
        caveats += _inherited(config, run.name, ancestor, first_s, window, index)
    return caveats


def ancestors(run: RunForecaster) -> Iterator[Ancestor]:
    """Follow `init_from` back, as far as the runs that it names can be read here."""
    source, met = run.config.init_from, set[str]()
    while source is not None and source not in met:
        met.add(source)
        try:
            path = chosen_weights(Path(source)).parent / STATE_FILE
            state = parse_state(path, path.read_bytes())
        except (OSError, CheckpointError, WeightsError):
            yield Ancestor(source=source, data=None)
            return
        model = state.config.get("model")
        forecasts = isinstance(model, Mapping) and "frames_out" in model
        yield Ancestor(source=source, data=state.data, forecasts=forecasts)
        source = state.config.get("init_from")


def _inherited(
    config: EvaluateConfig,
    name: str,
    ancestor: Ancestor,
    first_s: npt.NDArray[np.int64],
    window: int,
    index: Index,
) -> list[str]:
    """Hold the windows against what a run's starting weights were trained on."""
    unknown = f"{name} started from {ancestor.source}; which rain those weights have seen is not known here."
    if ancestor.data is None:
        return [unknown]
    try:
        spans = recorded_spans(ancestor.data, ancestor.source)["train"]
    except DataError:
        return [unknown]
    if not _one_world(ancestor.data, index):
        return []
    what = f"the train part of {ancestor.source}, which {name} started from"
    count, text = _shared(first_s, window, index.cadence_s, spans, what)
    if not count:
        return []
    if ancestor.forecasts:
        return [_refuse_or_tell(config, text, name)]
    return [f"PRETRAINED ON IT: {text}: its encoder has seen that rain, masked, though no forecast of it."]


def _one_world(data: Mapping[str, Any], index: Index) -> bool:
    """Tell whether times of both mean the same: those of made-up storms are made up, and a mix may hold such too."""
    # Checkpoints from before sources were mixed name the only one.
    sources = data.get("sources") or [data.get("source")]
    return (index.source == SYNTHETIC) in {source == SYNTHETIC for source in sources}


def _shared(
    first_s: npt.NDArray[np.int64], window: int, cadence_s: int, spans: Sequence[TimeSpan], what: str
) -> tuple[int, str]:
    """Count the windows with a frame in the spans, and say it."""
    seen = np.zeros(len(first_s), bool)
    for span in spans:
        seen |= meets(first_s, window, cadence_s, span)
    if not (count := int(seen.sum())):
        return 0, ""
    first = np.datetime64(int(first_s[seen][0]), "s")
    return count, (f"{count} of {len(first_s)} windows share frames with {what} ({listed(spans)}; first: {first} UTC)")


def _refuse_or_tell(config: EvaluateConfig, text: str, name: str) -> str:
    if not config.allow_overlap:
        raise ConfigError(
            f"{text}: scores there would say how well it remembers. Score another split or archive, or add "
            "--allow_overlap true, and the report says so"
        )
    return f"OVERLAP: {text}: {name} has seen the answers, and its scores are no measure of skill."


def _near(
    first_s: npt.NDArray[np.int64], window: int, cadence_s: int, spans: Sequence[TimeSpan], what: str
) -> list[str]:
    """Say where less than a day lies between training and the windows: one rain system may be in both."""
    last_s = first_s + (window - 1) * cadence_s
    gaps_s = [np.maximum(span.start_s - last_s, first_s - span.stop_s).min() for span in spans]
    nearest_s = int(min(gaps_s, default=GUARD_S))
    if nearest_s >= GUARD_S:
        return []
    return [
        f"Only {max(nearest_s, 0) / 3600:.2g} hours lie between {what} and the nearest window: one rain system may be "
        "in both, and other weather may be forecast worse."
    ]


def meets(first_s: npt.NDArray[np.int64], window: int, cadence_s: int, span: TimeSpan) -> npt.NDArray[np.bool_]:
    """Tell which windows have a frame that ends inside a span."""
    ahead = np.maximum(-(-(span.start_s - first_s) // cadence_s), 0)
    met: npt.NDArray[np.bool_] = (ahead < window) & (first_s + ahead * cadence_s < span.stop_s)
    return met


def listed(spans: Sequence[TimeSpan]) -> str:
    """Write spans for people."""
    return ", ".join(map(str, spans)) or "all times"
