"""Windows that are scored in a second of one core: `OMP_NUM_THREADS=1 python -m tests.bench.scoring [--members 8]`.

12 lead times of 288 x 288, 6 thresholds, 4 scales, every score: synthetic storms, whose members are shifted and
rescaled, and rain everywhere, which no shortcut for dry pixels helps.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rainspark.data.units import KNMI_MMH_PER_COUNT
from rainspark.trainer.verification.ensemble import score_members
from rainspark.trainer.verification.rows import Settings, WindowId, score_window
from tests.data.radar_files import storms

SETTINGS = Settings(leads_min=tuple(range(5, 65, 5)))
Field = npt.NDArray[np.floating]


def storm_fields(members: int) -> tuple[Field, Field]:
    """Make members (m, t, h, w) and radar (t, h, w) of storms, in mm/h."""
    rng = np.random.default_rng(1)
    rain_thw = storms(12, 288, 288, seed=4).astype(np.float32) * np.float32(KNMI_MMH_PER_COUNT)
    shifts = rng.integers(-12, 13, size=(members, 2))
    factors = rng.gamma(16, 1 / 16, size=(members, 12, 288, 288)).astype(np.float32)
    shifted = [np.roll(rain_thw, shift, axis=(1, 2)) for shift in shifts]
    return np.stack(shifted) * factors, rain_thw


def rain_everywhere(members: int) -> tuple[Field, Field]:
    """Make members and radar of independent rain without a dry pixel."""
    rng = np.random.default_rng(2)
    return (
        rng.gamma(0.8, 4.0, (members, 12, 288, 288)).astype(np.float32),
        rng.gamma(0.8, 4.0, (12, 288, 288)).astype(np.float32),
    )


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Time a call in seconds of the processor, which other processes do not add to: the median of some rounds."""
    call()
    times = []
    for _ in range(rounds):
        start_s = time.process_time()
        call()
        times.append(time.process_time() - start_s)
    return statistics.median(times)


def rates(
    ensemble_mthw: Field, observed_thw: Field, valid_thw: npt.NDArray[np.bool_] | None, rounds: int
) -> list[float]:
    """Measure windows a second: of the ensemble, and of its first member as a single field."""
    window = WindowId(0, "bench:0")
    ensemble = seconds(lambda: score_members(SETTINGS, window, ensemble_mthw, observed_thw, valid_thw), rounds)
    single = seconds(lambda: score_window(SETTINGS, window, ensemble_mthw[0], observed_thw, valid_thw), rounds)
    return [1 / ensemble, 1 / single]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Windows a second of scoring.")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--windows", type=int, default=4)
    arguments = parser.parse_args()
    border = np.pad(np.ones((12, 284, 284), bool), ((0, 0), (2, 2), (2, 2)))

    for label, make in (("storms", storm_fields), ("rain everywhere", rain_everywhere)):
        ensemble_mthw, observed_thw = make(arguments.members)
        wet = np.mean((observed_thw > 0) | (ensemble_mthw > 0).any(axis=0))
        for suffix, valid_thw in (("", None), (", its border missing", border)):
            ensemble, single = rates(ensemble_mthw, observed_thw, valid_thw, arguments.windows)
            sys.stdout.write(
                f"{label + suffix:<36} wet {wet:4.0%}  {arguments.members} members {ensemble:6.2f} windows/s  "
                f"one field {single:6.2f}\n"
            )


if __name__ == "__main__":
    main()
