"""Our MultiMAE is the official one, written out here the long way: everything is projected, shuffled and put back."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.func import functional_call

from c2fmae.core.granularity import IGNORE
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.methods import METHODS, MaskedAutoencoding
from tests.methods.official_positions import official_sincos_table
from tests.methods.tiny_methods import (
    NUM_CLASSES,
    build_tiny_method,
    draw_noise_scenes,
    perturb_parameters,
    to_float64,
)

pytestmark = pytest.mark.numeric

SIZE, GRID, PATCH, CELLS = (64, 96), (4, 6), 16, 4
NUM_PATCHES = GRID[0] * GRID[1]
BUDGETS = [(0, 10, 14), (24, 0, 0), (7, 9, 8), (1, 23, 0), (8, 8, 8)]
TASKS = ("semantic", "instance", "rgb")
HEADS = {"semantic": "semantic", "instance": "instance", "rgb": "rgb", "rgb_normalized_pixels": "rgb"}

Weights = Mapping[str, Tensor]


def under(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): each for name, each in weights.items() if name.startswith(f"{prefix}.")}


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def take(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))


def project(weights: Weights, task: str, map_: Tensor) -> Tensor:
    """Every patch of one map as a token: MultiMAE's input adapters are convolutions, also over embedded ids."""
    kernel, bias, stride = weights[f"embeddings.{task}.proj.weight"], weights[f"embeddings.{task}.proj.bias"], PATCH
    if task != "rgb":
        classes = weights[f"embeddings.{task}.classes.weight"]
        map_ = F.embedding(map_.long().masked_fill(map_ == IGNORE, len(classes) - 1), classes).permute(0, 3, 1, 2)
        kernel, stride = kernel.view(-1, CELLS, CELLS, classes.shape[1]).permute(0, 3, 1, 2), CELLS
    return F.conv2d(map_, kernel, bias, stride=stride).flatten(2).transpose(1, 2)


def cross_attention(weights: Weights, queries: Tensor, context: Tensor, heads: int) -> Tensor:
    keys, values = linear(weights, "kv", context).chunk(2, dim=2)
    q, k, v = (x.unflatten(2, (heads, -1)) for x in (linear(weights, "q", queries), keys, values))
    weight = (torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[3] ** 0.5).softmax(dim=3)
    return linear(weights, "proj", torch.einsum("bhqk,bkhd->bqhd", weight, v).flatten(2))


def reference(weights: Weights, maps: Mapping[str, Tensor], is_masked: Tensor, num_visible: int) -> dict[str, Tensor]:
    """Every head's prediction: photos [B, C, H, W], logits [B, classes, H/4, W/4]."""
    tokens = torch.cat([project(weights, task, maps[task]) + official_sincos_table(GRID, 64) for task in TASKS], dim=1)
    noise = torch.rand(tokens.shape[:2], generator=torch.Generator().manual_seed(5))
    shuffled = (is_masked.flatten(1) + noise).argsort(dim=1)
    kept, restore = shuffled[:, :num_visible], shuffled.argsort(dim=1)

    x = torch.cat([take(tokens, kept), weights["encoder.cls_token"].expand(len(tokens), -1, -1)], dim=1)
    for index in range(6):
        x = functional_call(Block(64, 2, 3, qkv_bias=True), under(weights, f"encoder.blocks.{index}"), x)

    predictions = {}
    for index, (head, task) in enumerate(HEADS.items()):
        entry, stage = under(weights, f"decoder.entries.{index}"), under(weights, f"decoder.stages.{head}")
        projected = linear(entry, "project", x)
        seen, global_token = projected[:, :-1], projected[:, -1:]
        unseen = entry["mask_token"].expand(len(x), tokens.shape[1] - num_visible, -1)
        full = take(torch.cat([seen, unseen], dim=1), restore)
        full = (
            full
            + official_sincos_table(GRID, 32).repeat(3, 1)
            + entry["granularity"].expand(-1, NUM_PATCHES, -1).flatten(0, 1)
        )
        place = TASKS.index(task) * NUM_PATCHES
        queries = norm(stage, "first.norm_query", full[:, place : place + NUM_PATCHES])
        context = norm(stage, "first.norm_context", torch.cat([take(full, kept), global_token], dim=1))
        y = cross_attention(under(stage, "first.attn"), queries, context, heads=4)
        y = y + linear(stage, "first.mlp.fc2", F.gelu(linear(stage, "first.mlp.fc1", norm(stage, "first.norm", y))))
        for number in range(2):
            y = functional_call(Block(32, 4, 4, qkv_bias=True), under(stage, f"rest.{number}"), y)
        side = PATCH if task == "rgb" else CELLS
        predictions[head] = picture(linear(weights, f"heads.{head}", y), side)
    return predictions


def picture(values: Tensor, side: int) -> Tensor:
    """Patches as [B, C, H, W]."""
    return (
        torch.einsum("bijpqc->bcipjq", values.unflatten(2, (side, side, -1)).unflatten(1, GRID))
        .flatten(4)
        .flatten(2, 3)
    )


def normalized(photos: Tensor) -> Tensor:
    """Each patch less its mean, over its deviation."""
    patches = F.unfold(photos, PATCH, stride=PATCH)
    patches = (patches - patches.mean(dim=1, keepdim=True)) / (patches.var(dim=1, keepdim=True) + 1e-6).sqrt()
    return F.fold(patches, photos.shape[2:], PATCH, stride=PATCH)


def masked_mean(error: Tensor, is_masked: Tensor, is_valid: Tensor) -> Tensor:
    """The mean over each image's hidden pixels, then over the images that have any (the official `nanmean`)."""
    is_hidden = F.interpolate(is_masked.view(-1, 1, *GRID).float(), error.shape[1:])[:, 0] * is_valid
    counts = is_hidden.flatten(1).sum(1)
    return ((error * is_hidden).flatten(1).sum(1)[counts > 0] / counts[counts > 0]).mean()


def reference_losses(
    predictions: Mapping[str, Tensor], maps: Mapping[str, Tensor], is_masked: Tensor
) -> dict[str, Tensor]:
    losses = {}
    for head, task in HEADS.items():
        true, hidden = maps[task], is_masked[:, TASKS.index(task)]
        if task == "rgb":
            wanted = normalized(true) if head == "rgb_normalized_pixels" else true
            error, is_valid = F.mse_loss(predictions[head], wanted, reduction="none").mean(1), torch.ones(())
        else:
            error = F.cross_entropy(predictions[head], true.long(), reduction="none", ignore_index=IGNORE)
            is_valid = true != IGNORE
        losses[head] = masked_mean(error, hidden, is_valid)
    return losses


def scenes_and_masks() -> tuple[SceneBatch, Masks]:
    """Granularities that are wholly hidden and wholly visible, and a map that nobody labelled."""
    scenes = draw_noise_scenes(len(BUDGETS), SIZE)
    scenes.maps["semantic"][2] = IGNORE
    generator = torch.Generator().manual_seed(3)
    is_masked = torch.ones(len(BUDGETS), 3, NUM_PATCHES, dtype=torch.bool)
    for image, budget in enumerate(BUDGETS):
        for granularity, num_visible in enumerate(budget):
            is_masked[image, granularity, torch.randperm(NUM_PATCHES, generator=generator)[:num_visible]] = False
    return scenes, Masks.from_mask(is_masked, TASKS, num_visible=24)


@pytest.fixture(scope="module")
def method() -> MaskedAutoencoding:
    built = build_tiny_method("multimae", "decoder.options.depth=2", size=SIZE)
    perturb_parameters(built.model.double())
    return built


def test_predictions_losses_and_every_gradient_are_those_of_the_dense_form(method: MaskedAutoencoding) -> None:
    scenes, masks = scenes_and_masks()
    maps = to_float64(method.prepare_inputs(scenes))
    weights = {name: p.detach().clone().requires_grad_() for name, p in method.model.named_parameters()}
    expected = reference(weights, maps, masks.is_masked, 24)
    expected_losses = reference_losses(expected, maps, masks.is_masked)
    expected_total = sum(expected_losses.values(), torch.zeros(()))
    expected_total.backward()

    predictions = method.model(maps, masks)
    loss = method.compute_loss(predictions, maps, masks)
    loss.total.backward()

    for name, values in predictions.items():
        found = picture(values, CELLS if name in NUM_CLASSES else PATCH)
        torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(loss.terms[name], expected_losses[name].detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.total, expected_total, atol=1e-5, rtol=1e-5)
    for name, parameter in method.model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, atol=1e-5, rtol=1e-5)


def test_the_defaults_are_those_of_the_official_code() -> None:
    config = METHODS.get("multimae")()
    assert [(head.name, head.stage) for head in config.head_plans()] == [(head, head) for head in HEADS]
    decoder = config.decoder.options
    assert (decoder.dim, decoder.num_heads, decoder.depth) == (256, 8, 2)
    assert config.resolve_num_visible(196) == 98
    assert config.masking.name == "random"
    assert not config.encoder.has_norm
