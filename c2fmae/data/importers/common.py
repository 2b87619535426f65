"""What the importers share: scenes whose photos are files, and words for what is missing."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32, Integer
from torch import Tensor

from c2fmae.core.errors import UserError, unknown_name
from c2fmae.core.scene import IGNORE, Scene
from c2fmae.data.decode import decode_photo
from c2fmae.data.folders import read_file
from c2fmae.data.info import DatasetInfo
from c2fmae.data.scenes import check_index


@dataclass(frozen=True)
class IdMap:
    """A map as the scene will have it, and what messages call its source."""

    where: str
    ids: Integer[np.ndarray, "height width"]


class ImportedScenes(ABC):
    """Scenes of a data set in its official layout; photos are files, and a subclass decodes the maps."""

    def __init__(self, info: DatasetInfo, folder: Path, names: Sequence[str], where: Path) -> None:
        """`names` are the photos' in `folder`, which exists; `where` is the file or folder that lists them."""
        check_folder(folder)
        if not names:
            raise UserError(f"{where}: no scenes. Check that it is complete")
        self.info = info
        self.keys = tuple(Path(name).stem for name in names)
        self._folder, self._names = folder, tuple(names)  # not as paths, of which 100,000 weigh a lot
        (key, count), *_ = Counter(self.keys).most_common(1)
        if count > 1:
            raise UserError(f"{where}: sample {key!r} is there {count} times. Keep one of them")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Scene:
        photo = decode_photo(self.photo(index), str(self._path(index)))
        maps = self._maps(index)
        for source in maps.values():
            check_size(source, photo.shape[-2:], str(self._path(index)))
        return Scene(self.keys[index], {name: _tensor(source.ids) for name, source in maps.items()} | {"rgb": photo})

    def photo(self, index: int) -> bytes:
        """Return the photo as it is stored."""
        check_index(index, len(self))
        return read_file(self._path(index))

    @abstractmethod
    def _maps(self, index: int) -> Mapping[str, IdMap]:
        """Return the id maps of a scene by granularity."""

    def _path(self, index: int) -> Path:
        return self._folder / self._names[index]


def instance_ids(numbers: Integer[np.ndarray, "..."]) -> Integer[np.ndarray, "..."]:
    """Objects' numbers 1, 2, … as ids: 255 is taken by "not labelled", so object 255 becomes 65535.

    Up to 254 objects have 8 bits, more have 32.
    """
    ids = np.where(numbers == IGNORE, 65535, numbers)
    return ids.astype(np.uint8 if ids.max(initial=0) < IGNORE else np.int32)


def decode_colours(path: Path) -> Int32[np.ndarray, "3 height width"]:
    """Read a PNG whose red, green and blue are numbers."""
    return decode_photo(read_file(path), str(path)).numpy().astype(np.int32)


def check_size(source: IdMap, shape: Sequence[int], other: str) -> None:
    """Refuse a map that has not the height and width of the other file."""
    (rows, columns), (height, width) = source.ids.shape, shape
    if (rows, columns) != (height, width):
        raise UserError(
            f"{source.where}: {columns}×{rows} pixels, but {other} has {width}×{height}."
            " Replace the one that is not of the official release"
        )


def check_folder(folder: Path, remedy: str = "Check the path") -> None:
    """Refuse a folder that does not exist."""
    if not folder.is_dir():
        raise UserError(f"{folder}: this folder does not exist. {remedy}")


def check_split(root: Path, split: str, known: Sequence[str], pattern: str) -> None:
    """Refuse a split that is not there; `pattern` is where the known ones have been looked for."""
    check_folder(root)
    if not known:
        raise UserError(f"{root}: no {pattern} in it. Give the folder of the official release")
    if split not in known:
        raise UserError(f"{root}: {unknown_name('split', split, known)}")


def _tensor(ids: Integer[np.ndarray, "height width"]) -> Integer[Tensor, "height width"]:
    return torch.from_numpy(ids.astype(np.uint8 if ids.dtype == np.uint8 else np.int32, order="C"))
