"""The summary of a finished run: model, data, figures, cost; in a file and as lines for the screen."""

import math
from collections.abc import Mapping
from typing import Any, Final

from .usage import Usage

SUMMARY_FILE: Final = "summary.json"
_SHOWN: Final = ("loss", "held_out_loss", "held_out_mse", "held_out_csi")
_FINGERPRINT_CHARACTERS: Final = 16

Summary = dict[str, Any]
"""What a finished run has come to: `model`, `parameters`, `data` (fingerprint, source, licence), `steps`, of them
`skipped_steps`, the last `metrics` (NaN and the infinities as text), `device_hours` of all `attempts`, `versions` of
the packages, and of the `trackers` what is not complete."""


def summary_lines(summary: Summary, usage: Usage) -> dict[str, str]:
    """Write a summary for people, as names and texts."""
    metrics = summary["metrics"]
    data = summary["data"]
    skipped = summary["skipped_steps"]
    lines = {
        "model": f"{summary['model']}, {summary['parameters'] / 1e6:.1f} million parameters",
        "data": f"{data['source']}, fingerprint {data['fingerprint'][:_FINGERPRINT_CHARACTERS]}",
        "figures": ", ".join(f"{name} {_figure(metrics[name])}" for name in _SHOWN if name in metrics),
        "skipped": f"{skipped} of {summary['steps']} steps" if skipped else "",
        "cost": usage.describe(),
        "trackers": "; ".join(summary["trackers"]),
    }
    return {name: text for name, text in lines.items() if text}


def finite_or_text(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """Write NaN and the infinities as text, for strict JSON has no such numbers."""
    return {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
