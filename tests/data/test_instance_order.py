import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from c2fmae.core.granularity import InstanceOverflow
from c2fmae.data.instance_order import renumber_instances

pytestmark = pytest.mark.numeric

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
bytes_maps = arrays(np.uint8, shapes, elements=st.sampled_from([0, 1, 2, 7, 100, 254, 255]))
wide_maps = arrays(np.int32, shapes, elements=st.sampled_from([0, 1, 2, 255, 256, 300, 65535]))
maps = st.one_of(bytes_maps, wide_maps)


def naive(ids: np.ndarray, max_ids: int, overflow: str) -> np.ndarray:
    cells = [int(v) for v in ids.ravel()]
    objects = sorted({v for v in cells if v not in (0, 255)}, key=lambda v: (-cells.count(v), cells.index(v)))
    rest = 255 if overflow == "ignore" else 0
    new = {v: rank if rank < max_ids else rest for rank, v in enumerate(objects, start=1)} | {0: 0, 255: 255}
    return np.array([new[v] for v in cells], np.uint8).reshape(ids.shape)


@given(maps, st.integers(1, 5), st.sampled_from(["ignore", "background"]))
def test_objects_are_numbered_like_by_a_loop(ids: np.ndarray, max_ids: int, overflow: InstanceOverflow) -> None:
    renumbered = renumber_instances(torch.from_numpy(ids), max_ids, overflow)
    assert renumbered.dtype == torch.uint8
    assert renumbered.tolist() == naive(ids, max_ids, overflow).tolist()


@given(bytes_maps, st.permutations(range(1, 255)))
def test_new_ids_do_not_depend_on_the_old_ones(ids: np.ndarray, order: list[int]) -> None:
    table = np.array([0, *order, 255], np.uint8)
    assert torch.equal(
        renumber_instances(torch.from_numpy(ids), 32), renumber_instances(torch.from_numpy(table[ids]), 32)
    )


@given(maps)
def test_renumbering_is_idempotent(ids: np.ndarray) -> None:
    once = renumber_instances(torch.from_numpy(ids), 4)
    assert torch.equal(renumber_instances(once, 4), once)


@pytest.mark.parametrize("count", [254, 255, 300])
def test_up_to_254_objects_have_distinct_ids(count: int) -> None:
    ids = torch.arange(1, count + 1, dtype=torch.int32)
    ids[254:] += 1  # 255 is not an object
    renumbered = renumber_instances(ids.view(1, -1), 255)
    assert renumbered[0, :254].tolist() == list(range(1, 255))
    assert (renumbered[0, 254:] == 255).all()
    assert (renumber_instances(ids.view(1, -1), 255, "background")[0, 254:] == 0).all()
