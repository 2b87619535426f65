"""The interface of all sources of scenes."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data.info import DatasetInfo


@runtime_checkable
class Scenes(Protocol):
    """A map-style data set of scenes. Reading a broken scene raises a `UserError` that names file and sample."""

    @property
    def info(self) -> DatasetInfo:
        """Classes, labels and storage of the maps."""

    @property
    def keys(self) -> Sequence[str]:
        """The unique name of each scene."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...

    def read_image_bytes(self, index: int) -> bytes | None:
        """Return the encoded image as stored, which packing copies unchanged; None if the source stores none."""


class WrappedScenes:
    """The scenes of another source. Subclasses replace some of their content."""

    def __init__(self, source: Scenes) -> None:
        self.source = source
        self.info = source.info

    @property
    def keys(self) -> Sequence[str]:
        """The unique name of each scene."""
        return self.source.keys

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Scene:
        return self.source[index]

    def read_image_bytes(self, index: int) -> bytes | None:
        """Return the encoded image as stored."""
        return self.source.read_image_bytes(index)


def check_index(index: int, length: int) -> None:
    """Raise an `IndexError` for an index out of range, negative ones included; iteration relies on it to end."""
    if index not in range(length):
        raise IndexError(f"scene {index} of {length}")


def read_scene(scenes: Scenes, index: int, *, purpose: str) -> Scene:
    """Return a scene. The error for a broken one explains how to exclude it from a `purpose` such as "pack"."""
    try:
        return scenes[index]
    except UserError as error:
        raise UserError(
            f"{error}\nTo {purpose} the others, list the valid samples with `c2fmae data check SOURCE --fix-list"
            " good.txt`, then add `--keys good.txt` here"
        ) from error
