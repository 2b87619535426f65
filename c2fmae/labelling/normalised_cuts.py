"""Objects of an image as normalised cuts of a graph of its patches (MaskCut), as pure functions.

Patches with similar features are connected strongly, all others weakly. The second eigenvector of the normalised
affinity D^-½ A D^-½ divides the graph such that few strong connections are cut.

It is found by the Lanczos iteration, here instead of in SciPy: ARPACK restarts from random vectors whose state it keeps
between calls, and it does so for graphs that consist of few blocks, so the same image could get another map.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

WEAK = 1e-5
"""Affinity of patches that are not similar. It is positive, so that every graph is connected."""

_TOLERANCE = 1e-9  # of the residual, by which an eigenvalue may be off at most
_MAX_OVERLAP = 0.5  # IoU with the object before; a higher one means that nothing is left to find
_MIN_CORNERS = 3  # of the image: what contains them is background


@dataclass(frozen=True)
class Cut:
    """The best division of a graph in two."""

    vector: Float64[Tensor, " patch"]
    """One value per patch, low on one side and high on the other."""
    value: float
    """The relaxed normalised cut, from 0 for separate components to 1 for a graph without structure."""


@dataclass(frozen=True)
class PatchObject:
    """An object in units of patches."""

    levels: Float64[Tensor, "rows columns"]
    """Positive in the object. Interpolated, they are 0 at its boundary."""
    value: float
    """That of its cut."""


def find_objects(
    features: Float[Tensor, "dim rows columns"],
    *,
    min_cosine: float = 0.2,
    max_objects: int = 3,
    min_area: float = 0.01,
) -> list[PatchObject]:
    """Return at most `max_objects` objects, each found among the patches that the ones before leave.

    Patches are similar if the cosine of their features, relative to the mean of the image, exceeds `min_cosine`. The
    search ends at an object of less than `min_area` of the patches, or if the object before is found again.
    """
    grid = (features.shape[1], features.shape[2])
    affinity = compute_affinity(features.flatten(1).T, min_cosine=min_cosine)
    objects: list[PatchObject] = []
    last = torch.zeros(grid, dtype=torch.bool)
    while len(objects) < max_objects:
        cut = find_best_cut(affinity)
        if cut.value >= 1 - _TOLERANCE:  # no patches are similar
            break
        levels, piece = find_foreground(cut.vector.cpu().unflatten(0, grid))
        area, shared = int(piece.sum()), int((piece & last).sum())
        if area < min_area * piece.numel() or shared > _MAX_OVERLAP * (area + int(last.sum()) - shared):
            break
        # Reflected at 0, other pieces have a boundary to this one halfway between the patches.
        objects.append(PatchObject(torch.where(piece, levels, -levels.abs()), cut.value))
        last, taken = piece, piece.flatten().to(affinity.device)
        affinity[taken] = WEAK
        affinity[:, taken] = WEAK
    return objects


def compute_affinity(features: Float[Tensor, "patch dim"], *, min_cosine: float) -> Float64[Tensor, "patch patch"]:
    """Return 1 for patches of which the centred features have a higher cosine than `min_cosine`, otherwise `WEAK`."""
    centred = F.normalize(features.float() - features.float().mean(dim=0), dim=1)
    similar = centred @ centred.T > min_cosine
    return torch.full(similar.shape, WEAK, dtype=torch.float64, device=features.device).masked_fill_(similar, 1.0)


def find_best_cut(affinity: Float64[Tensor, "patch patch"]) -> Cut:
    """Return the second eigenvector of the normalised affinity, in terms of patches: D^-½ z, and its cut.

    The cut is that of the exact eigenvector to within 1e-9. Where several vectors have the same cut, any mixture of
    them may be returned, but the same one at every call.
    """
    num_patches, degrees = len(affinity), affinity.sum(dim=1)
    if num_patches < 2:
        raise ValueError(f"affinity: expected at least 2 patches, got {num_patches}")
    scale = degrees.rsqrt()
    # Rows are orthonormal. The first is the first eigenvector, which is known, so the others find the second.
    basis = affinity.new_empty(num_patches, num_patches)  # memory that is not written costs nothing
    basis[0] = F.normalize(degrees.sqrt(), dim=0)
    start = torch.randn(num_patches, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis[1] = F.normalize(_orthogonalise(start.to(affinity.device), basis[:1]), dim=0)
    diagonal, sub_diagonal, size, next_check = list[float](), list[float](), 1, 8
    while True:
        image = scale * torch.mv(affinity, scale * basis[size])
        diagonal.append(float(image @ basis[size]))
        image = _orthogonalise(image, basis[: size + 1])
        residual = float(image.norm())
        # A residual of 0 means that the rows span the eigenvectors of all eigenvalues.
        is_complete = residual <= _TOLERANCE or size == num_patches - 1
        if is_complete or size >= next_check:
            next_check = size + max(size // 5, 2)
            values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(sub_diagonal, 1) + np.diag(sub_diagonal, -1))
            if is_complete or abs(residual * vectors[-1, -1]) <= _TOLERANCE:
                weights = torch.from_numpy(vectors[:, -1].copy()).to(affinity.device)
                return Cut(scale * (weights @ basis[1 : size + 1]), 1 - float(values[-1]))
        sub_diagonal.append(residual)
        size += 1
        basis[size] = image / residual


def find_foreground(
    vector: Float64[Tensor, "rows columns"],
) -> tuple[Float64[Tensor, "rows columns"], Bool[Tensor, "rows columns"]]:
    """Return the values of a cut relative to their mean, positive in the foreground, and the main piece of it.

    The foreground is the side with the largest absolute value, unless this side has three corners of the image. Its
    main piece is the 4-connected one around its highest value. The sign of the vector does not matter.
    """
    levels = vector - vector.mean()
    if levels.flatten()[vector.flatten().abs().argmax()] < 0:
        levels = -levels
    if int((levels[[0, 0, -1, -1], [0, -1, 0, -1]] > 0).sum()) >= _MIN_CORNERS:
        levels = -levels
    row, column = divmod(int(levels.argmax()), levels.shape[1])
    return levels, select_piece(levels > 0, row, column)


def select_piece(mask: Bool[Tensor, "rows columns"], row: int, column: int) -> Bool[Tensor, "rows columns"]:
    """Return the 4-connected piece of a mask that contains a cell; nothing if the mask does not contain it.

    >>> select_piece(torch.tensor([[True, False], [True, True], [False, False]]), 1, 1).long().tolist()
    [[1, 0], [1, 1], [0, 0]]
    """
    inside, piece = mask.numpy(), np.zeros(mask.shape, np.bool_)
    piece[row, column] = inside[row, column]
    while True:
        grown = piece.copy()
        grown[1:] |= piece[:-1]
        grown[:-1] |= piece[1:]
        grown[:, 1:] |= piece[:, :-1]
        grown[:, :-1] |= piece[:, 1:]
        grown &= inside
        if np.array_equal(grown, piece):
            return torch.from_numpy(piece)
        piece = grown


def _orthogonalise(vector: Float64[Tensor, " patch"], basis: Float64[Tensor, "row patch"]) -> Float64[Tensor, " patch"]:
    """Return a vector without its components along the rows of an orthonormal basis."""
    for _ in range(2):  # once leaves rounding errors, which the iteration would amplify
        vector = vector - (basis @ vector) @ basis
    return vector
