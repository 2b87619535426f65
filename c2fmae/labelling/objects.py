"""The rules that turn the masks of an image into its instance map, shared by all labellers with masks."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float, Integer
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Config, PositiveInt, UnitInterval
from c2fmae.data.instance_ids import numbers_to_instance_ids
from c2fmae.data.painting import (
    MapInstances,
    keep_masks,
    measure_masks,
    number_instances,
    paint_masks,
    suppress_masks,
)
from c2fmae.labelling.protocol import LabelledObject


class ObjectRules(Config):
    """Which masks become objects, and how they are painted."""

    min_score: UnitInterval = 0.0
    """Masks with lower scores are removed."""
    min_quality: UnitInterval = 0.5
    """Masks with a lower predicted IoU are removed, where a segmenter predicts it."""
    min_area: UnitInterval = 0.001
    """Masks, and visible parts of masks, with a smaller fraction of the image are removed."""
    max_pieces: PositiveInt = 30
    """Masks in more 4-connected pieces are removed."""
    mask_overlap: UnitInterval = 0.8
    """Of two masks with a higher IoU, the one with the lower score is removed."""
    order: Literal["area", "score"] = "area"
    """Which mask is on top: the smaller one, or the one with the higher score."""
    min_visible: UnitInterval = 0.5
    """Masks of which a smaller fraction is visible are removed."""
    max_objects: Annotated[int, Field(ge=1, le=65_534)] = 100
    """Only the masks with the highest scores become objects."""


def select_masks(
    masks: Bool[Tensor, "mask rows columns"],
    scores: Float[Tensor, " mask"],
    *,
    stride: int,
    image_size: tuple[int, int],
    rules: ObjectRules,
    qualities: Float[Tensor, " mask"] | None = None,
) -> Bool[Tensor, " mask"]:
    """Return which masks satisfy the rules for single masks: score, predicted IoU (`qualities`), area and pieces.

    `image_size` is height and width in pixels.
    """
    is_valid = scores.cpu() >= rules.min_score
    if qualities is not None:
        is_valid &= qualities.cpu() >= rules.min_quality
    min_cells = _count_min_cells(stride, image_size, rules)
    for index in is_valid.nonzero().flatten().tolist():  # one by one, since selecting several would copy them
        is_valid[index] = keep_masks(masks[index : index + 1], min_cells=min_cells, max_pieces=rules.max_pieces)[0]
    return is_valid


def finish_objects(
    masks: Bool[Tensor, "mask rows columns"],
    scores: Float[Tensor, " mask"],
    names: Sequence[str | None],
    class_ids: Sequence[int | None],
    thresholds: Sequence[float | None],
    *,
    stride: int,
    image_size: tuple[int, int],
    rules: ObjectRules,
    qualities: Float[Tensor, " mask"] | None = None,
) -> tuple[Integer[Tensor, "rows columns"], tuple[LabelledObject, ...]]:
    """Return the instance map of masks and its objects: select, suppress, paint and number them.

    Masks have the size of the map, with a cell for each `stride` × `stride` pixels of an image of `image_size` (height,
    width).
    """
    masks, scores = masks.cpu(), scores.cpu()
    is_valid = select_masks(masks, scores, stride=stride, image_size=image_size, rules=rules, qualities=qualities)
    selected = suppress_masks(
        masks,
        scores,
        is_valid.nonzero().flatten(),
        max_overlap=rules.mask_overlap,
        max_masks=rules.max_objects,
    )
    painted = paint_masks(
        masks,
        _sort_for_painting(masks, scores, selected.tolist(), rules),
        min_visible=rules.min_visible,
        min_cells=_count_min_cells(stride, image_size, rules),
    )
    numbered, instances = number_instances(painted, ignore=None)
    indices = (instances.ids - 1).tolist()
    return numbered, make_objects(
        instances,
        stride=stride,
        image_size=image_size,
        scores=[float(scores[index]) for index in indices],
        names=[names[index] for index in indices],
        class_ids=[class_ids[index] for index in indices],
        thresholds=[thresholds[index] for index in indices],
    )


def make_objects(
    instances: MapInstances,
    *,
    stride: int,
    image_size: tuple[int, int],
    scores: Sequence[float] | None = None,
    names: Sequence[str | None] | None = None,
    class_ids: Sequence[int | None] | None = None,
    thresholds: Sequence[float | None] | None = None,
) -> tuple[LabelledObject, ...]:
    """Return the objects of a map from `number_instances`, in the order of their numbers.

    By default, scores are 1 and objects have no class.
    """
    height, width = image_size
    ids = numbers_to_instance_ids(np.arange(1, len(instances.areas) + 1)).tolist()
    boxes = (instances.boxes * stride).clip(max=[width, height, width, height]).tolist()
    areas = (instances.areas * stride**2).tolist()
    return tuple(
        LabelledObject(
            id=id_,
            score=scores[row] if scores else 1.0,
            class_name=names[row] if names else None,
            class_id=class_ids[row] if class_ids else None,
            box=(box[0], box[1], box[2], box[3]),
            area=area,
            threshold=thresholds[row] if thresholds else None,
        )
        for row, (id_, box, area) in enumerate(zip(ids, boxes, areas, strict=True))
    )


def _count_min_cells(stride: int, image_size: tuple[int, int], rules: ObjectRules) -> float:
    return rules.min_area * image_size[0] * image_size[1] / stride**2


def _sort_for_painting(
    masks: Bool[Tensor, "mask rows columns"],
    scores: Float[Tensor, " mask"],
    selected: Sequence[int],
    rules: ObjectRules,
) -> list[int]:
    """Return the selected masks from the bottom to the top.

    Equal areas are ordered by score, and equal scores by area; then by box (y0, x0, y1, x1).
    """
    areas, boxes = measure_masks(masks)

    def key(index: int) -> tuple[object, ...]:
        area, score = -int(areas[index]), float(scores[index])
        return (*((area, score) if rules.order == "area" else (score, area)), boxes[index].tolist())

    return sorted(selected, key=key)
