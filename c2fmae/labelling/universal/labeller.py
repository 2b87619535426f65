"""The labeller `universal`: one forward pass of a panoptic segmenter makes both maps."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from c2fmae.core.config import Config, PositiveInt, UnitInterval
from c2fmae.core.granularity import IGNORE
from c2fmae.core.labels import ClassInfo
from c2fmae.data.label_spaces import COCO_PANOPTIC
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.families import UNIVERSAL_SEGMENTERS
from c2fmae.labelling.model_classes import list_class_names, match_classes
from c2fmae.labelling.objects import ObjectRules, finish_objects
from c2fmae.labelling.precision import make_autocast
from c2fmae.labelling.protocol import LabelInput, LabelledObject, LabelResult
from c2fmae.labelling.registry import LABELLERS
from c2fmae.labelling.universal.query_maps import ObjectMasks, SemanticMap
from c2fmae.labelling.universal.segmenter import QueryOutputs, UniversalSegmenter
from c2fmae.labelling.weights import load_pretrained

_DEFAULT_MIN_SCORES = {"eomt": 0.8, "eomt_dinov3": 0.8}  # of the others 0.5, as in transformers


class UniversalConfig(Config):
    """Settings of `universal`."""

    path_options: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """Folder of Mask2Former, OneFormer or EoMT with a panoptic head."""
    space: Literal["coco-panoptic"] | None = None
    """For models without names of classes: states that they are those of COCO panoptic, in its order."""
    min_confidence: UnitInterval = 0.0
    """Of the semantic map: cells with a lower confidence are not labelled."""
    min_score: UnitInterval | None = None
    """Of the instance map: queries with a lower class probability are left out. By default 0.8 for EoMT, else 0.5."""
    mask_threshold: UnitInterval = 0.5
    """Of the instance map: the probability from which a cell belongs to a mask."""
    min_visible: UnitInterval = 0.8
    """Of the instance map: masks of which other queries leave a smaller fraction are removed."""
    min_area: UnitInterval = 0.001
    """Of the instance map: objects with a smaller fraction of the image are removed."""
    max_pieces: PositiveInt = 30
    """Of the instance map: objects in more 4-connected pieces are removed."""
    max_objects: PositiveInt = 100
    """Of the instance map: only the objects with the highest scores remain."""


@LABELLERS.register("universal", options=UniversalConfig)
class UniversalLabeller:
    """Both maps by the queries of Mask2Former, OneFormer or EoMT, with the classes of COCO panoptic."""

    maps_know_labels = False

    def __init__(self, config: UniversalConfig, context: LabellerContext) -> None:
        self._config, self._context = config, context
        self.granularities = context.granularities
        self.classes: tuple[ClassInfo, ...] = COCO_PANOPTIC.classes if "semantic" in self.granularities else ()
        option = "semantics.model" if "semantic" in self.granularities else "instances.model"
        pretrained = load_pretrained(config.model, UNIVERSAL_SEGMENTERS, option=option, device=context.device)
        ids = match_classes(
            list_class_names(pretrained.model.config.id2label, pretrained.folder),
            COCO_PANOPTIC,
            origin=pretrained.folder,
            is_in_order=config.space is not None,
            needs_all="semantic" in self.granularities,
        )
        self._ids = torch.tensor(ids)
        self._is_thing = torch.tensor([bool(COCO_PANOPTIC.classes[id_].is_thing) for id_ in ids])
        self._segmenter = UniversalSegmenter(pretrained, autocast=make_autocast(context))
        default = _DEFAULT_MIN_SCORES.get(pretrained.model_type, 0.5)
        self._min_score: float = default if config.min_score is None else config.min_score
        self._rules = ObjectRules(
            min_area=config.min_area,
            max_pieces=config.max_pieces,
            max_objects=config.max_objects,
            order="score",  # masks do not overlap any more
        )

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return the canvas of the model; None for images that are too narrow for it."""
        if max(height, width) > self._segmenter.max_aspect * min(height, width):
            return None
        return ("canvas", self._segmenter.batch_key(height, width))

    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
        """Return the maps of images by one forward pass. Images that are too narrow have no classes and no objects."""
        if self.batch_key(*inputs[0].image.shape[1:]) is None:
            return [self._make_empty_maps(each.image, stride) for each in inputs]
        outputs = self._segmenter.predict([each.image for each in inputs])
        return [self._make_maps(each, stride) for each in outputs]

    def describe(self) -> Mapping[str, Any]:
        """Return the model, the settings and the version of transformers."""
        from importlib.metadata import version

        return {
            "labeller": "universal",
            "segmenter": self._segmenter.describe(),
            **self._config.model_dump(mode="json", exclude={"model"}),
            "min_score": self._min_score,
            "precision": self._context.precision,
            "transformers": version("transformers"),
        }

    @torch.inference_mode()
    def _make_maps(self, outputs: QueryOutputs, stride: int) -> LabelResult:
        probabilities = outputs.class_logits.softmax(dim=1)
        semantic = self._start_semantic_map(probabilities) if "semantic" in self.granularities else None
        objects = self._start_objects(probabilities) if "instance" in self.granularities else None
        for masks in outputs.sample_masks(stride):
            if semantic is not None:
                semantic.add_rows(masks)
            if objects is not None:
                objects.add_rows(masks)
        maps, metadata, found = dict[str, Tensor](), dict[str, float](), tuple[LabelledObject, ...]()
        if semantic is not None:
            maps["semantic"], metadata["confidence"] = semantic.finish()
        if objects is not None:
            maps["instance"], found = self._finish_objects(objects, outputs.size, stride)
        return LabelResult(maps, found, metadata)

    def _start_semantic_map(self, probabilities: Tensor) -> SemanticMap:
        order = self._ids.argsort().to(probabilities.device)  # of the ids, without "no object"
        return SemanticMap(probabilities[:, order], self._config.min_confidence)

    def _start_objects(self, probabilities: Tensor) -> ObjectMasks:
        return ObjectMasks(
            probabilities,
            self._is_thing,
            min_score=self._min_score,
            mask_threshold=self._config.mask_threshold,
            min_visible=self._config.min_visible,
        )

    def _finish_objects(
        self, objects: ObjectMasks, size: tuple[int, int], stride: int
    ) -> tuple[Tensor, tuple[LabelledObject, ...]]:
        found = objects.finish()
        class_ids = self._ids[found.labels].tolist()
        return finish_objects(
            found.masks,
            found.scores,
            [COCO_PANOPTIC.classes[id_].name for id_ in class_ids],
            class_ids,
            [self._min_score] * len(class_ids),
            stride=stride,
            image_size=size,
            rules=self._rules,
        )

    def _make_empty_maps(self, image: Tensor, stride: int) -> LabelResult:
        rows, columns = (-(-side // stride) for side in image.shape[1:])
        fills = {"semantic": IGNORE, "instance": 0}
        return LabelResult(
            {name: torch.full((rows, columns), fills[name], dtype=torch.uint8) for name in self.granularities},
            metadata={"confidence": 0.0} if "semantic" in self.granularities else {},
        )
