"""The labeller `trained`: a segmenter or detector that was trained by `c2fmae eval segment` or `c2fmae eval detect`.

A segmenter makes semantic maps of its own classes, a detector with masks instance maps.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Config, UnitInterval
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.labels import ClassInfo
from c2fmae.core.objects import Detections
from c2fmae.core.rle import decode_mask
from c2fmae.core.run_info import is_run_or_checkpoint, read_run_info
from c2fmae.data.geometry import stored_pixels
from c2fmae.eval.cache import compute_weights_digest
from c2fmae.eval.detection.prediction import detect_objects
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from c2fmae.eval.segmentation.id_maps import limit_size
from c2fmae.eval.segmentation.prediction import predict_cells
from c2fmae.eval.segmentation.testing_config import TestingConfig
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.objects import ObjectRules, finish_objects
from c2fmae.labelling.protocol import LabelInput, LabelResult
from c2fmae.labelling.registry import LABELLERS
from c2fmae.models.detectors import Detector, load_detector
from c2fmae.models.segmenters import Segmenter, load_segmenter


class TrainedConfig(Config):
    """Settings of `trained`."""

    path_options: ClassVar[tuple[str, ...]] = ("run",)

    run: str
    """A run directory of `c2fmae eval segment` or `c2fmae eval detect`, or one of its checkpoints."""
    step: Annotated[int, Field(ge=0)] | None = None
    """Step of the checkpoint. By default, the newest."""
    use_ema: bool = False
    """Use the averaged weights of the run."""
    testing: Mapping[str, Any] = {}
    """Settings of the test of the run to override, such as `mode` of a segmenter or `short_side` of a detector."""
    min_confidence: UnitInterval = 0.0
    """Of a segmenter: cells whose class has a lower probability are not labelled."""
    min_score: UnitInterval = 0.5
    """Of a detector: objects with lower scores are left out."""
    rules: ObjectRules = ObjectRules()
    """Of a detector: which masks become objects."""


@LABELLERS.register("trained", options=TrainedConfig)
class TrainedLabeller:
    """A segmenter or detector of `c2fmae eval segment` or `detect`, with the classes of its run."""

    maps_know_labels = False

    def __init__(self, config: TrainedConfig, context: LabellerContext) -> None:
        self._config = config
        self._maker = _load_model(config, context)
        self.granularities = frozenset({self._maker.granularity})
        self.classes = self._maker.classes

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return one value: images are labelled one by one, so that no image depends on others."""
        return None

    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
        """Return the predicted maps of images."""
        return [self._maker.make_map(each.image, stride) for each in inputs]

    def describe(self) -> Mapping[str, Any]:
        """Return a digest of the weights, and the settings of the prediction."""
        return {"labeller": "trained", **self._maker.describe()}


class _SemanticMaps:
    """Semantic maps by a segmenter."""

    granularity = "semantic"

    def __init__(self, segmenter: Segmenter, testing: TestingConfig, min_confidence: float) -> None:
        self.segmenter, self.testing, self.min_confidence = segmenter, testing, min_confidence
        self.classes: tuple[ClassInfo, ...] = segmenter.spec.classes

    def make_map(self, image: Tensor, stride: int) -> LabelResult:
        size = (image.shape[1], image.shape[2])
        testing = limit_size(self.testing, size, self.segmenter.backbone.patch, self.segmenter.num_classes)
        ids, confidence = predict_cells(self.segmenter, image, testing, stride)
        ids = ids.masked_fill(confidence < self.min_confidence, IGNORE)
        return LabelResult({"semantic": ids}, metadata={"confidence": float(confidence.double().mean())})

    def describe(self) -> dict[str, Any]:
        return {
            "weights": {"sha256": compute_weights_digest(self.segmenter)},
            "prediction": self.testing.describe(self.segmenter.spec.backbone.image_size),
            "min_confidence": self.min_confidence,
        }


class _InstanceMaps:
    """Instance maps by a detector."""

    granularity = "instance"
    classes: tuple[ClassInfo, ...] = ()

    def __init__(self, detector: Detector, testing: DetectionTestingConfig, rules: ObjectRules) -> None:
        self.detector, self.testing, self.rules = detector, testing, rules

    def make_map(self, image: Tensor, stride: int) -> LabelResult:
        size = (image.shape[1], image.shape[2])
        detections = detect_objects(self.detector, image, self.testing)
        labels = detections.labels.tolist()
        ids, objects = finish_objects(
            _decode_cells(detections, size, stride),
            detections.scores,
            [self.detector.spec.classes[label].name for label in labels],
            labels,
            [self.testing.score_threshold] * len(labels),
            stride=stride,
            image_size=size,
            rules=self.rules,
        )
        return LabelResult({"instance": ids}, objects)

    def describe(self) -> dict[str, Any]:
        return {
            "weights": {"sha256": compute_weights_digest(self.detector)},
            "prediction": self.testing.describe_prediction(),
            "rules": self.rules.model_dump(mode="json"),
        }


def _decode_cells(detections: Detections, size: tuple[int, int], stride: int) -> Tensor:
    """Return the masks of detections at the stored cells of an image."""
    rows, columns = (stored_pixels(length, stride) for length in size)
    assert detections.masks is not None
    masks = np.zeros((len(detections.masks), len(rows), len(columns)), np.bool_)
    for mask, counts in zip(masks, detections.masks, strict=True):
        mask[:] = decode_mask(counts, *size)[np.ix_(rows, columns)]
    return torch.from_numpy(masks)


def _load_model(config: TrainedConfig, context: LabellerContext) -> _SemanticMaps | _InstanceMaps:
    if not is_run_or_checkpoint(Path(config.run)):
        raise UserError(
            f"{config.run}: is not a run. Give the run directory of `c2fmae eval segment` or `c2fmae eval detect`"
        )
    info = read_run_info(Path(config.run), config.step)
    settings = {**info.config.get("testing", {}), "precision": context.precision, **config.testing}
    source = f"testing of {config.run}"
    if info.kind == "segmentation":
        segmenter = load_segmenter(config.run, step=config.step, use_ema=config.use_ema).to(context.device)
        return _SemanticMaps(segmenter.eval(), TestingConfig.from_dict(settings, source=source), config.min_confidence)
    if info.kind == "detection":
        settings = {**settings, "score_threshold": config.min_score}
        detector = load_detector(config.run, step=config.step, use_ema=config.use_ema).to(context.device)
        if detector.spec.mask_head is None:
            raise UserError(f"{config.run}: its detector predicts boxes only. Use a detector that predicts masks")
        return _InstanceMaps(detector.eval(), DetectionTestingConfig.from_dict(settings, source=source), config.rules)
    raise UserError(
        f"{config.run}: is a run of kind {info.kind}, which makes no maps. Train a segmenter with"
        " `c2fmae eval segment`, or a detector with `c2fmae eval detect`"
    )
