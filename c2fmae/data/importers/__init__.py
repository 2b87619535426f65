"""Well-known data sets, read from their official layouts; `pack` turns them into shards."""

from c2fmae.data.importers.ade20k import Ade20k
from c2fmae.data.importers.coco import CocoInstances, CocoPanoptic
from c2fmae.data.importers.voc import Voc

__all__ = ["Ade20k", "CocoInstances", "CocoPanoptic", "Voc"]
