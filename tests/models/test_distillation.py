from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.models.distillation import (
    average_masked,
    compute_entropy,
    cosine_loss,
    distil,
    distil_views,
    sharpen,
    update_centre,
)
from tests.models.tiny_models import draw_normal

pytestmark = pytest.mark.numeric

BATCH, PATCHES, PROTOTYPES = 3, 5, 7
STUDENT, TEACHER, MOMENTUM = 0.1, 0.0625, 0.9  # lightly holds the teacher's in float32


def draw(*shape: int, seed: int = 0) -> Tensor:
    return draw_normal(*shape, seed=seed).double()


def import_loss(name: str) -> Any:
    loss = getattr(pytest.importorskip("lightly.loss", reason="lightly is not installed"), name)
    return loss(PROTOTYPES, teacher_temp=TEACHER, student_temp=STUDENT, center_momentum=MOMENTUM).double()


def assert_same(actual: Tensor, expected: Tensor, student: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    (ours,), (theirs,) = (torch.autograd.grad(loss, student, retain_graph=True) for loss in (actual, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert float(theirs.abs().max()) > 1e-6


def test_three_steps_of_multi_crop_equal_lightly() -> None:
    theirs = import_loss("DINOLoss")
    centre = torch.zeros(PROTOTYPES, dtype=torch.float64)
    for step in range(3):
        student, teacher = draw(5, BATCH, PROTOTYPES, seed=step).requires_grad_(), draw(2, BATCH, PROTOTYPES, seed=9)
        loss = distil_views(student, sharpen(teacher, centre, TEACHER), STUDENT).mean()
        assert_same(loss, theirs(list(teacher), list(student)), student)
        centre = update_centre(centre, teacher.mean(dim=(0, 1)), MOMENTUM)
        torch.testing.assert_close(centre, theirs.center.view(-1), rtol=0, atol=1e-12)


def test_masked_patches_equal_lightly_where_every_image_has_some() -> None:
    theirs = import_loss("IBOTPatchLoss")
    # Its weights are in float32, in which 1, 1/2 and 1/4 are exact.
    is_masked = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 0, 1, 0], [1, 1, 1, 0, 1]], dtype=torch.bool)
    centre = torch.zeros(PROTOTYPES, dtype=torch.float64)
    for step in range(2):
        student, teacher = draw(BATCH, PATCHES, PROTOTYPES, seed=step).requires_grad_(), draw(3, 5, 7, seed=9)
        found = average_masked(distil(student, sharpen(teacher, centre, TEACHER), STUDENT), is_masked).mean()
        expected = theirs(teacher[is_masked], student[is_masked], is_masked.unsqueeze(1))
        assert_same(found, expected, student)
        hidden = teacher[is_masked]  # its centre is that of hidden patches
        centre = update_centre(centre, hidden.mean(dim=0), MOMENTUM)


def test_an_image_without_masked_patches_counts_as_zero() -> None:
    """As in the official iBOT: a mean over each image's hidden patches, then over all images."""
    student, teacher, centre = draw(BATCH, PATCHES, PROTOTYPES), draw(BATCH, PATCHES, PROTOTYPES, seed=1), draw(7)
    is_masked = torch.tensor([[1, 0, 1, 0, 0], [0] * 5, [1] * 5], dtype=torch.bool)
    total = 0.0
    for image in range(BATCH):
        terms = []
        for patch in is_masked[image].nonzero().flatten().tolist():
            truth = F.softmax((teacher[image, patch] - centre) / TEACHER, dim=0)
            terms.append(-float(truth @ F.log_softmax(student[image, patch] / STUDENT, dim=0)))
        total += sum(terms) / max(len(terms), 1)
    losses = distil(student, sharpen(teacher, centre, TEACHER), STUDENT)
    found = average_masked(losses, is_masked)
    assert float(found.sum()) == pytest.approx(total, abs=1e-12)
    assert float(found[1]) == 0
    losses[1] = torch.nan
    assert bool(average_masked(losses, is_masked).isfinite().all())


def test_views_are_not_compared_with_themselves() -> None:
    student, teacher = draw(4, BATCH, PROTOTYPES), draw(2, BATCH, PROTOTYPES, seed=1).softmax(dim=2)
    pairs = [(t, s) for t in range(2) for s in range(4) if t != s]
    assert len(pairs) == 2 * 4 - 2
    expected = torch.stack([distil(student[s], teacher[t], STUDENT) for t, s in pairs]).mean(dim=0)
    torch.testing.assert_close(distil_views(student, teacher, STUDENT), expected, rtol=0, atol=1e-12)


def test_equal_probabilities_cost_their_entropy_and_uniform_ones_the_logarithm() -> None:
    logits = draw(BATCH, PROTOTYPES)
    truth = sharpen(logits, torch.zeros(PROTOTYPES, dtype=torch.float64), STUDENT)
    torch.testing.assert_close(distil(logits, truth, STUDENT), compute_entropy(truth))
    uniform = sharpen(draw(1, 7).expand(3, 7), draw(1, 7).view(7), TEACHER)  # a collapse that the centre removes
    logarithm = torch.full((3,), float(PROTOTYPES), dtype=torch.float64).log()
    torch.testing.assert_close(compute_entropy(uniform), logarithm)
    torch.testing.assert_close(distil(torch.zeros(3, 7).double(), uniform, STUDENT), logarithm)
    assert compute_entropy(torch.eye(3)).tolist() == [0, 0, 0]


def test_probabilities_are_not_rounded_under_autocast() -> None:
    student, teacher = draw(4, BATCH, PROTOTYPES).float(), draw(2, BATCH, PROTOTYPES, seed=1).float()
    centre = torch.zeros(PROTOTYPES)
    expected = distil_views(student, sharpen(teacher, centre, TEACHER), STUDENT)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distil_views(student, sharpen(teacher, centre, TEACHER), STUDENT), expected)
    assert sharpen(teacher.bfloat16(), centre, TEACHER).dtype == torch.float32
    assert distil(student.bfloat16()[0], student[0].softmax(dim=1), STUDENT).dtype == torch.float32


def test_the_cosine_loss_is_the_squared_distance_of_directions() -> None:
    student, teacher = draw(BATCH, PATCHES, 4).requires_grad_(), draw(BATCH, PATCHES, 4, seed=1)
    distance = F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)
    assert_same(cosine_loss(student, 3 * teacher).sum(), distance.square().sum(), student)
    torch.testing.assert_close(cosine_loss(student, -2 * student), torch.full((BATCH, PATCHES), 4.0).double())
    rounded = student.bfloat16(), teacher.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cosine_loss(*rounded), cosine_loss(*(features.float() for features in rounded)))
