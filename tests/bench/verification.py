"""Scoring forecasts: ours against pysteps' verification computing the same scores, in one run.

    python -m tests.bench.verification [--windows 6] [--size 288] [--leads 12]

Contingency scores, errors, and FSS per lead time, threshold and scale. Rates are windows per second of processor time
of one thread, so that a shared machine tells the truth too.
"""

import argparse
import time
import timeit
from collections.abc import Callable
from itertools import product

import numpy as np
import numpy.typing as npt
from pysteps.verification import detcatscores, detcontscores, spatialscores

from rainspark.data.units import KNMI_MMH_PER_COUNT
from rainspark.trainer.verification.rows import Scores, Settings, WindowId, compute, merge, score_window
from tests.data.radar_files import storms

FIRST_S, DAY_S = 1_600_000_200, 86400
CATEGORICAL = ["ACC", "CSI", "F1", "FAR", "POD", "BIAS", "HSS"]
Fields = list[tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]]


def windows_to_score(num_windows: int, num_leads: int, size: int) -> Fields:
    """Make pairs of forecast and observed rain in mm/h, (lead times, size, size): storms, and storms 5 px beside."""
    counts = storms(num_windows + num_leads, size, size, seed=0)
    frames = counts.astype(np.float64) * KNMI_MMH_PER_COUNT
    observed = [frames[i : i + num_leads] for i in range(num_windows)]
    return [(np.roll(field, 5, axis=2) * 0.9 + 0.05 * (field > 0), field) for field in observed]


def score_with_ours(settings: Settings, fields: Fields) -> Scores:
    """Score all windows."""
    rows = [score_window(settings, WindowId(FIRST_S + DAY_S * i, "a:0"), f, o, None) for i, (f, o) in enumerate(fields)]
    return compute(merge(*rows))


def score_with_pysteps(settings: Settings, fields: Fields) -> None:
    """Accumulate and compute as pysteps' verification example does, an object for each lead time, threshold, scale."""
    for lead in range(len(settings.leads_min)):
        tables = [detcatscores.det_cat_fct_init(threshold) for threshold in settings.thresholds_mmh]
        scales = product(settings.thresholds_mmh, settings.scales_px)
        fractions = [spatialscores.fss_init(threshold, scale) for threshold, scale in scales]
        errors = detcontscores.det_cont_fct_init()
        for forecast, observed in fields:
            for table in tables:
                detcatscores.det_cat_fct_accum(table, forecast[lead], observed[lead])
            for fraction in fractions:
                spatialscores.fss_accum(fraction, forecast[lead], observed[lead])
            detcontscores.det_cont_fct_accum(errors, forecast[lead], observed[lead])

        for table in tables:
            detcatscores.det_cat_fct_compute(table, CATEGORICAL)
        for fraction in fractions:
            spatialscores.fss_compute(fraction)
        detcontscores.det_cont_fct_compute(errors, ["MSE", "MAE", "ME"])


def seconds(work: Callable[[], object]) -> float:
    """Measure processor seconds, the least of three runs."""
    return min(timeit.repeat(work, timer=time.process_time, number=1, repeat=3))


def main() -> None:
    """Score, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--size", type=int, default=288)
    parser.add_argument("--leads", type=int, default=12)
    options = parser.parse_args()
    settings = Settings(leads_min=tuple(5 * (lead + 1) for lead in range(options.leads)))
    fields = windows_to_score(options.windows, options.leads, options.size)
    with np.errstate(invalid="ignore", divide="ignore"):
        ours = seconds(lambda: score_with_ours(settings, fields)) / options.windows
        theirs = seconds(lambda: score_with_pysteps(settings, fields)) / options.windows
    wet = np.mean([(observed > 0).mean() for _, observed in fields])
    print(
        f"{options.windows} windows of {options.leads} x {options.size} x {options.size}, {wet:.0%} wet, "
        f"{len(settings.thresholds_mmh)} thresholds, scales {settings.scales_px} px"
    )
    print(f"{'':8} {'windows/s a core':>17} {'ms a window':>12} {'ratio':>6}")
    for name, one in (("pysteps", theirs), ("ours", ours)):
        print(f"{name:8} {1 / one:17.2f} {1000 * one:12.1f} {theirs / one:6.1f}")


if __name__ == "__main__":
    main()
