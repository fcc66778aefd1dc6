"""The scores of several models with their intervals, and which of them tables show."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from ..verification.ensemble import EnsembleRows
from ..verification.ensemble_scores import ENSEMBLE_AXES
from ..verification.fss import FloatArray
from ..verification.intervals import NUM_DRAWS, Interval, block_length_s, resample
from ..verification.rows import PublishedProtocol, Rows, Scores, compute, published_protocol
from .marks import Figure
from .products import MEAN, EventRows, event_products, product_name

BEST_PRODUCT: Final = "best p"
"""After an ensemble's name: the one of its thresholds of probability that has the highest CSI."""

LISTS: Final = frozenset("krw")
"""Axes of scores that are lists, by class, rank or band: they are drawn, and nobody asks how sure each entry is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """What is known of a model whatever it forecasts.

    Attributes:
        name: As the user calls it; of an ensemble's product that name and what it is, such as "NAME mean".
        scores: Of its rows.
        interval: Around the scores that are no lists.
        draws: Scores of the resamples that the intervals are made of; None without any, or where it is not shown.
    """

    name: str
    scores: Scores
    interval: Interval
    draws: Mapping[str, FloatArray] | None

    def figure(self, score: str, **where: Any) -> Figure:
        """Take one score with its resamples, at `Scores.position`; one that the model has not is NaN."""
        position = self.scores.position(score, **where)
        if score not in self.scores.values:
            return Figure(value=math.nan)
        drawn = None if self.draws is None else np.moveaxis(self.draws[score], 0, -1)[position]
        value = float(self.scores.values[score][position])
        return Figure(value=value, draws=drawn, num_blocks=self.interval.num_blocks)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelScores(Scored):
    """The rows of one field a lead time, or of events, and what is made of them.

    Attributes:
        rows: Of the field; of events that are forecast by their probability, their counts alone.
        difference: Scores less those of the model that all are compared with; None without one, or for itself.
        published: Scores of the published protocol; None without its threshold, and of events.
        ensemble: Whose product it is; None for a model of single fields.
        shown_at: Thresholds in mm/h at which tables and pictures show it; files hold it for all.
    """

    rows: Rows | EventRows
    difference: Interval | None
    published: PublishedProtocol | None
    ensemble: str | None
    shown_at: Collection[float]

    @property
    def product(self) -> str | None:
        """Give what it is of its ensemble, such as "mean"; None for a model of single fields."""
        return None if self.ensemble is None else self.name.removeprefix(product_name(self.ensemble, ""))


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsembleModel(Scored):
    """The rows of an ensemble, or of probabilities alone, and what is made of them."""

    rows: EnsembleRows


def score_models(
    models: Mapping[str, Rows],
    ensembles: Mapping[str, EnsembleRows] | None = None,
    *,
    compare_to: str | None = None,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
) -> list[ModelScores]:
    """Compute the scores of all single fields and of the events that ensembles forecast, with intervals.

    Args:
        models: Rows by name, in the user's order, all of the same windows and radar: models of single fields, and the
            mean of each ensemble by its `product_name`.
        ensembles: Rows of ensembles and of probabilities by name, of these windows too.
        compare_to: A model or ensemble that all others are compared with in pairs; None: no comparison.
        seed: Of the bootstrap.
        num_draws: Resamples.
    """
    rows_of, ensemble_of = _with_products(models, ensembles or {})
    shown_at = _shown_at(rows_of, ensemble_of)
    block_s = block_length_s(next(iter(rows_of.values())))

    # One bootstrap a model: intervals, differences, pictures and tables take theirs from it. That of a product which
    # nobody is shown is not kept: there may be dozens.
    stated = None if compare_to is None else field_of(compare_to, rows_of)
    drawing: dict[str, Any] = {"seed": seed, "num_draws": num_draws, "block_s": block_s}
    reference = None if stated is None else resample(rows_of[stated], **drawing)
    scored = []
    for name, rows in rows_of.items():
        own = reference if reference is not None and name == stated else resample(rows, **drawing)
        scored.append(
            ModelScores(
                name=name,
                rows=rows,
                scores=own.scores,
                interval=own.interval(),
                difference=None if reference is None or own is reference else own.less(reference).interval(),
                published=published_protocol(own.scores) if isinstance(rows, Rows) else None,
                ensemble=ensemble_of.get(name),
                shown_at=shown_at[name],
                draws=own.draws if shown_at[name] else None,
            )
        )
    return scored


def score_ensembles(
    ensembles: Mapping[str, EnsembleRows], *, seed: int = 0, num_draws: int = NUM_DRAWS
) -> list[EnsembleModel]:
    """Compute the scores of all ensembles and probabilities, with intervals.

    Args:
        ensembles: Rows by name, in the user's order, all of the windows and radar that `score_models` has.
        seed: Of the bootstrap; the same as there, so that ensembles and fields can be compared in pairs.
        num_draws: Resamples; likewise.
    """
    scored = []
    for name, rows in ensembles.items():
        whole = resample(rows, seed=seed, num_draws=num_draws, block_s=block_length_s(rows))
        # Lists of every draw are hundreds of megabytes, and are not kept.
        single = [score for score in whole.values if not LISTS & set(ENSEMBLE_AXES[score])]
        draws = None if whole.draws is None else {score: whole.draws[score] for score in single}
        own = replace(whole, values={score: whole.values[score] for score in single}, draws=draws)
        scored.append(EnsembleModel(name=name, rows=rows, scores=whole.scores, interval=own.interval(), draws=draws))
    return scored


def _with_products(
    models: Mapping[str, Rows], ensembles: Mapping[str, EnsembleRows]
) -> tuple[dict[str, Rows | EventRows], dict[str, str]]:
    """Put the events of each ensemble behind its mean, those without one at the end; and give whose product each is."""
    rows_of: dict[str, Rows | EventRows] = {}
    ensemble_of: dict[str, str] = {}
    mean_of = {product_name(name, MEAN): name for name in ensembles}
    for name, rows in models.items():
        rows_of[name] = rows
        if ensemble := mean_of.get(name):
            ensemble_of[name] = ensemble
            rows_of |= _events_of(ensemble, ensembles[ensemble], ensemble_of)
    for ensemble, counts in ensembles.items():
        if ensemble not in ensemble_of.values():
            rows_of |= _events_of(ensemble, counts, ensemble_of)
    return rows_of, ensemble_of


def _events_of(ensemble: str, rows: EnsembleRows, ensemble_of: dict[str, str]) -> dict[str, EventRows]:
    """Give the events of one ensemble by their names, and note whose they are."""
    named = {product_name(ensemble, product): events for product, events in event_products(rows).items()}
    ensemble_of |= dict.fromkeys(named, ensemble)
    return named


def _shown_at(rows_of: Mapping[str, Rows | EventRows], ensemble_of: Mapping[str, str]) -> dict[str, set[float]]:
    """Show fields at every threshold, and of each ensemble's events those whose CSI of all lead times is highest."""
    shown_at = {name: set(rows.settings.thresholds_mmh) for name, rows in rows_of.items()}
    events = {name: rows for name, rows in rows_of.items() if isinstance(rows, EventRows)}
    csi = {name: compute(rows).values["csi"][-1] for name, rows in events.items()}
    shown_at |= {name: set() for name in events}
    for ensemble in dict.fromkeys(ensemble_of[name] for name in events):
        names = [name for name in events if ensemble_of[name] == ensemble]
        # The first one where none has a CSI: the line stands there, and is empty.
        best = np.nan_to_num(np.array([csi[name] for name in names]), nan=-1.0).argmax(axis=0)
        for threshold_mmh, number in zip(events[names[0]].settings.thresholds_mmh, best.tolist(), strict=True):
            shown_at[names[number]].add(threshold_mmh)
    return shown_at


def rain_rows(scored: Sequence[ModelScores]) -> dict[str, Rows]:
    """Give the rows of those that forecast rain rates, by name: models of single fields, and means of ensembles."""
    return {model.name: model.rows for model in scored if isinstance(model.rows, Rows)}


def field_of(name: str, fields: Collection[str]) -> str | None:
    """Name the single field that stands for a model: itself or, of an ensemble, its mean; None where it has neither."""
    return next((field for field in (name, product_name(name, MEAN)) if field in fields), None)


def shown_lines(scored: Sequence[ModelScores]) -> dict[str, dict[float, ModelScores]]:
    """List what tables and pictures show: a line a model and ensemble's mean, and one for each ensemble's best product.

    Returns:
        By the line's name, the scores at every threshold in mm/h.
    """
    lines: dict[str, dict[float, ModelScores]] = {}
    for model in scored:
        name = model.name
        if model.ensemble is not None and model.product != MEAN:
            name = product_name(model.ensemble, BEST_PRODUCT)
        lines.setdefault(name, {}).update(dict.fromkeys(model.shown_at, model))
    return {name: dict(sorted(by_threshold.items())) for name, by_threshold in lines.items() if by_threshold}


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


def squared_errors(scored: Sequence[ModelScores], training_mean: str, damped_extrapolation: str) -> list[SquaredError]:
    """Compare all mean squared errors with the references', for every lead time and all of them pooled.

    Args:
        scored: All single fields; of an ensemble the mean is one.
        training_mean: A reference's name; one that was not scored is unknown everywhere, and so is the verdict.
        damped_extrapolation: The other one's.
    """
    # A reference that was not scored is unknown at every lead time.
    by_name = {model.name: model.scores.values["mse"] for model in scored if model.product in (None, MEAN)}
    leads: list[float | str] = [*scored[0].rows.settings.leads_min, "all"]
    unknown = np.full(len(leads), math.nan)
    references = [by_name.get(name, unknown).tolist() for name in (training_mean, damped_extrapolation)]
    errors = []
    for name, own in by_name.items():
        for lead_min, *figures in zip(leads, own.tolist(), *references, strict=True):
            mse, mean, faded = figures
            skill = None if any(map(math.isnan, figures)) else mse < min(mean, faded)
            errors.append(SquaredError(name, lead_min, mse, mean, faded, skill))
    return errors
