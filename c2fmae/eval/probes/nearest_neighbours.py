"""Exact k-nearest-neighbour search by cosine similarity, and votes on labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from c2fmae.core.errors import UserError

QUERIES_PER_BLOCK = 1024
"""Number of queries that are compared at once. Split queries between processes by whole blocks."""
_KEYS_PER_BLOCK = 16384  # the buffer of similarities has 64 MiB
_KEYS_PER_GROUP = 64


@dataclass(frozen=True)
class Neighbours:
    """The nearest keys of each query, the nearest first; of equally near keys, the one with the lower index first."""

    similarity: Float32[Tensor, "query k"]
    """Cosine similarities."""
    index: Int64[Tensor, "query k"]


def find_nearest(
    keys: Float[Tensor, "key dim"] | Sequence[Float[Tensor, "_ dim"]], queries: Float[Tensor, "query dim"], k: int
) -> Neighbours:
    """Return the k keys with the highest cosine similarity to each query, by exact search.

    Keys can be given in blocks, such as memory-mapped files. Each block is read once, piece by piece.
    """
    blocks = [keys] if isinstance(keys, Tensor) else keys
    num_keys = sum(map(len, blocks))
    if k not in range(1, num_keys + 1):
        raise UserError(f"k: expected 1 to {num_keys} neighbours, the number of training scenes, got {k}")
    queries = normalise_rows(queries)
    best = queries.new_full((len(queries), k), -torch.inf)
    index = torch.zeros_like(best, dtype=torch.int64)
    buffer = queries.new_empty(min(QUERIES_PER_BLOCK, len(queries)) * _KEYS_PER_BLOCK)
    first = 0
    for piece in (piece for block in blocks for piece in block.split(_KEYS_PER_BLOCK)):
        units = normalise_rows(piece.to(queries.device))
        if num_padding := -len(piece) % _KEYS_PER_GROUP:
            units = F.pad(units, (0, 0, 0, num_padding))  # to whole groups
        for rows in (slice(start, start + QUERIES_PER_BLOCK) for start in range(0, len(queries), QUERIES_PER_BLOCK)):
            block = queries[rows]
            similarity = buffer[: len(block) * len(units)].view(len(block), len(units))
            torch.mm(block, units.T, out=similarity)
            similarity[:, len(piece) :] = -torch.inf
            _merge_nearest(similarity, first, best[rows], index[rows])
        first += len(piece)
    return Neighbours(best, index)


def normalise_rows(rows: Tensor) -> Tensor:
    """Return rows normalised to length 1 in full precision; rows of zeros stay zeros."""
    rows = rows.float()
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not length.isfinite().all():
        raise UserError("features: expected finite numbers, got infinite ones or NaN. Check the backbone's weights")
    return rows / length.clamp(min=1e-12)


def _merge_nearest(similarity: Tensor, first_key: int, best: Tensor, index: Tensor) -> None:
    """Merge keys with indices from `first_key` into the nearest keys found so far, in place.

    Few keys are near enough after the first blocks, so most are rejected by the maximum of their group.
    """
    k = best.shape[1]
    groups = similarity.unflatten(1, (-1, _KEYS_PER_GROUP))
    peaks = groups.amax(dim=2)
    # Ties are won by the lower index, so a new key must be strictly nearer than the k-th so far
    threshold = torch.nextafter(best[:, -1:], best.new_tensor(torch.inf))
    has_candidate = peaks >= threshold
    if has_candidate.sum() > len(peaks) * k and k <= peaks.shape[1]:
        # k groups have a key at least as near as the k-th highest peak, so keys below it are not among the best
        threshold = threshold.maximum(peaks.topk(k, dim=1).values[:, -1:])
        has_candidate = peaks >= threshold
    row, group = has_candidate.nonzero(as_tuple=True)
    members = groups[row, group]
    member, column = (members >= threshold[row]).nonzero(as_tuple=True)
    row, key = row[member], first_key + _KEYS_PER_GROUP * group[member] + column  # by row, then by key
    if len(row) == 0:
        return
    count = row.bincount(minlength=len(peaks))
    slot = k + torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    width = k + int(count.max())
    nearness, keys = best.new_full((len(peaks), width), -torch.inf), index.new_zeros(len(peaks), width)
    nearness[:, :k], keys[:, :k] = best, index
    nearness[row, slot], keys[row, slot] = members[member, column], key
    changed = count.nonzero().squeeze(1)
    order = nearness[changed].sort(dim=1, descending=True, stable=True)
    best[changed] = order.values[:, :k]
    index[changed] = keys[changed].gather(1, order.indices[:, :k])


def vote_labels(
    neighbours: Neighbours,
    labels: Int64[Tensor, " key"],
    ks: Sequence[int],
    *,
    num_labels: int,
    temperature: float | None,
) -> dict[int, Int64[Tensor, " query"]]:
    """Return, for each k, the label with the most votes among each query's k nearest keys.

    A vote has the weight exp(cosine / temperature), or 1 without a temperature. Ties go to the lower label.
    """
    max_k = neighbours.index.shape[1]
    if not ks or min(ks) < 1 or max(ks) > max_k:
        raise UserError(f"k: expected numbers of neighbours from 1 to {max_k}, got {', '.join(map(str, ks))}")
    predicted: dict[int, list[Tensor]] = {k: [] for k in ks}
    blocks = (field.split(QUERIES_PER_BLOCK) for field in (neighbours.similarity, neighbours.index))
    for similarity, keys in zip(*blocks, strict=True):
        # Relative to the nearest key's vote, which a low temperature would let underflow
        weight = torch.ones_like(similarity, dtype=torch.float64)
        if temperature is not None:
            weight = ((similarity.double() - similarity[:, :1]) / temperature).exp()
        ballots = weight.new_zeros(len(similarity), num_labels)
        counted = 0
        for k in sorted(predicted):
            ballots.scatter_add_(1, labels[keys[:, counted:k]], weight[:, counted:k])
            predicted[k].append(ballots.argmax(dim=1))
            counted = k
    return {k: torch.cat(parts) for k, parts in predicted.items()}
