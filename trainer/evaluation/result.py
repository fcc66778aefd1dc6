"""A finished evaluation: the scores of all models, computed once, and what a reader has to know of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..comparison.score_tables import events
from ..comparison.scored import EnsembleModel, ModelScores, Scored, SquaredError, field_of, rain_rows, squared_errors
from ..comparison.summary import amounts_sentence, hits_sentence, skill_sentence
from ..comparison.tables import sentence
from ..contestants.entries import FITTED
from ..settings.evaluation import PUBLISHED_THRESHOLD_MMH, EvaluateConfig
from ..verification.intervals import MIN_BLOCKS
from ..verification.rows import DAY_S
from .cases import Chosen
from .plan import Plan
from .unknown import Unknown

_TO_BE_JUDGED: Final = ("run", "netcdf", "python")
"""Kinds of models that are no baselines: runs, forecasts made elsewhere, and classes of other packages."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A finished evaluation.

    Attributes:
        config: Its settings.
        plan: What was scored.
        scored: All single fields, in the user's order: those of models, and what is made of ensembles.
        ensembles: All ensembles and probabilities, in the user's order.
        kinds: By the name of the model or ensemble: "run", "netcdf", "python", or the baseline.
        about: What each model is, by name, as plain JSON.
        cases: Windows to draw; the first one is animated.
        command: How it was started.
        unknown: Pixels that some models cannot know.
    """

    config: EvaluateConfig
    plan: Plan
    scored: Sequence[ModelScores]
    kinds: Mapping[str, str]
    about: Mapping[str, Mapping[str, Any]]
    cases: Sequence[Chosen]
    command: str
    unknown: Unknown = field(default_factory=Unknown)
    ensembles: Sequence[EnsembleModel] = ()

    @property
    def references(self) -> dict[str, str]:
        """Name the models that a squared error has to beat, by their kind, as the user calls them."""
        names = {kind: kind for kind in FITTED}
        return names | {kind: name for name, kind in self.kinds.items() if kind in FITTED}

    @property
    def squared_errors(self) -> list[SquaredError]:
        """Compare all mean squared errors with the references'."""
        return squared_errors(self.scored, *(self.references[kind] for kind in FITTED))

    @property
    def stated(self) -> str | None:
        """Name the single field that stands for what the user wants all to be compared with."""
        names = [model.name for model in self.scored]
        return None if self.config.compare_to is None else field_of(self.config.compare_to, names)

    @property
    def compared_to(self) -> list[str]:
        """Name the single fields that all others are compared with: what the user asked for, and every S-PROG."""
        sprog = [name for name, kind in self.kinds.items() if kind == "sprog"]
        return list(dict.fromkeys(name for name in (self.stated, *sprog) if name is not None))

    @property
    def contestants(self) -> list[Scored]:
        """List what the user named, in that order: models of single fields, ensembles and probabilities."""
        named: dict[str, Scored] = {model.name: model for model in self.scored}
        named |= {model.name: model for model in self.ensembles}
        return [named[name] for name in self.kinds]

    @property
    def skill_over(self) -> list[Scored]:
        """List whose CRPS skill is measured against: what all are compared with, and every STEPS."""
        names = [self.config.compare_to, *(name for name, kind in self.kinds.items() if kind == "steps")]
        return [model for model in self.contestants if model.name in names]

    @property
    def grey(self) -> list[str]:
        """Name the models that pictures draw as what is to be beaten, where there is something to beat them."""
        baselines = [name for name, kind in self.kinds.items() if kind not in _TO_BE_JUDGED]
        return [] if len(baselines) == len(self.kinds) else baselines

    @property
    def main_threshold(self) -> float:
        """Choose the threshold that the summary is about: the published one where it is scored."""
        thresholds_mmh = self.config.thresholds
        return PUBLISHED_THRESHOLD_MMH if PUBLISHED_THRESHOLD_MMH in thresholds_mmh else thresholds_mmh[0]

    @property
    def caveats(self) -> list[str]:
        """List what a reader must know before trusting a figure."""
        lines = [*self.plan.caveats, *self.unknown.lines(self.config.unknown)]
        for name, rain in rain_rows(self.scored).items():
            if num := int(rain.num_nonfinite.sum()):
                lines.append(
                    f"{name}: {num} of {int(rain.num_valid.sum())} forecast values are not finite. They "
                    "count as failed: misses or false alarms; squared errors and FSS of their lead times do not exist."
                )

        # Thresholds that the radar never exceeded: what it observed is the same for all models.
        rows = self.scored[0].rows
        thresholds = rows.settings.thresholds_mmh
        dry = [f"{threshold:g}" for threshold in thresholds if not events(rows, threshold)[0]]
        if len(dry) == len(thresholds):
            lines.append(
                f"No rain above {dry[0]} mm/h was observed in the whole split: scores of rain do not exist here, or "
                "count false alarms only."
            )
        elif dry:
            lines.append(f"Rain above {', '.join(dry)} mm/h was never observed in this split.")

        # Few days: the note of the interval explains why there is none, or what it does not cover.
        interval = self.scored[0].interval
        if interval.num_blocks < MIN_BLOCKS or interval.block_s < DAY_S:
            lines.append(sentence(interval.note))
        return lines

    @property
    def summary(self) -> str:
        """Report the outcome: whose hits and amounts are best, where that can be told, and whose errors are skill."""
        persistence = [name for name, kind in self.kinds.items() if kind == "persistence"]
        hits = hits_sentence(self.scored, self.main_threshold, persistence)
        amounts = amounts_sentence(self.contestants, self.skill_over) if self.ensembles else ""
        return " ".join(filter(None, (hits, amounts, skill_sentence(self.squared_errors))))
