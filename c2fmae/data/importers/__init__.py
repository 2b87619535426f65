"""Readers of public data sets in their official layouts; `c2fmae data import` packs them into shards."""

from collections.abc import Callable, Mapping
from pathlib import Path

from c2fmae.data.importers.ade20k import Ade20k
from c2fmae.data.importers.cityscapes import Cityscapes
from c2fmae.data.importers.coco import CocoInstances, CocoPanoptic
from c2fmae.data.importers.coco_stuff import CocoStuff
from c2fmae.data.importers.voc import Voc
from c2fmae.data.scenes import Scenes

IMPORTERS: Mapping[str, Callable[[Path, str], Scenes]] = {
    "coco-panoptic": CocoPanoptic,
    "coco-instances": CocoInstances,
    "coco-stuff": CocoStuff,
    "voc": Voc,
    "ade20k": Ade20k,
    "cityscapes": Cityscapes,
}
"""Functions that open a split of a data set, given its root directory, by name."""

__all__ = ["IMPORTERS", "Ade20k", "Cityscapes", "CocoInstances", "CocoPanoptic", "CocoStuff", "Voc"]
