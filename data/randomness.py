"""The one source of randomness: counter-based generators derived from what a draw is for."""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """Make the generator of random numbers for one purpose at one point of the run.

    Equal arguments give equal draws on every machine, rank and thread, so that step N needs no replay of step N-1.

    Args:
        seed: The run's seed.
        purpose: What the draws are for ("order", "mask", "augment"): streams of different purposes are independent.
        keys: Where in the run, for example the global step and the index in the global batch.
    """
    text = "\x1f".join([str(int(seed)), purpose, *(str(int(key)) for key in keys)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
