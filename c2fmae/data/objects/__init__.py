"""Scenes with objects: readers of COCO, YOLO and VOC annotations, and objects from maps."""

from c2fmae.data.objects.find import find_object_sets
from c2fmae.data.objects.open import inspect_maps_and_objects, inspect_objects, open_objects
from c2fmae.data.objects.scenes import count_objects, select_with_objects

__all__ = [
    "count_objects",
    "find_object_sets",
    "inspect_maps_and_objects",
    "inspect_objects",
    "open_objects",
    "select_with_objects",
]
