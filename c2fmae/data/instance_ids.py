"""Instance ids in memory and in files of 16 bits: the 255th object of a map must not be taken for "not labelled"."""

import numpy as np
from jaxtyping import Integer

from c2fmae.core.granularity import IGNORE

WIDE_IGNORE = 65535
"""Id of unlabelled pixels in files of 16 bits. In memory it is the id of the 255th object."""


def numbers_to_instance_ids(numbers: Integer[np.ndarray, "..."]) -> Integer[np.ndarray, "..."]:
    """Return the instance ids of objects numbered 1, 2, …: object 255 gets 65535, since 255 is "not labelled".

    Up to 254 objects have 8 bits, more have 32.
    """
    ids = np.where(numbers == IGNORE, WIDE_IGNORE, numbers)
    return ids.astype(np.uint8 if ids.max(initial=0) < IGNORE else np.int32)


def normalise_ignore_id(ids: Integer[np.ndarray, "height width"]) -> Integer[np.ndarray, "height width"]:
    """Return instance ids in which 255 is "not labelled", from a map of 8 or 16 bits.

    16-bit maps store 65535 for "not labelled". Their object 255, if there is one, gets the id 65535 instead.
    """
    if ids.dtype == np.uint8:
        return ids
    is_ignored = ids == WIDE_IGNORE
    if int(ids.max(initial=0, where=~is_ignored)) < IGNORE:
        return np.where(is_ignored, IGNORE, ids).astype(np.uint8)
    wide = ids.astype(np.int32)
    wide[ids == IGNORE] = WIDE_IGNORE
    wide[is_ignored] = IGNORE
    return wide


def swap_ignore_ids(ids: Integer[np.ndarray, "height width"]) -> Integer[np.ndarray, "height width"]:
    """Return ids with 255 and 65535 swapped, as files of 16 bits have them."""
    return np.where(ids == IGNORE, WIDE_IGNORE, np.where(ids == WIDE_IGNORE, IGNORE, ids))
