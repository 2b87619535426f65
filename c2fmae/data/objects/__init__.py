"""Scenes with objects: readers of COCO, YOLO and VOC annotations, and objects from maps."""

from c2fmae.data.objects.open import find_object_sets, open_objects

__all__ = ["find_object_sets", "open_objects"]
