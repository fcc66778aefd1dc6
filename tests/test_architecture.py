"""The plan of the house, held by reading the source: which room may import what, and what nobody may do."""

import ast
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TOPS = ("data", "models", "trainer", "launch")
ENTRY_SCRIPTS = ("trainer.pretrain", "trainer.finetune", "trainer.evaluate", "trainer.forecast")

FLOORS: tuple[tuple[str, ...], ...] = (
    (*ENTRY_SCRIPTS, "launch.doctor"),
    ("launch", "trainer.evaluation"),
    ("trainer.contestants",),
    ("trainer.training",),
    ("trainer.watching",),
    ("trainer.forecasting",),
    ("trainer.checkpoint",),
    ("trainer.record",),
    ("trainer.engine", "trainer.tracking", "trainer.comparison"),
    ("trainer.processes", "trainer.verification"),
    ("trainer.pictures", "trainer.settings"),
    ("data.count", "data.verify", "data.reshard"),
    ("models.weights", "models.baselines", "data.stream", "data.pack", "data.fetch"),
    ("data.windows",),
    ("data.shards",),
    ("data.store", "data.sources", "models.nowcasting"),
    ("models", "data"),
    # Knows neither frames nor networks, and serves both.
    ("data.whole_file",),
)
"""The rooms by floor, the entry first: a room may import what stands on lower floors, and nothing else.

A name that is a file stands for itself: the commands on archives lie in `data`, whose other files are its ground.
"""

DOORS = {
    # Its trackers beside its engine.
    "accelerate": ("trainer.engine.*", "trainer.tracking.*"),
    "deepspeed": ("trainer.engine.*",),
    "timm": ("models.encoder",),
    **dict.fromkeys(
        ("requests", "urllib3", "urllib.request", "http.client", "obstore", "boto3", "botocore", "httpx"),
        ("data.store.*", "data.fetch.*"),
    ),
    # The doctor asks whether a host has an address, and sends nothing.
    "socket": ("data.store.*", "data.fetch.*", "launch.doctor.collective"),
    # Radar files in; NetCDF and ODIM out.
    "h5py": ("data.sources.*", "trainer.forecasting.netcdf", "trainer.forecasting.odim"),
    "matplotlib": ("trainer.pictures.*", "data.shards.contact_sheet"),
    **dict.fromkeys(("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"), ()),
}
"""Library: the modules that may import it."""
BANNED_NAMES = frozenset({"utils", "util", "misc", "common", "helpers", "helper"})
MAX_FUNCTION_LINES, MAX_ROOM_MODULES = 80, 14
TORCH_FREE = ("launch", "trainer.settings", "trainer.processes.starting", "trainer.processes.allocator")
TORCH_WHERE_NEEDED = ("launch.doctor.memory_formula", "launch.doctor.memory_trace")
"""Imported by a check when it needs them."""

Sources = Mapping[str, str]
"""Source text by dotted module name."""


@dataclass(frozen=True)
class Import:
    """One imported module: by whom, which, where, and whether it happens when the importer is imported."""

    by: str
    module: str
    line: int
    at_start: bool

    def __str__(self) -> str:
        """Say it as an error does."""
        return f"{self.by}:{self.line} imports {self.module}"


def _sources() -> dict[str, str]:
    found = {}
    for room in TOPS:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path.read_text(encoding="utf-8")
    return found


def _modules() -> list[str]:
    """List all modules of the package by their import names but the entry scripts, which nobody imports."""
    return [f"rainspark.{name}" for name in _sources() if name not in ENTRY_SCRIPTS]


def _imports(sources: Sources) -> Iterator[Import]:
    """All imports, in functions and under TYPE_CHECKING too; `from package import module` names the module."""
    packages = {name for name in sources if any(other.startswith(f"{name}.") for other in sources)} | set(TOPS)
    for by, text in sources.items():
        tree = ast.parse(text)
        local = {
            id(inner)
            for outer in ast.walk(tree)
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for inner in ast.walk(outer)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = by.split(".") if by in packages else by.split(".")[:-1]
                    above = package[: len(package) - node.level + 1]
                    base = ".".join([*above, *([base] if base else [])])
                names = [f"{base}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                yield Import(by, name.removeprefix("rainspark."), node.lineno, id(node) not in local)


def _is_or_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _floor_and_room(module: str) -> tuple[int, str] | None:
    """Find the floor and the room of a module by its longest name in FLOORS; None for what is not ours."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        room = ".".join(parts[:length])
        for floor, rooms in enumerate(FLOORS):
            if room in rooms:
                return floor, room
    return (len(FLOORS), "tests") if parts[0] == "tests" else None


def _wrong_arrows(sources: Sources) -> list[str]:
    wrong = []
    for found in _imports(sources):
        importer, target = _floor_and_room(found.by), _floor_and_room(found.module)
        if found.module.partition(".")[0] not in (*TOPS, "tests"):
            continue
        if target is None or importer is None:
            wrong.append(f"{found}: one of them stands in no room")
            continue
        if importer[1] == target[1]:
            continue
        siblings = {importer[1].partition(".")[0], target[1].partition(".")[0]} == {"data", "models"}
        siblings &= target[1] != "data.whole_file"
        if target[1] == "tests" or target[0] <= importer[0] or siblings or target[1] in ENTRY_SCRIPTS:
            wrong.append(str(found))
    return wrong


def _wrong_doors(sources: Sources) -> list[str]:
    return [
        str(found)
        for found in _imports(sources)
        for library, doors in DOORS.items()
        if _is_or_inside(found.module, library) and not any(fnmatchcase(found.by, door) for door in doors)
    ]


def _torch_at_start(sources: Sources) -> list[str]:
    return [
        str(found)
        for found in _imports(sources)
        if any(_is_or_inside(found.by, room) for room in TORCH_FREE)
        and found.by not in TORCH_WHERE_NEEDED
        and found.at_start
        and found.module.partition(".")[0] in {"torch", "timm"}
    ]


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _wrong_calls(sources: Sources) -> list[str]:
    wrong = []
    for by, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            name = _dotted(node.func)
            options = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            bad = (
                name in {"eval", "exec", "__import__", "builtins.eval", "builtins.exec"}
                or name in {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
                or options.get("shell", False) is not False
                or options.get("allow_pickle", False) is not False
                or (name == "torch.load" and options.get("weights_only") is not True)
                or name == "torch.save"
            )
            if bad:
                wrong.append(f"{by}:{node.lineno} calls {name}")
    return wrong


def _wrong_names(sources: Sources) -> list[str]:
    return [name for name in sources if BANNED_NAMES & set(name.split("."))]


def _too_large(sources: Sources) -> list[str]:
    large = []
    modules = Counter(
        name.rpartition(".")[0] for name in sources if not any(_is_or_inside(o, name) and o != name for o in sources)
    )
    large += [f"{room} holds {count} modules" for room, count in modules.items() if count > MAX_ROOM_MODULES]
    for by, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if num_lines > MAX_FUNCTION_LINES:
                    large.append(f"{by}:{node.lineno} {node.name} has {num_lines} lines")
    return large


def _cycles(sources: Sources) -> list[str]:
    """Modules that can reach themselves; a package's own `__init__` counts as a module."""
    edges: dict[str, set[str]] = {name: set() for name in sources}
    for found in _imports(sources):
        target = found.module
        while target and target not in sources:
            target = target.rpartition(".")[0]
        if target and target != found.by:
            edges[found.by].add(target)
    reach = {name: set(targets) for name, targets in edges.items()}
    for middle in reach:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    return sorted(name for name, targets in reach.items() if name in targets)


RULES: dict[str, Callable[[Sources], list[str]]] = {
    "arrows": _wrong_arrows,
    "doors": _wrong_doors,
    "torch-free rooms": _torch_at_start,
    "nothing runs code from data": _wrong_calls,
    "names": _wrong_names,
    "sizes": _too_large,
    "cycles": _cycles,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_its_plan(rule: str) -> None:
    sources = _sources()
    rooms = {found[1] for name in sources if (found := _floor_and_room(name)) is not None}
    assert rooms == {room for floor in FLOORS for room in floor}, "a room is missing: the test would hold nothing"
    assert RULES[rule](sources) == []


@pytest.mark.parametrize(
    ("rule", "module", "text"),
    [
        ("arrows", "data.x", "import models.spark"),
        ("arrows", "data.x", "from models import spark"),
        ("arrows", "data.x", "def f() -> None:\n    from trainer.loop import fit"),
        ("arrows", "data.sources.x", "from ...models import spark"),
        ("arrows", "data.x", "from .shards.index import Index"),
        ("arrows", "data.stream.x", "from ..pack.survey import Job"),
        ("arrows", "trainer.settings.x", "from ..engine import engine"),
        ("arrows", "launch.x", "from rainspark.trainer.pretrain import main"),
        ("arrows", "models.x", "import tests.cases"),
        ("arrows", "models.x", "if TYPE_CHECKING:\n    from data.frames import Frame"),
        ("arrows", "models.x", "import launch"),
        ("arrows", "trainer.x", "from launch.submit import main"),
        ("doors", "trainer.training.loop", "from accelerate import Accelerator"),
        ("doors", "models.spark", "import timm.models.resnet"),
        ("doors", "models.spark", "def f() -> None:\n    import timm"),
        ("doors", "data.pack.x", "from urllib import request"),
        ("doors", "data.pack.x", "from http.client import HTTPConnection"),
        ("doors", "trainer.engine.x", "import pickle"),
        ("torch-free rooms", "launch.x", "import torch.distributed"),
        ("torch-free rooms", "launch.x", "try:\n    from torch import nn\nexcept ImportError:\n    pass"),
        ("nothing runs code from data", "data.x", "def f(x: str) -> None:\n    eval(x)"),
        ("nothing runs code from data", "data.x", "os.system('ls')"),
        ("nothing runs code from data", "data.x", "subprocess.run(command, shell=True)"),
        ("nothing runs code from data", "data.x", "subprocess.run(command, shell=flag)"),
        ("nothing runs code from data", "data.x", "torch.load(path)"),
        ("nothing runs code from data", "data.x", "torch.load(path, weights_only=False)"),
        ("nothing runs code from data", "data.x", "np.load(path, allow_pickle=True)"),
        ("names", "data.utils", ""),
        ("names", "trainer.common.x", ""),
        ("sizes", "data.x", "def f() -> None:\n" + "    pass\n" * 80),
        ("cycles", "data.x", "import data.x.y\nimport data.z"),
    ],
)
def test_every_rule_sees_a_break(rule: str, module: str, text: str) -> None:
    rest = {"data.z": "def f() -> None:\n    from data.x import g"}
    assert len(RULES[rule]({**rest, module: text})) > 0


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("trainer.training.x", "import data.frames\nfrom ...models.spark import SparK\nfrom .z import y"),
        ("launch.x", "def f() -> None:\n    import torch\n    import trainer.training.pretraining"),
        ("models.encoder", "import timm"),
        ("trainer.engine.zero", "import deepspeed"),
        ("data.store.access", "from obstore.store import S3Store"),
        ("data.fetch.web", "import urllib.request"),
        ("models.x", "from models.database import y\nimport urllib.parse\nimport timmy"),
        ("models.x", "model.eval()\nre.compile('x')\ntorch.load(path, weights_only=True)\nrun(c, shell=False)"),
        ("data.x", "def f() -> None:\n" + "    pass\n" * 79),
    ],
)
def test_no_rule_sees_what_is_not_there(module: str, text: str) -> None:
    assert {rule: found for rule, check in RULES.items() if (found := check({module: text}))} == {}


PURE_IMPORT = textwrap.dedent(
    """
    # Imports every module of the rooms beside an untouched timm model; says what that changed.
    import importlib, os, signal, sys, threading
    from pathlib import Path
    import timm, torch
    import accelerate, blosc2, deepspeed, h5py, matplotlib.figure, webdataset  # what these do at import is their own

    def foreign():
        classes = [torch.nn.Module, torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm, torch.optim.AdamW,
                   timm.models.resnet.ResNet, timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck,
                   timm.layers.DropPath, accelerate.Accelerator, deepspeed.DeepSpeedEngine]
        return {(kind.__qualname__, name): id(value) for kind in classes for name, value in vars(kind).items()
                if callable(value)}

    def world():
        return {
            "threads": threading.active_count(), "files": sorted(str(path) for path in Path().rglob("*")),
            "folder": os.getcwd(), "dtype": torch.get_default_dtype(), "random": torch.get_rng_state().tolist(),
            "torch threads": torch.get_num_threads(), "deterministic": torch.are_deterministic_algorithms_enabled(),
            "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
            "print": id(print), "stdout": id(sys.stdout), "environment": dict(os.environ), "classes": foreign(),
        }

    frames = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = timm.create_model("resnet18").eval()
    expected, weights, before = model(frames), model.state_dict(), world()
    for name in sys.argv[1:]:
        importlib.import_module(name)
    changed = [key for key, value in world().items() if value != before[key]]
    if changed:
        raise SystemExit(f"importing changed: {changed}")
    fresh = timm.create_model("resnet18").eval()
    fresh.load_state_dict(weights)
    if not (torch.equal(model(frames), expected) and torch.equal(fresh(frames), expected)):
        raise SystemExit("an untouched timm model computes something else")
    """
)


def test_imports_do_no_work_and_touch_nobody_else(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", "-c", PURE_IMPORT, *_modules()]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_launch_starts_without_torch(tmp_path: Path) -> None:
    modules = [
        f"rainspark.{name}"
        for name in _sources()
        if name not in TORCH_WHERE_NEEDED and any(_is_or_inside(name, room) for room in TORCH_FREE)
    ]
    load = "for name in sys.argv[1:]: importlib.import_module(name)"
    code = f"import importlib, sys\n{load}\nsys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, *modules]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
