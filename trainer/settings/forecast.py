"""Options of a forecast's command line."""

import argparse
from pathlib import Path
from typing import Final

from ...data.command import CommandParser, last_time, whole_number
from ...data.errors import DataError
from ...data.frames import Crop, parse_crop

PRODUCTS: Final = ("netcdf", "png", "cog", "odim")
"""What a forecast can be written as; the first two are written unless others are asked for."""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark forecast`."""
    parser = CommandParser(
        prog="rainspark forecast",
        description="Forecast from the latest radar files, which are read as the run's archive was packed.",
    )

    # From what.
    parser.add_argument("--run", required=True, type=Path, help="folder of a fine-tuning run, or of a checkpoint")
    input_help = "radar files, archives, folders of them, or s3://BUCKET/PREFIX-OR-PATTERN, as rainspark pack takes"
    parser.add_argument("--input", required=True, nargs="+", metavar="FILES", help=input_help)
    at_help = "forecast from the newest frame up to this time, UTC, as if nothing later were there (the newest)"
    parser.add_argument("--at", type=last_time, metavar="TIME", help=at_help)
    parser.add_argument("--source", help="which radar of a run on several (all of them)")
    reader_help = "how the files are read, in the words of rainspark pack, such as 'odim --zr 200,1.6' (as the run's)"
    parser.add_argument("--reader", metavar="WORDS", help=reader_help)

    # What is forecast of it, and from how much.
    crop_help = "what is forecast: whole (all that the files hold), run (where the run learned), or rows and columns"
    parser.add_argument("--crop", type=_area, default="whole", metavar="AREA", help=crop_help)
    missing_help = "frames that may be missing or damaged, and are bridged (0; with --watch 3)"
    parser.add_argument("--allow-missing", type=whole_number(0), metavar="N", help=missing_help)

    # What is written.
    parser.add_argument("--out", required=True, type=Path, help="folder to write to; made if need be")
    products_help = f"what to write ({' '.join(PRODUCTS[:2])})"
    parser.add_argument("--products", nargs="+", choices=PRODUCTS, default=PRODUCTS[:2], help=products_help)
    parser.add_argument("--no-pictures", action="store_true", help="leave png out of the products")
    parser.add_argument("--name", help="the model's name in files and pictures (the run folder's name)")
    parser.add_argument("--institution", default="not stated", help="goes into the files (not stated)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the model runs (cpu)")

    # Kept running.
    watch_help = "forecast every new cycle as its files come, until this process is ended; --out gets a folder a cycle"
    parser.add_argument("--watch", action="store_true", help=watch_help)
    poll_help = "with --watch: seconds between two looks at the files (5)"
    parser.add_argument("--poll-s", type=whole_number(1), default=5, metavar="INT", help=poll_help)
    keep_help = "with --watch: cycles that stay in --out (300)"
    parser.add_argument("--keep", type=whole_number(1), default=300, metavar="INT", help=keep_help)
    return parser


def _area(text: str) -> Crop | str:
    if text in ("whole", "run"):
        return text
    try:
        return parse_crop(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(f"{error}, or whole, or run") from error
