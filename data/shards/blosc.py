"""Import Blosc2 whatever the variables for threads hold; everything of ours that packs or decodes imports it here.

Blosc2 imports numexpr, which reads OMP_NUM_THREADS as one number when it is imported, and crashes on what OpenMP itself
takes: a list such as 4,2, or nothing sound at all. Neither of the two chooses our threads.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_READ_FIRST: Final = "NUMEXPR_NUM_THREADS"
"""numexpr takes this variable before OMP_NUM_THREADS."""


@contextmanager
def _one_thread_stated() -> Iterator[None]:
    """State one thread where numexpr looks first, and leave the environment as it was."""
    before = os.environ.get(_READ_FIRST)
    os.environ[_READ_FIRST] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_READ_FIRST]
        else:
            os.environ[_READ_FIRST] = before


with _one_thread_stated():
    import blosc2

__all__ = ["blosc2"]
