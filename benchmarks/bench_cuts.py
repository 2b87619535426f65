"""Time of one normalised cut of a graph of patches: `python -m benchmarks.bench_cuts`.

Compared with SciPy's dense generalised eigensolver, as MaskCut is published, and with its Lanczos iteration (ARPACK).
The last column of the values is the relaxed cut, which all solvers should agree on.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read on import of torch

from collections.abc import Callable

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tables import print_costs
from c2fmae.eval.cost.speed_and_memory import time_in_turn
from c2fmae.labelling.normalised_cuts import compute_affinity, find_best_cut, find_objects


def draw_features(side: int) -> Tensor:
    """Return features of `side` × `side` patches that vary smoothly, with noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 64, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)[0]
    return smooth + 0.3 * torch.randn(64, side, side, generator=generator)


def cut_densely(affinity: np.ndarray) -> float:
    degrees = np.diag(affinity.sum(axis=1))
    return float(scipy.linalg.eigh(degrees - affinity, degrees, subset_by_index=[1, 1])[0][0])


def cut_with_arpack(affinity: np.ndarray) -> float:
    scale = affinity.sum(axis=1) ** -0.5
    start = np.ones(len(affinity))
    values = scipy.sparse.linalg.eigsh(scale[:, None] * affinity * scale, k=2, which="LA", v0=start)[0]
    return 1 - float(values.min())


def time_cuts(side: int, rounds: int) -> None:
    features = draw_features(side)
    affinity = compute_affinity(features.flatten(1).T, min_cosine=0.2)
    array = affinity.numpy()
    steps: dict[str, Callable[[], object]] = {
        "dense generalised eigh": lambda: cut_densely(array),
        "ARPACK": lambda: cut_with_arpack(array),
        "find_best_cut": lambda: find_best_cut(affinity),
        "find_objects, up to 3 cuts": lambda: find_objects(features),
    }
    density = float((affinity == 1).double().mean())
    title = f"{side**2:,} patches, of which {density:.0%} of the pairs are similar"
    print_costs(title, time_in_turn(steps, rounds=rounds), peers=["dense generalised eigh", "ARPACK"], samples=1)
    cuts = {"dense": cut_densely(array), "ARPACK": cut_with_arpack(array), "ours": find_best_cut(affinity).value}
    print(f"cuts: {', '.join(f'{name} {value:.12f}' for name, value in cuts.items())}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    time_cuts(28, rounds=9)
    time_cuts(60, rounds=2)
