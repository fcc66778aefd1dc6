"""The manifest of a checkpoint folder: what proves that its files are whole.

`MANIFEST.json` lists the size and the SHA-256 of every other file of the folder and is written last, so a folder whose
writing was cut short has none, and one whose files changed since does not match it.
"""

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any, Final

MANIFEST_NAME: Final = "MANIFEST.json"
CHECKPOINTS_FOLDER: Final = "checkpoints"
BEST_FOLDER: Final = "best"
"""Where a fine-tuning run keeps the checkpoints that were the best on its validation part, in a run's layout."""
MODEL_FILE: Final = "model.safetensors"
AVERAGE_FILE: Final = "ema.safetensors"
"""Where the checkpoints of a run lie, in its folder or in a store."""
SCHEMA_VERSION: Final = 1
STEP_FOLDER: Final = re.compile(r"step-(\d{8,})")
"""Name of a finished checkpoint's folder: the global step, at least eight digits."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint or a file of weights that cannot be written or read, is not whole, or does not fit."""


def write_manifest(folder: Path) -> None:
    """Write `MANIFEST.json` for the files that lie in `folder`; the caller makes them durable.

    Raises:
        CheckpointError: something in the folder is not a plain file.
        OSError: a file cannot be read or the manifest not be written.
    """
    names = _plain_files(folder)
    files = {name: {"bytes": size, "sha256": digest} for name in names for size, digest in [_digest(folder / name)]}
    (folder / MANIFEST_NAME).write_bytes(_manifest_bytes(files))


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Read a folder's manifest and compare the folder's file names and sizes with it.

    Returns:
        {file name: {"bytes": int, "sha256": str}}.

    Raises:
        CheckpointError: the folder or its manifest is missing or damaged, or a file is missing, extra or of another
            size.
    """
    path = folder / MANIFEST_NAME
    try:
        raw = path.read_bytes()
        names = _plain_files(folder)
    except OSError as error:
        reason = f"no {MANIFEST_NAME}: its writing never ended" if isinstance(error, FileNotFoundError) else str(error)
        if not folder.is_dir():
            reason = "there is no such folder"
        raise CheckpointError(f"{folder}: not a whole checkpoint ({reason}); use another one") from error

    files = parse_manifest(path, raw)
    missing, extra = sorted(files.keys() - set(names)), sorted(set(names) - files.keys())
    if missing or extra:
        raise CheckpointError(
            f"{folder}: files missing: {', '.join(missing) or 'none'}; files that {MANIFEST_NAME} does not list: "
            f"{', '.join(extra) or 'none'}; expected exactly {', '.join(sorted(files))}; use another checkpoint"
        )

    # Sizes alone: contents are read where they matter, by `verify_folder`.
    for name, entry in files.items():
        num_bytes = (folder / name).stat().st_size
        if num_bytes != entry["bytes"]:
            raise CheckpointError(
                f"{folder / name}: {num_bytes} bytes, {MANIFEST_NAME} says {entry['bytes']}; use another checkpoint"
            )
    return files


def check_digest(path: Path | str, entry: dict[str, Any], found_bytes: int, found_sha256: str) -> None:
    """Compare what was read from a file with its manifest entry.

    Raises:
        CheckpointError: size or SHA-256 differ.
    """
    if (found_bytes, found_sha256) != (entry["bytes"], entry["sha256"]):
        raise CheckpointError(
            f"{path}: damaged: {found_bytes} bytes with SHA-256 {found_sha256}, {MANIFEST_NAME} says "
            f"{entry['bytes']} bytes with {entry['sha256']}; use another checkpoint"
        )


def verify_folder(path: Path) -> dict[str, dict[str, Any]]:
    """Read every file of a checkpoint folder and compare it with the manifest.

    Returns:
        {file name: {"bytes": int, "sha256": str}}.

    Raises:
        CheckpointError: naming the file, what was expected and what was found.
    """
    files = read_manifest(path)
    for name, entry in files.items():
        try:
            found_bytes, found_sha256 = _digest(path / name)
        except OSError as error:
            raise CheckpointError(f"{path / name}: cannot be read: {error}; use another checkpoint") from error
        check_digest(path / name, entry, found_bytes, found_sha256)
    return files


def step_folders(checkpoints: Path) -> list[tuple[int, Path]]:
    """List the finished checkpoint folders, (global step, folder), newest first; empty where there are none."""
    paths = [path for path in checkpoints.iterdir() if path.is_dir()] if checkpoints.is_dir() else []
    return sorted(((step, path) for path in paths if (step := step_of(path.name)) is not None), reverse=True)


def step_of(name: str) -> int | None:
    """Read the step from the name of a checkpoint's folder; None for any other name."""
    match = STEP_FOLDER.fullmatch(name)
    return None if match is None else int(match.group(1))


def latest_verified(checkpoints: Path) -> Path | None:
    """Find the newest checkpoint that verifies; a newer broken one is named in a warning and passed over.

    Args:
        checkpoints: the `checkpoints` folder of a run.

    Returns:
        The folder, or None where no checkpoint was ever finished.

    Raises:
        CheckpointError: there are checkpoints and none of them verifies. Starting anew must be the user's decision.
    """
    problems: list[str] = []
    for _, folder in step_folders(checkpoints):
        try:
            verify_folder(folder)
        except CheckpointError as error:
            problems.append(str(error))
            _logger.warning("Checkpoint passed over: %s", error)
        else:
            return folder
    if problems:
        raise CheckpointError(
            f"{checkpoints}: none of {len(problems)} checkpoints is whole; restore one or choose another run folder:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    return None


def _plain_files(folder: Path) -> list[str]:
    names = []
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path}: not a plain file; a checkpoint folder holds plain files only")
        if path.name != MANIFEST_NAME:
            names.append(path.name)
    return names


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def _manifest_bytes(files: dict[str, dict[str, Any]]) -> bytes:
    document = {"schema_version": SCHEMA_VERSION, "files": files}
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def parse_manifest(path: Path | str, raw: bytes) -> dict[str, dict[str, Any]]:
    """Read a manifest's bytes.

    Args:
        path: Where they come from, for messages.
        raw: The whole file.

    Raises:
        CheckpointError: They are not those of a manifest as it was written.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: not JSON ({error}); use another checkpoint") from error
    if not isinstance(document, dict) or set(document) != {"schema_version", "files"}:
        raise CheckpointError(f"{path}: damaged: expected the keys schema_version and files; use another checkpoint")
    if type(document["schema_version"]) is not int or document["schema_version"] != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: schema_version {document['schema_version']!r}, this version reads {SCHEMA_VERSION}; "
            "use the Rainspark that wrote it"
        )

    files = document["files"]
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{path}: damaged: files: expected a list of files by name; use another checkpoint")
    for name, entry in files.items():
        whole = (
            isinstance(entry, dict)
            and set(entry) == {"bytes", "sha256"}
            and type(entry["bytes"]) is int
            and isinstance(entry["sha256"], str)
            and _SHA256.fullmatch(entry["sha256"]) is not None
        )
        if not whole:
            raise CheckpointError(f"{path}: damaged: files.{name}: expected bytes and sha256; use another checkpoint")

    # Any other spelling of the same content means that a bit of the manifest itself changed.
    if _manifest_bytes(files) != raw:
        raise CheckpointError(f"{path}: damaged: not as it was written; use another checkpoint")
    return files


def checkpoints_of(folder: Path) -> Path:
    """Find the folder of a run's checkpoints; a `checkpoints` folder is given back."""
    return folder if folder.name == CHECKPOINTS_FOLDER else folder / CHECKPOINTS_FOLDER


def best_checkpoint(run: Path) -> Path | None:
    """Find a run's best checkpoint, the newest one in `RUN/best`; None where none was chosen.

    It may be damaged, and whoever reads it must say so: the one before it is another model.
    """
    folders = step_folders(run / BEST_FOLDER / CHECKPOINTS_FOLDER)
    return folders[0][1] if folders else None


def chosen_weights(source: Path) -> Path:
    """Find the file of a run that its weights should be taken from.

    Args:
        source: a run's folder: its best checkpoint, else its newest; a checkpoint's folder; or a file of weights, and
            that is given back.

    Returns:
        The averaged weights of that checkpoint where it has them, else its weights; `source` where it is no such folder
        and what reads it has to say so.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    path: Path | None = source
    if not (source / MANIFEST_NAME).exists():
        path = best_checkpoint(source) or latest_verified(checkpoints_of(source))
    if path is None:
        return source
    names = verify_folder(path).keys()
    return next((path / name for name in (AVERAGE_FILE, MODEL_FILE) if name in names), source)
