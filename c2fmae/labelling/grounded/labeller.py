"""The labeller `grounded`: objects are the masks of a segmenter in the boxes of an open-vocabulary detector."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from c2fmae.core.config import PositiveInt, UnitInterval
from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo
from c2fmae.data.painting import suppress_boxes
from c2fmae.labelling.candidates import CandidateRules, label_candidates
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.families import BOX_SEGMENTERS, GROUNDING_DINO, OWLV2
from c2fmae.labelling.grounded.detector import Detections, Detector, join_detections
from c2fmae.labelling.grounded.grounding_dino import GroundingDinoDetector
from c2fmae.labelling.grounded.owlv2 import Owlv2Detector
from c2fmae.labelling.grounded.segmenter import BoxSegmenter, EncodedImage
from c2fmae.labelling.image_names import ImageNames, describe_names, resolve_names
from c2fmae.labelling.precision import make_autocast
from c2fmae.labelling.protocol import LabelInput, LabelResult
from c2fmae.labelling.registry import LABELLERS
from c2fmae.labelling.weights import load_pretrained


class GroundedConfig(CandidateRules):
    """Settings of `grounded`."""

    path_options: ClassVar[tuple[str, ...]] = ("detector", "segmenter")

    detector: str
    """Folder of Grounding DINO, MM-Grounding-DINO, LLMDet or OWLv2."""
    segmenter: str
    """Folder of SAM-HQ, SAM or SAM 2."""
    preset: Literal["paper"] | None = None
    """With `paper`, other models than those of the C2FMAE paper (Grounding DINO and SAM-HQ) are errors."""
    box_overlap: UnitInterval = 0.7
    """Of two boxes with a higher IoU, the one with the lower score is removed, whatever their names."""
    max_boxes: PositiveInt = 100
    """Only the boxes with the highest scores are segmented."""
    names_per_prompt: PositiveInt = 80
    """Names in a prompt, at most; each prompt is a pass of Grounding DINO over the image."""
    reduction: Literal["max", "mean"] = "max"
    """How the scores of its tokens become the score of a name."""
    hq_token_only: bool = False
    """Whether masks of SAM-HQ are those of its high-quality token alone."""


@LABELLERS.register("grounded", options=GroundedConfig)
class GroundedLabeller:
    """Objects by name: boxes of Grounding DINO or OWLv2, and their masks by SAM-HQ, SAM or SAM 2."""

    granularities = frozenset({"instance"})
    classes: tuple[ClassInfo, ...] = ()

    def __init__(self, config: GroundedConfig, context: LabellerContext) -> None:
        self.config = config
        self.names = resolve_names(context.names, context.info)
        self._context = context
        autocast = make_autocast(context)
        self._detector = _load_detector(config, self.names, context, autocast)
        self._segmenter = _load_segmenter(config, context, autocast)
        self._max_aspect = min(self._detector.max_aspect, self._segmenter.max_aspect)

    @property
    def maps_know_labels(self) -> bool:
        """Whether names depend on the label of the image."""
        return self.names.know_labels

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return the canvas of the detector; None for images that are too narrow for the models."""
        if max(height, width) > self._max_aspect * min(height, width):
            return None
        return ("canvas", self._detector.batch_key(height, width))

    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
        """Return the instance maps and the objects of images."""
        candidates = self._find_candidates(inputs)
        rows = [row for row, each in enumerate(candidates) if len(each.scores)]
        encoded = self._segmenter.encode([inputs[row].image for row in rows]) if rows else []
        features = dict(zip(rows, encoded, strict=True))
        return [
            self._label_image(each.image.shape[1:], candidates[row], features.get(row), stride)
            for row, each in enumerate(inputs)
        ]

    def describe(self) -> Mapping[str, Any]:
        """Return models, names, settings and the version of transformers."""
        from importlib.metadata import version

        settings = self.config.model_dump(mode="json", exclude={*self.config.path_options, "preset"})
        some_names = self.names.list_some()
        return {
            "labeller": "grounded",
            "detector": self._detector.describe(),
            "segmenter": self._segmenter.describe(),
            **describe_names(self.names, self._context.names),
            "prompts": self._detector.count_prompts(some_names),
            **settings,
            "precision": self._context.precision,
            "transformers": version("transformers"),
        }

    def _find_candidates(self, inputs: Sequence[LabelInput]) -> list["_Candidates"]:
        """Return the boxes of each image that are segmented if the threshold is low enough."""
        names = [self.names.list_names(each.label) for each in inputs]
        is_readable = self.batch_key(*inputs[0].image.shape[1:]) is not None
        rows = [row for row in range(len(inputs)) if is_readable and names[row]]
        found = self._detector.detect([inputs[row].image for row in rows], [names[row] for row in rows]) if rows else []
        detections = dict(zip(rows, found, strict=True))
        return [
            _select_candidates(detections.get(row, join_detections([])), names[row], each.image.shape[1:], self.config)
            for row, each in enumerate(inputs)
        ]

    def _label_image(
        self, image_size: Sequence[int], candidates: "_Candidates", encoded: EncodedImage | None, stride: int
    ) -> LabelResult:
        def segment(new: Int64[Tensor, " new"], masks: Bool[Tensor, "new row column"]) -> Float[Tensor, " new"]:
            assert encoded is not None  # because there are candidates
            return self._segmenter.segment(encoded, candidates.boxes[new], stride, masks)

        height, width = image_size
        return label_candidates(
            candidates.scores,
            candidates.names,
            [None] * len(candidates.names),
            segment,
            stride=stride,
            image_size=(height, width),
            rules=self.config,
        )


@dataclass(frozen=True)
class _Candidates:
    """Boxes that may become objects, the highest score first."""

    boxes: Float[Tensor, "box 4"]
    scores: Float[Tensor, " box"]
    names: tuple[str, ...]


def _select_candidates(
    detections: Detections, names: Sequence[str], image_size: Sequence[int], config: GroundedConfig
) -> _Candidates:
    """Return the boxes above the lowest threshold, cut to the image, of which each pair overlaps little."""
    height, width = image_size
    boxes = detections.boxes.clamp(min=0).minimum(detections.boxes.new_tensor([width, height, width, height]))
    is_valid = (detections.scores >= config.thresholds[-1]) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes, scores, name_indices = boxes[is_valid], detections.scores[is_valid], detections.name_indices[is_valid]
    order = suppress_boxes(boxes, scores, name_indices, max_overlap=config.box_overlap, max_boxes=config.max_boxes)
    return _Candidates(boxes[order], scores[order], tuple(names[index] for index in name_indices[order].tolist()))


def _load_detector(
    config: GroundedConfig,
    names: ImageNames,
    context: LabellerContext,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Detector:
    families = {**GROUNDING_DINO, **OWLV2}
    pretrained = load_pretrained(config.detector, families, option="instances.detector", device=context.device)
    if config.preset == "paper" and pretrained.model_type != "grounding-dino":
        raise _preset_error("Grounding DINO", config.detector, pretrained.model_type)
    if pretrained.model_type in OWLV2:
        return Owlv2Detector(pretrained, names.list_all(), autocast=autocast)
    return GroundingDinoDetector(
        pretrained, names_per_prompt=config.names_per_prompt, reduction=config.reduction, autocast=autocast
    )


def _load_segmenter(
    config: GroundedConfig, context: LabellerContext, autocast: Callable[[], AbstractContextManager[Any]]
) -> BoxSegmenter:
    pretrained = load_pretrained(config.segmenter, BOX_SEGMENTERS, option="instances.segmenter", device=context.device)
    if config.preset == "paper" and pretrained.model_type != "sam_hq":
        raise _preset_error("SAM-HQ", config.segmenter, pretrained.model_type)
    return BoxSegmenter(pretrained, hq_token_only=config.hq_token_only, autocast=autocast)


def _preset_error(expected: str, path: str, model_type: str) -> UserError:
    return UserError(
        f"instances.preset: 'paper' needs {expected}, but {path} is of type {model_type!r}. Use a folder of {expected},"
        " or remove the preset"
    )
