from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, get_ident
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fmae.models import heads
from c2fmae.models.heads import BatchStatisticsNorm, GroupStatisticsNorm, MLPHead, PrototypeHead
from tests.models.tiny_models import draw_normal, randomise_parameters

pytestmark = pytest.mark.numeric


def import_heads() -> Any:
    return pytest.importorskip("lightly.models.modules.heads", reason="lightly is not installed")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return draw_normal(*shape, seed=seed).double()


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the parameters of one module to another, which has as many in the same order."""
    with torch.no_grad():
        for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
            ours.copy_(theirs)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("is_affine", [True, False])
def test_the_norm_equals_torchs_without_running_statistics(is_affine: bool, is_training: bool) -> None:
    ours = randomise_parameters(BatchStatisticsNorm(6, eps=1e-3, is_affine=is_affine)).double()
    theirs = nn.BatchNorm1d(6, eps=1e-3, affine=is_affine, track_running_stats=False).double()
    copy_weights(ours, theirs)
    inputs, weights = [(3 + 2 * draw(9, 6)).requires_grad_() for _ in range(2)], draw(9, 6, seed=1)
    found, expected = ours.train(is_training)(inputs[0]), theirs.train(is_training)(inputs[1])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=0, atol=1e-12)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=1e-12)
    assert list(ours.buffers()) == []


def test_the_norm_is_over_all_axes_but_the_last() -> None:
    norm, tokens = BatchStatisticsNorm(6).double(), draw(4, 5, 6)
    torch.testing.assert_close(norm(tokens).flatten(0, 1), norm(tokens.flatten(0, 1)))


def test_statistics_are_not_rounded_under_autocast() -> None:
    norm, x = BatchStatisticsNorm(6), draw_normal(9, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), norm(x.float()))
        assert norm(x).dtype == torch.float32


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("is_affine", [True, False])
@pytest.mark.parametrize(("group", "sizes"), [(5, [5]), (2, [2, 2, 1]), (8, [5])], ids=["batch", "groups", "larger"])
def test_the_norm_of_each_group_equals_torchs(group: int, sizes: list[int], is_affine: bool, is_training: bool) -> None:
    ours = randomise_parameters(GroupStatisticsNorm(6, group, eps=1e-3, is_affine=is_affine)).double()
    theirs = nn.BatchNorm1d(6, eps=1e-3, affine=is_affine, track_running_stats=False).double()
    copy_weights(ours, theirs)
    inputs, weights = [(3 + 2 * draw(5, 3, 6)).requires_grad_() for _ in range(2)], draw(5, 3, 6, seed=1)
    found = ours.train(is_training)(inputs[0])
    expected = torch.cat([theirs(images.flatten(0, 1)).view(-1, 3, 6) for images in inputs[1].split(sizes)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=0, atol=1e-12)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=1e-12)
    assert list(ours.buffers()) == []


def test_statistics_of_groups_are_not_rounded_under_autocast() -> None:
    norm, x = GroupStatisticsNorm(6, 4), draw_normal(8, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), norm(x.float()))
        assert norm(x).dtype == torch.float32


def test_a_projector_of_groups_is_that_of_batches_for_each_group() -> None:
    batches, groups = (MLPHead(6, 8, 4, depth=3, last_norm="plain", group=group).double() for group in (None, 2))
    copy_weights(batches, groups)
    x = draw(4, 3, 6)
    expected = torch.cat([batches(images) for images in x.split(2)])
    torch.testing.assert_close(groups(x), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(groups(x), batches(x))


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("last_norm", ["affine", "plain"])
def test_a_projector_equals_lightly(depth: int, last_norm: Any) -> None:
    ours = MLPHead(6, 8, 4, depth=depth, last_norm=last_norm).double()
    theirs = import_heads().MoCoProjectionHead(6, 8, 4, num_layers=depth, batch_norm=True).double()
    randomise_parameters(theirs)
    if last_norm == "plain":
        nn.init.ones_(theirs.layers[-1].weight)
        nn.init.zeros_(theirs.layers[-1].bias)
        theirs.layers[-1].affine = False
        del theirs.layers[-1].weight, theirs.layers[-1].bias
        theirs.layers[-1].weight = theirs.layers[-1].bias = None
    copy_weights(theirs, ours)
    x = draw(9, 6)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_projector_without_norms_equals_lightly(depth: int) -> None:
    ours = MLPHead(6, 8, 4, depth=depth, norm="none", bias=True).double()
    if depth == 1:
        theirs = nn.Linear(6, 4).double()
    else:
        theirs = import_heads().MoCoProjectionHead(6, 8, 4, num_layers=2, batch_norm=False).double()
    copy_weights(theirs, ours)
    x = draw(9, 6)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


def test_layer_norms_are_within_rows() -> None:
    head = randomise_parameters(MLPHead(6, 8, 4, depth=2, norm="layer", last_norm="plain", bias=True))
    x = draw_normal(5, 6)
    assert [type(layer) for layer in head] == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear, nn.LayerNorm]
    torch.testing.assert_close(head(x)[:2], head(x[:2]))
    assert list(head[-1].parameters()) == []


def test_a_last_norm_without_norms_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^last_norm: expected 'none', as norm is 'none', got 'plain'$"):
        MLPHead(6, 8, 4, depth=2, norm="none", last_norm="plain")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_prototype_head_equals_lightly() -> None:
    theirs = import_heads().DINOProjectionHead(6, 16, 5, 12, freeze_last_layer=-1, norm_last_layer=True)
    ours = PrototypeHead(6, hidden=16, bottleneck=5, prototypes=12)
    with torch.no_grad():
        copy_weights(theirs.layers, ours.mlp)
        ours.prototypes.weight.copy_(3 * theirs.last_layer.weight_v)  # its length has no effect
    x = draw_normal(3, 4, 6)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)
    assert [name for name, _ in ours.prototypes.named_parameters()] == ["weight"]
    cosines = F.normalize(ours.mlp(x), dim=-1) @ F.normalize(ours.prototypes.weight, dim=1).T
    torch.testing.assert_close(ours(x), cosines)


class TwoRanks:
    """Two threads that stand for ranks: a sum over them is a node of one graph, which has the gradient of both."""

    def __init__(self) -> None:
        self.barrier = Barrier(2)
        self.tensors: dict[int, Tensor] = {}

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        self.barrier.wait(timeout=60)
        self.tensors[get_ident()] = tensor
        self.barrier.wait(timeout=60)
        first, second = self.tensors.values()
        return first + second


def test_two_ranks_have_the_statistics_and_gradients_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    head = randomise_parameters(MLPHead(6, 8, 4, depth=3, last_norm="plain")).double()
    features, weights = draw(7, 6).requires_grad_(), draw(7, 4, seed=1)
    inputs = (features, *head.parameters())
    expected = head(features)
    gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    monkeypatch.setattr(heads, "sum_over_ranks", TwoRanks().sum_over_ranks)
    with ThreadPoolExecutor(2) as ranks:
        found = torch.cat(list(ranks.map(head, features.split([4, 3]))))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for actual, whole in zip(torch.autograd.grad((found * weights).sum(), inputs), gradients, strict=True):
        torch.testing.assert_close(actual, whole, rtol=0, atol=1e-10)


def test_in_evaluation_the_statistics_are_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensor: Tensor) -> Tensor:
        raise AssertionError("a collective in evaluation")

    monkeypatch.setattr(heads, "sum_over_ranks", refuse)
    assert BatchStatisticsNorm(6).eval()(draw_normal(5, 6)).mean(dim=0).abs().max() < 1e-6
