"""The services that metrics can go to by name: W&B, MLflow and trackio through Accelerate's trackers, Neptune by ours.

Everything here but `prepare` runs in the service's own thread (trainer/tracking/queued.py): it may fail, hang or take
seconds to import. Without an account or a server each service writes below the run's folder.
"""

import importlib
import logging
import math
import netrc
import os
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from ...data.credentials import looks_secret, redact
from .ids import ServiceRun
from .probe import ask
from .queued import Tracker, describe

_logger = logging.getLogger(__name__)


class TrackerError(RuntimeError):
    """What the user has to change before a service can be used."""


class Service(ABC):
    """A sink that is a service; building it connects."""

    name: ClassVar[str]
    extra: ClassVar[str] = "trackers"
    addresses: ClassVar[tuple[str, ...]] = ()
    """Environment variables that hold an address of the service."""

    @abstractmethod
    def __init__(self, run: ServiceRun) -> None:
        """Start a run, or go on with it."""

    @classmethod
    @abstractmethod
    def environment(cls, folder: Path) -> dict[str, str]:
        """Name what the service's library finds in the environment where the user has set nothing else."""

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a global step."""

    @abstractmethod
    def image(self, step: int, name: str, path: Path) -> None:
        """Send a picture."""

    @abstractmethod
    def close(self) -> None:
        """Send what is held back, and end the run there."""


class WandbService(Service):
    """Weights & Biases: online with WANDB_MODE=online or a key (WANDB_API_KEY, `wandb login`), else below RUN/wandb.

    The step is a metric of its own, "step": W&B drops lines whose own counter goes back, as after a resume. Steps after
    the checkpoint that a run went on from stand twice, with the same values. What a server did not take stays in
    RUN/wandb for `wandb sync`.
    """

    name = "W&B"
    addresses = ("WANDB_BASE_URL",)
    probe_s: ClassVar[float] = 5.0
    """Seconds for a first answer; the library would ask a server that is not there for a minute and longer."""
    init_s: ClassVar[float] = 30.0

    def __init__(self, run: ServiceRun) -> None:
        """Start a run; where the server does not answer, one that stays on this machine."""
        mode = os.environ.get("WANDB_MODE") or ("online" if _wandb_key_is_there() else "offline")
        if mode == "online" and not _wandb_key_is_there():
            # The library would ask on the terminal.
            raise TrackerError("WANDB_MODE is online, but there is no key: set WANDB_API_KEY or run `wandb login`")
        try:
            if mode == "online":
                self._probe()
            self._tracker = self._start(run, mode)
        except Exception as error:
            if mode != "online" or isinstance(error, ImportError):
                raise
            import wandb

            # What is left of the run that did not come about would keep its id.
            wandb.teardown()
            self._tracker = self._start(run, "offline")
            _logger.warning(
                "W&B cannot be reached (%s); its data go into %s, for `wandb sync`",
                describe(error),
                run.folder / "wandb",
            )
        self._tracker.tracker.define_metric("step")
        self._tracker.tracker.define_metric("*", step_metric="step")
        self._tracker.store_init_configuration(run.flat_parameters())

    def _probe(self) -> None:
        import wandb

        ask(wandb.setup().settings.base_url, self.probe_s)

    def _start(self, run: ServiceRun, mode: str) -> Any:
        import wandb
        from accelerate.tracking import WandBTracker

        # A short run waits for close_s only, in which one on this machine has to start and to be written, too.
        init_s = min(self.init_s, max(run.close_s - 5.0, 10.0))
        # Neither what the process prints nor its command line, machine and source: the run's metrics only.
        wanted: dict[str, Any] = {
            "console": "off", "silent": True, "disable_git": True, "disable_code": True, "save_code": False,
            "x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True,
            "x_save_requirements": False, "init_timeout": init_s,
        }  # fmt: skip
        settings = wandb.Settings(**{key: value for key, value in wanted.items() if key in wandb.Settings.model_fields})
        run_id = os.environ.get("WANDB_RUN_ID") or run.ids.make("wandb")
        tracker = WandBTracker(
            run.project, name=run.name, id=run_id, resume="allow", dir=str(run.folder), mode=mode, settings=settings
        )
        tracker.start()
        return tracker

    @classmethod
    def environment(cls, folder: Path) -> dict[str, str]:
        """Keep the library's caches in the run's folder, and its own error reports on this machine."""
        return {
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CACHE_DIR": str(folder / "wandb" / "cache"),
            "WANDB_DATA_DIR": str(folder / "wandb" / "cache"),
        }

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics as one row, its step among them."""
        self._tracker.log({"step": step, **metrics})

    def image(self, step: int, name: str, path: Path) -> None:
        """Send a picture as a row of its own."""
        import wandb

        self._tracker.log({"step": step, name: wandb.Image(str(path))})

    def close(self) -> None:
        """Wait until W&B has everything; offline, until it is on the disk."""
        self._tracker.finish()


class MlflowService(Service):
    """MLflow: the server or database of MLFLOW_TRACKING_URI, else RUN/mlflow/mlflow.db and artifacts beside it.

    A resumed run goes on in the same MLflow run: steps after the checkpoint stand twice, with the same values, and the
    parameters stay those of the first start, as MLflow never changes one.
    """

    name = "MLflow"
    addresses = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")

    def __init__(self, run: ServiceRun) -> None:
        """Start a run, or take it up."""
        # Its database library tells every table that it makes.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        import mlflow
        from accelerate.tracking import MLflowTracker

        artifacts = None
        key = "mlflow"
        if address := os.environ.get("MLFLOW_TRACKING_URI"):
            # An id holds for the server that gave it.
            key = f"mlflow at {redact(address)}"
        else:
            folder = run.folder / "mlflow"
            folder.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
            artifacts = (folder / "artifacts").as_uri()
        known = run.ids.find(key)
        self._tracker = MLflowTracker(run.project, run_name=run.name, run_id=known, logging_dir=artifacts)
        # Asking Accelerate's state who is the main process could start one; only the main process is here.
        self._tracker.main_process_only = False
        self._tracker.start()
        if known is None:
            run.ids.keep(key, self._tracker.tracker.info.run_id)
            self._tracker.store_init_configuration(run.flat_parameters())

    @classmethod
    def environment(cls, folder: Path) -> dict[str, str]:
        """No reports to MLflow's makers, no lines among the run's own."""
        del folder
        return {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_LOGGING_LEVEL": "WARNING",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        }

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics; characters that MLflow does not take in names become "_"."""
        self._tracker.log({re.sub(r"[^\w./ -]", "_", key): value for key, value in metrics.items()}, step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Send a picture as an artifact; its file name says what it is and the step."""
        del step, name
        self._tracker.log_artifact(str(path), artifact_path="pictures")

    def close(self) -> None:
        """End the run there."""
        self._tracker.finish()


class TrackioService(Service):
    """trackio: the Space of TRACKIO_SPACE_ID or the server of TRACKIO_SERVER_URL, else RUN/trackio (TRACKIO_DIR).

    A resumed run goes on in the run of the same name; steps after the checkpoint stand twice, with the same values.
    """

    name = "trackio"
    addresses = ("TRACKIO_SERVER_URL",)

    def __init__(self, run: ServiceRun) -> None:
        """Start a run, or take it up."""
        from accelerate.tracking import TrackioTracker

        self._tracker = TrackioTracker(
            run.project, name=run.name, resume="allow" if run.resumed else "never", config=run.flat_parameters(),
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        self._tracker.start()

    @classmethod
    def environment(cls, folder: Path) -> dict[str, str]:
        """Keep its database in the run's folder."""
        return {"TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics."""
        self._tracker.log(dict(metrics), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Send a picture."""
        import trackio

        self._tracker.log({name: trackio.Image(str(path))}, step=step)

    def close(self) -> None:
        """Wait until trackio has everything."""
        self._tracker.finish()


class NeptuneService(Service):
    """Neptune, offline below RUN/neptune unless NEPTUNE_MODE says otherwise: its hosted service is gone.

    Offline, every start of a run writes a folder of its own, all with the same custom run id. Metrics that are not
    finite are left out, as Neptune takes none. Accelerate has no tracker for it.
    """

    name = "Neptune"
    extra = "neptune"

    def __init__(self, run: ServiceRun) -> None:
        """Start a run."""
        mode = os.environ.get("NEPTUNE_MODE") or "offline"
        _logger.warning(
            "Neptune's hosted service ended on 5 March 2026; mode %s, and what is logged offline lies in %s",
            mode, os.environ.get("NEPTUNE_DATA_DIRECTORY", run.folder / "neptune"),
        )  # fmt: skip
        # It tells on standard output how it starts and stops.
        neptune = importlib.import_module("neptune")
        logging.getLogger("neptune").setLevel(logging.ERROR)
        self._file = importlib.import_module("neptune.types").File
        self._run = neptune.init_run(
            mode=mode, name=run.name, custom_run_id=os.environ.get("NEPTUNE_CUSTOM_RUN_ID") or run.ids.make("neptune"),
            source_files=[], git_ref=False, capture_stdout=False, capture_stderr=False, capture_traceback=False,
            capture_hardware_metrics=False,
        )  # fmt: skip
        self._run["parameters"] = run.flat_parameters()

    @classmethod
    def environment(cls, folder: Path) -> dict[str, str]:
        """Keep its files in the run's folder."""
        return {"NEPTUNE_DATA_DIRECTORY": str(folder / "neptune")}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the finite metrics, below "metrics"."""
        for key, value in metrics.items():
            if math.isfinite(value):
                self._run[f"metrics/{key}"].append(value, step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Send a picture, below "pictures"."""
        self._run[f"pictures/{name}"].append(self._file(str(path)), step=step)

    def close(self) -> None:
        """Write everything out."""
        self._run.stop()


SERVICES: Final[Mapping[str, type[Service]]] = {
    "neptune": NeptuneService,
    "trackio": TrackioService,
    "mlflow": MlflowService,
    "wandb": WandbService,
}
"""By the name that the configuration uses."""


def prepare(name: str, run: ServiceRun) -> Callable[[], Tracker]:
    """Set what the service's library finds in the environment, and return what starts it, for another thread.

    The environment is written here, by the thread that trains: libraries read it while others run.

    Args:
        name: A key of SERVICES.
        run: The run.
    """
    kind = SERVICES[name]
    for variable, value in kind.environment(run.folder).items():
        os.environ.setdefault(variable, value)

    def start() -> Tracker:
        for variable in kind.addresses:
            if looks_secret(os.environ.get(variable, ""), any_query=False):
                raise TrackerError(
                    f"{variable} holds a user, a password or a key, which libraries show; give the plain address, and "
                    "the credential in the service's own variable for it"
                )
        try:
            return kind(run)
        except ModuleNotFoundError as error:
            raise TrackerError(f"{error}; install it: pip install -e '.[{kind.extra}]'") from error

    return start


def ways_to_look(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Say by service how to look at what it has written below a run's folder; the library's own words know less.

    Args:
        folder: of the run.
        names: keys of SERVICES.
    """
    place = shlex.quote(str(folder.absolute()))
    ways = {
        "neptune": ("neptune/offline/*", f"offline data in {place}/neptune"),
        "trackio": ("trackio/*.db", f"TRACKIO_DIR={place}/trackio trackio show"),
        "mlflow": ("mlflow/mlflow.db", f"mlflow ui --backend-store-uri sqlite:///{place}/mlflow/mlflow.db"),
        "wandb": ("wandb/offline-run-*/*.wandb", f"wandb sync {place}/wandb/offline-run-*"),
    }
    return {SERVICES[name].name: ways[name][1] for name in names if any(folder.glob(ways[name][0]))}


def _wandb_key_is_there() -> bool:
    """Tell whether W&B would find a key where it looks for one, which `wandb login` writes too."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    # The library's own default host has changed before.
    host = urlsplit(wandb.Settings().base_url).hostname
    try:
        return host is not None and netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
