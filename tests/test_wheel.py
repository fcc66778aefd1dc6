"""A wheel holds what a user needs, and works in an environment of its own, from a folder without the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def call(*words: str, folder: Path, **more: str) -> str:
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **more}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree, built from a copy of its files as git knows them."""
    folder = tmp_path_factory.mktemp("wheel")
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("this is no git checkout: its files cannot be told from what lies beside them")
    for name in call("git", "ls-files", "-co", "--exclude-standard", folder=REPOSITORY).splitlines():
        if (REPOSITORY / name).is_file():
            copy = folder / "source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, copy)
    call(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "out", "./source", folder=folder)
    (built,) = (folder / "out").glob("rainspark-*.whl")
    return built


def test_it_holds_every_module_the_recipes_and_the_batch_script(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    rooms = ("data", "models", "trainer", "launch")
    modules = {path.relative_to(REPOSITORY) for room in rooms for path in (REPOSITORY / room).rglob("*.py")}
    assert {f"rainspark/{module.as_posix()}" for module in modules} <= held
    recipes = {f"rainspark/configs/{path.name}" for path in (REPOSITORY / "configs").glob("*.yaml")}
    others = ("launch/multinode.sh", "trainer/evaluation/report.html.j2", "trainer/forecasting/natural_earth.npz")
    assert {*recipes, *(f"rainspark/{other}" for other in others)} <= held
    assert not {name for name in held if "/tests/" in name or name == "rainspark/setup.py"}


def test_it_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    call(*PIP, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel), folder=tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("raise RuntimeError('somebody else')\n")

    def python(*words: str) -> str:
        return call(sys.executable, *words, folder=tmp_path, PYTHONPATH=str(site))

    where = python("-c", "import rainspark; print(rainspark.__file__)")
    assert where.strip() == str(site / "rainspark" / "__init__.py")
    words = ("pretrain", "--config", "demo", "--data.shards", "s", "--run.dir", "r", "--print_config")
    assert "encoder: resnet18" in python("-m", "rainspark", *words)

    storms = ("storms", "--out", "radar", "--hours", "1", "--size", "64")
    python("-m", "rainspark", *storms)
    pack = ("pack", "knmi", "radar", "--out", "shards", "--window", "4")
    python("-m", "rainspark", *pack)
    assert (tmp_path / "shards" / "index.json").is_file()
    script = site / "rainspark" / "trainer" / "pretrain.py"
    assert "usage: rainspark pretrain" in call(
        sys.executable, str(script), "--help", folder=tmp_path, PYTHONPATH=str(site)
    )
