"""Data sets of scenes: opening, decoding, transforms, batches, checks, packing, generation and importers.

>>> from c2fmae.data import CentralView, open_scenes
>>> scene = open_scenes("generated", size=96)[7]
>>> sample = CentralView(size=(64, 64), label_stride=4)(scene)
>>> {name: tuple(tensor.shape) for name, tensor in sample.maps.items()}
{'semantic': (16, 16), 'instance': (16, 16), 'rgb': (3, 64, 64)}
"""

from c2fmae.core.pixels import standardise
from c2fmae.data.dataset_scenes import DatasetScenes
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.info import DatasetInfo
from c2fmae.data.loader import BatchStream, SceneLoader
from c2fmae.data.sampler import DataPosition, Sampler
from c2fmae.data.scenes import Scenes
from c2fmae.data.sources import DATASETS, inspect_scenes, open_scenes
from c2fmae.data.transforms import CentralView, RandomView, Transform

__all__ = [
    "DATASETS",
    "BatchStream",
    "CentralView",
    "DataPosition",
    "DatasetInfo",
    "DatasetScenes",
    "GeneratedScenes",
    "RandomView",
    "Sampler",
    "SceneLoader",
    "Scenes",
    "Transform",
    "inspect_scenes",
    "open_scenes",
    "standardise",
]
