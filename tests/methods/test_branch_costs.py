"""The operations of a step of two-branch methods, against counts by hand, and beside MAE."""

from pathlib import Path

import pytest
import torch

from c2fmae.core.operation_count import ForwardCost
from c2fmae.eval.cost.epoch_cost import compute_step_cost
from c2fmae.methods import METHODS, build_method
from tests.methods.tiny_branches import ENCODER, TINY

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
DIM, PATCH = 64, 8


def count_encoder(size: int) -> int:
    """Return the operations of the two blocks of the tiny ViT for an image, with an MLP of three times its width."""
    tokens = (size // PATCH) ** 2 + 1
    return 2 * 2 * (10 * tokens * DIM**2 + 2 * tokens**2 * DIM)


def count_embedding(size: int) -> int:
    """Return the operations of the projection of an image's patches."""
    return 2 * (size // PATCH) ** 2 * 3 * PATCH**2 * DIM


def compute_cost(name: str) -> ForwardCost:
    return compute_step_cost(METHODS.get(name)().override([*ENCODER, *TINY[name]]))


def test_all_views_and_the_teachers_logits_are_counted_once() -> None:
    cost = compute_cost("dino")  # two views of 32 pixels, two of 16; 16 hidden, 8 of the bottleneck, 16 prototypes
    head, pairs = 2 * (DIM * 16 + 16 * 16 + 16 * 8 + 8 * 16), 2 * 2 * 4 * 16
    assert cost.part_costs["encoder"].flops == 2 * count_encoder(32) + 2 * count_encoder(16)
    assert cost.part_costs["embeddings"].flops == 2 * count_embedding(32) + 2 * count_embedding(16)
    assert cost.part_costs["heads"].flops == 4 * head + pairs
    assert cost.teacher_flops == 2 * (count_encoder(32) + count_embedding(32) + head)
    assert cost.step_flops == 3 * cost.flops + cost.teacher_flops


def test_a_method_without_a_teacher_compares_views_of_its_batch() -> None:
    cost = compute_cost("simclr")
    projector, logits = 2 * (DIM * 16 + 16 * 8), 2 * 4 * 8  # each of two views with the four of two images
    assert cost.part_costs["heads"].flops == 2 * (projector + logits)
    assert cost.part_costs["encoder"].flops == 2 * count_encoder(32)
    assert cost.teacher_flops == 0


def test_parts_are_the_whole_model() -> None:
    for name in TINY:
        with torch.device("meta"):
            model = build_method(METHODS.get(name)().override([*ENCODER, *TINY[name]])).model
        num_tokens = sum(value.numel() for key, value in model.named_parameters() if key == "mask_token")
        assert compute_cost(name).parameters == sum(value.numel() for value in model.parameters()) - num_tokens


@pytest.mark.unchecked
def test_the_documentation_has_the_costs_of_all_methods() -> None:
    costs = {name: compute_step_cost(METHODS.get(name)()) for name in METHODS}
    rows = sorted((cost.step_flops / costs["mae"].step_flops, name) for name, cost in costs.items())
    table = [
        f"| `{name}` | {costs[name].parameters / 1e6:.0f} | {3 * costs[name].flops / 1e9:.0f} | "
        f"{costs[name].teacher_flops / 1e9:.0f} | {ratio:.2f} |"
        for ratio, name in rows
    ]
    expected = "\n".join(table)
    assert expected in PAGE.read_text(encoding="utf-8"), f"the table should be:\n{expected}"
