"""Shared code of all importers: scenes whose images are files, and checks of files and directories."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32, Integer
from torch import Tensor

from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.files import read_file
from c2fmae.core.scene import Scene
from c2fmae.data.decode import decode_ids, decode_image
from c2fmae.data.info import DatasetInfo
from c2fmae.data.remap import IdTable, remap_ids
from c2fmae.data.scenes import check_index


@dataclass(frozen=True)
class IdMap:
    """A decoded map, with its location for messages."""

    location: str
    ids: Integer[np.ndarray, "height width"]


class ImportedScenes(ABC):
    """Scenes of a data set in its official layout; images are files, and a subclass decodes the maps."""

    def __init__(
        self,
        info: DatasetInfo,
        folder: Path,
        names: Sequence[str],
        location: Path,
        keys: Sequence[str] | None = None,
    ) -> None:
        """Create scenes from the names of images in `folder`; `location` is the file or directory that lists them.

        By default, keys are the stems of the names.
        """
        check_dir_exists(folder)
        if not names:
            raise UserError(f"{location}: lists no scenes. Check that it is complete")
        self.info = info
        self.keys = tuple(Path(name).stem for name in names) if keys is None else tuple(keys)
        self._folder, self._names = folder, tuple(names)  # 100,000 paths would take much more memory
        (key, count), *_ = Counter(self.keys).most_common(1)
        if count > 1:
            raise UserError(f"{location}: lists sample {key!r} {count} times. Remove all but one")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Scene:
        image = decode_image(self.read_image_bytes(index), str(self._image_path(index)))
        maps = self._load_id_maps(index)
        for id_map in maps.values():
            check_same_size(id_map, image.shape[-2:], str(self._image_path(index)))
        return Scene(
            self.keys[index], {name: _ids_to_tensor(id_map.ids) for name, id_map in maps.items()} | {"rgb": image}
        )

    def read_image_bytes(self, index: int) -> bytes:
        """Return the encoded image as stored."""
        check_index(index, len(self))
        return read_file(self._image_path(index))

    @abstractmethod
    def _load_id_maps(self, index: int) -> Mapping[str, IdMap]:
        """Return the id maps of a scene by granularity."""

    def _image_path(self, index: int) -> Path:
        return self._folder / self._names[index]


def load_class_map(path: Path, table: IdTable) -> IdMap:
    """Read a PNG of class numbers, and convert them by a table of semantic ids."""
    return IdMap(str(path), remap_ids(decode_ids(read_file(path), str(path)), table, str(path)))


def read_colour_png(path: Path) -> Int32[np.ndarray, "3 height width"]:
    """Read a PNG whose red, green and blue channels encode numbers."""
    return decode_image(read_file(path), str(path)).numpy().astype(np.int32)


def check_same_size(id_map: IdMap, shape: Sequence[int], other: str) -> None:
    """Raise an error for a map whose size differs from that of another file."""
    (rows, columns), (height, width) = id_map.ids.shape, shape
    if (rows, columns) != (height, width):
        raise UserError(
            f"{id_map.location}: has {columns}×{rows} pixels, but {other} has {width}×{height}."
            " Replace the one that is not from the official release"
        )


def check_dir_exists(folder: Path, hint: str = "Check the path") -> None:
    """Raise an error for a directory that does not exist."""
    if not folder.is_dir():
        raise UserError(f"{folder}: does not exist (expected a directory). {hint}")


def check_split_exists(root: Path, split: str, known: Sequence[str], pattern: str) -> None:
    """Raise an error for a split that does not exist; the `known` ones were found by a path `pattern`."""
    check_dir_exists(root)
    if not known:
        raise UserError(f"{root}: contains no {pattern}. Give the root directory of the official release")
    if split not in known:
        raise UserError(f"{root}: {unknown_name_error('split', split, known)}")


def _ids_to_tensor(ids: Integer[np.ndarray, "height width"]) -> Integer[Tensor, "height width"]:
    return torch.from_numpy(ids.astype(np.uint8 if ids.dtype == np.uint8 else np.int32, order="C"))
