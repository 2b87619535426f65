"""What the heads of a method are trained to predict, and the counts that their losses are divided by."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.masks import Masks
from c2fmae.core.specs import LossAveraging
from c2fmae.models.losses import count_hidden
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
    """Return the name of each objective, the objective, and the patches of its granularity that have a loss."""
    is_predicted = masks.is_predicted
    return [
        (name, objective, is_predicted[:, masks.granularities.index(objective.granularity)])
        for name, objective in objectives.items()
    ]


def count_hidden_values(
    objectives: Mapping[str, Objective], maps: InputMaps, masks: Masks, average: LossAveraging
) -> dict[str, Int[Tensor, ""]]:
    """Return the count that each loss is divided by, and the numbers of hidden and of labelled cells of id maps.

    The counts of ranks and micro-batches add up.
    """
    loss_counts, cell_counts = {}, {}
    for name, objective, is_masked in pair_with_masks(objectives, masks):
        granularity, values = objective.granularity, maps[objective.granularity]
        valid = objective.target.count_valid(values)
        loss_counts[name] = count_hidden(valid, is_masked, average)
        if GRANULARITIES.get(granularity).kind == "ids":
            cell_counts[f"hidden/{granularity}"] = is_masked.sum() * (values[0].numel() // is_masked.shape[1])
            cell_counts[f"valid/{granularity}"] = (valid * is_masked).sum()
    return loss_counts | cell_counts
