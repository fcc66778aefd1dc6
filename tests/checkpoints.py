"""Folders that look like whole checkpoints, without a model in them."""

from pathlib import Path

from rainspark.models.weights.manifest import write_manifest


def make_checkpoint(run: Path, step: int, content: bytes = b"weights") -> Path:
    """Write the checkpoint of a step into a run's folder."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content * 1000 + bytes([step]))
    (folder / "state.json").write_bytes(b"{}")
    write_manifest(folder)
    return folder
