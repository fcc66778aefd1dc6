"""The scores of an evaluation's ensembles and probabilities as pictures."""

from typing import Final

import numpy as np

from ..comparison.score_tables import events
from ..comparison.scored import EnsembleModel
from ..pictures.panels import png_bytes
from ..pictures.scores_ensembles import (
    Spectrum,
    crps_against_lead,
    power_spectra,
    rank_histograms,
    reliability_diagram,
    roc_curves,
    spread_and_error,
)
from ..pictures.scores_panels import Array, Cast, Lines
from ..verification.crps import POOLS_PX
from ..verification.spectrum import WAVELENGTH_EDGES_PX
from .drawing import Picture, cast_of
from .result import Evaluation

FEWEST: Final = 50
"""A class of probability with fewer pixels is not drawn in the reliability diagram: its frequency is chance."""


def ensemble_pictures(evaluation: Evaluation) -> list[Picture]:
    """List the pictures of ensembles and probabilities in the order in which they are read; none without one."""
    if not evaluation.ensembles:
        return []
    return [*_amount_pictures(evaluation), *_probability_pictures(evaluation)]


def _amount_pictures(evaluation: Evaluation) -> list[Picture]:
    """List the pictures of what only members have, and of the CRPS."""
    leads = evaluation.plan.settings.leads_min
    models = {model.name: model for model in evaluation.ensembles if model.rows.members > 1}
    if not models:
        return []

    # Of each ensemble pixels alone, and all ranks of all lead times; the CRPS of blocks too.
    crps = _crps_lines(evaluation, cast_of(evaluation))
    heads = ["single pixels" if pool_px == 1 else f"blocks of {pool_px} x {pool_px} px" for pool_px in POOLS_PX]
    values = {name: model.scores.values for name, model in models.items()}
    spreads = {name: (each["spread"][:-1, 0], each["mean_rmse"][:-1, 0]) for name, each in values.items()}
    ranks = {name: (each["rank_share"][-1], each["rank_share_wet"][-1]) for name, each in values.items()}
    spectra, wavelengths_km = _spectra(evaluation, models)

    pictures = [
        Picture(
            name="crps",
            alt="Continuous ranked probability score against lead time",
            caption="CRPS of pixels and of blocks; of a single field it is the absolute error.",
            png=lambda: png_bytes(crps_against_lead(crps, lead_min=leads, heads=heads)),
        ),
        Picture(
            name="spread",
            alt="Spread of the members and error of their mean against lead time",
            caption="A spread below the error: members too alike, an ensemble that is too sure.",
            png=lambda: png_bytes(spread_and_error(spreads, lead_min=leads)),
        ),
        Picture(
            name="ranks",
            alt="Histograms of the radar's rank among the members",
            caption="A U: members too alike; a dome: too different; a slope: too wet or too dry. Where all is dry, "
            "ranks are drawn by chance.",
            png=lambda: png_bytes(rank_histograms(ranks)),
        ),
    ]

    # Failed pixels leave no wavelength with a power.
    if len(wavelengths_km):
        pictures.append(
            Picture(
                name="spectra",
                alt="Power of rain by wavelength: radar, members and their mean",
                caption="Rain in decibels. A member should vary as the radar does at every wavelength; a mean is "
                "smooth.",
                png=lambda: png_bytes(power_spectra(spectra, wavelengths_km=wavelengths_km)),
            )
        )
    return pictures


def _probability_pictures(evaluation: Evaluation) -> list[Picture]:
    """List the pictures of probabilities, at the thresholds that the radar exceeded."""
    rows, cast = evaluation.scored[0].rows, cast_of(evaluation)
    counts = {threshold: events(rows, threshold) for threshold in rows.settings.thresholds_mmh}
    rates = {threshold: num / of for threshold, (num, of) in counts.items() if num}
    if not rates:
        return []
    columns = [rows.settings.thresholds_mmh.index(threshold) for threshold in rates]

    # All lead times pooled; a class or a probability along the first axis, as lines have it.
    def of(model: EnsembleModel, score: str) -> Array:
        return np.asarray(model.scores.values[score][-1, columns].T)

    pixels = {each.name: each.rows.sums["class_forecasts"].sum(axis=(0, 1))[columns].T for each in evaluation.ensembles}
    frequency = {each.name: _of_enough(of(each, "class_frequency"), pixels[each.name]) for each in evaluation.ensembles}
    probability, hits, false_alarms = (
        {each.name: of(each, score) for each in evaluation.ensembles}
        for score in ("class_probability", "roc_hit_rate", "roc_false_alarm_rate")
    )
    thresholds = list(rates)
    return [
        Picture(
            name="reliability",
            alt="Observed frequency of rain against its forecast probability, and pixels of each probability",
            caption=f"Below the diagonal: too sure of rain. Classes of fewer than {FEWEST} pixels have no point.",
            png=lambda: png_bytes(
                reliability_diagram(
                    Lines(curves=frequency, cast=cast),
                    probability,
                    pixels,
                    thresholds_mmh=thresholds,
                    base_rates=list(rates.values()),
                )
            ),
        ),
        Picture(
            name="roc",
            alt="Share of rain forecast against share of dry pixels forecast, by the probability that is enough",
            caption="ROC: what probabilities tell apart, whether or not they are reliable.",
            png=lambda: png_bytes(roc_curves(Lines(curves=hits, cast=cast), false_alarms, thresholds_mmh=thresholds)),
        ),
    ]


def _of_enough(frequency: Array, num_pixels: Array) -> Array:
    """Leave out classes of few pixels."""
    return np.where(num_pixels >= FEWEST, frequency, np.nan)


def _crps_lines(evaluation: Evaluation, cast: Cast) -> Lines:
    """Take the CRPS by lead time and pooling; single fields are scored pixel by pixel alone."""

    def by_pool(model: object, figures: Array) -> Array:
        if isinstance(model, EnsembleModel):
            return figures
        padding = np.full((len(figures), len(POOLS_PX) - 1), np.nan)
        return np.concatenate([figures[:, None], padding], axis=1)

    curves, bands = {}, {}
    for model in evaluation.contestants:
        score = "crps_fair" if isinstance(model, EnsembleModel) else "mae"
        # Probabilities alone know no rain rate.
        if score not in model.scores.values:
            continue
        curves[model.name] = by_pool(model, model.scores.values[score][:-1])
        if model.interval.num_draws:
            low, high = (by_pool(model, bound[score][:-1]) for bound in (model.interval.low, model.interval.high))
            bands[model.name] = (low, high)
    return Lines(curves=curves, bands=bands, cast=cast)


def _spectra(evaluation: Evaluation, models: dict[str, EnsembleModel]) -> tuple[dict[str, Spectrum], Array]:
    """Take the spectra of all ensembles half-way and at the end, and the middles of their wavelength bands in km."""
    leads_min = evaluation.plan.settings.leads_min
    shown = sorted({(len(leads_min) - 1) // 2, len(leads_min) - 1})
    edges_km = np.array(WAVELENGTH_EDGES_PX) * evaluation.plan.index.grid.pixel_km
    middles_km = np.sqrt(edges_km[1:] * edges_km[:-1])

    # Long waves stand at the left; bands that the domain cannot hold are left out.
    radar = next(iter(models.values())).scores.values["psd_observed_dbr"]
    held = np.flatnonzero(np.nan_to_num(radar).max(axis=0) > 0)[::-1]
    spectra = {}
    for name, model in models.items():
        for lead in shown:
            densities = {
                what: model.scores.values[f"psd_{what}_dbr"][lead, held] for what in ("observed", "members", "mean")
            }
            head = f"{name}, {leads_min[lead]:g} min"
            spectra[head] = Spectrum(radar=densities["observed"], members=densities["members"], mean=densities["mean"])
    return spectra, middles_km[held]
