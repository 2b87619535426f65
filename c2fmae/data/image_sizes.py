"""Heights and widths of images, from the headers of their files."""

import numpy as np
from jaxtyping import Int64

from c2fmae.core.errors import UserError
from c2fmae.data.decode import read_image_size
from c2fmae.data.geometry import scene_size
from c2fmae.data.scenes import Scenes


def read_image_sizes(scenes: Scenes) -> Int64[np.ndarray, "scenes 2"]:
    """Return the height and width of each image; 1 × 1 for those that cannot be read.

    An image whose size is not in a header, such as an array, is decoded.
    """
    return np.array([_read_size(scenes, index) for index in range(len(scenes))], np.int64).reshape(-1, 2)


def _read_size(scenes: Scenes, index: int) -> tuple[int, int]:
    try:
        data = scenes.read_image_bytes(index)
        size = None if data is None else read_image_size(data)
        return scene_size(scenes[index]) if size is None else size
    except UserError:  # reported when the sample is loaded
        return 1, 1
