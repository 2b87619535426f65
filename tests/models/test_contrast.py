import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.models.contrast import ContrastiveLoss, enqueue, info_nce, nt_xent, patch_contrast, queue_contrast
from tests.models.tiny_models import draw_normal

pytestmark = pytest.mark.numeric


def draw(*shape: int, seed: int = 0) -> Tensor:
    return draw_normal(*shape, seed=seed).double().requires_grad_()


def import_nt_xent() -> Any:
    return pytest.importorskip("lightly.loss", reason="lightly is not installed").NTXentLoss


def assert_same(actual: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    """Losses and their gradients are equal."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (actual, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        assert float(theirs.abs().max()) > 1e-6


@pytest.mark.parametrize("batch", [2, 7, 64])
def test_info_nce_equals_cross_entropy(batch: int) -> None:
    queries, keys = draw(batch, 16), draw(batch + 3, 16, seed=1)
    positive = torch.randperm(batch + 3, generator=torch.Generator().manual_seed(0))[:batch]
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / 0.07
    found = info_nce(queries, keys, positive, 0.07)
    assert_same(found.loss.mean(), F.cross_entropy(logits, positive), queries, keys)
    assert torch.equal(found.is_correct, logits.argmax(dim=1) == positive)


@pytest.mark.parametrize("batch", [2, 7, 64])
def test_nt_xent_equals_lightly(batch: int) -> None:
    features = draw(batch, 2, 16)
    found = nt_xent(features, features, torch.arange(batch), 0.5)
    expected = import_nt_xent()(temperature=0.5)(features[:, 0], features[:, 1])
    assert_same(found.loss.mean(), expected, features)


def test_nt_xent_of_two_halves_adds_up_to_that_of_the_batch() -> None:
    """As on two ranks that gather all features: gradients of queries and of keys add up."""
    features = draw(6, 2, 8)
    whole = nt_xent(features, features, torch.arange(6), 0.2)
    halves = [nt_xent(features[rows], features, torch.arange(6)[rows], 0.2) for rows in (slice(0, 4), slice(4, 6))]
    assert_same(sum((half.loss.sum() for half in halves), torch.zeros(())), whole.loss.sum(), features)
    assert torch.equal(torch.cat([half.is_correct for half in halves]), whole.is_correct)


def test_both_sides_of_nt_xent_have_a_gradient() -> None:
    queries, keys = draw(4, 2, 8), draw(4, 2, 8, seed=1)
    loss = nt_xent(queries, keys, torch.arange(4), 0.5).loss.sum()
    assert all(bool(gradient.any()) for gradient in torch.autograd.grad(loss, (queries, keys)))


def test_a_view_is_no_candidate_for_itself() -> None:
    """With one image the positive is the only candidate."""
    features = draw(1, 2, 8)
    assert nt_xent(features, features, torch.arange(1), 0.5).loss.tolist() == [[0.0, 0.0]]


def test_the_loss_of_a_full_queue_equals_lightly() -> None:
    queries, keys = draw(5, 16), draw(5, 16, seed=1).detach()
    queue = F.normalize(draw(32, 16, seed=2).detach(), dim=1)
    theirs = import_nt_xent()(temperature=0.07, memory_bank_size=(32, 16))
    theirs.memory_bank.bank = queue.clone()
    found = queue_contrast(queries, keys, queue, 0.07)
    assert_same(found.loss.mean(), theirs(queries, keys), queries)
    candidates = F.normalize(torch.cat([keys, queue]), dim=1) @ F.normalize(queries, dim=1).T
    for row in range(5):
        others = torch.cat([candidates[5:, row], candidates[row, row].view(1)])
        assert bool(found.is_correct[row]) == (int(others.argmax()) == len(others) - 1)


@pytest.mark.parametrize("batch", [1, 3, 4, 8])
def test_the_queue_holds_the_latest_keys(batch: int) -> None:
    queue, start = torch.zeros(8, 2, dtype=torch.float64), torch.tensor(0)
    expected = [[0.0, 0.0]] * 8
    for step, place in zip(range(6), itertools.count(0, batch), strict=False):
        keys = draw(batch, 2, seed=step).detach()
        before = queue.clone()
        after, start = enqueue(queue, start, keys)
        assert torch.equal(queue, before)
        queue = after
        for offset, key in enumerate(F.normalize(keys, dim=1).tolist()):
            expected[(place + offset) % 8] = key
        assert queue.tolist() == expected
        assert int(start) == (place + batch) % 8


def test_a_queue_shorter_than_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^queue: expected a length of at least 9, the number of keys, got 8$"):
        enqueue(torch.zeros(8, 2), torch.tensor(0), torch.zeros(9, 2))


def test_patch_contrast_equals_a_loop_over_images() -> None:
    student, teacher = draw(3, 5, 8), draw(3, 5, 8, seed=1)
    found = patch_contrast(student, teacher, 0.1)
    alone = [info_nce(*pair, torch.arange(5), 0.1) for pair in zip(student, teacher, strict=True)]
    assert_same(found.loss.sum(), torch.stack([each.loss for each in alone]).sum(), student, teacher)
    assert torch.equal(found.is_correct, torch.stack([each.is_correct for each in alone]))


@pytest.mark.parametrize("features", [torch.ones(4, 8), torch.zeros(4, 8)])
def test_collapsed_features_are_never_correct(features: Tensor) -> None:
    pairs = features.unsqueeze(1).expand(4, 2, 8)
    losses: list[ContrastiveLoss] = [
        info_nce(features, features, torch.arange(4), 0.1),
        queue_contrast(features, features, features, 0.1),
        nt_xent(pairs, pairs, torch.arange(4), 0.1),
        patch_contrast(features[None], features[None], 0.1),
    ]
    for each, num_candidates in zip(losses, (4, 5, 7, 4), strict=True):
        assert not each.is_correct.any()
        torch.testing.assert_close(each.loss, torch.full_like(each.loss, num_candidates).log())


def test_cosines_are_not_rounded_under_autocast() -> None:
    queries, keys = draw_normal(4, 16), draw_normal(6, 16, seed=1)
    expected = info_nce(queries, keys, torch.arange(4), 0.07).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(queries, keys, torch.arange(4), 0.07).loss, expected)
        assert info_nce(queries.bfloat16(), keys, torch.arange(4), 0.07).loss.dtype == torch.float32
