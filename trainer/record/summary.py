"""The summary of a finished run: model, data, figures, cost; in a file and as lines for the screen."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from .usage import Usage, write_json

LOG = logging.getLogger(__name__)

SUMMARY_FILE: Final = "summary.json"
_SHOWN: Final = ("loss", "held_out_loss", "held_out_mse", "held_out_csi")
_FINGERPRINT_CHARACTERS: Final = 16


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a finished run has come to.

    Attributes:
        model: Its name.
        parameters: Numbers that it learns.
        data: What it learned from: fingerprint, source, licence.
        steps: Steps done.
        skipped_steps: Of them, those whose update was left out.
        metrics: The last figures, NaN and the infinities as text, see `finite_or_text`.
        device_hours: Of all attempts.
        attempts: How many there were.
        versions: Of the packages.
        trackers: What is not complete, and why.
    """

    model: str
    parameters: int
    data: dict[str, Any]
    steps: int
    skipped_steps: int
    metrics: dict[str, float | str]
    device_hours: float
    attempts: int
    versions: dict[str, str]
    trackers: list[str]


def write_summary(folder: Path, summary: Summary) -> None:
    """Write a summary into the run's folder; one that cannot be written is a warning."""
    try:
        write_json(folder / SUMMARY_FILE, asdict(summary))
    except OSError as error:
        LOG.warning("%s was not written: %s", folder / SUMMARY_FILE, error)


def summary_lines(summary: Summary, usage: Usage) -> dict[str, str]:
    """Write a summary for people, as names and texts."""
    figures = [f"{name} {_figure(summary.metrics[name])}" for name in _SHOWN if name in summary.metrics]
    lines = {
        "model": f"{summary.model}, {summary.parameters / 1e6:.1f} million parameters",
        "data": f"{summary.data['source']}, fingerprint {str(summary.data['fingerprint'])[:_FINGERPRINT_CHARACTERS]}",
        "figures": ", ".join(figures),
        "skipped": f"{summary.skipped_steps} of {summary.steps} steps" if summary.skipped_steps else "",
        "cost": usage.describe(),
        "trackers": "; ".join(summary.trackers),
    }
    return {name: text for name, text in lines.items() if text}


def finite_or_text(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """Write NaN and the infinities as text, for strict JSON has no such numbers."""
    return {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
