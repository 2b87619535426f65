"""Division of a source of scenes into those to train on and those to hold out."""

from hashlib import sha256

import numpy as np

from c2fmae.core.errors import UserError
from c2fmae.data.combine import SubsetScenes
from c2fmae.data.scenes import Scenes


def split_held_out(scenes: Scenes, fraction: float) -> tuple[SubsetScenes, SubsetScenes]:
    """Return the scenes to train on, and a fraction of the scenes to hold out.

    Held out are the scenes whose keys have the smallest SHA-256 digests: round(fraction × number of scenes), but at
    least one. So the division depends on nothing but the keys and the fraction, and a larger fraction holds out the
    same scenes and others.
    """
    digests = [sha256(key.encode()).digest() for key in scenes.keys]
    order = sorted(range(len(digests)), key=digests.__getitem__)
    count = max(1, round(fraction * len(order)))
    if count >= len(order):
        raise UserError(
            f"data.held_out: {fraction:g} of {len(order)} scenes leaves none to train on. Use a smaller fraction"
        )
    held_out, train = (np.array(sorted(rows), np.int64) for rows in (order[:count], order[count:]))
    return SubsetScenes(scenes, train), SubsetScenes(scenes, held_out)
