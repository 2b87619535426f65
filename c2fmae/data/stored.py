"""Scenes on disk: found once, decoded when they are asked for.

    ROOT/{rgb,semantic,instance}/[class/]KEY.{jpg,jpeg,png}
    SHARD.tar: KEY.jpg, KEY.semantic.png, KEY.instance.png and, where there are labels, KEY.cls

`dataset.json`, in the root or beside the shard, says what the ids mean and how the maps are stored. Maps are PNGs of
one channel whose values are ids; what nobody labelled is 255 in them, 65535 at 16 bits, or the `ignore` told there.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import COARSE_TO_FINE, GRANULARITIES, IGNORE
from c2fmae.core.scene import Scene
from c2fmae.data.decode import decode_ids, decode_image
from c2fmae.data.info import DatasetInfo
from c2fmae.data.key_list import KeyList
from c2fmae.data.problems import Problem
from c2fmae.data.remap import build_id_table, is_within_label_space, remap_ids
from c2fmae.data.scenes import check_index

IMAGE_SUFFIXES = ("jpg", "jpeg", "png")
DOTTED_IMAGE_SUFFIXES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
_WIDE_IGNORE = 65535


class StoredScenes(ABC):
    """Scenes whose parts lie encoded in files."""

    def __init__(self, info: DatasetInfo, keys: KeyList, labels: Int64[np.ndarray, " samples"]) -> None:
        self.info, self.keys = info, keys
        self.labels: Int64[Tensor, " samples"] = torch.from_numpy(labels)
        """By sample; -1 where there is none."""
        self._id_tables = {bits: build_id_table(len(info.classes), ignore=info.ignore, bits=bits) for bits in (8, 16)}
        if info.ignore == IGNORE:  # 16 bits say 65535 for it, and have 255 for an id like others
            self._id_tables[16] = build_id_table(len(info.classes), ignore=_WIDE_IGNORE, bits=16)

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def read_map_bytes(self, index: int) -> dict[str, bytes]:
        """Return the granularities of a sample as they are stored."""

    @abstractmethod
    def describe_location(self, index: int, name: str) -> str:
        """Return what messages call one of them."""

    def read_image_bytes(self, index: int) -> bytes:
        """Return the photo as it is stored."""
        return self.read_map_bytes(index)["rgb"]

    def __getitem__(self, index: int) -> Scene:
        check_index(index, len(self))
        maps = {name: self._decode_map(data, name, index) for name, data in self.read_map_bytes(index).items()}
        self._check_sizes(index, maps)
        return Scene(self.keys[index], maps, self._get_label(index), self.info.label_stride)

    def _decode_map(self, data: bytes, name: str, index: int) -> Tensor:
        location = self.describe_location(index, name)
        if GRANULARITIES.get(name).kind == "image":
            return decode_image(data, location, self.info.channels)
        ids = decode_ids(data, location)
        if GRANULARITIES.get(name).kind == "continuous":
            return torch.from_numpy(ids.astype(np.int32))
        if name == "semantic":
            if (
                ids.dtype == np.uint8
                and self.info.ignore == IGNORE
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
                at = f" at label_stride {s}" if s > 1 else ""
                raise UserError(
                    f"{self.describe_location(index, name)}: {ids.shape[1]}×{ids.shape[0]} cells, but a photo of "
                    f"{width}×{height}"
                    f" pixels takes {expected[1]}×{expected[0]}{at}. Store both in one size"
                )

    def _get_label(self, index: int) -> int | None:
        label = int(self.labels[index])
        if self.info.labels and label >= len(self.info.labels):
            known = f"dataset.json names {len(self.info.labels)} labels"
            location = self.describe_location(index, self.info.granularities[0])
            raise UserError(f"{location}: its label is {label}, but {known}. Add the missing names")
        if label >= 0 and self.info.labels and self.info.labels[label] is None:
            location = self.describe_location(index, self.info.granularities[0])
            raise UserError(f"{location}: its label is {label}, which dataset.json leaves out (null). Name it there")
        return None if label < 0 else label


def normalise_ignore_id(ids: Integer[np.ndarray, "height width"]) -> Integer[np.ndarray, "height width"]:
    """Bring ids without a label space into memory: 255 is what nobody labelled, whatever the file's bits.

    16-bit maps say 65535 for that. Their object 255, if there is one, takes the number that so becomes free.
    """
    if ids.dtype == np.uint8:
        return ids
    is_ignored = ids == _WIDE_IGNORE
    if int(ids.max(initial=0, where=~is_ignored)) < IGNORE:
        return np.where(is_ignored, IGNORE, ids).astype(np.uint8)
    wide = ids.astype(np.int32)
    wide[ids == IGNORE] = _WIDE_IGNORE
    wide[is_ignored] = IGNORE
    return wide


def granularity_suffixes(name: str) -> tuple[str, ...]:
    """Return what may stand behind the key of a granularity in a shard."""
    spec = GRANULARITIES.get(name)
    return IMAGE_SUFFIXES if spec.kind == "image" else (spec.suffix,)


def sort_coarse_to_fine(names: Collection[str]) -> tuple[str, ...]:
    """Sort granularities from coarse to fine, those that are not the paper's first."""
    return tuple(sorted(names, key=lambda name: (COARSE_TO_FINE.index(name) if name in COARSE_TO_FINE else -1, name)))


def missing_granularity_problem(location: str, name: str, granularities: Sequence[str]) -> Problem:
    """Say once that no sample at all has a granularity."""
    return Problem(None, f"{location}: no sample has a part {name!r}. What is asked for: {', '.join(granularities)}")
