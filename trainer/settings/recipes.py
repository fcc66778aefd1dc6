"""Find the shipped recipes: `--config pretrain_resnet50` names a file of configs/ from any folder."""

from difflib import get_close_matches
from pathlib import Path
from typing import Final

from ...data.command import expand_home
from ...data.errors import ConfigError

FOLDER: Final = Path(__file__).resolve().parents[2] / "configs"


def recipe_names() -> list[str]:
    """List the recipes by name."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_config(text: str) -> Path:
    """Find a file of settings by its path, or a shipped recipe by its name.

    Raises:
        ConfigError: It is neither; the nearest recipe is named.
    """
    path = Path(expand_home(text))
    if path.is_file():
        return path
    # A folder of a recipe's name hides nothing: `make demo` works in one.
    if text in recipe_names():
        return FOLDER / f"{text}.yaml"
    if path.is_dir():
        raise ConfigError(f"--config {text}: is a folder; name a file of settings, such as the config.yaml of a run")

    near = get_close_matches(path.stem, recipe_names(), n=1)
    hint = f"; the nearest recipe is {near[0]}" if near else ""
    raise ConfigError(
        f"--config {text}: there is no such file, seen from {Path.cwd()}, and no such recipe{hint}; recipes are "
        f"{', '.join(recipe_names())}"
    )
