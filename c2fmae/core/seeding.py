"""Seeds that are derived from coordinates such as step and sample, not from the state of a generator.

Random choices for a sample depend on (seed, stream, epoch, index), those for a step on (seed, stream, step), so a run
that is resumed or distributed over more processes makes the same choices.
"""

import hashlib


def derive_seed(seed: int, stream: str, *coordinates: int) -> int:
    """Return a 63-bit seed for a generator of torch, NumPy or Python, independent for each stream and coordinate.

    >>> derive_seed(0, "masks", 7) == derive_seed(0, "masks", 7)
    True
    >>> streams = (0, "masks", 7), (0, "crops", 7), (0, "masks", 8), (1, "masks", 7)
    >>> len({derive_seed(*stream) for stream in streams})
    4
    """
    name = "/".join([str(seed), stream, *map(str, coordinates)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
