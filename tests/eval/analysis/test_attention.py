import math
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene
from c2fmae.data import DatasetInfo
from c2fmae.eval.analysis import sampled
from c2fmae.eval.analysis.attention import (
    compute_attention_on_instances,
    compute_image_attention,
    iterate_attention,
)
from c2fmae.eval.analysis.config import AttentionEvaluation
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.models.backbones import Backbone
from tests.eval.analysis import sampled_processes
from tests.eval.analysis.sampled_processes import backbone_from_vit
from tests.eval.tiny_backbones import make_tiny_model_under_test, tiny_backbone
from tests.models.tiny_models import draw_normal, make_tiny_vit, randomise_parameters

pytestmark = pytest.mark.numeric

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "normed queries and keys": {"qk_norm": True},
    "registers": {"reg_tokens": 3},
    "layer scale and no bias": {"init_values": 0.5, "qkv_bias": False},
    "no global token": {"class_token": False, "global_pool": "avg"},
}
IMAGES = draw_normal(2, 3, 32, 48)


@dataclass(frozen=True)
class InMemoryScenes:
    """Scenes of arrays in memory."""

    images: np.ndarray
    instances: np.ndarray
    info = DatasetInfo(name="at hand")

    @property
    def keys(self) -> list[str]:
        return [f"scene-{index}" for index in range(len(self))]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Scene:
        maps = {"rgb": torch.tensor(self.images[index]), "instance": torch.tensor(self.instances[index])}
        return Scene(self.keys[index], maps)

    def read_image_bytes(self, index: int) -> bytes | None:
        return None


def draw_scenes(count: int, *, seed: int = 0) -> InMemoryScenes:
    """Return images and instance maps of 32×48 noise; a tenth of the pixels is unlabelled."""
    rng = np.random.default_rng(seed)
    instances = rng.integers(0, 4, (count, 32, 48), dtype=np.uint8)
    instances[rng.random(instances.shape) < 0.1] = IGNORE
    return InMemoryScenes(rng.integers(0, 256, (count, 3, 32, 48), dtype=np.uint8), instances)


def measure(
    scenes: InMemoryScenes, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, **settings: object
) -> dict[str, Metric]:
    monkeypatch.setattr(sampled, "open_scenes", lambda *args, **kwargs: scenes)
    evaluation = AttentionEvaluation.model_validate({"data": "at hand", "workers": 0, **settings})
    return {
        metric.label: metric
        for metric in evaluation.run(ModelUnderTest.in_memory("tiny", Path("unused"), backbone=backbone))
    }


def make_random_vit(**options: Any) -> VisionTransformer:
    """Return a ViT whose attention is not uniform."""
    return randomise_parameters(make_tiny_vit(**options), std=0.3).eval()


def plant_attention_to_red(strength: float, vit: VisionTransformer) -> VisionTransformer:
    """Set the weights so that in all blocks, red patches have exp(2 strength) times the attention of others."""
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.zero_()
        vit.patch_embed.proj.weight[0, 0] = 1 / vit.patch_embed.proj.weight[0, 0].numel()  # mean of the red channel
        blocks: Any = vit.blocks
        for block in blocks:
            block.norm1 = nn.Identity()
            dim, head = block.attn.attn_dim, block.attn.head_dim
            block.attn.qkv.weight[dim : 2 * dim : head, 0] = 1  # the first number of every head's key
            block.attn.qkv.bias[:dim:head] = strength / block.attn.scale
    return vit


def make_red_scenes(is_red: Tensor, instances: np.ndarray) -> InMemoryScenes:
    """Return scenes with a standardised red channel of 1 in red patches and -1 in others."""
    pixels = is_red.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    images = torch.zeros(len(is_red), 3, *pixels.shape[1:], dtype=torch.uint8)
    images[:, 0] = torch.where(pixels, 255, 0)
    return InMemoryScenes(images.numpy(), instances)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_attention_equals_that_of_torchs_kernel_inside_timm(
    shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = make_random_vit(**shape)
    attentions = list(iterate_attention(backbone_from_vit(vit), IMAGES, [1, 2]))
    kernel_attentions = list[Tensor]()
    kernel: Callable[..., Tensor] = F.scaled_dot_product_attention

    def record_attention(q: Tensor, k: Tensor, v: Tensor, **settings: object) -> Tensor:
        kernel_attentions.append(kernel(q, k, torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)))
        return kernel(q, k, v, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record_attention)
    blocks: Any = vit.blocks
    for block in blocks:
        block.attn.fused_attn = True
    with torch.no_grad():
        vit.forward_features(IMAGES)
    assert len(kernel_attentions) == len(attentions) == 2
    for attention, expected in zip(attentions, kernel_attentions, strict=True):
        assert attention.dtype == torch.float32
        torch.testing.assert_close(attention, expected, atol=1e-6, rtol=1e-5)
        assert attention.std() > 0.01  # attention is not uniform


def test_attention_equals_that_of_torchs_multihead_attention() -> None:
    vit = make_random_vit()
    block: Any = vit.blocks[1]
    module = nn.MultiheadAttention(64, block.attn.num_heads, batch_first=True)
    with torch.no_grad():
        module.in_proj_weight.copy_(block.attn.qkv.weight)
        module.in_proj_bias.copy_(block.attn.qkv.bias)
        x = vit.blocks[0](vit.norm_pre(vit._pos_embed(vit.patch_embed(IMAGES))))
        tokens = block.norm1(x)
        _, expected = module(tokens, tokens, tokens, average_attn_weights=False)
    (attention,) = iterate_attention(backbone_from_vit(vit), IMAGES, [2])
    torch.testing.assert_close(attention, expected, atol=1e-6, rtol=1e-5)


def test_attention_of_selected_keys_is_renormalised() -> None:
    backbone = backbone_from_vit(make_random_vit(reg_tokens=2))
    (full,) = iterate_attention(backbone, IMAGES, [2])
    (selected,) = iterate_attention(backbone, IMAGES, [2], queries=slice(0, 1), keys=slice(3, None))
    expected = full[:, :, :1, 3:]
    assert expected.sum(dim=3).mean() < 0.9
    torch.testing.assert_close(selected, expected / expected.sum(dim=3, keepdim=True))


def test_layers_have_the_requested_order_and_the_model_is_unchanged() -> None:
    backbone = backbone_from_vit(make_tiny_vit())
    before = backbone.tokens(IMAGES)
    second, first, again = iterate_attention(backbone, IMAGES, [2, 1, 2])
    assert torch.equal(second, again)
    assert not torch.equal(first, second)
    assert torch.equal(backbone.tokens(IMAGES), before)
    assert not any(module._forward_pre_hooks for module in backbone.modules())


def test_image_attention_is_that_of_the_global_token_to_patches() -> None:
    backbone = backbone_from_vit(make_random_vit(reg_tokens=2))
    expected = [
        layer[:, :, 0].mean(dim=1) for layer in iterate_attention(backbone, IMAGES, [1, 2], keys=slice(3, None))
    ]
    attention = compute_image_attention(backbone, IMAGES, [1, 2])
    assert attention.shape == (2, 2, 6)
    torch.testing.assert_close(attention, torch.stack(expected, dim=1))


def test_image_attention_without_a_global_token_is_averaged_over_patches() -> None:
    backbone = backbone_from_vit(make_random_vit(class_token=False, global_pool="avg", reg_tokens=2))
    (full,) = iterate_attention(backbone, IMAGES, [1], keys=slice(2, None))
    attention = compute_image_attention(backbone, IMAGES, [1])
    torch.testing.assert_close(attention[:, 0], full[:, :, 2:].mean(dim=(1, 2)))
    model = ModelUnderTest.in_memory("tiny", Path("unused"), backbone=backbone)
    assert "the mean patch (there is no global token)" in AttentionEvaluation().describe_protocol(model)


def test_double_precision_is_preserved() -> None:
    (attention,) = iterate_attention(backbone_from_vit(make_tiny_vit()).double(), IMAGES.double(), [1])
    assert attention.dtype == torch.float64


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 4]))
def test_attention_on_instances_equals_a_loop_over_pixels(seed: int, patch: int) -> None:
    rng = np.random.default_rng(seed)
    instances = rng.choice([0, 1, 7, IGNORE], (2, 8, 12)).astype(np.uint8)
    grid = (8 // patch, 12 // patch)
    attention = rng.dirichlet(np.ones(grid[0] * grid[1]), (2, 3))
    fractions, chance = compute_attention_on_instances(torch.tensor(attention), torch.tensor(instances), patch)
    for image in range(2):
        labelled = [(y, x) for y in range(8) for x in range(12) if instances[image, y, x] != IGNORE]
        objects = [(y, x) for y, x in labelled if instances[image, y, x]]
        assert chance[image].item() == pytest.approx(len(objects) / len(labelled))
        for layer in range(3):
            weights = attention[image, layer].reshape(grid)
            expected = sum(weights[y // patch, x // patch] for y, x in objects)
            expected /= sum(weights[y // patch, x // patch] for y, x in labelled)
            assert fractions[image, layer].item() == pytest.approx(expected)


def test_planted_attention_has_the_expected_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    is_red = torch.zeros(2, 2, 3, dtype=torch.bool)
    is_red[0, 0, :2] = is_red[1, 1, 2] = True
    instances = np.zeros((2, 32, 48), np.uint8)
    instances[0, :16, :8] = 3  # half of the first red patch
    instances[1, 16:, 32:] = 1  # the red patch of the second scene
    instances[1, :16, :16] = 2  # a patch that is not red
    backbone = backbone_from_vit(plant_attention_to_red(1.5, make_tiny_vit()))
    metrics = measure(make_red_scenes(is_red, instances), backbone, monkeypatch)
    red_weight = math.exp(2 * 1.5)  # relative to other patches: red is 1 instead of -1
    first, second = (red_weight / 2) / (2 * red_weight + 4), (red_weight + 1) / (red_weight + 5)
    chance = (0.5 / 6 + 2 / 6) / 2
    for depth in (1, 2):
        assert metrics[f"layer {depth}: attention on objects"].value == pytest.approx(50 * (first + second), rel=1e-5)
        assert metrics[f"layer {depth}: attention on objects, relative to chance"].value == pytest.approx(
            (first + second) / 2 / chance, rel=1e-5
        )
    assert metrics["attention on objects by chance"].value == pytest.approx(100 * chance)
    assert metrics["attention on objects by chance"].count == 2


def test_uniform_attention_is_exactly_at_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = measure(draw_scenes(9), backbone_from_vit(plant_attention_to_red(0.0, make_tiny_vit())), monkeypatch)
    for depth in (1, 2):
        ratio = metrics[f"layer {depth}: attention on objects, relative to chance"]
        assert ratio.value == pytest.approx(1, abs=1e-12)
        assert ratio.interval == pytest.approx((1, 1), abs=1e-12)
        assert metrics[f"layer {depth}: attention on objects"].value == pytest.approx(
            metrics["attention on objects by chance"].value, abs=1e-10
        )


def test_metrics_are_independent_of_image_order_and_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, backbone = draw_scenes(7), backbone_from_vit(make_random_vit())
    order = np.random.default_rng(1).permutation(7)
    other = InMemoryScenes(scenes.images[order], scenes.instances[order])
    default = measure(scenes, backbone, monkeypatch)
    for metrics in (measure(other, backbone, monkeypatch), measure(scenes, backbone, monkeypatch, batch_size=2)):
        for name, metric in default.items():
            assert metrics[name].value == pytest.approx(metric.value, rel=1e-6)
            assert (metrics[name].interval or 0) == pytest.approx(metric.interval or 0, rel=1e-5)


def test_images_without_instances_or_labels_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, backbone = draw_scenes(6), backbone_from_vit(make_tiny_vit())
    subset = InMemoryScenes(scenes.images[[1, 2, 5]], scenes.instances[[1, 2, 5]])
    scenes.instances[0], scenes.instances[[3, 4]] = 0, IGNORE
    metrics, alone = measure(scenes, backbone, monkeypatch), measure(subset, backbone, monkeypatch)
    assert metrics["images left out"] == Metric("images_left_out", 3, 6)
    assert alone["images left out"] == Metric("images_left_out", 0, 3)
    for name in alone.keys() - {"images left out"}:
        assert metrics[name].count == 3
        assert metrics[name].value == pytest.approx(alone[name].value, rel=1e-6)


def test_images_with_attention_to_unlabelled_patches_only_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    is_red = torch.zeros(2, 2, 3, dtype=torch.bool)
    is_red[:, 0, 0] = True
    instances = np.ones((2, 32, 48), np.uint8)
    instances[0, :16, :16] = IGNORE
    metrics = measure(
        make_red_scenes(is_red, instances),
        backbone_from_vit(plant_attention_to_red(80.0, make_tiny_vit())),
        monkeypatch,
    )
    assert metrics["images left out"].value == 1
    assert metrics["layer 1: attention on objects"].value == 100


def test_sampled_images_are_spread_over_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, backbone = draw_scenes(9), backbone_from_vit(make_tiny_vit())
    third = InMemoryScenes(scenes.images[::3], scenes.instances[::3])
    sampled_metrics = measure(scenes, backbone, monkeypatch, images=3)
    assert sampled_metrics == measure(third, backbone, monkeypatch)
    (one,) = {metric.interval for metric in measure(scenes, backbone, monkeypatch, images=1).values()}
    assert one is None


def test_intervals_of_ratios_cover_the_true_ratio_as_often_as_their_level() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(400):
        chance = torch.rand(60, generator=generator, dtype=torch.float64) + 0.1
        fraction = 1.5 * chance + torch.randn(60, generator=generator, dtype=torch.float64) * 0.2 * chance
        low, high = sampled.make_ratio_metric("attention_on_objects_ratio", fraction, chance).interval or (0, 0)
        hits += low <= 1.5 <= high
    assert 0.92 < hits / 400 < 0.98


@pytest.mark.unchecked
def test_metrics_of_two_processes_are_bit_identical_to_those_of_one(tmp_path: Path) -> None:
    multiprocessing.set_forkserver_preload([sampled_processes.__name__])  # imported once for both processes
    start_processes(
        sampled_processes.run_rank, args=(tmp_path,), nprocs=sampled_processes.WORLD_SIZE, start_method="forkserver"
    )
    alone = sampled_processes.compute_sampled_metrics(World())
    assert len(alone) > 3
    for rank in range(sampled_processes.WORLD_SIZE):
        of_rank = [Metric(**values) for values in torch.load(tmp_path / f"{rank}.pt")]
        assert of_rank == alone


def test_data_without_instances_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = draw_scenes(2)
    scenes.instances[:] = 0
    with pytest.raises(UserError) as caught:
        measure(scenes, backbone_from_vit(make_tiny_vit()), monkeypatch)
    assert str(caught.value) == "attention: none of 2 images of at hand has an instance. Use other data"


def test_unsupported_attention_modules_are_rejected() -> None:
    backbone = backbone_from_vit(make_tiny_vit(attn_layer="diff"))
    with pytest.raises(UserError) as caught:
        next(iterate_attention(backbone, IMAGES, [1]))
    assert str(caught.value) == (
        "block 1: attention maps are unsupported (expected timm's Attention, got DiffAttention). Use a plain ViT"
    )


def test_missing_blocks_are_rejected() -> None:
    with pytest.raises(UserError) as caught:
        next(iterate_attention(backbone_from_vit(make_tiny_vit()), IMAGES, [1, 3]))
    assert str(caught.value) == "depth: expected a block from 1 to 2, got 3. Choose another block"


def test_registered_evaluation_identifies_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelUnderTest.in_memory("tiny", Path("unused"), backbone=backbone_from_vit(make_tiny_vit()))
    evaluation = EVALUATIONS.get("attention")()
    assert isinstance(evaluation, AttentionEvaluation)
    assert "an image of 32×48" in evaluation.describe_protocol(model)
    inputs = []
    for scenes in (draw_scenes(3), draw_scenes(3, seed=1), draw_scenes(4)):
        monkeypatch.setattr(sampled, "open_scenes", lambda *args, scenes=scenes, **kwargs: scenes)
        inputs.append(evaluation.identify_inputs(model))
    assert len({digests["data"] for digests in inputs}) == 3  # other images of the same keys, and another number
    model = make_tiny_model_under_test(tiny_backbone(), Path("unused"))
    own, larger = (AttentionEvaluation(image_size=size).identify_inputs(model) for size in ((16, 16), (16, 32)))
    assert own == inputs[-1]  # as in earlier versions, so that results stay valid
    assert larger == own | {"positions": "stretched"}
