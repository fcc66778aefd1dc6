"""Options of a forecast's command line."""

import argparse
from pathlib import Path

from ...data.command import CommandParser


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark forecast`."""
    parser = CommandParser(
        prog="rainspark forecast",
        description="Forecast from the latest radar files.",
    )
    parser.add_argument("--run", required=True, type=Path, help="folder of a fine-tuning run, or of a checkpoint")
    parser.add_argument(
        "--input", required=True, nargs="+", type=Path, metavar="FILES", help="KNMI HDF5 files or folders of them"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write to; made if need be")
    parser.add_argument("--name", help="the model's name in file and pictures (the run folder's name)")
    parser.add_argument("--institution", default="not stated", help="goes into the NetCDF file (not stated)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the model runs (cpu)")
    parser.add_argument("--no-pictures", action="store_true", help="write the NetCDF file only")
    return parser
