"""The adaptive score threshold: high for images with clearly visible objects, lower for images without."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, field_validator
from torch import Tensor

from c2fmae.core.config import Config, PositiveInt, UnitInterval
from c2fmae.core.errors import UserError


class ThresholdRules(Config):
    """Which score thresholds are tried, and when one is low enough."""

    thresholds: Annotated[tuple[UnitInterval, ...], Field(min_length=1)] = (0.5, 0.4, 0.3, 0.2)
    """From high to low. With one, it is a plain threshold."""
    enough: PositiveInt = 1
    """A threshold is low enough for an image in which this many objects satisfy the rules and are large enough."""
    enough_area: UnitInterval = 0.005
    """Fraction of the image from which an object is large enough to be counted."""

    @field_validator("thresholds")
    @classmethod
    def _check_order(cls, thresholds: tuple[float, ...]) -> tuple[float, ...]:
        if list(thresholds) != sorted(set(thresholds), reverse=True):
            raise UserError(f"expected decreasing thresholds, got {list(thresholds)}. Sort them from high to low")
        return thresholds


@dataclass(frozen=True)
class AcceptedCandidates:
    """The candidates of an image that a threshold accepted."""

    threshold: float
    """The last threshold that was tried."""
    accepted_at: tuple[float | None, ...]
    """The threshold that accepted each candidate; None for those below all that were tried."""


def accept_candidates(
    scores: Float[Tensor, " candidate"],
    segment: Callable[[Int64[Tensor, " new"]], Bool[Tensor, " new"]],
    rules: ThresholdRules,
) -> AcceptedCandidates:
    """Lower the threshold until enough objects are found.

    `segment` is called with the candidates that a threshold adds, each at most once and never with none, and returns
    which of them satisfy the rules and are large enough to be counted.
    """
    accepted_at: list[float | None] = [None] * len(scores)
    num_large, threshold = 0, rules.thresholds[0]
    is_accepted = torch.zeros(len(scores), dtype=torch.bool)
    for threshold in rules.thresholds:
        new = ((scores.cpu() >= threshold) & ~is_accepted).nonzero().flatten()
        if len(new):
            is_accepted[new] = True
            num_large += int(segment(new).sum())
            for index in new.tolist():
                accepted_at[index] = threshold
        if num_large >= rules.enough:
            break
    return AcceptedCandidates(threshold, tuple(accepted_at))
