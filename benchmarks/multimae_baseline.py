"""A masked autoencoder of three granularities as MultiMAE implements it, in plain torch: the baseline of `bench_step`.

All patches are projected, then visible ones are gathered; each decoder un-shuffles all tokens again; each head predicts
a dense map, whose hidden cells enter the loss. Attention is explicit, as in c2fmae on a CPU. With `is_dense`, decoders
attend to all tokens instead of the visible ones.
"""

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from c2fmae.core.granularity import COARSE_TO_FINE, IGNORE
from c2fmae.core.pixels import standardise
from c2fmae.core.scene import SceneBatch
from c2fmae.core.specs import IMAGENET_MEAN, IMAGENET_STD
from c2fmae.models.positions import sincos_positions

PATCH, CELLS, CLASS_DIM, DIM, DECODER_DIM, HEADS = 16, 4, 64, 768, 256, 8
CLASSES = {"semantic": 133, "instance": 32}


class ShuffledMask(NamedTuple):
    """Masks in the form that MultiMAE uses."""

    is_masked: Tensor
    ids_keep: Tensor
    ids_restore: Tensor


def multimae_masks(batch: int, num_patches: int, num_visible: int, device: torch.device | None = None) -> ShuffledMask:
    """Sample masks: rounded Dirichlet fractions, an argsort for each granularity, and two for all tokens."""
    fractions = torch.distributions.Dirichlet(torch.ones(3, device=device)).sample((batch,))
    budgets = (fractions * num_visible).round().long()
    parts = []
    for granularity in range(3):
        order = torch.rand(batch, num_patches, device=device).argsort(dim=1)
        rank = torch.arange(num_patches, device=device).unsqueeze(0).expand(batch, -1).gather(1, order)
        parts.append(torch.where(rank < budgets[:, granularity].unsqueeze(1), 0, 1))
    mask = torch.cat(parts, dim=1)
    shuffle = (mask + torch.rand(mask.shape, device=device)).argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    mask = torch.ones_like(mask)
    mask[:, :num_visible] = 0
    return ShuffledMask(mask.gather(1, restore), shuffle[:, :num_visible], restore)


class ImageAdapter(nn.Module):
    def __init__(self, positions: Tensor) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.register_buffer("positions", positions)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2) + self.positions  # type: ignore[no-any-return]


class IdAdapter(nn.Module):
    def __init__(self, num_classes: int, positions: Tensor) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classes = nn.Embedding(num_classes + 1, CLASS_DIM)
        self.proj = nn.Conv2d(CLASS_DIM, DIM, CELLS, CELLS)
        self.register_buffer("positions", positions)

    def forward(self, ids: Tensor) -> Tensor:
        cells = self.classes(ids.clamp(max=self.num_classes)).permute(0, 3, 1, 2)
        return self.proj(cells).flatten(2).transpose(1, 2) + self.positions  # type: ignore[no-any-return]


class InputAdapters(nn.Module):
    """Embed all patches, then gather the visible ones."""

    def __init__(self, num_patches: int) -> None:
        super().__init__()
        side = round(num_patches**0.5)
        positions = sincos_positions((side, side), DIM)
        ids = {name: IdAdapter(count, positions) for name, count in CLASSES.items()}
        self.adapters = nn.ModuleDict({**ids, "rgb": ImageAdapter(positions)})

    def forward(self, maps: Mapping[str, Tensor], ids_keep: Tensor) -> Tensor:
        tokens = torch.cat([adapter(maps[name]) for name, adapter in self.adapters.items()], dim=1)
        return tokens.gather(1, ids_keep.unsqueeze(2).expand(-1, -1, DIM))


class BaselineEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.global_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.blocks = nn.Sequential(*(Block(DIM, 12, qkv_bias=True) for _ in range(12)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.blocks(torch.cat([tokens, self.global_token.expand(len(tokens), -1, -1)], dim=1))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(DECODER_DIM, DECODER_DIM), nn.Linear(DECODER_DIM, 2 * DECODER_DIM)
        self.proj = nn.Linear(DECODER_DIM, DECODER_DIM)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        batch, count, dim = queries.shape
        q = self.q(queries).view(batch, count, HEADS, -1).transpose(1, 2)
        k, v = self.kv(context).view(batch, context.shape[1], 2, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attended = (q * q.shape[3] ** -0.5 @ k.transpose(2, 3)).softmax(dim=3) @ v
        return self.proj(attended.transpose(1, 2).reshape(batch, count, dim))  # type: ignore[no-any-return]


class BaselineDecoder(nn.Module):
    """The decoder of one task: un-shuffle all tokens, cross-attend to visible ones, predict a dense map."""

    def __init__(self, task: int, channels: int, side: int, num_patches: int, *, is_dense: bool) -> None:
        super().__init__()
        self.task, self.num_patches, self.is_dense = task, num_patches, is_dense
        self.channels, self.side = channels, side
        self.project = nn.Linear(DIM, DECODER_DIM)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DECODER_DIM))
        self.task_embeddings = nn.Parameter(torch.zeros(3, 1, DECODER_DIM))
        rows = round(num_patches**0.5)
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions((rows, rows), DECODER_DIM))
        self.norm_queries, self.norm_context = nn.LayerNorm(DECODER_DIM), nn.LayerNorm(DECODER_DIM)
        self.cross, self.norm = CrossAttention(), nn.LayerNorm(DECODER_DIM)
        self.mlp = nn.Sequential(nn.Linear(DECODER_DIM, 1024), nn.GELU(), nn.Linear(1024, DECODER_DIM))
        self.blocks = nn.Sequential(*(Block(DECODER_DIM, HEADS, qkv_bias=True) for _ in range(2)))
        self.head = nn.Linear(DECODER_DIM, channels * side**2)

    def forward(self, latent: Tensor, shuffle: ShuffledMask) -> Tensor:
        latent = self.project(latent)
        visible, last = latent[:, :-1], latent[:, -1:]
        batch, num_visible, dim = visible.shape
        masked = self.mask_token.to(visible.dtype).expand(batch, 3 * self.num_patches - num_visible, -1)
        tokens = torch.cat([visible, masked], dim=1).gather(1, shuffle.ids_restore.unsqueeze(2).expand(-1, -1, dim))
        tokens = tokens + (self.positions + self.task_embeddings).flatten(0, 1)
        if self.is_dense:
            context = tokens
        else:
            context = torch.cat([tokens.gather(1, shuffle.ids_keep.unsqueeze(2).expand(-1, -1, dim)), last], dim=1)
        queries = tokens[:, self.task * self.num_patches : (self.task + 1) * self.num_patches]
        x = self.cross(self.norm_queries(queries), self.norm_context(context))
        x = self.blocks(x + self.mlp(self.norm(x)))
        rows = round(self.num_patches**0.5)
        values: Tensor = self.head(x).view(batch, rows, rows, self.channels, self.side, self.side)
        return values.permute(0, 3, 1, 4, 2, 5).reshape(batch, self.channels, rows * self.side, rows * self.side)


class MultiMaeModel(nn.Module):
    def __init__(self, num_patches: int, *, is_dense: bool) -> None:
        super().__init__()
        self.embeddings, self.encoder = InputAdapters(num_patches), BaselineEncoder()
        sizes = [(133, CELLS), (32, CELLS), (3, PATCH)]
        self.decoder = nn.ModuleList(
            BaselineDecoder(task, channels, side, num_patches, is_dense=is_dense)
            for task, (channels, side) in enumerate(sizes)
        )
        for module in self.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # type: ignore[assignment]  # a plain bool, not a buffer

    def forward(self, maps: Mapping[str, Tensor], shuffle: ShuffledMask) -> dict[str, Tensor]:
        latent = self.encoder(self.embeddings(maps, shuffle.ids_keep))
        return {name: decoder(latent, shuffle) for name, decoder in zip(COARSE_TO_FINE, self.decoder, strict=True)}


class MultiMaeBaseline:
    """The interface of `MaskedAutoencoding` for the baseline."""

    def __init__(self, *, is_dense: bool = False, is_compiled: bool = False) -> None:
        self.num_patches, self.num_visible = 196, 98
        self.model: nn.Module = MultiMaeModel(self.num_patches, is_dense=is_dense)
        self.compiled_model = cast(nn.Module, torch.compile(self.model)) if is_compiled else self.model

    def prepare_inputs(self, scenes: SceneBatch) -> dict[str, Tensor]:
        images = scenes.maps["rgb"]
        mean, std = (torch.tensor(values, device=images.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return {"rgb": standardise(images, mean, std), **{name: scenes.maps[name].long() for name in CLASSES}}

    def sample_masks(self, scenes: SceneBatch) -> ShuffledMask:
        return multimae_masks(len(scenes), self.num_patches, self.num_visible, scenes.maps["rgb"].device)

    def compute_loss(
        self, predictions: Mapping[str, Tensor], maps: Mapping[str, Tensor], shuffle: ShuffledMask
    ) -> Tensor:
        rows = round(self.num_patches**0.5)
        total = predictions["rgb"].new_zeros((), dtype=torch.float32)
        for name, is_masked in zip(COARSE_TO_FINE, shuffle.is_masked.float().chunk(3, dim=1), strict=True):
            prediction, true = predictions[name].float(), maps[name]
            if name == "rgb":
                error = F.mse_loss(prediction, true, reduction="none").mean(dim=1)
            else:
                error = F.cross_entropy(prediction, true, ignore_index=IGNORE, reduction="none")
            hidden = F.interpolate(is_masked.view(-1, 1, rows, rows), size=error.shape[1:], mode="nearest").squeeze(1)
            image_errors = (error * hidden).flatten(1).sum(dim=1) / hidden.flatten(1).sum(dim=1)
            total = total + image_errors.nanmean()
        return total

    def compute_step_loss(self, scenes: SceneBatch) -> Tensor:
        maps, shuffle = self.prepare_inputs(scenes), self.sample_masks(scenes)
        return self.compute_loss(self.compiled_model(maps, shuffle), maps, shuffle)
