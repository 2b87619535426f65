"""The labeller `rf-detr`: the masks of RF-DETR, with the classes of COCO's 80 things."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo
from c2fmae.data.label_spaces import COCO_PANOPTIC, LabelSpace
from c2fmae.labelling.candidates import (
    MaskCandidateRules,
    MaskCandidates,
    label_mask_candidates,
    select_candidates,
)
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.families import RF_DETR
from c2fmae.labelling.image_processors import check_fixed_size
from c2fmae.labelling.model_classes import is_unnamed, list_class_names, match_classes
from c2fmae.labelling.precision import make_autocast
from c2fmae.labelling.protocol import LabelInput, LabelResult
from c2fmae.labelling.registry import LABELLERS
from c2fmae.labelling.weights import load_pretrained

COCO_THINGS = LabelSpace("coco", tuple(entry for entry in COCO_PANOPTIC.classes if entry.is_thing))
"""The classes of objects; their ids are those of the same classes in `COCO_PANOPTIC`."""


class RfDetrLabellerConfig(MaskCandidateRules):
    """Settings of `rf-detr`."""

    path_options: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """Folder of RF-DETR with masks (RF-DETR-Seg), trained on COCO."""
    space: Literal["coco"] | None = None
    """For models without names of classes: states that their outputs are the category ids of COCO, 0 to 90."""


@LABELLERS.register("rf-detr", options=RfDetrLabellerConfig)
class RfDetrLabeller:
    """Objects of COCO's 80 classes: the masks of RF-DETR."""

    granularities = frozenset({"instance"})
    classes: tuple[ClassInfo, ...] = ()
    maps_know_labels = False

    def __init__(self, config: RfDetrLabellerConfig, context: LabellerContext) -> None:
        self._config, self._context = config, context
        self._pretrained = load_pretrained(config.model, RF_DETR, option="instances.model", device=context.device)
        backbone = self._pretrained.model.config.backbone_config
        check_fixed_size(
            self._pretrained.folder,
            self._pretrained.processor,
            multiple=backbone.patch_size * backbone.num_windows,
        )
        self._outputs, self._ids = match_outputs(
            self._pretrained.model.config.id2label,
            origin=self._pretrained.folder,
            are_coco_ids=config.space is not None,
        )
        self._autocast = make_autocast(context)

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return one value, because all images are resized to one size."""
        return None

    @torch.inference_mode()
    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
        """Return the instance maps and the objects of images by one forward pass."""
        device = self._pretrained.model.device
        values = [
            self._pretrained.processor(images=[each.image.to(device)], return_tensors="pt")["pixel_values"]
            for each in inputs
        ]
        with self._autocast():
            outputs = self._pretrained.model(pixel_values=torch.cat(values))
        return [
            label_mask_candidates(
                select_candidates(self._propose(logits, masks), self._config),
                stride=stride,
                image_size=(each.image.shape[1], each.image.shape[2]),
                rules=self._config,
            )
            for each, logits, masks in zip(inputs, outputs.logits.float(), outputs.pred_masks.float(), strict=True)
        ]

    def describe(self) -> Mapping[str, Any]:
        """Return the model, the settings and the version of transformers."""
        from importlib.metadata import version

        return {
            "labeller": "rf-detr",
            "segmenter": self._pretrained.describe(),
            **self._config.model_dump(mode="json", exclude={"model"}),
            "precision": self._context.precision,
            "transformers": version("transformers"),
        }

    def _propose(self, logits: Tensor, masks: Tensor) -> MaskCandidates:
        """Return the mask of each query with its best class; of equals the first."""
        scores, best = logits[:, self._outputs].sigmoid().cpu().max(dim=1)
        ids = [self._ids[row] for row in best.tolist()]
        return MaskCandidates(masks, scores, tuple(COCO_THINGS.classes[id_].name for id_ in ids), tuple(ids))


def match_outputs(
    id2label: Mapping[int, str], *, origin: Any, are_coco_ids: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the outputs of a model that are classes, and their ids in `COCO_THINGS`.

    Models that are trained on COCO's category ids have outputs for the gaps between them, which are named `N/A`,
    `background` or not at all. Those without any names need `are_coco_ids`.
    """
    all_names = list_class_names(id2label, origin)
    names = {index: name for index, name in enumerate(all_names) if not _is_gap(index, name)}
    if is_unnamed(names.values()):
        names = _name_coco_ids(len(all_names), origin, are_coco_ids=are_coco_ids)
    ids = match_classes(list(names.values()), COCO_THINGS, origin=origin, is_in_order=False, needs_all=False)
    return tuple(names), ids


def _is_gap(index: int, name: str) -> bool:
    is_coco_id = any(entry.coco_id == index for entry in COCO_THINGS.classes)
    return name == "N/A" or (not is_coco_id and (is_unnamed([name]) or name.lower() == "background"))


def _name_coco_ids(num_outputs: int, origin: Any, *, are_coco_ids: bool) -> dict[int, str]:
    names = {entry.coco_id: entry.name for entry in COCO_THINGS.classes if entry.coco_id is not None}
    if not are_coco_ids:
        raise UserError(
            f"{origin}: config.json has no names of classes (LABEL_0, … or N/A). If its outputs are the category ids of"
            " COCO, as in the published models, add --set instances.space=coco"
        )
    if num_outputs != max(names) + 1:
        raise UserError(
            f"{origin}: has {num_outputs} outputs without names (expected {max(names) + 1}, the category ids of COCO)."
            " Use a config.json with id2label"
        )
    return names
