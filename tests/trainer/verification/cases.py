"""What tests of verification share."""

from collections.abc import Sequence

import numpy as np

from rainspark.trainer.verification.rows import FIELDS, Rows


def take(rows: Rows, numbers: Sequence[int] | np.ndarray) -> Rows:
    """Take rows by number, in rising order."""
    chosen = np.asarray(numbers, np.intp)
    arrays = {field: getattr(rows, field)[chosen] for field in ("issue_s", "name", *FIELDS)}
    return Rows(settings=rows.settings, **arrays)
