"""What the evaluator asks of every model, and models that are asked in its own process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...data.errors import ConfigError
from ...models.baselines.methods import Gives
from ...models.nowcasting.forecasts import EnsembleForecaster, Forecaster, ProbabilityForecaster
from ..forecasting.forecaster import RunForecaster
from .windows import WindowRain

FloatArray = npt.NDArray[np.float32]
AnyForecaster = Forecaster | EnsembleForecaster | ProbabilityForecaster

DIMENSIONS: Final[dict[Gives, str]] = {
    "field": "(1, lead times, rows, cols)",
    "members": "(1, members, lead times, rows, cols)",
    "probabilities": "(1, thresholds, lead times, rows, cols)",
}


class Contestant(Protocol):
    """A model of an evaluation."""

    @property
    def gives(self) -> Gives:
        """Tell what it forecasts."""

    @property
    def marks_unknown(self) -> bool:
        """Tell whether NaN says that a pixel cannot be known; else it says that the forecast failed."""

    @property
    def about(self) -> dict[str, Any]:
        """Describe it as plain JSON."""

    def start(self, window: WindowRain, issue_s: int) -> Callable[[], FloatArray]:
        """Begin to forecast a window, and give what waits for it.

        That gives rain in mm/h, (lead times, rows, cols), behind members where it forecasts those; or probabilities,
        (thresholds, lead times, rows, cols).
        """


@dataclass(frozen=True, kw_only=True)
class RunMembers:
    """A run that is an ensemble, as an `EnsembleForecaster`.

    Attributes:
        run: The run.
        members: To forecast.
        seed: Of their noise.
    """

    run: RunForecaster
    members: int
    seed: int

    @property
    def name(self) -> str:
        """Name it for tables and pictures."""
        return self.run.name

    @property
    def frames_in(self) -> int:
        """Count the past frames that it takes."""
        return self.run.frames_in

    def forecast_members(
        self, rain_mmh_bthw: Tensor, valid_bthw: Tensor | None, frames_out: int, *, issue_s_b: Sequence[int]
    ) -> Tensor:
        """Forecast the members; see `EnsembleForecaster`."""
        return self.run.forecast_members(
            rain_mmh_bthw, valid_bthw, frames_out, members=self.members, seed=self.seed, issue_s_b=issue_s_b
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """A model that is asked when its turn comes, in the evaluator's process.

    Attributes:
        name: For messages.
        forecaster: It follows one of the three protocols.
        gives: Which of them.
        device: Where it computes.
        frames_out: Lead times to ask for.
        thresholds_mmh: That probabilities are of.
        about: What it is, as plain JSON.
        source: What the user named, where that is a class of another package: whatever it does wrong is said of it.
    """

    name: str
    forecaster: AnyForecaster
    gives: Gives
    device: torch.device
    frames_out: int
    thresholds_mmh: tuple[float, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    source: str | None = None

    @property
    def marks_unknown(self) -> bool:
        """Tell whether NaN says that a pixel cannot be known."""
        return bool(getattr(self.forecaster, "marks_unknown", False))

    def start(self, window: WindowRain, issue_s: int) -> Callable[[], FloatArray]:
        """Give a function that asks the model; see `Contestant`."""
        return lambda: self._forecast(window, issue_s)

    def _forecast(self, window: WindowRain, issue_s: int) -> FloatArray:
        # Each model gets the past frames that it takes, the newest ones.
        last = slice(-self.forecaster.frames_in, None)
        past_bthw = window.past_mmh_bthw[:, last].to(self.device)
        valid_bthw = None if window.past_valid_bthw is None else window.past_valid_bthw[:, last].to(self.device)

        # Whatever a stranger's class raises is said of it; what ours raises is a fault to be seen.
        try:
            with torch.no_grad():
                forecast = self._ask(past_bthw, valid_bthw, issue_s)
        except Exception as error:
            if self.source is None or isinstance(error, ConfigError):
                raise
            when = datetime.fromtimestamp(issue_s, UTC)
            raise ConfigError(
                f"models: {self.name}: {self.source} failed on the window issued at {when:%Y-%m-%dT%H:%M}Z "
                f"({type(error).__name__}: {error}); correct it, or leave it out"
            ) from error
        return self._checked(forecast, tuple(past_bthw.shape[-2:]))

    def _ask(self, past_bthw: Tensor, valid_bthw: Tensor | None, issue_s: int) -> Tensor:
        forecaster: Any = self.forecaster
        match self.gives:
            case "field":
                return forecaster.forecast(past_bthw, valid_bthw, self.frames_out)
            case "members":
                return forecaster.forecast_members(past_bthw, valid_bthw, self.frames_out, issue_s_b=[issue_s])
            case "probabilities":
                thresholds_mmh = self.thresholds_mmh
                return forecaster.forecast_probabilities(past_bthw, valid_bthw, self.frames_out, thresholds_mmh)

    def _checked(self, forecast: Any, size: tuple[int, ...]) -> FloatArray:
        """Give the one window's array; raises ConfigError for what a class gives of another type or shape."""
        # Judged before scoring, where numpy would broadcast a wrong shape in silence.
        leading: dict[Gives, tuple[int, ...]] = {
            "field": (),
            "members": (getattr(self.forecaster, "members", 0),),
            "probabilities": (len(self.thresholds_mmh),),
        }
        expected = (1, *leading[self.gives], self.frames_out, *size)
        what = tuple(forecast.shape) if isinstance(forecast, Tensor) else type(forecast).__name__
        if what != expected:
            raise ConfigError(
                f"models: {self.name}: {self.source or 'the model'} gave {what}; expected a torch.Tensor of shape "
                f"{expected}, {DIMENSIONS[self.gives]}"
            )
        array: FloatArray = forecast[0].float().cpu().numpy()
        return array
