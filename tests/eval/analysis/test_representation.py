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
    attention_distance,
    effective_rank,
    mutual_information,
    patch_distances,
    variance_spectrum,
)
from c2fmae.eval.analysis.sampled import measure_images
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.models.backbones import Backbone
from tests.eval.analysis.sampled_processes import backbone_from_vit
from tests.models.tiny_models import draw_normal, make_tiny_vit, randomise_parameters

pytestmark = pytest.mark.numeric

GRID = (3, 4)


def uniform(count: int = 12) -> Tensor:
    return torch.full((2, 3, count, count), 1 / count)


def noise_attention(seed: int = 0) -> Tensor:
    return (3 * draw_normal(2, 3, 12, 12, seed=seed)).softmax(dim=3)


def measured(backbone: Backbone, **settings: object) -> dict[str, Metric]:
    evaluation = RepresentationEvaluation.model_validate({"images": 6, "batch_size": 4, "workers": 0, **settings})
    return {
        metric.label: metric
        for metric in evaluation.run(ModelUnderTest.in_memory("tiny", Path("unused"), backbone=backbone))
    }


def test_distances_are_those_of_the_middles_of_patches() -> None:
    found = patch_distances(GRID)
    for a in range(12):
        for b in range(12):
            assert found[a, b].item() == pytest.approx(math.dist(divmod(a, 4), divmod(b, 4)))


def test_who_looks_at_itself_looks_nowhere_far_and_who_looks_everywhere_the_mean_distance() -> None:
    itself = torch.eye(12).expand(2, 3, 12, 12)
    assert attention_distance(itself, GRID).tolist() == [0, 0]
    expected = patch_distances(GRID).mean().item()
    assert attention_distance(uniform(), GRID).tolist() == pytest.approx([expected] * 2)


def test_who_looks_at_the_next_column_looks_one_patch_far_but_for_the_last() -> None:
    places = torch.arange(12)
    beside = torch.where(places % 4 < 3, places + 1, places)
    attention = torch.nn.functional.one_hot(beside, 12).float().expand(2, 3, 12, 12).clone()
    assert attention_distance(attention, GRID).tolist() == pytest.approx([9 / 12] * 2)
    attention[1, 0] = torch.eye(12)  # one of three heads of the second image
    assert attention_distance(attention, GRID).tolist() == pytest.approx([9 / 12, 6 / 12])


def test_mutual_information_is_that_of_a_loop_over_pairs() -> None:
    attention = noise_attention().double()
    for image, found in enumerate(mutual_information(attention).tolist()):
        of_heads = []
        for joint in attention[image] / 12:
            of_query, of_key = joint.sum(dim=1), joint.sum(dim=0)
            shared = sum(
                joint[q, k].item() * math.log(joint[q, k] / (of_query[q] * of_key[k]))
                for q in range(12)
                for k in range(12)
            )
            entropies = [-sum(p * math.log(p) for p in each.tolist()) for each in (of_query, of_key)]
            of_heads.append(shared / math.sqrt(math.prod(entropies)))
        assert found == pytest.approx(sum(of_heads) / 3)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_queries_that_look_at_their_own_group_share_as_much_as_there_are_groups(groups: int) -> None:
    group = torch.arange(12) % groups
    attention = (group[:, None] == group).float() * groups / 12
    found = mutual_information(attention.expand(1, 2, 12, 12)).item()
    assert found == pytest.approx(math.log(groups) / math.log(12), abs=1e-7)


def test_queries_that_all_look_at_one_key_share_nothing() -> None:
    attention = torch.zeros(1, 1, 12, 12)
    attention[..., 5] = 1
    assert mutual_information(attention).item() == 0
    assert mutual_information(torch.ones(1, 1, 1, 1)).item() == 0


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("shape", [(40, 8), (8, 40)])
def test_features_that_differ_alike_in_some_directions_have_their_number_for_rank(
    rank: int, shape: tuple[int, int]
) -> None:
    rows, dim = shape
    basis = torch.linalg.qr(draw_normal(rows, rank + 1, seed=1).double() + torch.eye(rows, rank + 1))[0]
    basis = torch.linalg.qr(torch.cat([torch.ones(rows, 1), basis[:, :rank]], dim=1).double())[0][:, 1:]  # centred
    directions = torch.linalg.qr(draw_normal(dim, rank, seed=2).double())[0]
    shares = variance_spectrum(basis @ directions.T + 7)  # the mean is no direction
    assert effective_rank(shares).item() == pytest.approx(rank, rel=1e-6)
    assert shares[:rank].tolist() == pytest.approx([1 / rank] * rank)
    assert not shares[rank:].any()


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 9))
def test_a_spectrum_is_that_of_the_singular_values_whatever_is_longer(seed: int, rows: int, dim: int) -> None:
    features = draw_normal(3, rows, dim, seed=seed)
    shares = variance_spectrum(features)
    for found, image in zip(shares, features.double(), strict=True):
        singular = torch.linalg.svdvals(image - image.mean(dim=0))
        expected = singular.square() / singular.square().sum()
        torch.testing.assert_close(found, expected[: len(found)], atol=1e-9, rtol=1e-6)
        p = singular[: min(rows - 1, dim)] / singular.sum()
        assert effective_rank(found).item() == pytest.approx(math.exp(-(p * p.log()).sum().item()), rel=1e-5)


def test_features_that_do_not_differ_have_no_rank() -> None:
    features = torch.full((2, 6, 4), 0.1)
    assert effective_rank(variance_spectrum(features)).tolist() == [0, 0]
    assert not variance_spectrum(features).any()


def test_scale_rotation_and_order_do_not_matter_to_a_rank() -> None:
    features = draw_normal(30, 6).double() * torch.tensor([9.0, 4, 2, 1, 0.5, 0.1])
    rank = effective_rank(variance_spectrum(features)).item()
    turned = 1000 * features.flip(0) @ torch.linalg.qr(draw_normal(6, 6).double())[0]
    assert 1 < rank < 6
    assert effective_rank(variance_spectrum(turned)).item() == pytest.approx(rank)


def test_a_vit_that_looks_everywhere_alike_has_the_numbers_of_that() -> None:
    vit = randomise_parameters(make_tiny_vit())
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if "qkv" in name:
                parameter.zero_()
    found = measured(backbone_from_vit(vit))
    apart = patch_distances((2, 3)).mean().item()
    for depth in (1, 2):
        assert found[f"layer {depth}: attention distance in patches"].value == pytest.approx(apart, rel=1e-6)
        assert found[f"layer {depth}: attention distance in pixels"].value == pytest.approx(16 * apart, rel=1e-6)
        assert found[f"layer {depth}: mutual information of query and key"].value == pytest.approx(0, abs=1e-4)
    assert len(found) == 14


def test_ranks_are_of_what_the_backbone_says_of_the_photos() -> None:
    backbone = backbone_from_vit(randomise_parameters(make_tiny_vit(), std=0.3))
    evaluation, subject = (
        RepresentationEvaluation(images=6, workers=0),
        ModelUnderTest.in_memory("tiny", Path("unused"), backbone=backbone),
    )
    found = {metric.label: metric for metric in evaluation.run(subject)}
    photos = measure_images(evaluation, subject, lambda scenes: scenes.maps["rgb"]).to(torch.uint8)
    tokens = backbone.tokens(backbone.standardise(photos))
    ranks = effective_rank(variance_spectrum(tokens[:, 1:]))
    assert found["layer 2: effective rank of patches"].value == pytest.approx(ranks.mean().item(), rel=1e-6)
    pooled = variance_spectrum(backbone.pool(tokens))
    assert found["layer 2: effective rank of pooled features"].value == pytest.approx(
        effective_rank(pooled).item(), rel=1e-5
    )
    assert found["layer 2: variance along the first direction, pooled features"].value == pytest.approx(
        100 * pooled[0].item(), rel=1e-5
    )
    assert found["layer 2: variance along the first direction, patches"].value == pytest.approx(
        100 * variance_spectrum(tokens[:, 1:])[:, 0].mean().item(), rel=1e-6
    )


def test_the_size_of_batches_does_not_matter_and_intervals_hold_their_values() -> None:
    backbone = backbone_from_vit(randomise_parameters(make_tiny_vit(reg_tokens=2), std=0.3))
    usual, other = measured(backbone), measured(backbone, batch_size=1)
    for name, metric in usual.items():
        assert other[name].value == pytest.approx(metric.value, rel=1e-5)
        assert metric.count == 6
        assert (metric.interval is None) == name.endswith("pooled features")
        if metric.interval:
            assert metric.interval[0] <= metric.value <= metric.interval[1]


def test_it_is_found_by_name_and_says_what_it_does() -> None:
    evaluation = EVALUATIONS.get("representation")(images=9)  # type: ignore[call-arg]
    text = evaluation.describe_protocol(
        ModelUnderTest.in_memory("tiny", Path("unused"), backbone=backbone_from_vit(make_tiny_vit()))
    )
    assert "Images of 32×48." in text
    assert f"{np.mean(patch_distances((2, 3)).numpy()):.2f} patches" in text
    assert "the rank is 8 at most" in text
