"""Scenes on disk: listed once, decoded on access.

    ROOT/{rgb,semantic,instance}/[class/]KEY.{jpg,jpeg,png,npy,tif,tiff}
    SHARD.tar: KEY.jpg, KEY.semantic.png, KEY.instance.png and, for labelled data, KEY.cls, KEY.objects.json

`dataset.json`, in the root or beside the shard, describes the ids and how maps are stored. Maps are PNGs of one channel
whose values are ids. Pixels without a label are 255 in them, 65535 at 16 bits, or the `ignore` of `dataset.json`.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import COARSE_TO_FINE, GRANULARITIES, IGNORE
from c2fmae.core.objects import Objects
from c2fmae.core.scene import Scene
from c2fmae.data.arrays import ARRAY_SUFFIXES
from c2fmae.data.decode import decode_ids, decode_image, decode_map_colours, is_colour_png, is_one_bit_png
from c2fmae.data.geometry import scene_size
from c2fmae.data.info import DatasetInfo
from c2fmae.data.instance_ids import WIDE_IGNORE, normalise_ignore_id
from c2fmae.data.key_list import KeyList
from c2fmae.data.object_json import OBJECTS_SUFFIX, check_masks, decode_objects
from c2fmae.data.problems import Problem
from c2fmae.data.remap import build_id_table, colours_to_ids, is_within_label_space, remap_ids
from c2fmae.data.scenes import check_index

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", *ARRAY_SUFFIXES)
DOTTED_IMAGE_SUFFIXES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)


class StoredScenes(ABC):
    """Scenes whose granularities are encoded files."""

    def __init__(self, info: DatasetInfo, keys: KeyList, labels: Int64[np.ndarray, " samples"]) -> None:
        self.info, self.keys = info, keys
        self.labels: Int64[Tensor, " samples"] = torch.from_numpy(labels)
        """Labels by sample; -1 for a sample without one."""
        ignore = info.ignore if isinstance(info.ignore, int) else IGNORE
        # At 16 bits the default is 65535, and 255 is an id like others.
        self._id_tables = {
            bits: build_id_table(len(info.classes), ignore=number, offset=info.offset, bits=bits)
            for bits, number in ((8, ignore), (16, WIDE_IGNORE if ignore == IGNORE else ignore))
        }

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def read_map_bytes(self, index: int) -> dict[str, bytes]:
        """Return the encoded granularities of a sample as stored."""

    @abstractmethod
    def describe_location(self, index: int, name: str) -> str:
        """Return the file of a granularity for messages."""

    def read_image_bytes(self, index: int) -> bytes:
        """Return the encoded image as stored."""
        return self.read_map_bytes(index)["rgb"]

    def __getitem__(self, index: int) -> Scene:
        check_index(index, len(self))
        maps = {name: self._decode_map(data, name, index) for name, data in self.read_map_bytes(index).items()}
        self._check_sizes(index, maps)
        scene = Scene(self.keys[index], maps, self._get_label(index), self.info.label_stride)
        return scene if not self.info.object_classes else replace(scene, objects=self._decode_objects(index, scene))

    def read_objects_bytes(self, index: int) -> bytes:
        """Return the encoded objects of a sample, in data with classes of objects."""
        raise NotImplementedError

    def _decode_objects(self, index: int, scene: Scene) -> Objects:
        location = self.describe_location(index, OBJECTS_SUFFIX)
        objects = decode_objects(self.read_objects_bytes(index), len(self.info.object_classes), location)
        if any(GRANULARITIES.get(name).kind == "image" for name in scene.maps):
            check_masks(objects, *scene_size(scene), location)
        return objects

    def _decode_map(self, data: bytes, name: str, index: int) -> Tensor:
        location = self.describe_location(index, name)
        if GRANULARITIES.get(name).kind == "image":
            return decode_image(data, location, self.info.channels, self.info.value_range)
        if name == "semantic" and self.info.colours:
            pixels = decode_map_colours(data, location)
            return torch.from_numpy(colours_to_ids(pixels, self.info.colours, self.info.ignore_colour, location))
        if name == "semantic" and is_colour_png(data):
            raise UserError(
                f"{location}: is a colour image. List the `colours` of its classes in dataset.json, or store it as a"
                " PNG of one channel with their ids"
            )
        if name == "semantic" and is_one_bit_png(data):
            raise UserError(f'{location}: is black and white. Add "colours": [0, 255] to dataset.json, and two classes')
        ids = decode_ids(data, location)
        if GRANULARITIES.get(name).kind == "continuous":
            return torch.from_numpy(ids.astype(np.int32))
        if name == "semantic":
            if (
                ids.dtype == np.uint8
                and (self.info.ignore, self.info.offset) == (IGNORE, 0)
                and is_within_label_space(ids, len(self.info.classes))
            ):
                return torch.from_numpy(ids)
            return torch.from_numpy(remap_ids(ids, self._id_tables[8 * ids.itemsize], location))
        return torch.from_numpy(normalise_ignore_id(ids))

    def _check_sizes(self, index: int, maps: Mapping[str, Tensor]) -> None:
        images = [tensor for name, tensor in maps.items() if GRANULARITIES.get(name).kind == "image"]
        if not images:
            return
        height, width = images[0].shape[-2:]
        for name, ids in maps.items():
            kind = GRANULARITIES.get(name).kind
            s = self.info.label_stride if kind == "ids" else 1
            expected = (-(-height // s), -(-width // s))
            if kind != "image" and tuple(ids.shape) != expected:
                at_stride = f" at label_stride {s}" if s > 1 else ""
                raise UserError(
                    f"{self.describe_location(index, name)}: has {ids.shape[1]}×{ids.shape[0]} cells (expected"
                    f" {expected[1]}×{expected[0]}{at_stride} for an image of {width}×{height} pixels)."
                    " Store both at one size"
                )

    def _get_label(self, index: int) -> int | None:
        label = int(self.labels[index])
        if label < 0 or not self.info.labels:
            return label if label >= 0 else None
        if label >= len(self.info.labels):
            problem = f"has label {label}, but dataset.json names {len(self.info.labels)} labels. Add the missing ones"
        elif self.info.labels[label] is None:
            problem = f"has label {label}, which is null in dataset.json. Add its name"
        else:
            return label
        raise UserError(f"{self.describe_location(index, self.info.granularities[0])}: {problem}")


def granularity_suffixes(name: str) -> tuple[str, ...]:
    """Return the suffixes that a granularity may have in a shard."""
    spec = GRANULARITIES.get(name)
    return IMAGE_SUFFIXES if spec.kind == "image" else (spec.suffix,)


def sort_coarse_to_fine(names: Collection[str]) -> tuple[str, ...]:
    """Sort granularities from coarse to fine; those that the paper does not have come first."""
    return tuple(sorted(names, key=lambda name: (COARSE_TO_FINE.index(name) if name in COARSE_TO_FINE else -1, name)))


def missing_granularity_problem(location: str, name: str, granularities: Sequence[str]) -> Problem:
    """Return one problem for a granularity that no sample has."""
    text = f"{location}: no sample has the granularity {name!r} (requested: {', '.join(granularities)})"
    return Problem(None, f"{text}. Add it to the data, or request others")
