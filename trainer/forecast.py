"""Forecast the next hour from the latest radar files: `python trainer/forecast.py --run RUN --input FILES --out D`."""

import sys
from pathlib import Path

# The folder of a script stands first on sys.path, and its rooms would hide packages of the same names.
TREE = Path(__file__).resolve().parents[1]
sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != TREE / "trainer"]

if __name__ == "__main__":
    from rainspark.__main__ import run_script

    run_script("forecast", TREE)
