"""Head of a segmenter."""

from typing import Any

from c2fmae.core.choice import Choice
from c2fmae.core.registry import Registry
from c2fmae.core.specs import HeadSpec


class SegmentationHeadConfig(Choice):
    """The head that predicts classes from a backbone's feature maps, and its options."""

    name: str = "upernet"

    @classmethod
    def registry(cls) -> Registry[Any]:
        """Return the registry of segmentation heads."""
        from c2fmae.models.segmenters import SEGMENTATION_HEADS

        return SEGMENTATION_HEADS

    def to_spec(self) -> HeadSpec:
        """Return the name with all options, defaults included."""
        return HeadSpec.from_dict(self.model_dump(mode="json"))
