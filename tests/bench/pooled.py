"""Pool the scores of several events: `python -m tests.bench.pooled SCORES... --leads 15 30 60 --against steps sprog`.

SCORES are folders that `rainspark evaluate --out` wrote, of the same models, thresholds and scales: one radar and place
each. Ensembles' fair CRPS is pooled over pixels of all events, and so are the counts of single fields; differences to
the model named by --against are paired, with intervals from blocks of time (`trainer.verification.intervals`).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rainspark.trainer.comparison.products import EventRows, event_products
from rainspark.trainer.verification.ensemble import EnsembleRows
from rainspark.trainer.verification.intervals import resample
from rainspark.trainer.verification.rows import Rows, Windowed, merge, values_of

ENSEMBLE = ".ensemble.npz"


def at_leads(rows: Any, leads_min: Sequence[float]) -> Any:
    """Keep the lead times that are nearest to some, under their names: cadences differ from radar to radar."""
    given_min = np.array(rows.settings.leads_min)
    places = [int(np.abs(given_min - lead).argmin()) for lead in leads_min]
    # Every 6 minutes there is none of 15; what is further than half a step away is another lead time.
    for lead, place in zip(leads_min, places, strict=True):
        if abs(given_min[place] - lead) > given_min[0] / 2:
            raise SystemExit(f"no lead time near {lead:g} min; there are {given_min.tolist()}")
    settings = replace(rows.settings, leads_min=tuple(float(lead) for lead in leads_min))
    numbers = {name: values[:, places] for name, values in rows.numbers.items()}
    return replace(rows, settings=settings).having(rows.issue_s.copy(), rows.name.copy(), numbers)


def read(folders: Sequence[Path], leads_min: Sequence[float]) -> tuple[dict[str, list[Any]], ...]:
    """Read ensembles, single fields, and the events of both (of an ensemble by thresholds of its probability)."""
    ensembles: dict[str, list[Any]] = {}
    fields: dict[str, list[Any]] = {}
    events: dict[str, list[Any]] = {}
    for folder in folders:
        for path in sorted((folder / "rows").glob("*.npz")):
            if path.name.endswith(ENSEMBLE):
                name, rows = path.name.removesuffix(ENSEMBLE), EnsembleRows.load(path)
                ensembles.setdefault(name, []).append(at_leads(rows, leads_min))
                for product, counts in event_products(rows).items():
                    events.setdefault(f"{name} {product}", []).append(plain(counts))
            else:
                field = Rows.load(path)
                fields.setdefault(path.stem, []).append(at_leads(field, leads_min))
                events.setdefault(path.stem, []).append(plain(field))
    return ensembles, fields, events


def plain(rows: Any) -> EventRows:
    """Keep the counts of events alone, of all lead times together."""
    counts = {
        name: rows.numbers[name].sum(axis=1, keepdims=True)
        for name in ("hits", "misses", "false_alarms", "correct_negatives")
    }
    settings = replace(rows.settings, leads_min=(0.0,))
    return EventRows(settings=settings, issue_s=rows.issue_s.copy(), name=rows.name.copy(), counts=counts)


def difference(rows: Windowed[Any], other: Windowed[Any], block_s: int, score: str, place: tuple[int, ...]) -> str:
    """Give the paired difference of a score and its interval."""
    interval = resample(rows, block_s=block_s).less(resample(other, block_s=block_s)).interval()
    low, value, high = (getattr(interval, bound)[score][place] for bound in ("low", "value", "high"))
    return f"{value:+.4f} " + ("(no interval)" if np.isnan(low) else f"[{low:+.4f}, {high:+.4f}]")


def print_ensembles(
    ensembles: Mapping[str, list[Any]], leads: Sequence[float], events: int, against: str, block_s: int
) -> None:
    """Print fair CRPS and spread over error by event and pooled, and the difference to one of them."""
    for name, of_events in ensembles.items():
        for number in range(events + 1):
            rows = of_events[number] if number < events else merge(*of_events)
            label = f"event {number}" if number < events else "pooled"
            values = resample(rows, block_s=block_s).values
            other = ensembles[against][number] if number < events else merge(*ensembles[against])
            for place, lead in enumerate(leads):
                text = f"{label}\t{name}\t{lead:g} min\tCRPS {values['crps_fair'][place, 0]:.4f}"
                text += (
                    f"\tspread/error {values['spread_skill'][place, 0]:.2f}\tranks {values['rank_distance'][place]:.2f}"
                )
                if name != against:
                    text += f"\tless {against} {difference(rows, other, block_s, 'crps_fair', (place, 0))}"
                sys.stdout.write(text + "\n")


def print_errors(fields: Mapping[str, list[Any]], leads: Sequence[float]) -> None:
    """Print the mean absolute error of single fields, pooled: it is their CRPS."""
    for name, of_events in fields.items():
        values = values_of(merge(*of_events))["mae"]
        texts = [f"{lead:g} min {value:.4f}" for lead, value in zip(leads, values, strict=False)]
        sys.stdout.write(f"pooled\t{name}\tmean absolute error\t" + "\t".join(texts) + "\n")


def print_events(counts: Mapping[str, list[Any]], events: int, against: str, block_s: int) -> None:
    """Print CSI over all lead times by threshold, by event and pooled."""
    thresholds = next(iter(counts.values()))[0].settings.thresholds_mmh
    for name, of_events in counts.items():
        for number in range(events + 1):
            rows = of_events[number] if number < events else merge(*of_events)
            label = f"event {number}" if number < events else "pooled"
            csi = resample(rows, block_s=block_s).values["csi"][0]
            text = f"{label}\t{name}\tCSI " + " / ".join(f"{value:.3f}" for value in csi)
            if name != against and number == events:
                other = merge(*counts[against])
                text += "".join(
                    f"\t> {threshold:g} mm/h less {against} {difference(rows, other, block_s, 'csi', (0, place))}"
                    for place, threshold in enumerate(thresholds)
                )
            sys.stdout.write(text + "\n")


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", nargs="+", type=Path)
    parser.add_argument("--leads", nargs="+", type=float, default=[15, 30, 60], metavar="MINUTES")
    parser.add_argument("--against", nargs=2, default=["steps", "sprog"], metavar=("ENSEMBLE", "FIELD"))
    parser.add_argument("--block-min", type=float, default=30, metavar="MINUTES")
    options = parser.parse_args()
    ensembles, fields, events = read(options.scores, options.leads)
    for name, known in zip(options.against, (ensembles, events), strict=True):
        if len(known.get(name, [])) != len(options.scores):
            raise SystemExit(f"--against {name}: not in all of SCORES; there are {', '.join(known)}")
    block_s = int(options.block_min * 60)
    print_ensembles(ensembles, options.leads, len(options.scores), options.against[0], block_s)
    print_errors(fields, options.leads)
    print_events(events, len(options.scores), options.against[1], block_s)


if __name__ == "__main__":
    main()
