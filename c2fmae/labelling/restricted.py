"""A labeller without some of its maps."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from c2fmae.core.labels import ClassInfo
from c2fmae.labelling.protocol import LabelInput, Labeller, LabelResult


class RestrictedLabeller:
    """A labeller that is used for some of the maps that it makes."""

    def __init__(self, labeller: Labeller, granularities: frozenset[str]) -> None:
        self.labeller = labeller
        self.granularities = granularities
        self.classes: tuple[ClassInfo, ...] = labeller.classes if "semantic" in granularities else ()
        self.maps_know_labels = labeller.maps_know_labels

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return that of the labeller."""
        return self.labeller.batch_key(height, width)

    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
        """Return the wanted maps, and the objects if the instance map is wanted."""
        return [
            LabelResult(
                {name: ids for name, ids in result.maps.items() if name in self.granularities},
                result.objects if "instance" in self.granularities else (),
                result.metadata,
            )
            for result in self.labeller.label(inputs, stride)
        ]

    def describe(self) -> Mapping[str, Any]:
        """Return the description of the labeller."""
        return self.labeller.describe()
