from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.core.specs import LossAveraging
from c2fmae.models import TARGETS, patchify
from c2fmae.models.losses import count_hidden, sum_hidden_error
from tests.models.tiny_models import draw_normal, seeds

pytestmark = pytest.mark.numeric

AVERAGES: tuple[LossAveraging, ...] = get_args(LossAveraging)
EACH = pytest.mark.parametrize("average", AVERAGES)
CLASSES, PATCH, N = 3, 2, 4
TARGET: Any = TARGETS.get("labels")(channels=CLASSES, patch=PATCH)


class Case(NamedTuple):
    """Predictions of id maps of 2×2 patches, 2×2 cells each."""

    predictions: Tensor
    maps: Tensor
    is_masked: Tensor


def case_of(batch: int, *, unlabelled: float, hidden: float, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(CLASSES, (batch, 2 * PATCH, 2 * PATCH), generator=generator)
    maps[torch.rand(maps.shape, generator=generator) < unlabelled] = 255
    is_masked = torch.rand(batch, N, generator=generator) < hidden
    predictions = torch.randn(batch, N, PATCH**2 * CLASSES, generator=generator)
    return Case(predictions, maps.to(torch.uint8), is_masked)


cases = st.builds(
    case_of,
    st.integers(1, 6),
    unlabelled=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    hidden=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    seed=seeds,
)


def sum_and_count(case: Case, average: LossAveraging) -> tuple[Tensor, Tensor]:
    predictions, maps, is_masked = case
    valid = TARGET.count_valid(maps)
    error = sum_hidden_error(TARGET.error(predictions, maps), valid, is_masked, average)
    return error, count_hidden(valid, is_masked, average)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def cell_by_cell(case: Case, average: LossAveraging) -> tuple[float, int]:
    """The loss and its count, by a Python loop over cells."""
    wanted = patchify(case.maps, PATCH)
    images: list[list[float]] = []
    for image in range(len(case.maps)):
        cells: list[float] = []
        for patch in range(N):
            for cell in range(PATCH**2):
                label = int(wanted[image, patch, cell])
                if case.is_masked[image, patch] and label != 255:
                    logits = case.predictions[image, patch, cell * CLASSES :][:CLASSES]
                    cells.append(-float(F.log_softmax(logits, dim=0)[label]))
        images.append(cells)
    if average == "cells":
        every = [error for cells in images for error in cells]
        return mean(every), len(every)
    with_any = [mean(cells) for cells in images if cells]
    return mean(with_any), len(with_any)


@EACH
@given(cases)
def test_a_loss_equals_a_loop_over_cells(average: LossAveraging, case: Case) -> None:
    expected, expected_count = cell_by_cell(case, average)
    error, count = sum_and_count(case, average)
    assert int(count) == expected_count
    assert float(error / count.clamp(min=1)) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_average_weighs_images_or_cells_equally() -> None:
    """Two images: one has a single hidden cell that is wrong by 1, the other two patches wrong by 4 in 8 cells."""
    error = torch.tensor([[1.0, 9.0], [2.0, 2.0]])
    valid = torch.tensor([[1, 3], [4, 4]])
    is_masked = torch.tensor([[True, False], [True, True]])
    assert float(sum_hidden_error(error, valid, is_masked, "samples")) == 1 / 1 + 4 / 8
    assert int(count_hidden(valid, is_masked, "samples")) == 2
    assert float(sum_hidden_error(error, valid, is_masked, "cells")) == 1 + 4
    assert int(count_hidden(valid, is_masked, "cells")) == 1 + 8


def test_images_weigh_equally_by_default() -> None:
    case = case_of(3, unlabelled=0.2, hidden=0.5)
    valid = TARGET.count_valid(case.maps)
    assert count_hidden(valid, case.is_masked) == count_hidden(valid, case.is_masked, "samples")
    error = TARGET.error(case.predictions, case.maps)
    assert sum_hidden_error(error, valid, case.is_masked) == sum_hidden_error(error, valid, case.is_masked, "samples")


@EACH
@given(cases, st.lists(st.integers(0, 6), max_size=3))
def test_losses_of_micro_batches_add_up_to_that_of_the_batch(
    average: LossAveraging, case: Case, cuts: list[int]
) -> None:
    """Also if some parts have no valid hidden cells."""
    places = sorted({0, len(case.maps), *(cut for cut in cuts if cut < len(case.maps))})
    parts = [sum_and_count(Case(*(tensor[first:last] for tensor in case)), average) for first, last in pairwise(places)]
    error, count = sum_and_count(case, average)
    total = torch.stack([count for _, count in parts]).sum()
    assert total == count
    summed = torch.stack([error / total.clamp(min=1) for error, _ in parts]).sum()
    torch.testing.assert_close(summed, error / count.clamp(min=1), rtol=1e-5, atol=1e-6)


@EACH
@pytest.mark.parametrize(("unlabelled", "hidden"), [(0.0, 0.0), (1.0, 1.0), (1.0, 0.5), (1.0, 0.0)])
def test_a_loss_without_valid_cells_is_zero_and_differentiable(
    average: LossAveraging, unlabelled: float, hidden: float
) -> None:
    case = case_of(3, unlabelled=unlabelled, hidden=hidden)
    case.predictions.mul_(1e4).requires_grad_()
    error, count = sum_and_count(case, average)
    loss = error / count.clamp(min=1)
    assert (float(loss.detach()), int(count)) == (0.0, 0)
    assert loss.requires_grad
    loss.backward()
    assert case.predictions.grad is not None
    assert torch.equal(case.predictions.grad, torch.zeros_like(case.predictions))


@EACH
@given(cases)
def test_visible_and_unlabelled_cells_have_no_gradient(average: LossAveraging, case: Case) -> None:
    predictions = case.predictions.clone().requires_grad_()
    error, _ = sum_and_count(case._replace(predictions=predictions), average)
    (gradient,) = torch.autograd.grad(error, predictions)
    can_be_wrong = case.is_masked.unsqueeze(2) & (patchify(case.maps, PATCH) != 255)
    learns = gradient.unflatten(2, (PATCH**2, CLASSES)).ne(0).any(dim=3)
    assert torch.equal(learns, can_be_wrong)


@EACH
def test_infinite_errors_of_visible_patches_have_no_effect(average: LossAveraging) -> None:
    error = torch.tensor([[1.0, torch.inf], [torch.nan, 2.0]])
    is_masked = torch.tensor([[True, False], [False, True]])
    assert float(sum_hidden_error(error, torch.ones(2, 2, dtype=torch.int64), is_masked, average)) == 3.0


@EACH
def test_images_without_hidden_patches_do_not_count(average: LossAveraging) -> None:
    case = case_of(4, unlabelled=0.0, hidden=1.0)
    case.is_masked[2:] = False
    error, count = sum_and_count(case, average)
    half_error, half_count = sum_and_count(Case(*(tensor[:2] for tensor in case)), average)
    assert count == half_count
    torch.testing.assert_close(error, half_error)


@EACH
def test_losses_are_float32_under_autocast(average: LossAveraging) -> None:
    case = case_of(3, unlabelled=0.2, hidden=0.7)
    expected, _ = sum_and_count(case._replace(predictions=case.predictions.bfloat16().float()), average)
    with torch.autocast("cpu", torch.bfloat16):
        error, _ = sum_and_count(case._replace(predictions=case.predictions.bfloat16()), average)
    assert error.dtype == torch.float32
    assert torch.equal(error, expected)


@EACH
def test_an_empty_batch_has_a_loss_of_zero(average: LossAveraging) -> None:
    nothing = torch.zeros(0, N)
    assert float(sum_hidden_error(nothing, nothing.long(), nothing.bool(), average)) == 0
    assert int(count_hidden(nothing.long(), nothing.bool(), average)) == 0


def test_both_averages_are_equal_if_all_images_hide_equally_many_patches() -> None:
    target: Any = TARGETS.get("pixels")(channels=3, patch=2)
    images, predictions = draw_normal(3, 3, 4, 4), draw_normal(3, N, 12, seed=1)
    is_masked = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
    valid, error = target.count_valid(images), target.error(predictions, images)
    for average in AVERAGES:
        loss = sum_hidden_error(error, valid, is_masked, average) / count_hidden(valid, is_masked, average)
        torch.testing.assert_close(loss, error[is_masked].mean())
