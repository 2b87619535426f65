"""k-means: k-means++ and the iteration of Lloyd, as pure functions of tensors on the CPU."""

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Generator, Tensor

_ROWS_AT_ONCE = 1 << 16


def fit_kmeans(
    points: Float32[Tensor, "point dim"], num_clusters: int, generator: Generator, *, max_iterations: int
) -> Float32[Tensor, "cluster dim"]:
    """Return the centroids of clusters, the largest first.

    The iteration ends when no point changes its cluster, or after `max_iterations`. A cluster that loses all of its
    points keeps its centroid. The result is the same for the same generator, number of threads and kind of CPU.
    """
    centroids = draw_centroids(points, num_clusters, generator)
    clusters = assign_clusters(points, centroids)
    for _ in range(max_iterations):
        counts = torch.bincount(clusters, minlength=num_clusters)
        sums = _sum_by_cluster(points, clusters, num_clusters)
        means = (sums / counts.clamp(min=1)[:, None]).float()
        centroids = torch.where(counts[:, None] > 0, means, centroids)
        previous, clusters = clusters, assign_clusters(points, centroids)
        if clusters.equal(previous):
            break
    counts = torch.bincount(clusters, minlength=num_clusters)
    return centroids[counts.argsort(descending=True, stable=True)]


def draw_centroids(
    points: Float32[Tensor, "point dim"], num_clusters: int, generator: Generator
) -> Float32[Tensor, "cluster dim"]:
    """Return points drawn by k-means++: each with a probability proportional to its squared distance to the others."""
    drawn = [int(torch.randint(len(points), (1,), generator=generator))]
    distances = _squared_distances(points, points[drawn[0]])
    while len(drawn) < num_clusters:
        cumulative = distances.cumsum(dim=0)
        threshold = torch.rand(1, dtype=torch.float64, generator=generator) * cumulative[-1]
        # The first point whose sum exceeds the threshold has a positive distance, unless all are 0.
        index = int(torch.searchsorted(cumulative, threshold, right=True).clamp(max=len(points) - 1))
        drawn.append(index)
        distances = torch.minimum(distances, _squared_distances(points, points[index]))
    return points[drawn]


def assign_clusters(
    points: Float32[Tensor, "point dim"], centroids: Float32[Tensor, "cluster dim"]
) -> Int64[Tensor, " point"]:
    """Return the cluster whose centroid is nearest to each point; of equal ones, the first."""
    return torch.cat([score_clusters(rows, centroids).argmax(dim=1) for rows in points.split(_ROWS_AT_ONCE)])


def score_clusters(
    points: Float[Tensor, "point dim"], centroids: Float[Tensor, "cluster dim"]
) -> Float[Tensor, "point cluster"]:
    """Return a score that is highest for the nearest centroid: half of |x|² - |x - c|².

    It is an affine function of the point, so the score of an interpolated point is the interpolated score.
    """
    return points @ centroids.T - centroids.square().sum(dim=1) / 2


def _squared_distances(
    points: Float32[Tensor, "point dim"], point: Float32[Tensor, " dim"]
) -> Float64[Tensor, " point"]:
    exact = "donot_use_mm_for_euclid_dist"  # with a product of matrices, equal points would have a distance
    return torch.cdist(points, point[None], compute_mode=exact)[:, 0].double().square()


def _sum_by_cluster(
    points: Float32[Tensor, "point dim"], clusters: Int64[Tensor, " point"], num_clusters: int
) -> Float64[Tensor, "cluster dim"]:
    sums = torch.zeros(num_clusters, points.shape[1], dtype=torch.float64)
    for rows, indices in zip(points.split(_ROWS_AT_ONCE), clusters.split(_ROWS_AT_ONCE), strict=True):
        sums.index_add_(0, indices, rows.double())
    return sums
