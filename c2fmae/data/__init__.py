"""Where scenes come from and how they change size: generated ones, folder trees, tar shards.

>>> from c2fmae.data import GeneratedScenes, resize_and_crop
>>> scene = resize_and_crop(GeneratedScenes(size=96)[7], 64)
>>> {name: tuple(tensor.shape) for name, tensor in scene.maps.items()}
{'semantic': (64, 64), 'instance': (64, 64), 'rgb': (3, 64, 64)}
"""

from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.readers import ChainedScenes, FolderScenes, Scenes, ShardScenes, open_scenes
from c2fmae.data.transforms import resize_and_crop

__all__ = [
    "ChainedScenes",
    "FolderScenes",
    "GeneratedScenes",
    "Scenes",
    "ShardScenes",
    "open_scenes",
    "resize_and_crop",
]
