import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.eval.probes import nearest_neighbours as neighbours
from c2fmae.eval.probes.nearest_neighbours import Neighbours, find_nearest, vote_labels
from tests.eval.probes.blobs import make_blobs, unit_vectors

pytestmark = pytest.mark.numeric


def draw_signs(rows: int, *, seed: int, dim: int = 16) -> Tensor:
    """Return rows of ±1 with 16 columns, whose cosines are computed exactly, and many of which are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (rows, dim), generator=generator).float() * 2 - 1


def find_by_sorting(keys: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    cosines = torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(keys).T
    order = cosines.sort(dim=1, descending=True, stable=True)
    return order.values[:, :k], order.indices[:, :k]


def predict_labels(
    keys: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float | None = 0.07, num_labels: int = 4
) -> list[int]:
    return vote_labels(find_nearest(keys, queries, k), labels, [k], num_labels=num_labels, temperature=temperature)[
        k
    ].tolist()


def split_keys(keys: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Split keys into blocks of these sizes and a rest."""
    sizes = [size for i, size in enumerate(sizes) if sum(sizes[: i + 1]) <= len(keys)]
    return list(keys.split([*sizes, len(keys) - sum(sizes)]))


@given(
    st.integers(1, 140),
    st.integers(0, 9),
    st.data(),
    st.lists(st.integers(0, 50), max_size=4),
    st.sampled_from([1, 3, 16, 64]),
    st.sampled_from([1, 7, 64, 1000]),
    st.sampled_from([1, 4, 100]),
)
def test_the_search_equals_sorting_for_any_blocks(
    num_keys: int,
    num_queries: int,
    data: st.DataObject,
    sizes: list[int],
    group_size: int,
    num_groups: int,
    block_size: int,
) -> None:
    k = data.draw(st.integers(1, num_keys))
    keys, queries = draw_signs(num_keys, seed=1), draw_signs(num_queries, seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_KEYS_PER_GROUP", group_size)
        patch.setattr(neighbours, "_KEYS_PER_BLOCK", num_groups * group_size)
        patch.setattr(neighbours, "QUERIES_PER_BLOCK", block_size)
        nearest = find_nearest(split_keys(keys, sizes), queries, k)
    similarity, index = find_by_sorting(keys, queries, k)
    assert torch.equal(nearest.similarity, similarity)
    assert torch.equal(nearest.index, index)


@given(st.permutations(range(40)), st.integers(1, 40))
def test_the_order_of_keys_only_changes_the_choice_among_equally_near_ones(order: list[int], k: int) -> None:
    keys, queries = draw_signs(40, seed=1), draw_signs(9, seed=2)
    before, after = find_nearest(keys, queries, k), find_nearest(keys[order], queries, k)
    assert torch.equal(before.similarity, after.similarity)
    cosines = queries @ keys.T / 16
    is_nearer_than_last = cosines > before.similarity[:, -1:]
    for nearest in (before.index, torch.tensor(order)[after.index]):
        assert torch.equal(cosines.gather(1, nearest), before.similarity)
        is_found = torch.zeros(9, 40, dtype=torch.bool).scatter(1, nearest, True)
        assert (is_found.sum(dim=1) == k).all()
        assert (is_found | ~is_nearer_than_last).all()


def test_the_lowest_indices_of_equal_keys_are_returned() -> None:
    keys = unit_vectors(10).repeat(40_000, 1)  # more than one block
    nearest = find_nearest(keys, unit_vectors(10, 70), 5)
    assert nearest.index.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert nearest.similarity[1].tolist() == pytest.approx([0.5] * 5)


def test_keys_sorted_by_increasing_similarity_are_all_considered() -> None:
    keys = unit_vectors(*torch.linspace(90, 1, 3000).tolist())
    nearest = find_nearest(list(keys.split(100)), unit_vectors(0), 4)
    assert nearest.index.tolist() == [[2999, 2998, 2997, 2996]]


def test_half_precision_keys_are_converted_to_full_precision() -> None:
    keys, queries = make_blobs(300)[0].half(), make_blobs(300)[2]
    assert torch.equal(find_nearest(keys, queries, 7).index, find_nearest(keys.float(), queries, 7).index)


def test_rows_of_zeros_have_a_cosine_of_0() -> None:
    nearest = find_nearest(torch.cat([unit_vectors(180), torch.zeros(1, 2), unit_vectors(80)]), unit_vectors(0), 3)
    assert nearest.index.tolist() == [[2, 1, 0]]
    assert nearest.similarity[0, 1] == 0


def test_neighbours_of_a_block_do_not_depend_on_other_queries() -> None:
    keys, _, queries, _ = make_blobs(2500, dim=40)
    together = find_nearest(keys, queries, 20)
    for start in range(0, 2500, neighbours.QUERIES_PER_BLOCK):
        rows = slice(start, start + neighbours.QUERIES_PER_BLOCK)
        alone = find_nearest(keys, queries[rows], 20)
        assert torch.equal(alone.similarity, together.similarity[rows])
        assert torch.equal(alone.index, together.index[rows])


def test_keys_and_queries_are_not_modified() -> None:
    keys, _, queries, _ = make_blobs(50)
    before = keys.clone(), queries.clone()
    find_nearest(keys, queries, 3)
    assert torch.equal(keys, before[0])
    assert torch.equal(queries, before[1])


def test_votes_depend_on_the_cosine_and_not_on_the_length() -> None:
    train, labels = 7 * unit_vectors(0, 40, 50), torch.tensor([0, 1, 1])
    near = unit_vectors(5)  # cosines 0.996, 0.819 and 0.707
    assert predict_labels(train, labels, near, 1) == [0]
    # At temperature 1, two distant neighbours outvote a near one; at 0.1 they do not
    for temperature in (1.0, 0.1):
        votes = [math.exp(math.cos(math.radians(angle)) / temperature) for angle in (5, 35, 45)]
        expected = int(votes[1] + votes[2] > votes[0])
        assert predict_labels(train, labels, near, 3, temperature) == [expected]
        assert expected == (temperature == 1.0)
    assert predict_labels(train, labels, near, 3, None) == [1]


@pytest.mark.parametrize("temperature", [None, 0.07])
def test_ties_go_to_the_lower_label(temperature: float | None) -> None:
    for labels in ([2, 1], [1, 2]):
        assert predict_labels(unit_vectors(30, -30), torch.tensor(labels), unit_vectors(0), 2, temperature) == [1]


def test_the_nearest_neighbour_decides_at_a_temperature_close_to_0() -> None:
    train, labels = unit_vectors(70, 75, 80), torch.tensor([3, 1, 1])  # each weight alone would underflow
    assert predict_labels(train, labels, unit_vectors(0), 3, 1e-5) == [3]


@pytest.mark.parametrize("temperature", [None, 0.07, 1.0])
def test_votes_equal_those_of_scikit_learn(temperature: float | None) -> None:
    peer = pytest.importorskip("sklearn.neighbors")
    train, labels, test, _ = make_blobs(400, spread=1.5)
    ks = [1, 2, 5, 20, 100, 400]
    ours = vote_labels(find_nearest(train, test, 400), labels, ks, num_labels=4, temperature=temperature)
    weights = "uniform" if temperature is None else lambda distances: np.exp((1 - distances) / temperature)
    for k in ks:
        theirs = peer.KNeighborsClassifier(k, metric="cosine", weights=weights).fit(train.numpy(), labels.numpy())
        assert ours[k].tolist() == theirs.predict(test.numpy()).tolist()


def test_neighbours_and_cosines_equal_those_of_scikit_learn() -> None:
    peer = pytest.importorskip("sklearn.neighbors")
    train, _, test, _ = make_blobs(400, dim=40)
    distances, index = (
        peer.NearestNeighbors(n_neighbors=30, metric="cosine").fit(train.numpy()).kneighbors(test.numpy())
    )
    nearest = find_nearest(train, test, 30)
    assert np.allclose(1 - distances, nearest.similarity.numpy(), atol=1e-6)
    assert (index == nearest.index.numpy()).mean() > 0.99  # rounding swaps some


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.sampled_from([None, 0.07]))
def test_votes_for_several_k_equal_those_for_each_k(ks: list[int], temperature: float | None) -> None:
    train, labels, test, _ = make_blobs(60, spread=2.0)
    nearest = find_nearest(train, test, 60)
    swept = vote_labels(nearest, labels, ks, num_labels=4, temperature=temperature)
    assert list(swept) == list(dict.fromkeys(ks))
    for k in ks:
        alone = vote_labels(find_nearest(train, test, k), labels, [k], num_labels=4, temperature=temperature)[k]
        assert torch.equal(swept[k], alone)


def test_accuracy_on_random_labels_is_at_chance_level() -> None:
    train, labels, test, truth = make_blobs(1000)
    permuted = labels[torch.randperm(1000, generator=torch.Generator().manual_seed(5))]
    nearest = vote_labels(find_nearest(train, test, 20), permuted, [1, 20], num_labels=4, temperature=0.07)
    for votes in nearest.values():
        assert (votes == truth).double().mean().item() == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("k", [0, 5])
def test_invalid_numbers_of_neighbours_are_rejected(k: int) -> None:
    with pytest.raises(UserError) as caught:
        find_nearest(list(unit_vectors(1, 2, 3, 4).split(3)), unit_vectors(1), k)
    expected = f"k: expected 1 to 4 neighbours, the number of training scenes, got {k}"
    assert str(caught.value) == expected


@pytest.mark.parametrize(("ks", "ks_text"), [([], ""), ([0, 2], "0, 2"), ([1, 4], "1, 4")])
def test_votes_of_more_neighbours_than_were_searched_are_rejected(ks: list[int], ks_text: str) -> None:
    nearest = Neighbours(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(UserError) as caught:
        vote_labels(nearest, torch.zeros(3, dtype=torch.long), ks, num_labels=1, temperature=None)
    assert str(caught.value) == f"k: expected numbers of neighbours from 1 to 3, got {ks_text}"


def test_nan_features_are_rejected() -> None:
    with pytest.raises(
        UserError, match="^features: expected finite numbers, got infinite ones or NaN. Check the backbone's weights$"
    ):
        find_nearest(torch.tensor([[1.0, torch.nan]]), unit_vectors(1), 1)
