"""Settings of the test of a detector. It needs no torch."""

from typing import Annotated, Literal

from pydantic import Field

from c2fmae.core.config import Config, PositiveInt, UnitInterval
from c2fmae.eval.evaluation import Precision

EngineChoice = Literal["auto", "pycocotools", "faster"]


class DetectionTestingConfig(Config):
    """How the objects of an image are predicted and compared with the truth, which is never resized."""

    short_side: PositiveInt = 800
    """Length to which the shorter side of an image is resized."""
    max_side: PositiveInt = 1333
    """Largest length of the longer side, which has precedence over `short_side`."""
    canvas: PositiveInt | None = None
    """Instead: side of a square on which every image is resized to fit, padded at the right and the bottom."""
    score_threshold: UnitInterval = 0.05
    """Detections with lower scores are removed."""
    nms_threshold: UnitInterval = 0.5
    """Of two boxes of a class with a higher IoU, the one with the lower score is removed."""
    max_detections: PositiveInt = 100
    """Largest number of detections of an image: those with the highest scores."""
    precision: Precision = "fp32"
    engine: EngineChoice = "auto"
    """Library that computes the COCO metrics. `auto` is faster-coco-eval if it is installed, else pycocotools."""
    confusion_score: UnitInterval = 0.3
    """Lowest score of the detections in the confusion matrix and the counts of errors."""
    intervals: Annotated[int, Field(ge=0)] = 100
    """Number of bootstrap samples of the images for the confidence intervals of AP; 0 for none."""

    @property
    def limits(self) -> tuple[int, int]:
        """The largest length of the shorter and of the longer side of a resized image, of which one is reached."""
        return (self.short_side, self.max_side) if self.canvas is None else (self.canvas, self.canvas)

    def describe_prediction(self) -> str:
        """Return in words how the objects of an image are predicted."""
        if self.canvas is not None:
            resizing = f"images resized to fit a square of {self.canvas:,} pixels"
        else:
            resizing = f"shorter sides of images resized to {self.short_side:,}, longer ones at most {self.max_side:,}"
        return (
            f"{resizing}; at most {self.max_detections:,} detections with scores above {self.score_threshold:g}, "
            f"NMS at an IoU of {self.nms_threshold:g}; {self.precision}"
        )

    def describe(self) -> str:
        """Return the settings in words, for a protocol."""
        from c2fmae.eval.detection.engines import describe_engine

        return (
            f"{self.describe_prediction()}; COCO's metrics by {describe_engine(self.engine)}, with small objects of at "
            "most 32², large ones of at least 96² pixels of the stored images"
        )
