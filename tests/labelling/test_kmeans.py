"""k-means: laws of the clusters, and against a plain loop."""

from itertools import pairwise

import pytest
import torch
from torch import Generator, Tensor

from c2fmae.labelling.kmeans import assign_clusters, draw_centroids, fit_kmeans, score_clusters


def draw_blobs(num_points: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return points around three far centres, and the number of the centre: half, a third and a sixth of them."""
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    labels = torch.tensor([0, 1, 0, 2, 0, 1] * (num_points // 6))
    return centres[labels] + torch.randn(num_points, 2, generator=Generator().manual_seed(seed)), labels


def test_separate_groups_are_found_the_largest_first() -> None:
    points, labels = draw_blobs()
    centroids = fit_kmeans(points, 3, Generator().manual_seed(0), max_iterations=20)
    assert assign_clusters(points, centroids).equal(labels)
    for label in range(3):
        torch.testing.assert_close(centroids[label], points[labels == label].mean(dim=0))
    assert fit_kmeans(points, 3, Generator().manual_seed(0), max_iterations=20).equal(centroids)


def test_no_iteration_increases_the_distances() -> None:
    points = torch.randn(80, 4, generator=Generator().manual_seed(1))
    errors = []
    for count in range(1, 8):
        centroids = fit_kmeans(points, 6, Generator().manual_seed(0), max_iterations=count)
        errors.append(float((points - centroids[assign_clusters(points, centroids)]).square().sum()))
    assert all(after <= before + 1e-4 for before, after in pairwise(errors))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("seed", range(5))
def test_the_nearest_centroid_has_the_highest_score(seed: int) -> None:
    generator = Generator().manual_seed(seed)
    points, centroids = (torch.randn(n, 3, generator=generator) for n in (20, 5))
    distances = [[float((point - centroid).square().sum()) for centroid in centroids] for point in points]
    expected = [row.index(min(row)) for row in distances]
    assert assign_clusters(points, centroids).tolist() == expected
    halfway = score_clusters((points[:1] + points[1:2]) / 2, centroids)
    torch.testing.assert_close(halfway, score_clusters(points[:2], centroids).mean(dim=0, keepdim=True))


def test_points_that_are_drawn_already_are_not_drawn_again() -> None:
    points = torch.tensor([[0.0], [0.0], [1.0], [1.0], [5.0]]).repeat(20, 1)
    drawn = draw_centroids(points, 3, Generator().manual_seed(0))
    assert sorted(drawn[:, 0].tolist()) == [0, 1, 5]
    assert draw_centroids(points, 4, Generator().manual_seed(0)).shape == (4, 1)  # more than there are points


def test_far_points_are_drawn_in_proportion_to_their_squared_distance() -> None:
    points = torch.tensor([[0.0]] * 98 + [[1.0], [3.0]])  # from 0, the squared distances are 1 and 9
    far = [float(draw_centroids(points, 2, Generator().manual_seed(seed))[1, 0]) for seed in range(300)]
    assert 0.84 < far.count(3.0) / (far.count(1.0) + far.count(3.0)) < 0.96
