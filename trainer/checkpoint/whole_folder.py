"""Folders of checkpoints: they appear whole or not at all, and disappear as a whole."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from ...data.errors import DataError
from ...data.whole_file import make_durable
from ...models.weights.manifest import CheckpointError

_SAVING: Final = ".saving-"
_DISCARDED: Final = ".discarded-"


@contextmanager
def checkpoint_errors(path: Path, action: str) -> Iterator[None]:
    """Turn the errors of a disk or a store into a CheckpointError.

    Args:
        path: What the message names where the error names no file.
        action: What the disk was asked for, such as "written".
    """
    try:
        yield
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except (OSError, SafetensorError) as error:
        name = getattr(error, "filename", None) or path
        cause = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{name}: cannot be {action}: {cause}; other checkpoints are untouched") from error


@contextmanager
def writing_folder(final: Path) -> Iterator[Path]:
    """Make a folder that takes its name when the block ends without an error; else nothing is left of it.

    Its files are durable before it has its name. What has the name already stays until then, and is removed.

    Args:
        final: The folder; its parent is made if need be.

    Raises:
        OSError: The disk fails.
    """
    if not final.parent.is_dir():
        final.parent.mkdir(parents=True)
        make_durable(final.parent.parent)

    # A name of its own beside it: a rename inside one folder is atomic.
    temporary = final.with_name(f"{_SAVING}{final.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        # Contents before names: what has its name after a power cut is whole.
        for path in sorted(temporary.iterdir()):
            make_durable(path)
        make_durable(temporary)

        if final.exists():
            discard(final)
        temporary.rename(final)
        make_durable(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def discard(folder: Path) -> None:
    """Remove a folder; it is renamed first, so that a kill amid the removal leaves nothing that looks damaged."""
    aside = folder.with_name(f"{_DISCARDED}{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def sweep(checkpoints: Path) -> None:
    """Remove what saves that were killed have left."""
    for path in [*checkpoints.glob(f"{_SAVING}*"), *checkpoints.glob(f"{_DISCARDED}*")]:
        with checkpoint_errors(path, "removed (a save that died has left it)"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
