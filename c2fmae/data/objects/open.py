"""Opening of scenes with objects by source."""

from c2fmae.data.objects.maps import MapObjects
from c2fmae.data.scenes import Scenes
from c2fmae.data.sources import DataSource, open_scenes


def open_objects(source: DataSource, *, masks: bool = True) -> Scenes:
    """Open scenes with an image and its objects.

    `masks` of False leaves out masks, which is faster if only boxes are used.
    """
    return MapObjects(open_scenes(source), masks=masks)


def find_object_sets(source: str) -> dict[str, str]:
    """Return the sources of a training and a test set, by `train` and `test`."""
    raise NotImplementedError(source)
