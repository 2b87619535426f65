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
    attention_fraction_on_instances,
    compute_image_attention,
    iterate_attention,
)
from c2fmae.eval.analysis.config import AttentionEvaluation
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.models.backbones import Backbone
from tests.eval.analysis import sampled_processes
from tests.eval.analysis.sampled_processes import backbone_from_vit
from tests.models.tiny_models import draw_normal, make_tiny_vit, randomise_parameters

pytestmark = pytest.mark.numeric

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "normed queries and keys": {"qk_norm": True},
    "registers": {"reg_tokens": 3},
    "layer scale and no bias": {"init_values": 0.5, "qkv_bias": False},
    "no global token": {"class_token": False, "global_pool": "avg"},
}
PHOTOS = draw_normal(2, 3, 32, 48)


@dataclass(frozen=True)
class Scenes:
    """What is at hand, as a source of scenes."""

    photos: np.ndarray
    instances: np.ndarray
    info = DatasetInfo(name="at hand")

    @property
    def keys(self) -> list[str]:
        return [f"scene-{index}" for index in range(len(self))]

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Scene:
        maps = {"rgb": torch.tensor(self.photos[index]), "instance": torch.tensor(self.instances[index])}
        return Scene(self.keys[index], maps)

    def read_image_bytes(self, index: int) -> bytes | None:
        return None


def noise(count: int, *, seed: int = 0) -> Scenes:
    """Photos and instances of 32×48, a tenth of it unlabelled."""
    rng = np.random.default_rng(seed)
    instances = rng.integers(0, 4, (count, 32, 48), dtype=np.uint8)
    instances[rng.random(instances.shape) < 0.1] = IGNORE
    return Scenes(rng.integers(0, 256, (count, 3, 32, 48), dtype=np.uint8), instances)


def metrics(
    scenes: Scenes, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, **settings: object
) -> dict[str, Metric]:
    monkeypatch.setattr(sampled, "open_scenes", lambda *args, **kwargs: scenes)
    evaluation = AttentionEvaluation.model_validate({"data": "at hand", "workers": 0, **settings})
    return {
        metric.label: metric
        for metric in evaluation.run(ModelUnderTest.in_memory("tiny", Path("unused"), backbone=backbone))
    }


def keen_vit(**options: Any) -> VisionTransformer:
    """A ViT that does not look everywhere alike."""
    return randomise_parameters(make_tiny_vit(**options), std=0.3).eval()


def looking_at_red(strength: float, vit: VisionTransformer) -> VisionTransformer:
    """A ViT whose every token, in every block, looks exp(strength) times as much at patches that are all red."""
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.zero_()
        vit.patch_embed.proj.weight[0, 0] = 1 / vit.patch_embed.proj.weight[0, 0].numel()  # mean of what is red
        blocks: Any = vit.blocks
        for block in blocks:
            block.norm1 = nn.Identity()
            dim, head = block.attn.attn_dim, block.attn.head_dim
            block.attn.qkv.weight[dim : 2 * dim : head, 0] = 1  # the first number of every head's key
            block.attn.qkv.bias[:dim:head] = strength / block.attn.scale
    return vit


def red_scenes(is_red: Tensor, instances: np.ndarray) -> Scenes:
    """Photos whose patches are standardised to 1 or -1 in red."""
    pixels = is_red.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    photos = torch.zeros(len(is_red), 3, *pixels.shape[1:], dtype=torch.uint8)
    photos[:, 0] = torch.where(pixels, 255, 0)
    return Scenes(photos.numpy(), instances)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_block_looks_where_torchs_own_kernel_says_while_timm_runs(
    shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = keen_vit(**shape)
    found = list(iterate_attention(backbone_from_vit(vit), PHOTOS, [1, 2]))
    seen = list[Tensor]()
    real: Callable[..., Tensor] = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, **settings: object) -> Tensor:
        seen.append(real(q, k, torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)))
        return real(q, k, v, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    blocks: Any = vit.blocks
    for block in blocks:
        block.attn.fused_attn = True
    with torch.no_grad():
        vit.forward_features(PHOTOS)
    assert len(seen) == len(found) == 2
    for ours, theirs in zip(found, seen, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
        assert ours.std() > 0.01  # it is not all the same


def test_a_block_looks_where_torchs_module_of_attention_says() -> None:
    vit = keen_vit()
    block: Any = vit.blocks[1]
    theirs = nn.MultiheadAttention(64, block.attn.num_heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(block.attn.qkv.weight)
        theirs.in_proj_bias.copy_(block.attn.qkv.bias)
        x = vit.blocks[0](vit.norm_pre(vit._pos_embed(vit.patch_embed(PHOTOS))))
        given = block.norm1(x)
        _, weights = theirs(given, given, given, average_attn_weights=False)
    (found,) = iterate_attention(backbone_from_vit(vit), PHOTOS, [2])
    torch.testing.assert_close(found, weights, atol=1e-6, rtol=1e-5)


def test_some_queries_at_some_keys_are_the_whole_renormalised() -> None:
    backbone = backbone_from_vit(keen_vit(reg_tokens=2))
    (whole,) = iterate_attention(backbone, PHOTOS, [2])
    (some,) = iterate_attention(backbone, PHOTOS, [2], queries=slice(0, 1), keys=slice(3, None))
    expected = whole[:, :, :1, 3:]
    assert expected.sum(dim=3).mean() < 0.9
    torch.testing.assert_close(some, expected / expected.sum(dim=3, keepdim=True))


def test_layers_come_as_asked_and_the_model_is_as_before() -> None:
    backbone = backbone_from_vit(make_tiny_vit())
    before = backbone.tokens(PHOTOS)
    second, first, again = iterate_attention(backbone, PHOTOS, [2, 1, 2])
    assert torch.equal(second, again)
    assert not torch.equal(first, second)
    assert torch.equal(backbone.tokens(PHOTOS), before)
    assert not any(module._forward_pre_hooks for module in backbone.modules())


def test_it_is_the_global_token_that_looks_at_patches_alone() -> None:
    backbone = backbone_from_vit(keen_vit(reg_tokens=2))
    expected = [
        layer[:, :, 0].mean(dim=1) for layer in iterate_attention(backbone, PHOTOS, [1, 2], keys=slice(3, None))
    ]
    found = compute_image_attention(backbone, PHOTOS, [1, 2])
    assert found.shape == (2, 2, 6)
    torch.testing.assert_close(found, torch.stack(expected, dim=1))


def test_without_a_global_token_the_mean_patch_looks() -> None:
    backbone = backbone_from_vit(keen_vit(class_token=False, global_pool="avg", reg_tokens=2))
    (whole,) = iterate_attention(backbone, PHOTOS, [1], keys=slice(2, None))
    found = compute_image_attention(backbone, PHOTOS, [1])
    torch.testing.assert_close(found[:, 0], whole[:, :, 2:].mean(dim=(1, 2)))
    subject = ModelUnderTest.in_memory("tiny", Path("unused"), backbone=backbone)
    assert "the mean patch (there is no global token)" in AttentionEvaluation().describe_protocol(subject)


def test_double_precision_stays() -> None:
    (found,) = iterate_attention(backbone_from_vit(make_tiny_vit()).double(), PHOTOS.double(), [1])
    assert found.dtype == torch.float64


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 4]))
def test_a_share_is_what_a_loop_over_pixels_says(seed: int, patch: int) -> None:
    rng = np.random.default_rng(seed)
    instances = rng.choice([0, 1, 7, IGNORE], (2, 8, 12)).astype(np.uint8)
    grid = (8 // patch, 12 // patch)
    attention = rng.dirichlet(np.ones(grid[0] * grid[1]), (2, 3))
    shares, chance = attention_fraction_on_instances(torch.tensor(attention), torch.tensor(instances), patch)
    for image in range(2):
        labelled = [(y, x) for y in range(8) for x in range(12) if instances[image, y, x] != IGNORE]
        objects = [(y, x) for y, x in labelled if instances[image, y, x]]
        assert chance[image].item() == pytest.approx(len(objects) / len(labelled))
        for layer in range(3):
            on = attention[image, layer].reshape(grid)
            expected = sum(on[y // patch, x // patch] for y, x in objects)
            expected /= sum(on[y // patch, x // patch] for y, x in labelled)
            assert shares[image, layer].item() == pytest.approx(expected)


def test_planted_attention_gives_the_planted_number(monkeypatch: pytest.MonkeyPatch) -> None:
    is_red = torch.zeros(2, 2, 3, dtype=torch.bool)
    is_red[0, 0, :2] = is_red[1, 1, 2] = True
    instances = np.zeros((2, 32, 48), np.uint8)
    instances[0, :16, :8] = 3  # half of the first red patch
    instances[1, 16:, 32:] = 1  # the red patch of the second scene
    instances[1, :16, :16] = 2  # and one that is not red
    backbone = backbone_from_vit(looking_at_red(1.5, make_tiny_vit()))
    found = metrics(red_scenes(is_red, instances), backbone, monkeypatch)
    more = math.exp(2 * 1.5)  # red is 1 where everything else is -1
    first, second = (more / 2) / (2 * more + 4), (more + 1) / (more + 5)
    chance = (0.5 / 6 + 2 / 6) / 2
    for depth in (1, 2):
        assert found[f"layer {depth}: attention on objects"].value == pytest.approx(50 * (first + second), rel=1e-5)
        assert found[f"layer {depth}: attention on objects, relative to chance"].value == pytest.approx(
            (first + second) / 2 / chance, rel=1e-5
        )
    assert found["attention on objects by chance"].value == pytest.approx(100 * chance)
    assert found["attention on objects by chance"].count == 2


def test_attention_that_is_the_same_everywhere_is_at_chance_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    found = metrics(noise(9), backbone_from_vit(looking_at_red(0.0, make_tiny_vit())), monkeypatch)
    for depth in (1, 2):
        ratio = found[f"layer {depth}: attention on objects, relative to chance"]
        assert ratio.value == pytest.approx(1, abs=1e-12)
        assert ratio.interval == pytest.approx((1, 1), abs=1e-12)
        assert found[f"layer {depth}: attention on objects"].value == pytest.approx(
            found["attention on objects by chance"].value, abs=1e-10
        )


def test_the_order_of_images_and_the_size_of_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, backbone = noise(7), backbone_from_vit(keen_vit())
    order = np.random.default_rng(1).permutation(7)
    other = Scenes(scenes.photos[order], scenes.instances[order])
    usual = metrics(scenes, backbone, monkeypatch)
    for found in (metrics(other, backbone, monkeypatch), metrics(scenes, backbone, monkeypatch, batch_size=2)):
        for name, metric in usual.items():
            assert found[name].value == pytest.approx(metric.value, rel=1e-6)
            assert (found[name].interval or 0) == pytest.approx(metric.interval or 0, rel=1e-5)


def test_images_without_an_instance_or_a_label_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, backbone = noise(6), backbone_from_vit(make_tiny_vit())
    kept = Scenes(scenes.photos[[1, 2, 5]], scenes.instances[[1, 2, 5]])
    scenes.instances[0], scenes.instances[[3, 4]] = 0, IGNORE
    found, alone = metrics(scenes, backbone, monkeypatch), metrics(kept, backbone, monkeypatch)
    assert found["images left out"] == Metric("images_left_out", 3, 6)
    assert alone["images left out"] == Metric("images_left_out", 0, 3)
    for name in alone.keys() - {"images left out"}:
        assert found[name].count == 3
        assert found[name].value == pytest.approx(alone[name].value, rel=1e-6)


def test_an_image_of_which_only_the_unlabelled_is_looked_at_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    is_red = torch.zeros(2, 2, 3, dtype=torch.bool)
    is_red[:, 0, 0] = True
    instances = np.ones((2, 32, 48), np.uint8)
    instances[0, :16, :16] = IGNORE
    found = metrics(
        red_scenes(is_red, instances), backbone_from_vit(looking_at_red(80.0, make_tiny_vit())), monkeypatch
    )
    assert found["images left out"].value == 1
    assert found["layer 1: attention on objects"].value == 100


def test_fewer_images_are_spread_over_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, backbone = noise(9), backbone_from_vit(make_tiny_vit())
    third = Scenes(scenes.photos[::3], scenes.instances[::3])
    some = metrics(scenes, backbone, monkeypatch, images=3)
    assert some == metrics(third, backbone, monkeypatch)
    (one,) = {metric.interval for metric in metrics(scenes, backbone, monkeypatch, images=1).values()}
    assert one is None


def test_intervals_cover_what_more_images_say_about_as_often_as_they_promise() -> None:
    draw = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(400):
        chance = torch.rand(60, generator=draw, dtype=torch.float64) + 0.1
        share = 1.5 * chance + torch.randn(60, generator=draw, dtype=torch.float64) * 0.2 * chance
        low, high = sampled.ratio_metric("attention_on_objects_ratio", share, chance).interval or (0, 0)
        hits += low <= 1.5 <= high
    assert 0.92 < hits / 400 < 0.98


@pytest.mark.once
def test_two_processes_say_what_one_does_to_the_last_bit(tmp_path: Path) -> None:
    multiprocessing.set_forkserver_preload([sampled_processes.__name__])  # both begin with what one process imported
    start_processes(
        sampled_processes.run_rank, args=(tmp_path,), nprocs=sampled_processes.WORLD_SIZE, start_method="forkserver"
    )
    alone = sampled_processes.compute_sampled_metrics(World())
    assert len(alone) > 3
    for rank in range(sampled_processes.WORLD_SIZE):
        together = [Metric(**values) for values in torch.load(tmp_path / f"{rank}.pt")]
        assert together == alone


def test_data_without_any_instance_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = noise(2)
    scenes.instances[:] = 0
    with pytest.raises(UserError) as caught:
        metrics(scenes, backbone_from_vit(make_tiny_vit()), monkeypatch)
    assert str(caught.value) == "attention: none of 2 images of at hand has an instance. Use other data"


def test_attention_of_another_kind_is_refused() -> None:
    backbone = backbone_from_vit(make_tiny_vit(attn_layer="diff"))
    with pytest.raises(UserError) as caught:
        next(iterate_attention(backbone, PHOTOS, [1]))
    assert str(caught.value) == ("block 1 attends by DiffAttention, whose maps are not computed here. Take a plain ViT")


def test_blocks_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        next(iterate_attention(backbone_from_vit(make_tiny_vit()), PHOTOS, [1, 3]))
    assert str(caught.value) == "depth: expected a block from 1 to 2, got 3. Choose another block"


def test_it_is_found_by_name_and_tells_data_from_other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = ModelUnderTest.in_memory("tiny", Path("unused"), backbone=backbone_from_vit(make_tiny_vit()))
    evaluation = EVALUATIONS.get("attention")()
    assert isinstance(evaluation, AttentionEvaluation)
    assert "an image of 32×48" in evaluation.describe_protocol(subject)
    inputs = []
    for scenes in (noise(3), noise(3, seed=1), noise(4)):
        monkeypatch.setattr(sampled, "open_scenes", lambda *args, found=scenes, **kwargs: found)
        inputs.append(evaluation.identify_inputs(subject))
    assert len({each["data"] for each in inputs}) == 3  # other photos of the same keys, and more of them
