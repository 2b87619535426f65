"""k nearest neighbours: what a photo shows is what the photos show whose features point the same way."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from c2fmae.core.errors import UserError


def nearest_labels(
    train: Float[Tensor, "train dim"],
    labels: Int64[Tensor, " train"],
    test: Float[Tensor, "test dim"],
    *,
    k: int = 20,
    temperature: float = 0.07,
    rows_at_once: int = 256,
) -> Int64[Tensor, " test"]:
    """Return for each test row the label that its nearest training rows vote for, each by exp(cosine / temperature).

    Those as near as the k-th vote too, and equal votes go to the lower label: the order of rows does not matter.
    """
    if k not in range(1, len(train) + 1):
        raise UserError(f"k: expected 1 to {len(train)} neighbours, as many as there are training scenes, got {k}")
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    ballots = F.one_hot(labels).to(train.dtype)
    found = []
    for rows in test.split(rows_at_once):
        similarity = rows @ train.T
        kth = similarity.topk(k, dim=1).values[:, -1:]
        votes = ((similarity - 1) / temperature).exp().where(similarity >= kth, 0)
        found.append((votes @ ballots).argmax(dim=1))
    return torch.cat(found)
