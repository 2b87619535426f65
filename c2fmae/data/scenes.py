"""What every source of scenes offers: some by index, all by what their ids mean."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from c2fmae.core.scene import Scene
from c2fmae.data.info import DatasetInfo


@runtime_checkable
class Scenes(Protocol):
    """Scenes by index; asking for one that is broken raises a `UserError` that names file and sample."""

    @property
    def info(self) -> DatasetInfo:
        """What the ids mean, and at which stride the maps are."""

    @property
    def keys(self) -> Sequence[str]:
        """The name of each scene, no two alike."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...

    def read_image_bytes(self, index: int) -> bytes | None:
        """Return the photo encoded, as it is stored, of which packing keeps the very bytes; None where it is not."""


def check_index(index: int, length: int) -> None:
    """Refuse what no scene has, negative numbers too: iteration ends by this error."""
    if index not in range(length):
        raise IndexError(f"scene {index} of {length}")
