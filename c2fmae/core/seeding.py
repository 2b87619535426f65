"""Randomness as a function of coordinates, never of history.

What is random about a sample depends on (seed, stream, epoch, index), what is random about a step on
(seed, stream, step). So a run that is resumed, or split over more processes, draws what it would have drawn.
"""

import hashlib


def seed_of(seed: int, stream: str, *coordinates: int) -> int:
    """Return a 63-bit seed for a generator: torch's, NumPy's or Python's.

    >>> seed_of(0, "masks", 7) == seed_of(0, "masks", 7)
    True
    >>> len({seed_of(0, "masks", 7), seed_of(0, "crops", 7), seed_of(0, "masks", 8), seed_of(1, "masks", 7)})
    4
    """
    name = "/".join([str(seed), stream, *map(str, coordinates)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
