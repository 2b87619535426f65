"""Time of k-means on features of patches, beside scikit-learn: `python -m benchmarks.bench_kmeans`.

The mean squared distance shows how good the clusters are; the draws of the two differ.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read on import of torch

from collections.abc import Callable

import torch
from sklearn.cluster import KMeans  # type: ignore[import-untyped]
from torch import Generator, Tensor

from benchmarks.tables import print_costs
from c2fmae.eval.cost.speed_and_memory import time_in_turn
from c2fmae.labelling.kmeans import assign_clusters, fit_kmeans

NUM_POINTS, DIM, NUM_CLUSTERS, ITERATIONS = 50_000, 128, 128, 10


def draw_points() -> Tensor:
    """Return points around 300 centres."""
    generator = Generator().manual_seed(0)
    centres = torch.randn(300, DIM, generator=generator)
    rows = torch.randint(300, (NUM_POINTS,), generator=generator)
    return centres[rows] + 0.7 * torch.randn(NUM_POINTS, DIM, generator=generator)


def main() -> None:
    torch.set_num_threads(1)
    points = draw_points()
    array, found = points.numpy(), dict[str, Tensor]()

    def fit_ours() -> None:
        found["fit_kmeans"] = fit_kmeans(points, NUM_CLUSTERS, Generator().manual_seed(0), max_iterations=ITERATIONS)

    def fit_theirs() -> None:
        model = KMeans(NUM_CLUSTERS, n_init=1, max_iter=ITERATIONS, random_state=0).fit(array)
        found["scikit-learn"] = torch.from_numpy(model.cluster_centers_)

    steps: dict[str, Callable[[], object]] = {"scikit-learn": fit_theirs, "fit_kmeans": fit_ours}
    title = f"{NUM_POINTS:,} points of {DIM} dimensions, {NUM_CLUSTERS} clusters, {ITERATIONS} iterations"
    print_costs(title, time_in_turn(steps, rounds=3), peers=["scikit-learn"], samples=1)
    for name, centroids in found.items():
        error = (points - centroids[assign_clusters(points, centroids)]).square().sum(dim=1).mean()
        print(f"{name}: mean squared distance {float(error):.3f}")


if __name__ == "__main__":
    main()
