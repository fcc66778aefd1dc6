"""Send metrics to services by name: W&B, MLflow and trackio through Accelerate's trackers, Neptune through ours.

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
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from ...data.credentials import looks_secret, redact
from ...data.errors import ConfigError
from ...data.fetch.web import knock
from .ids import ServiceRun
from .queued import Tracker, describe

RUN: Final = "{run}"
"""Stands for the run's folder."""
WANDB_SETTINGS: Final = {
    "console": "off",
    **dict.fromkeys(("silent", "disable_git", "disable_code"), True),
    **dict.fromkeys(("x_disable_meta", "x_disable_stats", "x_disable_machine_info"), True),
    **dict.fromkeys(("save_code", "x_save_requirements"), False),
}
"""Neither what the process prints nor its command line, machine and source: the run's metrics only."""

WANDB_ANSWER_S: Final = 5.0
"""Seconds for a first answer; the library would ask a server that is not there for a minute and longer."""
WANDB_INIT_S: Final = 30.0

_logger = logging.getLogger(__name__)


class Service(Tracker):
    """A sink that is a service; building it connects.

    Attributes:
        name: What messages call it.
        extra: The extra of this package that installs its library.
        addresses: Environment variables that hold an address of the service.
        environment: What its library finds in the environment where the user has set nothing else.
        files: What it writes below the run's folder.
        command: How to look at these.
    """

    name: ClassVar[str]
    extra: ClassVar[str] = "trackers"
    addresses: ClassVar[tuple[str, ...]] = ()
    environment: ClassVar[Mapping[str, str]]
    files: ClassVar[str]
    command: ClassVar[str]
    _tracker: Any

    @abstractmethod
    def __init__(self, run: ServiceRun) -> None:
        """Start a run, or go on with it."""

    def close(self) -> None:
        """Send what is held back, and end the run there."""
        self._tracker.finish()


class WandbService(Service):
    """Weights & Biases: online with WANDB_MODE=online or a key (WANDB_API_KEY, `wandb login`), else below RUN/wandb.

    The step is a metric of its own, "step": W&B drops lines whose own counter goes back, as after a resume. Steps after
    the checkpoint that a run went on from stand twice, with the same values. What a server did not take stays in
    RUN/wandb for `wandb sync`.
    """

    name = "W&B"
    addresses = ("WANDB_BASE_URL",)
    # The library's caches in the run's folder, and its own error reports nowhere.
    environment: ClassVar[Mapping[str, str]] = {
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CACHE_DIR": f"{RUN}/wandb/cache",
        "WANDB_DATA_DIR": f"{RUN}/wandb/cache",
    }
    files = "wandb/offline-run-*/*.wandb"
    command = f"wandb sync {RUN}/wandb/offline-run-*"

    def __init__(self, run: ServiceRun) -> None:
        """Start a run; where the server does not answer, one that stays on this machine."""
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if _wandb_key_is_there() else "offline")
        if mode == "online" and not _wandb_key_is_there():
            # The library would ask on the terminal.
            raise ConfigError("WANDB_MODE is online, but there is no key: set WANDB_API_KEY or run `wandb login`")

        try:
            if mode == "online":
                knock(wandb.setup().settings.base_url, WANDB_ANSWER_S)
            self._tracker = self._start(run, mode)
        except Exception as error:
            if mode != "online" or isinstance(error, ImportError):
                raise
            # What is left of the run that did not come about would keep its id.
            wandb.teardown()
            self._tracker = self._start(run, "offline")
            reason, folder = describe(error), run.folder / "wandb"
            _logger.warning("W&B cannot be reached (%s); its data go into %s, for `wandb sync`", reason, folder)

        self._tracker.tracker.define_metric("step")
        self._tracker.tracker.define_metric("*", step_metric="step")
        self._tracker.store_init_configuration(run.flat_parameters())

    def _start(self, run: ServiceRun, mode: str) -> Any:
        import wandb
        from accelerate.tracking import WandBTracker

        # A short run waits for close_s only, in which one on this machine has to start and to be written, too.
        init_s = min(WANDB_INIT_S, max(run.close_s - 5.0, 10.0))
        wanted = {**WANDB_SETTINGS, "init_timeout": init_s}
        known = wandb.Settings.model_fields
        settings = wandb.Settings(**{key: value for key, value in wanted.items() if key in known})
        run_id = os.environ.get("WANDB_RUN_ID") or run.ids.make("wandb")
        tracker = WandBTracker(
            run.project, name=run.name, id=run_id, resume="allow", dir=str(run.folder), mode=mode, settings=settings
        )
        tracker.start()
        return tracker

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics as one row, its step among them."""
        self._tracker.log({"step": step, **metrics})

    def image(self, step: int, name: str, path: Path) -> None:
        """Send a picture as a row of its own."""
        import wandb

        self._tracker.log({"step": step, name: wandb.Image(str(path))})


class MlflowService(Service):
    """MLflow: the server or database of MLFLOW_TRACKING_URI, else RUN/mlflow/mlflow.db and artifacts beside it.

    A resumed run goes on in the same MLflow run: steps after the checkpoint stand twice, with the same values, and the
    parameters stay those of the first start, as MLflow never changes one.
    """

    name = "MLflow"
    addresses = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    # No reports to MLflow's makers, no lines among the run's own.
    environment: ClassVar[Mapping[str, str]] = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    files = "mlflow/mlflow.db"
    command = f"mlflow ui --backend-store-uri sqlite:///{RUN}/mlflow/mlflow.db"

    def __init__(self, run: ServiceRun) -> None:
        """Start a run, or take it up."""
        # Its database library names every table that it makes.
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

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics; characters that MLflow does not take in names become "_"."""
        self._tracker.log({re.sub(r"[^\w./ -]", "_", key): value for key, value in metrics.items()}, step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Send a picture as an artifact; its file name says what it is and the step."""
        del step, name
        self._tracker.log_artifact(str(path), artifact_path="pictures")


class TrackioService(Service):
    """trackio: the Space of TRACKIO_SPACE_ID or the server of TRACKIO_SERVER_URL, else RUN/trackio (TRACKIO_DIR).

    A resumed run goes on in the run of the same name; steps after the checkpoint stand twice, with the same values.
    """

    name = "trackio"
    addresses = ("TRACKIO_SERVER_URL",)
    environment: ClassVar[Mapping[str, str]] = {"TRACKIO_DIR": f"{RUN}/trackio", "HF_HUB_DISABLE_TELEMETRY": "1"}
    files = "trackio/*.db"
    command = f"TRACKIO_DIR={RUN}/trackio trackio show"

    def __init__(self, run: ServiceRun) -> None:
        """Start a run, or take it up."""
        from accelerate.tracking import TrackioTracker

        resume = "allow" if run.ids.resumed else "never"
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        parameters = run.flat_parameters()
        self._tracker = TrackioTracker(run.project, name=run.name, resume=resume, config=parameters, **quiet)
        self._tracker.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics."""
        self._tracker.log(dict(metrics), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Send a picture."""
        import trackio

        self._tracker.log({name: trackio.Image(str(path))}, step=step)


class NeptuneService(Service):
    """Neptune, offline below RUN/neptune unless NEPTUNE_MODE says otherwise: its hosted service is gone.

    Offline, every start of a run writes a folder of its own, all with the same custom run id. Metrics that are not
    finite are left out, as Neptune takes none. Accelerate has no tracker for it.
    """

    name = "Neptune"
    extra = "neptune"
    environment: ClassVar[Mapping[str, str]] = {"NEPTUNE_DATA_DIRECTORY": f"{RUN}/neptune"}
    files = "neptune/offline/*"
    command = f"offline data in {RUN}/neptune"

    def __init__(self, run: ServiceRun) -> None:
        """Start a run."""
        mode = os.environ.get("NEPTUNE_MODE") or "offline"
        folder = os.environ.get("NEPTUNE_DATA_DIRECTORY", run.folder / "neptune")
        _logger.warning("Neptune's hosted service ended on 5 March 2026; mode %s, offline data in %s", mode, folder)
        # By name: mypy would follow its types into modules that it cannot read.
        neptune = importlib.import_module("neptune")
        self._file = importlib.import_module("neptune.types").File
        # It prints how it starts and stops.
        logging.getLogger("neptune").setLevel(logging.ERROR)
        run_id = os.environ.get("NEPTUNE_CUSTOM_RUN_ID") or run.ids.make("neptune")
        captures = [f"capture_{what}" for what in ("stdout", "stderr", "traceback", "hardware_metrics")]
        quiet = {"source_files": [], **dict.fromkeys(["git_ref", *captures], False)}
        self._tracker = neptune.init_run(mode=mode, name=run.name, custom_run_id=run_id, **quiet)
        self._tracker["parameters"] = run.flat_parameters()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the finite metrics, below "metrics"."""
        for key, value in metrics.items():
            if math.isfinite(value):
                self._tracker[f"metrics/{key}"].append(value, step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Send a picture, below "pictures"."""
        self._tracker[f"pictures/{name}"].append(self._file(str(path)), step=step)

    def close(self) -> None:
        """Write everything out."""
        self._tracker.stop()


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
    for variable, value in kind.environment.items():
        os.environ.setdefault(variable, value.replace(RUN, str(run.folder)))

    def start() -> Tracker:
        for variable in kind.addresses:
            if looks_secret(os.environ.get(variable, ""), any_query=False):
                raise ConfigError(
                    f"{variable} holds a user, a password or a key, which libraries show; give the plain address, and "
                    "the credential in the service's own variable for it"
                )
        try:
            return kind(run)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{error}; install it: pip install -e '.[{kind.extra}]'") from error

    return start


def ways_to_look(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """List by service how to look at what it has written below a run's folder; the library's own words know less.

    Args:
        folder: Of the run.
        names: Keys of SERVICES.
    """
    quoted = shlex.quote(str(folder.absolute()))
    written = [SERVICES[name] for name in names if any(folder.glob(SERVICES[name].files))]
    return {kind.name: kind.command.replace(RUN, quoted) for kind in written}


def _wandb_key_is_there() -> bool:
    """Find out whether W&B would find a key where it looks for one, which `wandb login` writes too."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    # The library's own default host has changed before.
    host = urlsplit(wandb.Settings().base_url).hostname
    try:
        return host is not None and netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
