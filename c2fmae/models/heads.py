"""Heads of the two-branch methods: projectors, predictors and prototypes."""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.distributed import sum_over_ranks


class BatchStatisticsNorm(nn.Module):
    """A batch norm that uses the statistics of the batch, in training and evaluation alike, and has no running ones.

    All axes but the last are normalised over. In training the statistics are those of all ranks. So a teacher's heads
    must be in training mode in a step, where all ranks compute them. In evaluation each process uses its own batch.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, is_affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if is_affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if is_affine else None

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the normed features, at least in float32."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        count = x.new_full((1,), x[..., 0].numel())
        totals = self._sum_over_batch(torch.cat([x.flatten(0, -2).sum(dim=0), count]))
        count = totals[-1]
        centred = x - totals[:-1] / count
        variance = self._sum_over_batch(centred.flatten(0, -2).square().sum(dim=0)) / count
        normed = centred * (variance + self.eps).rsqrt()
        return normed if self.weight is None or self.bias is None else torch.addcmul(self.bias, normed, self.weight)

    def _sum_over_batch(self, totals: Tensor) -> Tensor:
        return sum_over_ranks(totals) if self.training else totals


class GroupStatisticsNorm(nn.Module):
    """A batch norm of groups of consecutive images, whose statistics are over the images of a group and their tokens.

    Where each process holds whole groups, the results depend neither on the number of processes nor on micro-batches.
    A last group may be smaller. There are no running statistics.
    """

    def __init__(self, dim: int, group: int, *, eps: float = 1e-5, is_affine: bool = True) -> None:
        super().__init__()
        self.group = group
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if is_affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if is_affine else None

    def forward(self, x: Float[Tensor, "batch *token dim"]) -> Float[Tensor, "batch *token dim"]:
        """Return the normed features, at least in float32."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return torch.cat([self._normalise(images) for images in x.split(self.group)])

    def _normalise(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        normed = F.batch_norm(rows, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return normed.view(x.shape)


HeadNorm = Literal["batch", "layer", "none"]


class MLPHead(nn.Sequential):
    """Linear layers with a norm and ReLU between them, and a norm at the end unless `last_norm` is `none`.

    `plain` is a norm without weight and bias. `bias` is that of all linear layers; before a norm it has no effect. With
    a `group`, the statistics of batch norms are those of this number of consecutive images instead of the whole batch.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        out: int,
        *,
        depth: int,
        norm: HeadNorm = "batch",
        last_norm: Literal["none", "plain", "affine"] = "none",
        bias: bool = False,
        group: int | None = None,
    ) -> None:
        if norm == "none" and last_norm != "none":
            raise ValueError(f"last_norm: expected 'none', as norm is 'none', got {last_norm!r}")
        dims = [dim, *[hidden] * (depth - 1), out]
        layers: list[nn.Module] = []
        for index in range(depth):
            is_last = index == depth - 1
            layers.append(nn.Linear(dims[index], dims[index + 1], bias=bias))
            if not is_last or last_norm != "none":
                is_affine = not is_last or last_norm == "affine"
                layers += _create_norm(norm, dims[index + 1], group, is_affine=is_affine)
            if not is_last:
                layers.append(nn.ReLU())
        super().__init__(*layers)


class Prototypes(nn.Linear):
    """A linear layer to cosines with prototypes, if its input has length 1: its rows are divided by their length."""

    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__(dim, prototypes, bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch prototype"]:
        """Return the products of the input with the directions of the prototypes."""
        return F.linear(x, F.normalize(self.weight, dim=1))


class PrototypeHead(nn.Module):
    """The head of DINO and iBOT: an MLP with GELU to a bottleneck, and the cosines of its output with prototypes."""

    def __init__(self, dim: int, *, hidden: int, bottleneck: int, prototypes: int, depth: int = 3) -> None:
        super().__init__()
        dims = [dim, *[hidden] * (depth - 1), bottleneck]
        layers = [module for pair in pairwise(dims) for module in (nn.Linear(*pair), nn.GELU())]
        self.mlp = nn.Sequential(*layers[:-1])
        self.prototypes = Prototypes(bottleneck, prototypes)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch prototype"]:
        """Return the logits of each prototype."""
        return self.prototypes(F.normalize(self.mlp(x), dim=-1))  # type: ignore[no-any-return]


def _create_norm(kind: HeadNorm, dim: int, group: int | None, *, is_affine: bool) -> list[nn.Module]:
    if kind == "batch" and group is not None:
        return [GroupStatisticsNorm(dim, group, is_affine=is_affine)]
    if kind == "batch":
        return [BatchStatisticsNorm(dim, is_affine=is_affine)]
    return [nn.LayerNorm(dim, elementwise_affine=is_affine)] if kind == "layer" else []
