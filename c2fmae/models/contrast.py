"""Contrastive losses: the cross-entropy of finding a positive among candidates by its cosine.

Features need not have length 1. Losses are returned for each row, so that those of the micro-batches and ranks of a
step can be added up.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from c2fmae.core.precision import without_autocast


class ContrastiveLoss(NamedTuple):
    """The loss of each query, and whether its positive has the largest cosine; in a tie it has not."""

    loss: Float[Tensor, "*query"]
    is_correct: Bool[Tensor, "*query"]


def info_nce(
    queries: Float[Tensor, "query dim"],
    keys: Float[Tensor, "key dim"],
    positive_idx: Int[Tensor, " query"],
    temperature: float,
) -> ContrastiveLoss:
    """Return the loss of queries whose positive is one of the keys, and whose negatives are all other keys.

    >>> queries, keys = torch.eye(2), torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> info_nce(queries, keys, torch.tensor([0, 2]), 0.5).is_correct
    tensor([ True, False])
    """
    return _classify(compute_cosines(queries, keys) / temperature, positive_idx)


def queue_contrast(
    queries: Float[Tensor, "query dim"],
    keys: Float[Tensor, "query dim"],
    queue: Float[Tensor, "length dim"],
    temperature: float,
) -> ContrastiveLoss:
    """Return the loss of queries whose positive is their own key, and whose negatives are the keys in the queue."""
    positive = compute_cosines(queries.unsqueeze(1), keys.unsqueeze(1)).squeeze(1)
    cosines = torch.cat([positive, compute_cosines(queries, queue)], dim=1)
    return _classify(cosines / temperature, torch.zeros_like(cosines[:, 0], dtype=torch.long))


def enqueue(
    queue: Float[Tensor, "length dim"], start: Int[Tensor, ""], keys: Float[Tensor, "key dim"]
) -> tuple[Float[Tensor, "length dim"], Int[Tensor, ""]]:
    """Return a queue in which the keys replace the oldest ones, from `start` on, and where the next ones start."""
    length = len(queue)
    if len(keys) > length:
        raise ValueError(f"queue: expected a length of at least {len(keys)}, the number of keys, got {length}")
    places = (start + torch.arange(len(keys), device=queue.device)) % length
    return queue.index_copy(0, places, F.normalize(keys, dim=1).to(queue.dtype)), (start + len(keys)) % length


def nt_xent(
    features: Float[Tensor, "batch 2 dim"],
    gathered: Float[Tensor, "total 2 dim"],
    image_idx: Int[Tensor, " batch"],
    temperature: float,
) -> ContrastiveLoss:
    """Return the loss of both views of images, whose positive is the other view of the same image (SimCLR).

    Negatives are both views of all other images. `gathered` are the features of the global batch, in which `image_idx`
    are these images. Queries and keys are the same features, so both need their gradient.
    """
    own_idx = (2 * image_idx.unsqueeze(1) + torch.arange(2, device=image_idx.device)).flatten()
    cosines = compute_cosines(features.flatten(0, 1), gathered.flatten(0, 1))
    logits = (cosines / temperature).scatter(1, own_idx.unsqueeze(1), -torch.inf)
    loss, is_correct = _classify(logits, own_idx ^ 1)
    return ContrastiveLoss(loss.unflatten(0, (-1, 2)), is_correct.unflatten(0, (-1, 2)))


def patch_contrast(
    student: Float[Tensor, "batch patch dim"], teacher: Float[Tensor, "batch patch dim"], temperature: float
) -> ContrastiveLoss:
    """Return the loss of patches whose positive is the same patch of the teacher, among the patches of their image."""
    batch, num_patches = student.shape[:2]
    logits = compute_cosines(student, teacher) / temperature
    positive_idx = torch.arange(num_patches, device=student.device).expand(batch, -1)
    return _classify(logits, positive_idx)


def compute_cosines(
    queries: Float[Tensor, "*batch query dim"], keys: Float[Tensor, "*batch key dim"]
) -> Float[Tensor, "*batch query key"]:
    """Return the cosines of all queries with all keys, at least in float32, also under autocast."""
    dtype = torch.promote_types(queries.dtype, torch.float32)
    with without_autocast(queries.device):
        return F.normalize(queries.to(dtype), dim=-1) @ F.normalize(keys.to(dtype), dim=-1).mT


def _classify(logits: Float[Tensor, "*query key"], positive_idx: Int[Tensor, "*query"]) -> ContrastiveLoss:
    """Return the cross-entropy of each row."""
    index = positive_idx.unsqueeze(-1)
    is_correct = (logits >= logits.gather(-1, index)).sum(dim=-1) == 1
    return ContrastiveLoss(-logits.log_softmax(dim=-1).gather(-1, index).squeeze(-1), is_correct)
