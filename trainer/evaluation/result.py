"""A finished evaluation: the scores of all models, computed once, and what a reader has to know of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..pictures.scores import USEFUL_BIAS
from ..settings.evaluation import PUBLISHED_THRESHOLD_MMH, EvaluateConfig
from ..verification.intervals import NUM_DRAWS, Interval, resample
from ..verification.rows import PublishedProtocol, Rows, Scores, published_protocol
from .cases import Chosen
from .contestants import FITTED
from .plan import Plan
from .unknown import Unknown


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelScores:
    """One model's rows and what is made of them.

    Attributes:
        name: As the user calls it.
        rows: Of the model.
        scores: Of the rows.
        interval: Around the scores.
        difference: Scores less those of the model that all are compared with; None without one, or for itself.
        published: Scores of the published protocol; None without its threshold.
    """

    name: str
    rows: Rows
    scores: Scores
    interval: Interval
    difference: Interval | None
    published: PublishedProtocol | None


def score_models(
    models: Mapping[str, Rows], *, compare_to: str | None = None, seed: int = 0, num_draws: int = NUM_DRAWS
) -> list[ModelScores]:
    """Compute the scores of all models, with intervals.

    Args:
        models: Rows by the models' names, at least one; all of the same windows and radar.
        compare_to: A model that all others are compared with in pairs; None: no comparison.
        seed: Of the bootstrap.
        num_draws: Resamples of the days.
    """
    # One bootstrap a model: intervals, differences, pictures and tables take theirs from it.
    resampled = {name: resample(rows, seed=seed, num_draws=num_draws) for name, rows in models.items()}
    reference = None if compare_to is None else resampled[compare_to]
    return [
        ModelScores(
            name=name,
            rows=models[name],
            scores=own.scores,
            interval=own.interval(),
            difference=None if reference is None or own is reference else own.less(reference).interval(),
            published=published_protocol(own.scores),
        )
        for name, own in resampled.items()
    ]


@dataclass(frozen=True)
class SquaredError:
    """A model's mean squared error beside those of the two forecasts that it has to beat before it is called skill.

    Rain that is the same everywhere, and a field blurred towards it, have a small squared error and forecast nothing.

    Attributes:
        model: Its name.
        lead_min: Lead time in minutes, or "all" of them pooled.
        mse: Of the model, (mm/h)².
        training_mean: Of the training split's mean everywhere; NaN where that was not scored.
        damped_extrapolation: Of extrapolation that fades into that mean as lead time grows; likewise.
        skill: The model's is below both; None where one of the three is NaN.
    """

    model: str
    lead_min: float | str
    mse: float
    training_mean: float
    damped_extrapolation: float
    skill: bool | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A finished evaluation.

    Attributes:
        config: Its settings.
        plan: What was scored.
        scored: The models, in the user's order.
        kinds: "run" or the baseline, by name.
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

    @property
    def references(self) -> dict[str, str]:
        """Name the models that a squared error has to beat, by their kind, as the user calls them."""
        names = {kind: kind for kind in FITTED}
        return names | {kind: name for name, kind in self.kinds.items() if kind in FITTED}

    @property
    def squared_errors(self) -> list[SquaredError]:
        """Compare all mean squared errors with the references', for every lead time and all of them pooled."""
        # A reference that was not scored is unknown everywhere, and so is the verdict.
        by_name = {model.name: model.scores.values["mse"] for model in self.scored}
        leads: list[float | str] = [*self.scored[0].rows.settings.leads_min, "all"]
        unknown = np.full(len(leads), math.nan)
        training_mean, damped = (by_name.get(self.references[kind], unknown) for kind in FITTED)
        errors = []
        for name, own in by_name.items():
            for lead_min, *figures in zip(leads, own.tolist(), training_mean.tolist(), damped.tolist(), strict=True):
                mse, mean, faded = figures
                skill = None if any(map(math.isnan, figures)) else mse < min(mean, faded)
                errors.append(SquaredError(name, lead_min, mse, mean, faded, skill))
        return errors

    @property
    def grey(self) -> list[str]:
        """Name the models that pictures draw as what is to be beaten, where there is something to beat them."""
        baselines = [name for name, kind in self.kinds.items() if kind != "run"]
        return [] if len(baselines) == len(self.scored) else baselines

    @property
    def main_threshold(self) -> float:
        """Choose the threshold that the summary is about: the published one where it is scored."""
        thresholds_mmh = self.config.thresholds
        return PUBLISHED_THRESHOLD_MMH if PUBLISHED_THRESHOLD_MMH in thresholds_mmh else thresholds_mmh[0]

    @property
    def caveats(self) -> list[str]:
        """List what a reader must know before trusting a figure."""
        lines = [*self.plan.caveats, *self.unknown.lines(self.config.unknown)]
        for model in self.scored:
            if num := int(model.rows.num_nonfinite.sum()):
                lines.append(
                    f"{model.name}: {num} of {int(model.rows.num_valid.sum())} forecast values are not finite. They "
                    "count as failed: misses or false alarms; squared errors and FSS of their lead times do not exist."
                )

        # Thresholds that the radar never exceeded: what it observed is the same for all models.
        rows = self.scored[0].rows
        num_observed = (rows.hits + rows.misses).sum(axis=(0, 1))
        thresholds = [f"{threshold:g}" for threshold in rows.settings.thresholds_mmh]
        dry = [threshold for threshold, num in zip(thresholds, num_observed, strict=True) if not num]
        if len(dry) == len(thresholds):
            lines.append(
                f"No rain above {dry[0]} mm/h was observed in the whole split: scores of rain do not exist here, or "
                "count false alarms only."
            )
        elif dry:
            lines.append(f"Rain above {', '.join(dry)} mm/h was never observed in this split.")

        # A single day: the note of the interval explains why there is none.
        interval = self.scored[0].interval
        if not interval.num_draws:
            lines.append(f"{interval.note[:1].upper()}{interval.note[1:]}.")
        return lines

    @property
    def summary(self) -> str:
        """Report the outcome in two sentences: who hits the rain best, and whose squared error is skill."""
        threshold = self.main_threshold
        csi = {model.name: model.scores.at("csi", threshold_mmh=threshold) for model in self.scored}
        bias = {model.name: model.scores.at("bias", threshold_mmh=threshold) for model in self.scored}
        known = [name for name, value in csi.items() if not math.isnan(value)]
        rain, limits = f"rain above {threshold:g} mm/h", f"{USEFUL_BIAS[0]:g} to {USEFUL_BIAS[1]:g}"
        if not known:
            return f"No {rain} was observed or forecast: nothing can be said of who forecasts it best."

        # Rain everywhere has a high CSI too, and is no forecast.
        usable = [name for name in known if USEFUL_BIAS[0] <= bias[name] <= USEFUL_BIAS[1]]
        if not usable:
            return (
                f"No model's frequency bias for {rain} lies within {limits}: none rains about as often as the radar, "
                f"and none of their CSI says who forecasts it best.{self._skill_sentence()}"
            )

        best, *others = sorted(usable, key=lambda name: -csi[name])
        # The figures that the claim rests on: its bias, and who seems better but rains too much or too little.
        figures = [f"frequency bias {bias[best]:.2f}"]
        figures += [
            f"{name} {csi[name]:.3f}, but with a frequency bias of {bias[name]:.2f}, outside {limits}"
            for name in known
            if name not in usable and csi[name] > csi[best]
        ]
        # The next best stands beside the best: a lead is worth what it is over the second, not over the last.
        figures += [
            f"{name} {csi[name]:.3f}" for name in others if name == others[0] or self.kinds[name] == "persistence"
        ]
        return (
            f"Of {len(csi)} model(s), {best} forecasts {rain} best over all lead times: CSI {csi[best]:.3f} "
            f"({'; '.join(figures)}).{self._skill_sentence()}"
        )

    def _skill_sentence(self) -> str:
        """Report whose squared error is skill; nothing where that is not known."""
        # All lead times pooled decide: one lead time may be luck.
        pooled = [error for error in self.squared_errors if error.lead_min == "all"]
        if all(error.skill is None for error in pooled):
            return ""
        skilled = ", ".join(error.model for error in pooled if error.skill)
        return (
            " Squared errors below both the training mean's and damped extrapolation's, which is what counts as skill: "
            f"{skilled or 'none'}."
        )
