"""Randomness as a function of coordinates, never of history.

What is random about a sample depends on (seed, stream, epoch, index), what is random about a step on
(seed, stream, step). So a run that is resumed, or split over more processes, draws what it would have drawn.
"""

import hashlib


def derive_seed(seed: int, stream: str, *coordinates: int) -> int:
    """Return a 63-bit seed for a generator: torch's, NumPy's or Python's.

    >>> derive_seed(0, "masks", 7) == derive_seed(0, "masks", 7)
    True
    >>> streams = (0, "masks", 7), (0, "crops", 7), (0, "masks", 8), (1, "masks", 7)
    >>> len({derive_seed(*stream) for stream in streams})
    4
    """
    name = "/".join([str(seed), stream, *map(str, coordinates)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
