"""Export encoders for timm and import published checkpoints.

rainspark weights export RUN_OR_CHECKPOINT --out encoder.safetensors
rainspark weights import CHECKPOINT.pth [--out model.safetensors]
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import NoReturn

from .manifest import CheckpointError


def _export(arguments: argparse.Namespace) -> None:
    # Here, not above: the help answers without torch.
    from .files import read_weights
    from .transfer import architecture_of, encoder_for_timm, write_safetensors

    weights = read_weights(arguments.source)
    encoder = encoder_for_timm(weights)
    name, in_chans = architecture_of(encoder, weights.source), encoder["conv1.weight"].shape[1]
    write_safetensors(arguments.out, encoder, force=arguments.force)
    sys.stdout.write(
        f"read   {weights.source}\n"
        f"wrote  {arguments.out}: {name}, {in_chans} input channels, {len(encoder)} tensors, "
        f"{arguments.out.stat().st_size / 1e6:.1f} MB\n"
        f'load   timm.create_model("{name}", in_chans={in_chans}, num_classes=0, '
        f"checkpoint_path={str(arguments.out)!r})\n"
    )


def _import(arguments: argparse.Namespace) -> None:
    from .files import ENCODER_PREFIX, read_weights
    from .transfer import architecture_of, check_finite, encoder_for_timm, write_safetensors

    weights = read_weights(arguments.source)
    rooms = Counter(name.split(".")[0] for name in weights.tensors)
    sys.stdout.write(f"read   {weights.source}: {len(weights.tensors)} tensors\n")
    for room, count in rooms.items():
        sys.stdout.write(f"       {room}: {count}\n")
    if any(name.startswith(ENCODER_PREFIX) for name in weights.tensors):
        sys.stdout.write(f"       encoder: {architecture_of(encoder_for_timm(weights), weights.source)}\n")
    if weights.dropped:
        sys.stdout.write(f"       dropped, not used by any model: {', '.join(weights.dropped)}\n")
    if arguments.out is not None:
        check_finite(weights.source, weights.tensors)
        write_safetensors(arguments.out, weights.tensors, force=arguments.force)
        sys.stdout.write(f"wrote  {arguments.out}; start from it with --init_from {arguments.out}\n")


def _path(text: str) -> Path:
    """Read a path; a leading ~ is the home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


class _Parser(argparse.ArgumentParser):
    """Refuses a command line with the words and the exit code of settings, 3, as every command does."""

    def error(self, message: str) -> NoReturn:
        self.exit(3, f"settings: {message}; --help lists the options\n")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark weights`."""
    parser = _Parser(prog="rainspark weights", description="Export an encoder for timm, or import published weights.")
    commands = parser.add_subparsers(required=True, metavar="export|import")
    export = commands.add_parser("export", help="write the encoder of a run for timm.create_model")
    export.add_argument(
        "source", metavar="RUN", type=_path, help="a run's folder, a checkpoint's folder, or a weights file"
    )
    export.add_argument("--out", type=_path, required=True, help="safetensors file to write")
    export.set_defaults(run=_export)
    importing = commands.add_parser("import", help="read a published SparK or SpaT-SparK checkpoint")
    importing.add_argument("source", metavar="FILE", type=_path, help="a .pth or .safetensors file")
    importing.add_argument("--out", type=_path, help="safetensors file to write, under our names")
    importing.set_defaults(run=_import)
    for command in (export, importing):
        command.add_argument("--force", action="store_true", help="replace an existing file")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (4: weights that cannot be used)."""
    arguments = make_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (CheckpointError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
