"""A finished evaluation, before it is written: the models' rows, and what has to be said of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..settings.evaluation import PUBLISHED_THRESHOLD_MMH, EvaluateConfig
from ..verification.intervals import bootstrap
from ..verification.rows import Rows
from .cases import Chosen
from .contestants import FITTED
from .plan import Plan
from .tables import References


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A finished evaluation.

    Attributes:
        config: Its settings.
        plan: What was scored.
        models: Rows by name, in the user's order.
        kinds: "run" or the baseline, by name.
        about: What each model is, by name, as plain JSON.
        cases: Windows to draw; the first one is animated.
        command: How it was started.
    """

    config: EvaluateConfig
    plan: Plan
    models: Mapping[str, Rows]
    kinds: Mapping[str, str]
    about: Mapping[str, Mapping[str, Any]]
    cases: Sequence[Chosen]
    command: str

    @property
    def references(self) -> References:
        """Name the models that a squared error has to beat, as the user calls them."""
        names = {kind: kind for kind in FITTED}
        names |= {kind: name for name, kind in self.kinds.items() if kind in FITTED}
        return References(**names)

    @property
    def grey(self) -> list[str]:
        """Name the models that pictures draw as what is to be beaten, where there is something to beat them."""
        baselines = [name for name, kind in self.kinds.items() if kind != "run"]
        return [] if len(baselines) == len(self.models) else baselines

    @property
    def caveats(self) -> list[str]:
        """Say what a reader must know before trusting a figure."""
        lines = [*self.plan.caveats]
        for name, rows in self.models.items():
            if num := int(rows.num_nonfinite.sum()):
                lines.append(
                    f"{name}: {num} of {int(rows.num_valid.sum())} forecast values are not finite. They count as "
                    "failed: misses or false alarms; squared errors and FSS of their lead times do not exist."
                )
        rows = next(iter(self.models.values()))
        observed = (rows.hits + rows.misses).sum(axis=(0, 1))
        dry = [
            f"{threshold:g}" for threshold, num in zip(rows.settings.thresholds_mmh, observed, strict=True) if not num
        ]
        if len(dry) == len(observed):
            lines.append(
                f"No rain above {dry[0]} mm/h was observed in the whole split: scores of rain do not exist here, or "
                "count false alarms only."
            )
        elif dry:
            lines.append(f"Rain above {', '.join(dry)} mm/h was never observed in this split.")
        note = bootstrap(rows, seed=self.config.seed, num_draws=1).note
        if "no interval" in note:
            lines.append(f"{note[:1].upper()}{note[1:]}.")
        return lines


def main_threshold(thresholds_mmh: Sequence[float]) -> float:
    """Choose the threshold that the last words are about: the published one where it is scored."""
    return PUBLISHED_THRESHOLD_MMH if PUBLISHED_THRESHOLD_MMH in thresholds_mmh else thresholds_mmh[0]
