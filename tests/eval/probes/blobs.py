"""Points about centres: what probes are tried on."""

import torch
from torch import Tensor


def make_blobs(
    rows: int, *, spread: float = 1.0, labels: int = 4, dim: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training rows with labels, then as many test rows: clouds about the same centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(labels, dim, generator=generator)
    truth = torch.randint(labels, (2 * rows,), generator=generator)
    points = centres[truth] + spread * torch.randn(2 * rows, dim, generator=generator)
    return points[:rows], truth[:rows], points[rows:], truth[rows:]


def unit_vectors(*degrees: float) -> Tensor:
    """Unit vectors of the plane."""
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def accuracy(predicted: Tensor, truth: Tensor) -> float:
    """Return the fraction of equal rows."""
    return (predicted == truth).double().mean().item()
