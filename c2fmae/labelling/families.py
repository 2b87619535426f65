"""The model types that labellers read, and the classes of transformers for each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelFamily:
    """The classes of transformers that load the folders of one model type."""

    model_class: str
    processor_class: str
    has_tokenizer: bool = False
    processor_options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the processor that replace those of the folder."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Classes of the same model type (`architectures` in config.json) without what labellers need, and the reason."""


GROUNDING_DINO = {
    "grounding-dino": ModelFamily("GroundingDinoForObjectDetection", "GroundingDinoProcessor", has_tokenizer=True),
    "mm-grounding-dino": ModelFamily("MMGroundingDinoForObjectDetection", "GroundingDinoProcessor", has_tokenizer=True),
}
"""Detectors that read names in prompts; LLMDet is of the second type."""

OWLV2 = {"owlv2": ModelFamily("Owlv2ForObjectDetection", "Owlv2Processor", has_tokenizer=True)}
"""Detectors that read each name on its own."""

BOX_SEGMENTERS = {
    "sam": ModelFamily("SamModel", "SamProcessor"),
    "sam_hq": ModelFamily("SamHQModel", "SamHQProcessor"),
    "sam2": ModelFamily("Sam2Model", "Sam2Processor"),
    "sam2_video": ModelFamily("Sam2Model", "Sam2Processor"),  # folders of SAM 2.1, whose tracker is not read
}
"""Segmenters of boxes."""

SAM3 = {
    "sam3": ModelFamily("Sam3Model", "Sam3Processor", has_tokenizer=True),
    "sam3_video": ModelFamily("Sam3Model", "Sam3Processor", has_tokenizer=True),  # whose tracker is not read
}
"""Segmenters of all objects of a name."""

RF_DETR = {
    "rf_detr": ModelFamily(
        "RfDetrForInstanceSegmentation",
        "RfDetrImageProcessor",
        refused={"RfDetrForObjectDetection": "an RF-DETR without masks. Use a folder of RF-DETR-Seg"},
    )
}
"""Detectors with masks."""

UNIVERSAL_SEGMENTERS = {
    "mask2former": ModelFamily("Mask2FormerForUniversalSegmentation", "Mask2FormerImageProcessor"),
    "oneformer": ModelFamily(
        "OneFormerForUniversalSegmentation",
        "OneFormerProcessor",
        has_tokenizer=True,
        processor_options={"class_info_file": None},  # a file for its post-processing, which would be downloaded
    ),
    "eomt": ModelFamily("EomtForUniversalSegmentation", "EomtImageProcessor"),
    "eomt_dinov3": ModelFamily("EomtDinov3ForUniversalSegmentation", "EomtImageProcessor"),
}
"""Segmenters whose queries each have a mask and a class."""

ALL_FAMILIES = {**GROUNDING_DINO, **OWLV2, **BOX_SEGMENTERS, **SAM3, **RF_DETR, **UNIVERSAL_SEGMENTERS}
"""Every model type that a labeller reads."""
