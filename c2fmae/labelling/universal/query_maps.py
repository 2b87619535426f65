"""From the masks and classes of queries to the class of each cell, and to the masks of objects.

Masks arrive a few rows of cells at a time, so that all of them are never in memory at once.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64, Integer, UInt8
from torch import Tensor

from c2fmae.core.granularity import IGNORE


@dataclass
class SemanticMap:
    """The class of each cell: the one with the highest sum over queries of class probability × mask probability."""

    class_probabilities: Float[Tensor, "query class"]
    """Without "no object", in the order of the ids."""
    min_confidence: float
    """Cells whose class has a lower sum are not labelled."""
    _ids: list[Tensor] = field(default_factory=list)
    _confidence: list[Tensor] = field(default_factory=list)

    def add_rows(self, masks: Float[Tensor, "query row column"]) -> None:
        """Add the next rows of cells."""
        sums = self.class_probabilities.T @ masks.flatten(1)
        confidence, ids = (each.view(masks.shape[1:]).cpu() for each in sums.max(dim=0))
        self._ids.append(ids.to(torch.uint8).masked_fill_(confidence < self.min_confidence, IGNORE))
        self._confidence.append(confidence)

    def finish(self) -> tuple[UInt8[Tensor, "row column"], float]:
        """Return the map, and the mean confidence of all cells. Sums over 1 count as 1."""
        return torch.cat(self._ids), float(torch.cat(self._confidence).clamp_(max=1).double().mean())


@dataclass(frozen=True)
class QueryObjects:
    """The objects of an image, on the CPU. Masks do not overlap."""

    masks: Bool[Tensor, "object row column"]
    scores: Float[Tensor, " object"]
    labels: Int64[Tensor, " object"]
    """The class of each object, as the model numbers them."""


class ObjectMasks:
    """The masks of things, by the rule of panoptic segmentation.

    Of the queries with a score of at least `min_score`, things and stuff, each cell belongs to the one with the highest
    score × mask probability. A query is an object if it is a thing, and if it has at least `min_visible` of the cells
    at which its mask has a probability of `mask_threshold`. Its mask are those of its cells with this probability.
    """

    def __init__(
        self,
        class_probabilities: Float[Tensor, "query label"],
        is_thing: Bool[Tensor, " _"],
        *,
        min_score: float,
        mask_threshold: float,
        min_visible: float,
    ) -> None:
        """Take the probabilities of all classes and, last, of "no object"."""
        scores, labels = class_probabilities.max(dim=1)
        self._queries = ((labels < len(is_thing)) & (scores >= min_score)).nonzero().flatten()
        self._scores, self._labels = scores[self._queries], labels[self._queries]
        self._is_thing = is_thing.to(labels.device)[self._labels].cpu()
        self._mask_threshold, self._min_visible = mask_threshold, min_visible
        self._areas = torch.zeros(len(self._queries), dtype=torch.int64)
        self._won_areas = torch.zeros_like(self._areas)
        self._owners: list[Integer[Tensor, "row column"]] = []

    def add_rows(self, masks: Float[Tensor, "query row column"]) -> None:
        """Add the next rows of cells."""
        if len(self._queries) == 0:
            self._owners.append(torch.full(masks.shape[1:], -1, dtype=torch.int16))
            return
        masks = masks[self._queries]
        is_inside = masks >= self._mask_threshold
        owners = masks.mul_(self._scores[:, None, None]).argmax(dim=0)
        self._areas += is_inside.sum(dim=(1, 2)).cpu()
        self._won_areas += owners.flatten().bincount(minlength=len(self._queries)).cpu()
        owners = owners.masked_fill(~is_inside.gather(0, owners[None])[0], -1)
        self._owners.append(owners.to(torch.int16).cpu())

    def finish(self) -> QueryObjects:
        """Return the objects in the order of the queries."""
        owners = torch.cat(self._owners)
        is_object = self._is_thing & (self._areas > 0) & (self._won_areas >= self._min_visible * self._areas)
        has_cells = torch.zeros(len(self._queries) + 1, dtype=torch.bool)
        has_cells[owners.flatten().long() + 1] = True
        chosen = (is_object & has_cells[1:]).nonzero().flatten()
        return QueryObjects(
            owners == chosen.to(torch.int16)[:, None, None], self._scores.cpu()[chosen], self._labels.cpu()[chosen]
        )
