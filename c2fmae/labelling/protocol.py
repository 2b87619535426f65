"""The interface of labellers, their inputs and their results.

Every labeller obeys five laws, which `tests/labelling/test_laws.py` checks for each entry of the registry:

- pure: two calls give the same bits on a CPU. No global random state is read or changed, and inputs are not written to.
- independent: the maps of an image do not depend on the other images of its batch.
- subsampling: the maps at stride s are those at stride 1, subsampled by `c2fmae.data.geometry.subsample_ids`; objects
  are numbered by the areas at hand, and one close to a limit of areas may exist at one stride only.
- shapes and ids: maps have ⌈H/s⌉ × ⌈W/s⌉ cells. Semantic ids are below the number of classes, or 255. Objects are
  numbered 1, 2, … by visible area, the largest first, ties by the raster position of the first cell. As in scenes, 255
  is "not labelled", and the 255th object has the id 65535.
- objects: their ids are those of the instance map, their areas and boxes those of what is visible there.

Independence and subsampling may be violated where two classes, or a score and its threshold, are within 1e-4.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Integer, UInt8
from torch import Tensor

from c2fmae.core.labels import ClassInfo


@dataclass(frozen=True)
class LabelInput:
    """An image to label."""

    key: str
    image: UInt8[Tensor, "3 height width"]
    label: int | None = None
    """The label of the image, for labellers that use it (`maps_know_labels`)."""


@dataclass(frozen=True)
class LabelledObject:
    """An object of an instance map."""

    id: int
    """The id in the map: 1, 2, …, and 65535 for the 255th object."""
    score: float
    class_name: str | None
    class_id: int | None
    box: tuple[int, int, int, int]
    """x0, y0, x1 and y1 in pixels of the image, tight around the visible cells; x1 and y1 are exclusive."""
    area: int
    """Visible area in pixels: the number of cells times the square of the stride."""
    threshold: float | None = None
    """The score threshold at which the object was accepted."""


@dataclass(frozen=True)
class LabelResult:
    """The maps of an image."""

    maps: Mapping[str, Integer[Tensor, "rows columns"]]
    """Ids by granularity, on the CPU: uint8, or int32 for more than 254 objects."""
    objects: tuple[LabelledObject, ...] = ()
    """The objects of the instance map, in the order of their numbers."""
    metadata: Mapping[str, float | int | str] = field(default_factory=dict)
    """Figures for the record of the image, such as `threshold` or `confidence`."""


@runtime_checkable
class Labeller(Protocol):
    """Makes the maps of images."""

    @property
    def granularities(self) -> frozenset[str]:
        """The maps that it makes: "semantic", "instance" or both."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes of the semantic map by id; none without a semantic map."""

    @property
    def maps_know_labels(self) -> bool | None:
        """Whether a map depends on anything but the pixels of its image, such as its label; None if unknown."""

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return a value for images of a size: images with the same value can be labelled in one batch."""

    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
        """Return the maps of a batch of images, with a cell for each `stride` × `stride` pixels."""

    def describe(self) -> Mapping[str, Any]:
        """Return everything that the maps depend on, as JSON: names, settings and digests of weights."""
