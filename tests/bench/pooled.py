"""Pool the scores of several events: `python -m tests.bench.pooled SCORES... --leads 15 30 60 --against steps sprog`.

SCORES are folders that `rainspark evaluate --out` wrote, with the same thresholds and scales: one radar and place each.
Ensembles' fair CRPS is pooled over pixels of all events, and so are the counts of single fields; differences to what
--against names are paired, with intervals from blocks of time (`trainer.verification.intervals`). What is not in all
folders is left out.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rainspark.trainer.comparison.products import EVENT_COUNTS, EventRows, event_products
from rainspark.trainer.verification.ensemble import EnsembleRows
from rainspark.trainer.verification.intervals import resample
from rainspark.trainer.verification.rows import Rows, Windowed, merge, values_of

ENSEMBLE = ".ensemble.npz"
Table = dict[str, dict[str, Any]]
"""Rows by model, and by folder; those of all folders together by `POOLED`."""
POOLED = "pooled"


def at_leads(rows: Any, leads_min: Sequence[float]) -> Any:
    """Keep the lead times that are nearest to some, under their names: cadences differ from radar to radar."""
    held_min = np.array(rows.settings.leads_min)
    nearest = [int(np.abs(held_min - lead).argmin()) for lead in leads_min]
    # Every 6 minutes there is none of 15; what is further than half a step away is another lead time.
    for lead, index in zip(leads_min, nearest, strict=True):
        if abs(held_min[index] - lead) > held_min[0] / 2:
            raise SystemExit(f"no lead time near {lead:g} min; there are {held_min.tolist()}")
    settings = replace(rows.settings, leads_min=tuple(float(lead) for lead in leads_min))
    numbers = {name: values[:, nearest] for name, values in rows.numbers.items()}
    return replace(rows, settings=settings).having(rows.issue_s.copy(), rows.name.copy(), numbers)


def events_of(rows: Any) -> EventRows:
    """Keep the counts of events alone, of all lead times together."""
    counts = {name: rows.numbers[name].sum(axis=1, keepdims=True) for name in EVENT_COUNTS}
    settings = replace(rows.settings, leads_min=(0.0,))
    return EventRows(settings=settings, issue_s=rows.issue_s.copy(), name=rows.name.copy(), counts=counts)


def read(folders: Sequence[Path], leads_min: Sequence[float]) -> tuple[Table, Table, Table]:
    """Read ensembles, single fields, and the events of both (of an ensemble by thresholds of its probability)."""
    ensembles: Table = {}
    fields: Table = {}
    events: Table = {}
    for folder in folders:
        for path in sorted((folder / "rows").glob("*.npz")):
            if path.name.endswith(ENSEMBLE):
                name, members = path.name.removesuffix(ENSEMBLE), EnsembleRows.load(path)
                ensembles.setdefault(name, {})[str(folder)] = at_leads(members, leads_min)
                for product, counts in event_products(members).items():
                    events.setdefault(f"{name} {product}", {})[str(folder)] = events_of(counts)
            else:
                field = Rows.load(path)
                fields.setdefault(path.stem, {})[str(folder)] = at_leads(field, leads_min)
                events.setdefault(path.stem, {})[str(folder)] = events_of(field)

    for table in (ensembles, fields, events):
        for name in [name for name, rows in table.items() if len(rows) < len(folders)]:
            del table[name]
        for rows in table.values():
            rows[POOLED] = merge(*rows.values())
    return ensembles, fields, events


def difference(rows: Windowed[Any], other: Windowed[Any], block_s: int, score: str, index: tuple[int, ...]) -> str:
    """Give the paired difference of a score and its interval."""
    interval = resample(rows, block_s=block_s).less(resample(other, block_s=block_s)).interval()
    low, value, high = (getattr(interval, bound)[score][index] for bound in ("low", "value", "high"))
    return f"{value:+.4f} " + ("(no interval)" if np.isnan(low) else f"[{low:+.4f}, {high:+.4f}]")


def print_ensembles(ensembles: Table, leads_min: Sequence[float], against: str, block_s: int) -> None:
    """Print fair CRPS, spread over error and ranks by event and pooled, and the difference to one of them."""
    for name, by_event in ensembles.items():
        for event, rows in by_event.items():
            values = values_of(rows)
            for index, lead in enumerate(leads_min):
                figures = (
                    f"CRPS {values['crps_fair'][index, 0]:.4f}\tspread/error {values['spread_skill'][index, 0]:.2f}"
                )
                texts = [event, name, f"{lead:g} min", figures, f"ranks {values['rank_distance'][index]:.2f}"]
                if name != against:
                    less = difference(rows, ensembles[against][event], block_s, "crps_fair", (index, 0))
                    texts.append(f"less {against} {less}")
                sys.stdout.write("\t".join(texts) + "\n")


def print_errors(fields: Table, leads_min: Sequence[float]) -> None:
    """Print the mean absolute error of single fields, pooled: it is their CRPS."""
    for name, by_event in fields.items():
        # Behind the lead times stands the value of all together.
        errors = values_of(by_event[POOLED])["mae"][:-1]
        texts = [f"{lead:g} min {error:.4f}" for lead, error in zip(leads_min, errors, strict=True)]
        sys.stdout.write("\t".join([POOLED, name, "mean absolute error", *texts]) + "\n")


def print_events(events: Mapping[str, Mapping[str, Any]], against: str, block_s: int) -> None:
    """Print CSI over all lead times by threshold, by event and pooled, there with the difference to one of them."""
    for name, by_event in events.items():
        for event, rows in by_event.items():
            csi = values_of(rows)["csi"][0]
            texts = [event, name, "CSI " + " / ".join(f"{value:.3f}" for value in csi)]
            if name != against and event == POOLED:
                other = events[against][event]
                for index, threshold in enumerate(rows.settings.thresholds_mmh):
                    less = difference(rows, other, block_s, "csi", (0, index))
                    texts.append(f"> {threshold:g} mm/h less {against} {less}")
            sys.stdout.write("\t".join(texts) + "\n")


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", nargs="+", type=Path)
    parser.add_argument("--leads", nargs="+", type=float, default=[15, 30, 60], metavar="MINUTES")
    parser.add_argument("--against", nargs=2, default=["steps", "sprog"], metavar=("ENSEMBLE", "FIELD"))
    parser.add_argument("--block-min", type=float, default=30, metavar="MINUTES")
    options = parser.parse_args()

    ensembles, fields, events = read(options.scores, options.leads)
    for name, table in zip(options.against, (ensembles, events), strict=True):
        if name not in table:
            raise SystemExit(f"--against {name}: not in all of SCORES; there are {', '.join(table) or 'none'}")
    block_s = int(options.block_min * 60)
    print_ensembles(ensembles, options.leads, options.against[0], block_s)
    print_errors(fields, options.leads)
    print_events(events, options.against[1], block_s)


if __name__ == "__main__":
    main()
