"""The methods of pysteps in an evaluation: in other processes, and each window's forecast is kept."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from ...data.randomness import generator
from ...models.baselines.methods import Gives, Method, Window
from .contestant import FloatArray
from .kept import KeptForecasts, key_of
from .windows import WindowRain
from .workers import Workers

_SEEDS: Final = 2**31
"""pysteps takes seeds below 2**32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PystepsModel:
    """A method of pysteps.

    Attributes:
        method: With its options.
        workers: Where it is computed.
        kept: Where forecasts are kept.
        frames_out: Lead times to give.
        thresholds_mmh: That probabilities are of.
        pixel_km: Side of a pixel.
        step_min: Minutes from frame to frame.
        seed: Of the evaluation.
    """

    method: Method
    workers: Workers
    kept: KeptForecasts
    frames_out: int
    thresholds_mmh: tuple[float, ...]
    pixel_km: float
    step_min: float
    seed: int
    marks_unknown: Final = True

    @property
    def gives(self) -> Gives:
        """Tell what it forecasts."""
        return self.method.gives

    @property
    def about(self) -> dict[str, Any]:
        """Describe it as plain JSON."""
        return {"kind": self.method.kind, **asdict(self.method)}  # type: ignore[call-overload]

    def start(self, window: WindowRain, issue_s: int) -> Callable[[], FloatArray]:
        """Begin to forecast a window where it is not kept; see `Contestant`."""
        # A seed a window, from its issue time alone: no order of windows or models changes a member.
        valid = window.past_valid_bthw
        past = Window(
            rain_mmh_thw=window.past_mmh_bthw[0].numpy()[-self.method.frames_in :],
            valid_thw=None if valid is None else valid[0].numpy()[-self.method.frames_in :],
            issue_s=issue_s,
            frames_out=self.frames_out,
            pixel_km=self.pixel_km,
            step_min=self.step_min,
            seed=int(generator(self.seed, "members of pysteps", issue_s).integers(_SEEDS)),
            thresholds_mmh=self.thresholds_mmh,
        )
        key = key_of(self.method, past)
        forecast = self.kept.read(key)
        if forecast is not None:
            return lambda: forecast

        # It is kept by whoever waits for it, so that the pool's processes write nothing.
        wait = self.workers.start(self.method, past)

        def computed() -> FloatArray:
            result: FloatArray = np.asarray(wait(), np.float32)
            self.kept.write(key, result)
            return result

        return computed
