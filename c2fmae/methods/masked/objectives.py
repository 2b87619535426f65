"""What the heads of a method are trained to predict, and the counts that their losses are divided by."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from c2fmae.core.granularity import GRANULARITIES, IGNORE
from c2fmae.core.masks import Masks
from c2fmae.core.specs import LossAveraging
from c2fmae.models.losses import count_hidden
from c2fmae.models.patches import patchify
from c2fmae.models.targets import PredictionTarget

InputMaps = Mapping[str, Shaped[Tensor, "batch *map"]]


@dataclass(frozen=True)
class Objective:
    """The target that one head is trained to predict, and the weight of its loss."""

    granularity: str
    target: PredictionTarget
    weight: float = 1.0


def pair_with_masks(
    objectives: Mapping[str, Objective], masks: Masks
) -> list[tuple[str, Objective, Bool[Tensor, "batch patch"]]]:
    """Return the name of each objective, the objective, and the hidden patches of its granularity."""
    return [
        (name, objective, masks.is_masked[:, masks.granularities.index(objective.granularity)])
        for name, objective in objectives.items()
    ]


def count_losses(
    objectives: Mapping[str, Objective], maps: InputMaps, masks: Masks, average: LossAveraging
) -> dict[str, Int[Tensor, ""]]:
    """Return the count that each loss is divided by; the counts of ranks and micro-batches add up."""
    return {
        name: count_hidden(objective.target.count_valid(maps[objective.granularity]), is_masked, average)
        for name, objective, is_masked in pair_with_masks(objectives, masks)
    }


def count_hidden_cells(maps: InputMaps, masks: Masks) -> dict[str, Int[Tensor, ""]]:
    """Return the numbers of hidden cells and of labelled hidden cells of each id map."""
    counts = {}
    for index, name in enumerate(masks.granularities):
        if GRANULARITIES.get(name).kind == "ids":
            is_masked, ids = masks.is_masked[:, index], maps[name]
            cells = ids[0].numel() // is_masked.shape[1]
            labelled = patchify(ids.unsqueeze(1), math.isqrt(cells)) != IGNORE
            counts[f"hidden/{name}"] = is_masked.sum() * cells
            counts[f"valid/{name}"] = (labelled.sum(dim=2) * is_masked).sum()
    return counts
