"""Attention of a ViT's blocks, and how much of the global token's attention falls on objects.

Masked image modelling can suffer from attention drift: attention that leaves the objects. It is measured as the
fraction of attention that falls on pixels of instances, relative to that of uniform attention.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import cast

import torch
from jaxtyping import Float, Float64, Integer
from timm.layers.attention import Attention
from torch import Tensor, nn

from c2fmae.config.data import source_name
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import SceneBatch
from c2fmae.eval.analysis.config import AttentionEvaluation
from c2fmae.eval.analysis.sampled import make_mean_metric, make_ratio_metric, measure_images
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.models.attention import ALL_TOKENS, compute_attention_weights
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.backbone import BackboneInput
from c2fmae.models.patches import patchify


def iterate_attention(
    backbone: Backbone,
    maps: BackboneInput,
    depths: Sequence[int],
    *,
    queries: slice = ALL_TOKENS,
    keys: slice = ALL_TOKENS,
) -> Iterator[Float[Tensor, "batch head query key"]]:
    """Yield the attention weights of these queries and keys in each block of `depths`; the first block is 1.

    The weights of a query add up to 1 over the selected keys. One block's attention at a time is in memory.
    """
    inputs = _collect_attention_inputs(backbone, maps, depths)
    for depth in depths:
        attention = cast(Attention, backbone.encoder.blocks[depth - 1].attn)
        with torch.no_grad():
            weights = compute_attention_weights(attention, inputs[depth], queries=queries, keys=keys)
        yield weights


def compute_image_attention(
    backbone: Backbone, images: Float[Tensor, "batch channels height width"], depths: Sequence[int]
) -> Float[Tensor, "batch layer patch"]:
    """Return the global token's attention to the patches of each image, averaged over heads; it adds up to 1.

    A backbone without a global token is pooled by the mean of its patches, so the attention of patches is averaged.
    """
    queries = slice(0, 1) if has_global_token(backbone) else slice(backbone.num_prefix_tokens, None)
    layers = iterate_attention(backbone, images, depths, queries=queries, keys=slice(backbone.num_prefix_tokens, None))
    return torch.stack([layer.mean(dim=(1, 2)) for layer in layers], dim=1)


def has_global_token(backbone: Backbone) -> bool:
    """Return whether a backbone has a global token; registers do not count."""
    return backbone.encoder.cls_token is not None


def compute_attention_on_instances(
    attention: Float[Tensor, "batch layer patch"], instances: Integer[Tensor, "batch height width"], patch: int
) -> tuple[Float64[Tensor, "batch layer"], Float64[Tensor, " batch"]]:
    """Return the fraction of attention that falls on instances, and the fraction of pixels of instances (chance).

    A patch's attention is spread evenly over its pixels, and unlabelled pixels are left out. Uniform attention has the
    fraction of chance. Both are NaN for an image without labelled pixels.
    """
    cells = patchify(instances, patch)
    num_labelled = (cells != IGNORE).double().sum(dim=2)
    num_instance = ((cells != IGNORE) & (cells != 0)).double().sum(dim=2)
    on_instances, on_labelled = (
        torch.einsum("blp,bp->bl", attention.double(), count) for count in (num_instance, num_labelled)
    )
    return on_instances / on_labelled, num_instance.sum(dim=1) / num_labelled.sum(dim=1)


def measure_attention(config: AttentionEvaluation, model: ModelUnderTest) -> Iterator[Metric]:
    """Yield chance, the number of images left out, and each layer's attention on objects and its ratio to chance."""
    backbone = model.backbone
    depths = range(1, backbone.depth + 1)

    def measure(scenes: SceneBatch) -> Tensor:
        attention = compute_image_attention(backbone, backbone.standardise(scenes.maps["rgb"]), depths)
        fractions, chance = compute_attention_on_instances(attention, scenes.maps["instance"], backbone.patch)
        return torch.cat([chance[:, None], fractions], dim=1)

    values = measure_images(config, model, measure, granularities=("rgb", "instance"))
    is_counted = (values[:, 0] > 0) & values.isfinite().all(dim=1)  # all attention may be on unlabelled patches
    chance, *fractions = values[is_counted].unbind(dim=1)
    count = len(chance)
    if not count:
        raise UserError(
            f"attention: none of {len(values)} images of {source_name(config.data)} has an instance. Use other data"
        )
    yield make_mean_metric("attention_on_objects_chance", 100 * chance)
    yield Metric("images_left_out", len(values) - count, len(values))
    for depth, fraction in zip(depths, fractions, strict=True):
        yield make_mean_metric("attention_on_objects", 100 * fraction, layer=depth)
        yield make_ratio_metric("attention_on_objects_ratio", fraction, chance, layer=depth)


@torch.no_grad()
def _collect_attention_inputs(backbone: Backbone, maps: BackboneInput, depths: Sequence[int]) -> dict[int, Tensor]:
    """Return the normed tokens that each of these blocks passes to its attention."""
    attentions = {}
    for depth, block in enumerate(backbone.encoder.blocks, start=1):
        attentions[depth] = getattr(block, "attn", block)
        if type(attentions[depth]) is not Attention:
            raise UserError(
                f"block {depth}: attention maps are unsupported (expected timm's Attention, got "
                f"{type(attentions[depth]).__name__}). Use a plain ViT"
            )
    inputs: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for depth in set(depths) & attentions.keys():

            def save_input(_: nn.Module, args: tuple[Tensor, ...], depth: int = depth) -> None:
                inputs[depth] = args[0]

            hooks.enter_context(attentions[depth].register_forward_pre_hook(save_input))
        backbone.get_intermediate_layers(maps, depths)
    return inputs
