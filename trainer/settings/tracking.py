"""Settings of where metrics go."""

import difflib
import re
from dataclasses import dataclass

from ...data.errors import ConfigError
from .ranges import check_number

SERVICE_NAMES = ("mlflow", "neptune", "trackio", "wandb")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides `metrics.jsonl`, which is always written.

    Args:
        tensorboard: Write metrics and pictures for TensorBoard into the run's folder.
        services: Services that get them too, several at once: `neptune`, `trackio`, `mlflow`, `wandb`. Without an
            account or a server each writes below the run's folder. Addresses and keys are taken from a service's own
            environment variables and stored nowhere.
        project: What the services call the project (MLflow: the experiment).
        run_name: What the services call the run, null for the name of the run's folder.
        close_s: Seconds, 0 or more, that all services together have to send what is left when the run ends.
    """

    tensorboard: bool = True
    services: tuple[str, ...] = ()
    project: str = "rainspark"
    run_name: str | None = None
    close_s: float = 15.0

    def __post_init__(self) -> None:
        """Check the names and ranges."""
        for name in self.services:
            if name not in SERVICE_NAMES:
                near = difflib.get_close_matches(name.lower(), SERVICE_NAMES, n=1)
                hint = f"; the nearest is {near[0]}" if near else ""
                raise ConfigError(f"tracking.services has {name!r}; there are {', '.join(SERVICE_NAMES)}{hint}")
        if len(set(self.services)) < len(self.services):
            raise ConfigError(f"tracking.services names one twice: {', '.join(self.services)}; name each once")

        # The strictest of the services decides for all of them.
        for key, text in (("project", self.project), ("run_name", self.run_name)):
            if text is not None and _NAME.fullmatch(text) is None:
                allowed = "up to 100 letters, digits, spaces, '.', '_' and '-', the first a letter or a digit"
                raise ConfigError(f"tracking.{key} is {text!r}; every service takes {allowed}")
        check_number("tracking.close_s", self.close_s, least=0)
