"""Count the windows that a selection holds, from the index alone: `rainspark count SHARDS --select nl50`."""

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from .command import CommandParser, run_command
from .json_checks import shown
from .shards.index import Index, load_index, of_source
from .shards.timeline import ready_origins
from .store.storage import open_storage
from .windows.selection import PUBLISHED_TARGET, Selection, candidate_windows, choose, lost_to_gaps


def count_windows(index: Index, selection: Selection) -> int:
    """Count the windows of a selection; none at all are no error here."""
    candidates = candidate_windows(index, selection)
    return int(np.count_nonzero(candidates.inside & candidates.enough))


def report(index: Index, selection: Selection) -> Iterator[str]:
    """List the lines that the command prints, for an index of the sources that are asked about."""
    yield f"windows       of {selection.window} frames every {index.cadence_s / 60:g} min"
    of_sources = [(shown(source), of_source(index, source)) for source in index.sources]
    width = max(len(name) for name, _ in of_sources)
    # Windows of the published selection may lie across gaps: these are counted apart.
    yield f"rule          {_rule(selection)}"
    published = selection.rule == "smaat_compat"
    totals = np.zeros(2, np.int64)
    for name, of_one in of_sources:
        count = count_windows(of_one, selection)
        lost = sum(lost_to_gaps(of_one, selection).values()) if published else 0
        totals += (count, lost)
        yield f"{name:<{width}} {count:>12,} windows{_format_lost(selection, lost)}"
        if published and ready_origins(of_one):
            yield f"{'':<{width}} its ready windows do not know the frame after them: take --rule strict"
    if len(of_sources) > 1:
        yield f"{'together':<{width}} {totals[0]:>12,} windows{_format_lost(selection, int(totals[1]))}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 4 bad data, 3 wrong options, 130 interrupted."""

    def work() -> int:
        arguments = make_parser().parse_args(argv)
        index = load_index(open_storage(arguments.shards))
        if arguments.source is not None:
            index = of_source(index, arguments.source)

        # Without options every window is counted.
        selection = choose(
            window=index.window if arguments.window is None else arguments.window,
            select=arguments.select,
            min_rain_fraction=arguments.min_rain_fraction or 0.0,
            rule=arguments.rule,
            target_frame=arguments.target_frame,
            spelt=lambda name: "--rule" if name == "select_rule" else "--" + name.replace("_", "-"),
        )
        sys.stdout.write("".join(f"{line}\n" for line in report(index, selection)))
        return 0

    return run_command(work)


def _rule(selection: Selection) -> str:
    share = f"at least {100 * selection.min_rain_fraction:g}% of"
    if selection.rule == "smaat_compat":
        return f"smaat_compat: {share} all pixels of the frame after the window are wet"
    return f"strict: {share} the valid pixels of {_target(selection)} are wet"


def _target(selection: Selection) -> str:
    return f"frame {selection.target_frame % selection.window} (counted from 0)"


def _format_lost(selection: Selection, lost: int) -> str:
    return f", and {lost:,} across gaps that cannot be rebuilt" if selection.rule == "smaat_compat" else ""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark count`."""
    parser = CommandParser(prog="rainspark count", description=__doc__)
    parser.add_argument("shards", metavar="SHARDS")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--select", choices=("nl50", "nl20"), help="a published selection: 50%% or 20%% of wet pixels")
    chosen.add_argument("--min-rain-fraction", type=float, metavar="SHARE", help="share of wet pixels, 0 to 1")
    rule_help = (
        "strict: the window's own target frame decides; smaat_compat: the frame after the window, as in the published "
        "data sets (strict)"
    )
    parser.add_argument("--rule", choices=("strict", "smaat_compat"), default="strict", help=rule_help)
    parser.add_argument("--window", type=int, metavar="FRAMES", help="frames of a window (the longest packed)")
    target_help = (
        "frame that the strict rule judges, counted from 0 as data.target_frame is; -1 is the last "
        f"({PUBLISHED_TARGET} with --select, which is the published frame {PUBLISHED_TARGET + 1}; else -1)"
    )
    parser.add_argument("--target-frame", type=int, metavar="INDEX", help=target_help)
    parser.add_argument("--source", metavar="NAME", help="only this source of a mixed archive")
    return parser


if __name__ == "__main__":
    sys.exit(main())
