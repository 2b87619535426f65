"""From the candidates of a model to the objects of an image, for all labellers that have scores and masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from c2fmae.core.config import PositiveInt
from c2fmae.data.painting import suppress_masks
from c2fmae.labelling.canvases import compute_cell_weights, fill_masks
from c2fmae.labelling.objects import ObjectRules, finish_objects, select_masks
from c2fmae.labelling.protocol import LabelResult
from c2fmae.labelling.thresholds import ThresholdRules, accept_candidates

SegmentCandidates = Callable[[Int64[Tensor, " new"], Bool[Tensor, "new row column"]], Float[Tensor, " new"]]
"""Writes the masks of candidates at the stored cells into its second argument, and returns their predicted IoU."""


class CandidateRules(ObjectRules, ThresholdRules):
    """Which candidates are accepted, and which of their masks become objects."""


class MaskCandidateRules(CandidateRules):
    """The rules for models whose candidates are masks."""

    max_masks: PositiveInt = 100
    """Only the masks with the highest scores are candidates."""


def label_candidates(
    scores: Float[Tensor, " candidate"],
    names: Sequence[str | None],
    class_ids: Sequence[int | None],
    segment: SegmentCandidates,
    *,
    stride: int,
    image_size: tuple[int, int],
    rules: CandidateRules,
) -> LabelResult:
    """Return the instance map of an image.

    `segment` is called with the candidates that a threshold adds, each at most once and never with none.
    """
    min_area = max(rules.min_area, rules.enough_area)
    counted_rules = rules.model_copy(update={"min_area": min_area})  # of objects that are large enough
    indices, qualities = list[Tensor](), list[Tensor]()
    # One tensor for the masks of all thresholds, which may be a gigabyte: joining them would double it. The system
    # gives memory only to masks that are written.
    masks = torch.empty((len(scores), *(-(-side // stride) for side in image_size)), dtype=torch.bool)

    def count_large(new: Int64[Tensor, " new"]) -> Bool[Tensor, " new"]:
        start = sum(map(len, indices))
        new_masks = masks[start : start + len(new)]
        new_qualities = segment(new, new_masks)
        indices.append(new)
        qualities.append(new_qualities)
        return select_masks(
            new_masks,
            scores[new],
            stride=stride,
            image_size=image_size,
            rules=counted_rules,
            qualities=new_qualities,
        )

    accepted = accept_candidates(scores, count_large, rules)
    rows = torch.cat([torch.zeros(0, dtype=torch.int64), *indices])
    ids, objects = finish_objects(
        masks[: len(rows)],
        scores[rows],
        [names[row] for row in rows.tolist()],
        [class_ids[row] for row in rows.tolist()],
        [accepted.accepted_at[row] for row in rows.tolist()],
        stride=stride,
        image_size=image_size,
        rules=rules,
        qualities=torch.cat([torch.zeros(0), *qualities]),
    )
    return LabelResult({"instance": ids}, objects, {"threshold": accepted.threshold})


@dataclass(frozen=True)
class MaskCandidates:
    """Masks that a model proposes for an image."""

    logits: Float[Tensor, "candidate row column"]
    """Over the image, on the device of the model."""
    scores: Float[Tensor, " candidate"]
    """On the CPU."""
    names: tuple[str, ...]
    class_ids: tuple[int | None, ...]


def join_candidates(groups: Sequence[MaskCandidates]) -> MaskCandidates:
    """Return the candidates of all groups, of which there is at least one."""
    return MaskCandidates(
        torch.cat([group.logits for group in groups]),
        torch.cat([group.scores for group in groups]),
        tuple(name for group in groups for name in group.names),
        tuple(class_id for group in groups for class_id in group.class_ids),
    )


def keep_best(candidates: MaskCandidates, max_masks: int) -> MaskCandidates:
    """Return the candidates with the highest scores in their order; of equal scores, the first."""
    if len(candidates.names) <= max_masks:
        return candidates
    return _select_rows(candidates, candidates.scores.argsort(descending=True, stable=True)[:max_masks].sort().values)


def select_candidates(candidates: MaskCandidates, rules: MaskCandidateRules) -> MaskCandidates:
    """Return the candidates above the lowest threshold that overlap little, the highest score first.

    Masks are compared as the model has them, so the selection does not depend on the stride of the map.
    """
    rows = (candidates.scores >= rules.thresholds[-1]).nonzero().flatten()
    masks = (candidates.logits[rows.to(candidates.logits.device)] > 0).cpu()
    order = suppress_masks(
        masks,
        candidates.scores[rows],
        masks.flatten(1).any(dim=1).nonzero().flatten(),
        max_overlap=rules.mask_overlap,
        max_masks=rules.max_masks,
    )
    return _select_rows(candidates, rows[order])


def label_mask_candidates(
    candidates: MaskCandidates, *, stride: int, image_size: tuple[int, int], rules: MaskCandidateRules
) -> LabelResult:
    """Return the instance map of an image from the masks of a model."""
    weights = [
        compute_cell_weights(num_logits, [(size, size)], stride, device=candidates.logits.device)
        for num_logits, size in zip(candidates.logits.shape[1:], image_size, strict=True)
    ]

    def segment(new: Int64[Tensor, " new"], masks: Bool[Tensor, "new row column"]) -> Float[Tensor, " new"]:
        fill_masks(masks, candidates.logits[new.to(candidates.logits.device)], *weights)
        return torch.ones(len(new))  # since these models predict no IoU

    return label_candidates(
        candidates.scores,
        candidates.names,
        candidates.class_ids,
        segment,
        stride=stride,
        image_size=image_size,
        rules=rules,
    )


def _select_rows(candidates: MaskCandidates, rows: Int64[Tensor, " taken"]) -> MaskCandidates:
    return MaskCandidates(
        candidates.logits[rows.to(candidates.logits.device)],
        candidates.scores[rows],
        tuple(candidates.names[row] for row in rows.tolist()),
        tuple(candidates.class_ids[row] for row in rows.tolist()),
    )
