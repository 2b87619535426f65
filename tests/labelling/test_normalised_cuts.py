"""Normalised cuts: the Lanczos iteration against a dense solver, and the pieces of hand-made features."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.labelling.normalised_cuts import (
    WEAK,
    compute_affinity,
    find_best_cut,
    find_foreground,
    find_objects,
    select_piece,
)


def draw_affinity(num_patches: int, density: float, num_blocks: int, seed: int) -> Tensor:
    """Return a random graph of blocks that are connected weakly."""
    generator = torch.Generator().manual_seed(seed)
    similar = torch.rand(num_patches, num_patches, generator=generator) < density
    blocks = torch.randint(num_blocks, (num_patches,), generator=generator)
    similar &= blocks[:, None] == blocks
    similar = (similar | similar.T).fill_diagonal_(True)
    return torch.where(similar, 1.0, WEAK).double()


def compute_dense_cut(affinity: Tensor) -> float:
    """Return the relaxed normalised cut by a dense solver."""
    scale = affinity.sum(dim=1).rsqrt()
    return 1 - float(torch.linalg.eigvalsh(scale[:, None] * affinity * scale)[-2])


def compute_cut(affinity: Tensor, vector: Tensor) -> float:
    """Return the Rayleigh quotient y(D - A)y / yDy."""
    degrees = affinity.sum(dim=1)
    return float((degrees * vector**2).sum() - vector @ affinity @ vector) / float((degrees * vector**2).sum())


def test_the_cut_is_that_of_a_dense_solver_on_random_graphs() -> None:
    for seed in range(100):
        num_patches = (2, 3, 10, 60)[seed % 4]
        affinity = draw_affinity(num_patches, (0.02, 0.1, 0.5, 1.0)[seed // 4 % 4], 1 + seed % 5, seed)
        cut = find_best_cut(affinity)
        expected = compute_dense_cut(affinity)
        assert abs(cut.value - expected) < 1e-9
        assert abs(compute_cut(affinity, cut.vector) - expected) < 1e-9
        assert abs(float(affinity.sum(dim=1) @ cut.vector)) < 1e-6 * float(cut.vector.norm())  # not the first one


@pytest.mark.parametrize("num_blocks", [2, 3, 5])
def test_separate_components_are_separated(num_blocks: int) -> None:
    similar = torch.block_diag(*[torch.ones(8, 8)] * num_blocks)
    affinity = torch.where(similar > 0, 1.0, WEAK).double()
    cut = find_best_cut(affinity)
    assert cut.value < 1e-3
    blocks = cut.vector.view(num_blocks, 8)
    assert float((blocks - blocks[:, :1]).abs().max()) < 1e-6 * float(blocks.abs().max())
    assert torch.equal(find_best_cut(affinity).vector, cut.vector)  # although any mixture of such cuts is as good


def test_a_graph_without_structure_has_no_cut() -> None:
    assert find_best_cut(torch.full((9, 9), WEAK, dtype=torch.float64)).value == pytest.approx(1)
    with pytest.raises(ValueError, match="expected at least 2 patches, got 1"):
        find_best_cut(torch.ones(1, 1, dtype=torch.float64))


def test_affinities_are_those_of_centred_cosines() -> None:
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) + 4
    affinity, centred = compute_affinity(features, min_cosine=0.2), features - features.mean(dim=0)
    for row, one in enumerate(centred):
        for column, other in enumerate(centred):
            cosine = float(one @ other / one.norm() / other.norm())
            assert float(affinity[row, column]) == (1.0 if cosine > 0.2 else WEAK)


def draw_features(*boxes: tuple[int, int, int, int]) -> Tensor:
    """Return features of 12 × 12 patches: an own direction for each box (y0, x0, y1, x1), and for the background."""
    features = torch.zeros(len(boxes) + 1, 12, 12)
    features[0] = 1
    for index, (y0, x0, y1, x1) in enumerate(boxes, start=1):
        features[:, y0:y1, x0:x1] = 0
        features[index, y0:y1, x0:x1] = 1
    return features


def test_objects_are_found_one_after_another() -> None:
    boxes = (1, 1, 6, 6), (7, 6, 11, 11)
    objects = find_objects(draw_features(*boxes))
    assert len(objects) >= 2
    found = [(each.levels > 0).nonzero() for each in objects[:2]]
    found_boxes = sorted(
        (*cells.min(dim=0).values.tolist(), *(cells.max(dim=0).values + 1).tolist()) for cells in found
    )
    assert found_boxes == sorted(boxes)
    assert len(find_objects(draw_features(*boxes), max_objects=1)) == 1
    assert len(find_objects(draw_features((3, 3, 9, 9)))) == 1  # not found again
    assert find_objects(draw_features((3, 3, 4, 4)), min_area=0.02) == []  # one patch of 144
    assert find_objects(torch.ones(4, 12, 12)) == []


def test_the_foreground_does_not_have_three_corners() -> None:
    for inside, outside in ((-1.0, 2.0), (2.0, -1.0), (1.0, -2.0)):
        vector = torch.full((6, 6), outside, dtype=torch.float64)
        vector[2:4, 2:4] = inside
        levels, piece = find_foreground(vector)
        assert piece.nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
        assert abs(float(levels.mean())) < 1e-12
        assert (levels > 0).equal(piece)


def test_the_foreground_has_the_largest_absolute_value() -> None:
    vector = torch.tensor([[-3.0, -3.0, 1.0, 1.0, 1.0, 1.0, 1.0]] * 4, dtype=torch.float64)
    for sign in (1, -1):
        assert find_foreground(sign * vector)[1].equal(vector < 0)


@settings(max_examples=30)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=5, max_size=5), st.integers(0, 19))
def test_pieces_are_those_of_a_search(rows: list[list[bool]], cell: int) -> None:
    mask, (row, column) = torch.tensor(rows), divmod(cell, 4)
    expected, queue = torch.zeros_like(mask), [(row, column)]
    while queue:
        y, x = queue.pop()
        if 0 <= y < 5 and 0 <= x < 4 and mask[y, x] and not expected[y, x]:
            expected[y, x] = True
            queue += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    assert select_piece(mask, row, column).equal(expected)
