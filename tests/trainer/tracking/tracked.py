"""Reads back what services keep of a run on this machine, each with its own library where that can read.

    python tests/trainer/tracking/tracked.py RUN PROJECT

prints by service its metrics {name: [[step, value], ...]}, parameters, names of pictures and number of runs.
"""

import base64
import json
import os
import struct
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

Points = dict[str, list[list[float]]]


def read_back(run: Path, project: str = "rainspark") -> dict[str, Any]:
    """Read in a process of its own: the libraries keep folders and threads in the one that loads them."""
    words = ["-m", "tests.trainer.tracking.tracked", str(run), project]
    ended = run_python(words, {**os.environ, "TRACKIO_DIR": str(run / "trackio")})
    assert ended.returncode == 0, ended.stderr
    kept: dict[str, Any] = json.loads(ended.stdout)
    return kept


def run_python(
    words: list[str], environment: Mapping[str, str] = os.environ, folder: Path = REPOSITORY
) -> "subprocess.CompletedProcess[str]":
    """Run Python in a process of its own, in the given folder and environment."""
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


class Remembers:
    """A sink that keeps what it is given and in which thread, and fails at a step."""

    def __init__(self, name: str = "remembers", fails_at: int | None = None) -> None:
        self.name = name
        self.fails_at = fails_at
        self.calls: list[object] = []
        self.threads: set[str] = set()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics."""
        if step == self.fails_at:
            raise ConnectionError("the server is gone")
        self.threads.add(threading.current_thread().name)
        self.calls.append((step, dict(metrics)))

    def image(self, step: int, name: str, path: Path) -> None:
        """Keep the picture."""
        self.calls.append((step, name, path))

    def close(self) -> None:
        """Keep that it was closed."""
        self.calls.append("closed")


def _shown(points: Points, parameters: dict[str, Any], pictures: list[str], runs: int) -> dict[str, Any]:
    return {"metrics": points, "parameters": parameters, "pictures": sorted(pictures), "runs": runs}


def _mlflow(run: Path, project: str) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(project)
    runs = client.search_runs([experiment.experiment_id])
    points: Points = defaultdict(list)
    pictures: list[str] = []
    for found in runs:
        for name in found.data.metrics:
            points[name] += [[point.step, point.value] for point in client.get_metric_history(found.info.run_id, name)]
        pictures += [artifact.path for artifact in client.list_artifacts(found.info.run_id, "pictures")]
    return _shown(points, runs[0].data.params, pictures, len(runs))


def _trackio(run: Path, project: str) -> dict[str, Any]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    assert (run / "trackio").is_dir()
    runs = list(trackio.Api().runs(project))
    points: Points = defaultdict(list)
    pictures = []
    for found in runs:
        for row in SQLiteStorage.get_logs(project, found.name, run_id=found.id):
            for name, value in row.items():
                if isinstance(value, dict):
                    pictures.append(name)
                elif name not in ("step", "timestamp"):
                    points[name].append([row["step"], float(value)])
    shown = _shown(points, runs[0].config or {}, pictures, len(runs))
    return {**shown, "names": [found.name for found in runs]}


def _neptune(run: Path, _project: str) -> dict[str, Any]:
    points: Points = defaultdict(list)
    parameters: dict[str, Any] = {}
    pictures = []
    logs = sorted((run / "neptune" / "offline").glob("*/data-*.log"), key=lambda path: path.stat().st_mtime_ns)
    for line in (line for log in logs for line in log.read_text().splitlines()):
        done = json.loads(line)["obj"]
        path = done.get("path", [])
        name = "/".join(path[1:])
        if path[:1] == ["metrics"]:
            points[name] += [[item["step"], item["value"]] for item in done["values"]]
        elif path[:1] == ["parameters"]:
            parameters[name] = done["value"]
        elif path[:1] == ["pictures"]:
            assert base64.b64decode(done["values"][0]["value"]["data"]).startswith(b"\x89PNG")
            pictures.append(name)
    return _shown(points, parameters, pictures, len(logs))


def _wandb(run: Path, _project: str) -> dict[str, Any]:
    from wandb.proto import wandb_internal_pb2

    points: Points = defaultdict(list)
    parameters: dict[str, Any] = {}
    pictures = []
    files = sorted((run / "wandb").glob("*run-*/run-*.wandb"))
    for data in (data for file in files for data in _records(file.read_bytes())):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined,unused-ignore]
        record.ParseFromString(data)
        parameters |= {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.config.update
        }
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            if name.endswith("/_type"):
                pictures.append(name.removesuffix("/_type"))
            elif name != "step" and not name.startswith("_") and f"{name.rpartition('/')[0]}/_type" not in row:
                points[name].append([row["step"], float(value)])
    return _shown(points, parameters, pictures, len({file.name for file in files}))


def _records(data: bytes) -> Iterator[bytes]:
    """Split W&B's file, which is LevelDB's log format after seven bytes: W&B 0.31 has no reader for Python."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        # 1: a whole record, 4: the last part of one.
        if kind in (1, 4):
            yield whole
            whole = b""


READERS = {"mlflow": _mlflow, "trackio": _trackio, "neptune": _neptune, "wandb": _wandb}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found_here = {name: read(folder, sys.argv[2]) for name, read in READERS.items() if (folder / name).is_dir()}
    sys.stdout.write(json.dumps(found_here))
