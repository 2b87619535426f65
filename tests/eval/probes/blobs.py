"""Random features, labels and semantic maps for tests of probes."""

import torch
from torch import Tensor


def make_blobs(
    rows: int, *, spread: float = 1.0, labels: int = 4, dim: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training rows with labels, then as many test rows, normally distributed about the same centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(labels, dim, generator=generator)
    truth = torch.randint(labels, (2 * rows,), generator=generator)
    points = centres[truth] + spread * torch.randn(2 * rows, dim, generator=generator)
    return points[:rows], truth[:rows], points[rows:], truth[rows:]


def unit_vectors(*degrees: float) -> Tensor:
    """Return unit vectors of the plane."""
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def accuracy(predicted: Tensor, truth: Tensor) -> float:
    """Return the fraction of equal rows."""
    return (predicted == truth).double().mean().item()


def draw_maps(images: int, num_classes: int, *, seed: int, side: int = 8) -> tuple[Tensor, Tensor]:
    """Return predicted and true semantic maps, of which 60 % agree; a tenth of the truth is to be ignored."""
    generator = torch.Generator().manual_seed(seed)
    size = (images, side, side)
    truth = torch.randint(num_classes, size, generator=generator)
    other = torch.randint(num_classes, size, generator=generator)
    predicted = torch.where(torch.rand(size, generator=generator) < 0.6, truth, other)
    return predicted, torch.where(torch.rand(size, generator=generator) < 0.1, 255, truth).to(torch.uint8)
