import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.eval.analysis.config import RepresentationEvaluation
from c2fmae.eval.analysis.representation import (
    compute_attention_distance,
    compute_effective_rank,
    compute_mutual_information,
    compute_patch_distances,
    compute_variance_spectrum,
)
from c2fmae.eval.analysis.sampled import measure_images
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.models.backbones import Backbone
from tests.eval.analysis.sampled_processes import backbone_from_vit
from tests.models.tiny_models import draw_normal, make_tiny_vit, randomise_parameters

pytestmark = pytest.mark.numeric

GRID = (3, 4)


def make_uniform_attention(count: int = 12) -> Tensor:
    return torch.full((2, 3, count, count), 1 / count)


def draw_attention(seed: int = 0) -> Tensor:
    return (3 * draw_normal(2, 3, 12, 12, seed=seed)).softmax(dim=3)


def measure(backbone: Backbone, **settings: object) -> dict[str, Metric]:
    evaluation = RepresentationEvaluation.model_validate({"images": 6, "batch_size": 4, "workers": 0, **settings})
    return {
        metric.label: metric
        for metric in evaluation.run(ModelUnderTest.in_memory("tiny", Path("unused"), backbone=backbone))
    }


def test_patch_distances_are_between_centres() -> None:
    distances = compute_patch_distances(GRID)
    for a in range(12):
        for b in range(12):
            assert distances[a, b].item() == pytest.approx(math.dist(divmod(a, 4), divmod(b, 4)))


def test_attention_distance_is_zero_for_own_patches_and_the_mean_for_uniform_attention() -> None:
    own_patch = torch.eye(12).expand(2, 3, 12, 12)
    assert compute_attention_distance(own_patch, GRID).tolist() == [0, 0]
    expected = compute_patch_distances(GRID).mean().item()
    assert compute_attention_distance(make_uniform_attention(), GRID).tolist() == pytest.approx([expected] * 2)


def test_attention_distance_is_averaged_over_patches_and_heads() -> None:
    patches = torch.arange(12)
    next_column = torch.where(patches % 4 < 3, patches + 1, patches)  # the last column attends to itself
    attention = torch.nn.functional.one_hot(next_column, 12).float().expand(2, 3, 12, 12).clone()
    assert compute_attention_distance(attention, GRID).tolist() == pytest.approx([9 / 12] * 2)
    attention[1, 0] = torch.eye(12)  # one of three heads of the second image
    assert compute_attention_distance(attention, GRID).tolist() == pytest.approx([9 / 12, 6 / 12])


def test_mutual_information_equals_a_loop_over_pairs() -> None:
    attention = draw_attention().double()
    for image, information in enumerate(compute_mutual_information(attention).tolist()):
        by_head = []
        for joint in attention[image] / 12:
            query_marginal, key_marginal = joint.sum(dim=1), joint.sum(dim=0)
            expected = sum(
                joint[q, k].item() * math.log(joint[q, k] / (query_marginal[q] * key_marginal[k]))
                for q in range(12)
                for k in range(12)
            )
            entropies = [
                -sum(p * math.log(p) for p in marginal.tolist()) for marginal in (query_marginal, key_marginal)
            ]
            by_head.append(expected / math.sqrt(math.prod(entropies)))
        assert information == pytest.approx(sum(by_head) / 3)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_mutual_information_of_grouped_attention_is_the_logarithm_of_the_number_of_groups(groups: int) -> None:
    group = torch.arange(12) % groups
    attention = (group[:, None] == group).float() * groups / 12
    information = compute_mutual_information(attention.expand(1, 2, 12, 12)).item()
    assert information == pytest.approx(math.log(groups) / math.log(12), abs=1e-7)


def test_mutual_information_of_attention_to_one_key_is_zero() -> None:
    attention = torch.zeros(1, 1, 12, 12)
    attention[..., 5] = 1
    assert compute_mutual_information(attention).item() == 0
    assert compute_mutual_information(torch.ones(1, 1, 1, 1)).item() == 0


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("shape", [(40, 8), (8, 40)])
def test_effective_rank_is_the_number_of_directions_of_equal_variance(rank: int, shape: tuple[int, int]) -> None:
    rows, dim = shape
    basis = torch.linalg.qr(draw_normal(rows, rank + 1, seed=1).double() + torch.eye(rows, rank + 1))[0]
    basis = torch.linalg.qr(torch.cat([torch.ones(rows, 1), basis[:, :rank]], dim=1).double())[0][:, 1:]  # centred
    directions = torch.linalg.qr(draw_normal(dim, rank, seed=2).double())[0]
    fractions = compute_variance_spectrum(basis @ directions.T + 7)  # the mean does not count as a direction
    assert compute_effective_rank(fractions).item() == pytest.approx(rank, rel=1e-6)
    assert fractions[:rank].tolist() == pytest.approx([1 / rank] * rank)
    assert not fractions[rank:].any()


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 9))
def test_variance_spectrum_equals_squared_singular_values(seed: int, rows: int, dim: int) -> None:
    features = draw_normal(3, rows, dim, seed=seed)
    fractions = compute_variance_spectrum(features)
    for image_fractions, image in zip(fractions, features.double(), strict=True):
        singular = torch.linalg.svdvals(image - image.mean(dim=0))
        expected = singular.square() / singular.square().sum()
        torch.testing.assert_close(image_fractions, expected[: len(image_fractions)], atol=1e-9, rtol=1e-6)
        p = singular[: min(rows - 1, dim)] / singular.sum()
        assert compute_effective_rank(image_fractions).item() == pytest.approx(
            math.exp(-(p * p.log()).sum().item()), rel=1e-5
        )


def test_equal_features_have_rank_zero() -> None:
    features = torch.full((2, 6, 4), 0.1)
    assert compute_effective_rank(compute_variance_spectrum(features)).tolist() == [0, 0]
    assert not compute_variance_spectrum(features).any()


def test_effective_rank_is_invariant_to_scale_rotation_and_order() -> None:
    features = draw_normal(30, 6).double() * torch.tensor([9.0, 4, 2, 1, 0.5, 0.1])
    rank = compute_effective_rank(compute_variance_spectrum(features)).item()
    transformed = 1000 * features.flip(0) @ torch.linalg.qr(draw_normal(6, 6).double())[0]
    assert 1 < rank < 6
    assert compute_effective_rank(compute_variance_spectrum(transformed)).item() == pytest.approx(rank)


def test_uniform_attention_of_a_vit_has_the_expected_metrics() -> None:
    vit = randomise_parameters(make_tiny_vit())
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if "qkv" in name:
                parameter.zero_()
    metrics = measure(backbone_from_vit(vit))
    mean_distance = compute_patch_distances((2, 3)).mean().item()
    for depth in (1, 2):
        assert metrics[f"layer {depth}: attention distance in patches"].value == pytest.approx(mean_distance, rel=1e-6)
        assert metrics[f"layer {depth}: attention distance in pixels"].value == pytest.approx(
            16 * mean_distance, rel=1e-6
        )
        assert metrics[f"layer {depth}: mutual information of query and key"].value == pytest.approx(0, abs=1e-4)
    assert len(metrics) == 14


def test_ranks_are_those_of_the_backbones_features() -> None:
    backbone = backbone_from_vit(randomise_parameters(make_tiny_vit(), std=0.3))
    evaluation, model = (
        RepresentationEvaluation(images=6, workers=0),
        ModelUnderTest.in_memory("tiny", Path("unused"), backbone=backbone),
    )
    metrics = {metric.label: metric for metric in evaluation.run(model)}
    images = measure_images(evaluation, model, lambda scenes: scenes.maps["rgb"]).to(torch.uint8)
    tokens = backbone.tokens(backbone.standardise(images))
    ranks = compute_effective_rank(compute_variance_spectrum(tokens[:, 1:]))
    assert metrics["layer 2: effective rank of patches"].value == pytest.approx(ranks.mean().item(), rel=1e-6)
    pooled = compute_variance_spectrum(backbone.pool(tokens))
    assert metrics["layer 2: effective rank of pooled features"].value == pytest.approx(
        compute_effective_rank(pooled).item(), rel=1e-5
    )
    assert metrics["layer 2: variance along the first direction, pooled features"].value == pytest.approx(
        100 * pooled[0].item(), rel=1e-5
    )
    assert metrics["layer 2: variance along the first direction, patches"].value == pytest.approx(
        100 * compute_variance_spectrum(tokens[:, 1:])[:, 0].mean().item(), rel=1e-6
    )


def test_metrics_are_independent_of_batch_size_and_inside_their_intervals() -> None:
    backbone = backbone_from_vit(randomise_parameters(make_tiny_vit(reg_tokens=2), std=0.3))
    default, other = measure(backbone), measure(backbone, batch_size=1)
    for name, metric in default.items():
        assert other[name].value == pytest.approx(metric.value, rel=1e-5)
        assert metric.count == 6
        assert (metric.interval is None) == name.endswith("pooled features")
        if metric.interval:
            assert metric.interval[0] <= metric.value <= metric.interval[1]


def test_registered_evaluation_describes_its_protocol() -> None:
    evaluation = EVALUATIONS.get("representation")(images=9)  # type: ignore[call-arg]
    text = evaluation.describe_protocol(
        ModelUnderTest.in_memory("tiny", Path("unused"), backbone=backbone_from_vit(make_tiny_vit()))
    )
    assert "Images of 32×48." in text
    assert f"{np.mean(compute_patch_distances((2, 3)).numpy()):.2f} patches" in text
    assert "the rank is 8 at most" in text
