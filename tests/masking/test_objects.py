import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.masking import mask_scenes, select_instances
from c2fmae.masking.policies import InstancePolicy, ProgressivePolicy

pytestmark = pytest.mark.numeric

INSTANCES = torch.tensor(
    [
        [1, 1, 0, 0, 0, 4],
        [1, 1, 0, 3, 0, 0],
        [0, 0, 3, 3, 0, 0],
        [255, 0, 0, 0, 0, 2],
    ]
)


def selected_ids(max_objects: int) -> list[int]:
    selected = select_instances(INSTANCES.flatten()[None], max_objects, grid=(4, 6))
    return sorted(set(selected.unique().tolist()) - {0, 255})


def test_a_central_object_is_selected_before_a_slightly_larger_one_in_a_corner() -> None:
    assert [selected_ids(n) for n in range(6)] == [[], [3], [1, 3], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4]]


def test_a_much_larger_object_is_selected_first_at_any_position() -> None:
    column = torch.tensor([[1, 0, 0, 0], [1, 0, 2, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    assert torch.equal(select_instances(column.flatten()[None], 1).view(4, 4), column.where(column == 1, 0))


def test_unselected_objects_become_background_and_ignore_is_unchanged() -> None:
    selected = select_instances(INSTANCES.flatten()[None], 1, grid=(4, 6)).view(4, 6)
    assert torch.equal(selected, INSTANCES.where((INSTANCES == 3) | (INSTANCES == 255), 0))


@given(st.integers(0, 2**32), st.integers(0, 5), st.sampled_from([(1, 1), (1, 7), (5, 3), (4, 4)]))
def test_selection_equals_the_naive_loop(seed: int, max_objects: int, grid: tuple[int, int]) -> None:
    rows, columns = grid
    instances = torch.randint(0, 5, (3, rows * columns), generator=torch.Generator().manual_seed(seed))
    instances[instances == 4] = 255
    selected = select_instances(instances, max_objects, grid=grid)
    for before, after in zip(instances.tolist(), selected.tolist(), strict=True):
        weight = dict.fromkeys({i for i in before if i not in (0, 255)}, 0)
        for patch, instance in enumerate(before):
            y, x = (2 * p / (n - 1) - 1 if n > 1 else 0 for p, n in zip(divmod(patch, columns), grid, strict=True))
            if instance in weight:
                weight[instance] += round(1000 * (1 - (y * y + x * x) ** 0.5 / 8**0.5))
        best = sorted(weight, key=lambda instance: (-weight[instance], instance))[:max_objects]
        assert after == [i if i in (*best, 255) else 0 for i in before]


def test_rows_of_a_batch_are_independent() -> None:
    instances = torch.randint(0, 5, (16, 25), generator=torch.Generator().manual_seed(0))
    alone = [select_instances(row[None], 2) for row in instances]
    assert torch.equal(select_instances(instances, 2), torch.cat(alone))


@pytest.mark.parametrize(
    "policy", [InstancePolicy(max_objects=1, object_share=1.0), ProgressivePolicy(max_objects=1, object_share=1.0)]
)
def test_the_policy_hides_selected_objects_first(policy: InstancePolicy | ProgressivePolicy) -> None:
    patches = INSTANCES.flatten()[None]
    masks = mask_scenes(
        policy,
        patches,
        patches,
        num_visible=21,
        progress=0.5,
        generator=torch.Generator(),
        granularities=("rgb",),
        grid=(4, 6),
    )
    assert torch.equal(masks.is_masked[0, 0], patches[0] == 3)


def test_patches_that_are_not_a_square_require_a_grid() -> None:
    with pytest.raises(ValueError, match=r"^grid: 24 patches are not a square. Pass grid=\(rows, columns\)$"):
        select_instances(INSTANCES.flatten()[None], 1)


def test_a_negative_number_of_objects_is_rejected() -> None:
    with pytest.raises(ValueError, match="^max_objects: expected at least 0, got -1$"):
        select_instances(INSTANCES.flatten()[None], -1, grid=(4, 6))
