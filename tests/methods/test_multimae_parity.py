"""Parity with a dense reference of the official MultiMAE, which projects, shuffles and restores all tokens."""

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


def select_prefix(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in weights.items() if name.startswith(f"{prefix}.")
    }


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def gather_tokens(x: Tensor, idx: Tensor) -> Tensor:
    return x.gather(1, idx.unsqueeze(2).expand(-1, -1, x.shape[2]))


def project(weights: Weights, task: str, map_: Tensor) -> Tensor:
    """Return a token for every patch of a map; MultiMAE's input adapters are convolutions, also over embedded ids."""
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


def compute_reference(
    weights: Weights, maps: Mapping[str, Tensor], is_masked: Tensor, num_visible: int
) -> dict[str, Tensor]:
    """Return the predictions of all heads: images [B, C, H, W], logits [B, classes, H/4, W/4]."""
    tokens = torch.cat([project(weights, task, maps[task]) + official_sincos_table(GRID, 64) for task in TASKS], dim=1)
    noise = torch.rand(tokens.shape[:2], generator=torch.Generator().manual_seed(5))
    shuffled = (is_masked.flatten(1) + noise).argsort(dim=1)
    visible_idx, restore_idx = shuffled[:, :num_visible], shuffled.argsort(dim=1)

    x = torch.cat([gather_tokens(tokens, visible_idx), weights["encoder.cls_token"].expand(len(tokens), -1, -1)], dim=1)
    for index in range(6):
        x = functional_call(Block(64, 2, 3, qkv_bias=True), select_prefix(weights, f"encoder.blocks.{index}"), x)

    predictions = {}
    for index, (head, task) in enumerate(HEADS.items()):
        entry, stage = (
            select_prefix(weights, f"decoder.entries.{index}"),
            select_prefix(weights, f"decoder.stages.{head}"),
        )
        projected = linear(entry, "project", x)
        visible, global_token = projected[:, :-1], projected[:, -1:]
        hidden_tokens = entry["mask_token"].expand(len(x), tokens.shape[1] - num_visible, -1)
        full = gather_tokens(torch.cat([visible, hidden_tokens], dim=1), restore_idx)
        full = (
            full
            + official_sincos_table(GRID, 32).repeat(3, 1)
            + entry["granularity"].expand(-1, NUM_PATCHES, -1).flatten(0, 1)
        )
        start = TASKS.index(task) * NUM_PATCHES
        queries = norm(stage, "first.norm_query", full[:, start : start + NUM_PATCHES])
        context = norm(stage, "first.norm_context", torch.cat([gather_tokens(full, visible_idx), global_token], dim=1))
        y = cross_attention(select_prefix(stage, "first.attn"), queries, context, heads=4)
        y = y + linear(stage, "first.mlp.fc2", F.gelu(linear(stage, "first.mlp.fc1", norm(stage, "first.norm", y))))
        for number in range(2):
            y = functional_call(Block(32, 4, 4, qkv_bias=True), select_prefix(stage, f"rest.{number}"), y)
        side = PATCH if task == "rgb" else CELLS
        predictions[head] = patches_to_image(linear(weights, f"heads.{head}", y), side)
    return predictions


def patches_to_image(values: Tensor, side: int) -> Tensor:
    """Return patches as [B, C, H, W]."""
    return (
        torch.einsum("bijpqc->bcipjq", values.unflatten(2, (side, side, -1)).unflatten(1, GRID))
        .flatten(4)
        .flatten(2, 3)
    )


def normalize_patches(images: Tensor) -> Tensor:
    """Return images with each patch standardised by its own mean and deviation."""
    patches = F.unfold(images, PATCH, stride=PATCH)
    patches = (patches - patches.mean(dim=1, keepdim=True)) / (patches.var(dim=1, keepdim=True) + 1e-6).sqrt()
    return F.fold(patches, images.shape[2:], PATCH, stride=PATCH)


def masked_mean(error: Tensor, is_masked: Tensor, is_valid: Tensor) -> Tensor:
    """Return the mean over the hidden pixels of each image, then over images with any (the official `nanmean`)."""
    is_hidden = F.interpolate(is_masked.view(-1, 1, *GRID).float(), error.shape[1:])[:, 0] * is_valid
    counts = is_hidden.flatten(1).sum(1)
    return ((error * is_hidden).flatten(1).sum(1)[counts > 0] / counts[counts > 0]).mean()


def reference_losses(
    predictions: Mapping[str, Tensor], maps: Mapping[str, Tensor], is_masked: Tensor
) -> dict[str, Tensor]:
    losses = {}
    for head, task in HEADS.items():
        target_map, hidden = maps[task], is_masked[:, TASKS.index(task)]
        if task == "rgb":
            target = normalize_patches(target_map) if head == "rgb_normalized_pixels" else target_map
            error, is_valid = F.mse_loss(predictions[head], target, reduction="none").mean(1), torch.ones(())
        else:
            error = F.cross_entropy(predictions[head], target_map.long(), reduction="none", ignore_index=IGNORE)
            is_valid = target_map != IGNORE
        losses[head] = masked_mean(error, hidden, is_valid)
    return losses


def draw_scenes_and_masks() -> tuple[SceneBatch, Masks]:
    """Return scenes with an unlabelled map, and masks with entirely hidden and entirely visible granularities."""
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


def test_predictions_losses_and_gradients_equal_the_dense_reference(method: MaskedAutoencoding) -> None:
    scenes, masks = draw_scenes_and_masks()
    maps = to_float64(method.prepare_inputs(scenes))
    weights = {name: p.detach().clone().requires_grad_() for name, p in method.model.named_parameters()}
    expected = compute_reference(weights, maps, masks.is_masked, 24)
    expected_losses = reference_losses(expected, maps, masks.is_masked)
    expected_total = sum(expected_losses.values(), torch.zeros(()))
    expected_total.backward()

    predictions = method.model(maps, masks)
    loss = method.compute_loss(predictions, maps, masks)
    loss.total.backward()

    for name, values in predictions.items():
        prediction = patches_to_image(values, CELLS if name in NUM_CLASSES else PATCH)
        torch.testing.assert_close(prediction, expected[name], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(loss.terms[name], expected_losses[name].detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.total, expected_total, atol=1e-5, rtol=1e-5)
    for name, parameter in method.model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, atol=1e-5, rtol=1e-5)


def test_the_defaults_equal_the_official_code() -> None:
    config = METHODS.get("multimae")()
    assert [(head.name, head.stage) for head in config.head_plans()] == [(head, head) for head in HEADS]
    decoder = config.decoder.options
    assert (decoder.dim, decoder.num_heads, decoder.depth) == (256, 8, 2)
    assert config.resolve_num_visible(196) == 98
    assert config.masking.name == "random"
    assert not config.encoder.has_norm
