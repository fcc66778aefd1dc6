"""A watch whose clock is a file: `python replayed.py CLOCK_FILE WORDS_OF_RAINSPARK_FORECAST...`."""

import sys
from pathlib import Path

from rainspark.trainer.settings.forecast import make_parser
from rainspark.trainer.watching.watch import watch

clock_file, argv = Path(sys.argv[1]), sys.argv[2:]
options = make_parser().parse_args(argv)
options.poll_s = 0.1
sys.exit(watch(options, argv, clock=lambda: float(clock_file.read_text())))
