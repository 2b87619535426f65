"""Heights and widths of images, from their annotations or the headers of their files."""

import numpy as np
from jaxtyping import Int64

from c2fmae.core.errors import UserError
from c2fmae.data.combine import SubsetScenes
from c2fmae.data.decode import read_image_size
from c2fmae.data.geometry import scene_size
from c2fmae.data.objects.scenes import ObjectScenes
from c2fmae.data.scenes import Scenes, WrappedScenes


def read_image_sizes(scenes: Scenes) -> Int64[np.ndarray, "scenes 2"]:
    """Return the height and width of each image; 1 × 1 for those that cannot be read.

    An image whose size is not in a header, such as an array, is decoded.
    """
    known = _find_annotated_sizes(scenes)
    if known is not None:
        return known
    return np.array([_read_size(scenes, index) for index in range(len(scenes))], np.int64).reshape(-1, 2)


def _find_annotated_sizes(scenes: Scenes) -> Int64[np.ndarray, "scenes 2"] | None:
    """Return the sizes of images whose annotations have them."""
    if isinstance(scenes, ObjectScenes):
        return None if scenes.image_sizes is None else np.array(scenes.image_sizes, np.int64).reshape(-1, 2)
    if isinstance(scenes, SubsetScenes):
        sizes = _find_annotated_sizes(scenes.source)
        return None if sizes is None else sizes[scenes.rows.numpy()]
    return _find_annotated_sizes(scenes.source) if isinstance(scenes, WrappedScenes) else None


def _read_size(scenes: Scenes, index: int) -> tuple[int, int]:
    try:
        data = scenes.read_image_bytes(index)
        size = None if data is None else read_image_size(data)
        return scene_size(scenes[index]) if size is None else size
    except UserError:  # reported when the sample is loaded
        return 1, 1
