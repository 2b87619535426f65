"""Independent reference implementations of MAE and MultiMAE, and files of weights as their official code writes them.

Nothing here uses c2fmae. All patches are projected, then hidden ones are dropped.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
PATCH, CELLS, CLASS_DIM = 16, 4, 64


class WeightDrawer:
    """Random weights by name; those of norms are near one."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.weights: dict[str, Tensor] = {}

    def tensor(self, name: str, *shape: int, std: float = 0.05, mean: float = 0.0) -> None:
        self.weights[name] = torch.randn(*shape, generator=self.generator) * std + mean

    def linear(self, name: str, inside: int, outside: int) -> None:
        self.tensor(f"{name}.weight", outside, inside, std=inside**-0.5)
        self.tensor(f"{name}.bias", outside)

    def conv(self, name: str, inside: int, outside: int, side: int) -> None:
        self.tensor(f"{name}.weight", outside, inside, side, side, std=(inside * side**2) ** -0.5)
        self.tensor(f"{name}.bias", outside)

    def norm(self, name: str, dim: int) -> None:
        self.tensor(f"{name}.weight", dim, mean=1.0)
        self.tensor(f"{name}.bias", dim)

    def block(self, name: str, dim: int, ratio: float = 4) -> None:
        self.norm(f"{name}.norm1", dim)
        self.linear(f"{name}.attn.qkv", dim, 3 * dim)
        self.linear(f"{name}.attn.proj", dim, dim)
        self.norm(f"{name}.norm2", dim)
        self.linear(f"{name}.mlp.fc1", dim, int(dim * ratio))
        self.linear(f"{name}.mlp.fc2", int(dim * ratio), dim)


def sincos_table(
    grid: tuple[int, int], dim: int, first_axis: str, trained_grid: tuple[int, int] | None = None
) -> Tensor:
    """Sines and cosines of the `first_axis` ("row" or "column") of each patch, then of the other: [patch, dim]."""
    places = []
    zoom = [new / old for new, old in zip(grid, trained_grid or grid, strict=True)]
    for row in range(grid[0]):
        for column in range(grid[1]):
            centre = [(place + 0.5) / scale - 0.5 for place, scale in zip((row, column), zoom, strict=True)]
            axes = centre if first_axis == "row" else centre[::-1]
            omega = [10_000 ** (-index / (dim // 4)) for index in range(dim // 4)]
            places.append(
                [wave(axis * frequency) for axis in axes for wave in (math.sin, math.cos) for frequency in omega]
            )
    return torch.tensor(places)


def mae_weights(
    *,
    width: int = 128,
    depth: int = 2,
    side: int = 64,
    channels: int = 3,
    patch: int = PATCH,
    ratio: float = 4,
    decoder: tuple[int, int] | None = (64, 2),
    is_finetuned: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A file of MAE; `decoder` is its width and depth."""
    draw, grid = WeightDrawer(seed), (side // patch, side // patch)
    draw.tensor("cls_token", 1, 1, width)
    draw.weights["pos_embed"] = F.pad(sincos_table(grid, width, "column"), (0, 0, 1, 0)).unsqueeze(0)
    draw.conv("patch_embed.proj", channels, width, patch)
    for index in range(depth):
        draw.block(f"blocks.{index}", width, ratio)
    draw.norm("fc_norm" if is_finetuned else "norm", width)
    if is_finetuned:
        draw.linear("head", width, 10)
    elif decoder:
        dim, depth = decoder
        draw.tensor("mask_token", 1, 1, dim)
        draw.linear("decoder_embed", width, dim)
        draw.weights["decoder_pos_embed"] = F.pad(sincos_table(grid, dim, "column"), (0, 0, 1, 0)).unsqueeze(0)
        for index in range(depth):
            draw.block(f"decoder_blocks.{index}", dim)
        draw.norm("decoder_norm", dim)
        draw.linear("decoder_pred", dim, channels * patch**2)
    return draw.weights


def multimae_weights(
    *,
    width: int = 128,
    depth: int = 2,
    grid: tuple[int, int] = (4, 4),
    tasks: Sequence[str] = ("rgb", "depth", "semseg"),
    classes: int = 6,
    has_unlabelled: bool = False,
    decoder: tuple[int, int] | None = (64, 2),
    is_finetuned: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A file of MultiMAE."""
    draw = WeightDrawer(seed)
    draw.tensor("global_tokens", 1, 1, width)
    for task in tasks:
        name = f"input_adapters.{task}"
        draw.weights[f"{name}.pos_emb"] = to_grid(sincos_table(grid, width, "row"), grid)
        if task == "semseg":
            draw.tensor(f"{name}.class_emb.weight", classes + has_unlabelled, CLASS_DIM)
            if has_unlabelled:
                draw.weights[f"{name}.class_emb.weight"][-1] = 0
            draw.conv(f"{name}.proj", CLASS_DIM, width, CELLS)
        else:
            draw.conv(f"{name}.proj", 3 if task == "rgb" else 1, width, PATCH)
    for index in range(depth):
        draw.block(f"encoder.{index}", width)
    if is_finetuned:
        draw.norm("output_adapters.cls.norm", width)
        draw.linear("output_adapters.cls.head", width, 10)
    elif decoder:
        values = {"rgb": 3 * PATCH**2, "depth": PATCH**2, "semseg": classes * CELLS**2}
        for task in (*tasks, "norm_rgb"):
            _output_adapter(draw, task, values[task.removeprefix("norm_")], tasks, width, grid, decoder)
    return draw.weights


def _output_adapter(
    draw: WeightDrawer,
    task: str,
    values: int,
    tasks: Sequence[str],
    width: int,
    grid: tuple[int, int],
    size: tuple[int, int],
) -> None:
    name, (dim, depth) = f"output_adapters.{task}", size
    draw.tensor(f"{name}.mask_token", 1, 1, dim)
    draw.weights[f"{name}.pos_emb"] = to_grid(sincos_table(grid, dim, "row"), grid)
    for each in tasks:
        draw.tensor(f"{name}.task_embeddings.{each}", 1, 1, dim)
    draw.linear(f"{name}.proj_context", width, dim)
    for norm in ("query_norm", "context_norm", "out_norm"):
        draw.norm(f"{name}.{norm}", dim)
    draw.linear(f"{name}.decoder.q", dim, dim)
    draw.linear(f"{name}.decoder.kv", dim, 2 * dim)
    draw.linear(f"{name}.decoder.proj", dim, dim)
    draw.linear(f"{name}.mlp.fc1", dim, 4 * dim)
    draw.linear(f"{name}.mlp.fc2", 4 * dim, dim)
    for index in range(depth):
        draw.block(f"{name}.decoder_transformer.{index}", dim)
    draw.linear(f"{name}.out_proj", dim, values)


def to_grid(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """[patch, dim] as [1, dim, rows, columns]."""
    return table.T.reshape(1, -1, *grid).contiguous()


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights: Weights, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    q, k, v = (each.unflatten(2, (heads, -1)) for each in (queries, keys, values))
    weight = (torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[3] ** 0.5).softmax(dim=3)
    return torch.einsum("bhqk,bkhd->bqhd", weight, v).flatten(2)


def block(weights: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    q, k, v = linear(weights, f"{name}.attn.qkv", norm(weights, f"{name}.norm1", x)).chunk(3, dim=2)
    x = x + linear(weights, f"{name}.attn.proj", attend(q, k, v, heads))
    inner = F.gelu(linear(weights, f"{name}.mlp.fc1", norm(weights, f"{name}.norm2", x)))
    return x + linear(weights, f"{name}.mlp.fc2", inner)


def blocks(weights: Weights, prefix: str, x: Tensor, heads: int) -> Tensor:
    index = 0
    while f"{prefix}.{index}.norm1.weight" in weights:
        x = block(weights, f"{prefix}.{index}", x, heads)
        index += 1
    return x


def gather_tokens(x: Tensor, ids_keep: Tensor) -> Tensor:
    return x.gather(1, ids_keep.unsqueeze(2).expand(-1, -1, x.shape[2]))


def conv(weights: Weights, name: str, maps: Tensor) -> Tensor:
    kernel = weights[f"{name}.weight"]
    return F.conv2d(maps, kernel, weights[f"{name}.bias"], stride=kernel.shape[2]).flatten(2).transpose(1, 2)


def mae_tokens(
    weights: Weights, images: Tensor, heads: int, pos_embed: Tensor | None = None, ids_keep: Tensor | None = None
) -> Tensor:
    """The tokens of the encoder, class token first; normed unless fine-tuning moved the norm after pooling."""
    pos_embed = weights["pos_embed"] if pos_embed is None else pos_embed
    x = conv(weights, "patch_embed.proj", images) + pos_embed[:, 1:]
    x = x if ids_keep is None else gather_tokens(x, ids_keep)
    token = (weights["cls_token"] + pos_embed[:, :1]).expand(len(x), -1, -1)
    x = blocks(weights, "blocks", torch.cat([token, x], dim=1), heads)
    return norm(weights, "norm", x) if "norm.weight" in weights else x


def mae_predictions(weights: Weights, images: Tensor, is_masked: Tensor, heads: int, decoder_heads: int) -> Tensor:
    """What MAE predicts of every patch [B, N, rows · columns · channels], seeing what is not masked."""
    order = is_masked.int().argsort(dim=1, stable=True)
    ids_keep, ids_restore = order[:, : int((~is_masked[0]).sum())], order.argsort(dim=1)
    x = linear(weights, "decoder_embed", mae_tokens(weights, images, heads, ids_keep=ids_keep))
    mask_tokens = weights["mask_token"].expand(len(x), ids_restore.shape[1] + 1 - x.shape[1], -1)
    full = gather_tokens(torch.cat([x[:, 1:], mask_tokens], dim=1), ids_restore)
    x = torch.cat([x[:, :1], full], dim=1) + weights["decoder_pos_embed"]
    x = norm(weights, "decoder_norm", blocks(weights, "decoder_blocks", x, decoder_heads))
    return linear(weights, "decoder_pred", x)[:, 1:]


def multimae_tokens(weights: Weights, maps: Mapping[str, Tensor], heads: int, ids_keep: Tensor | None = None) -> Tensor:
    """The encoder's tokens, the global one last: the tasks' one after another, in the order of the maps."""
    tokens = []
    for task, values in maps.items():
        name = f"input_adapters.{task}"
        if task == "semseg":
            values = F.embedding(values.long(), weights[f"{name}.class_emb.weight"]).permute(0, 3, 1, 2)
        tokens.append(conv(weights, f"{name}.proj", values) + weights[f"{name}.pos_emb"].flatten(2).transpose(1, 2))
    x = torch.cat(tokens, dim=1)
    x = x if ids_keep is None else gather_tokens(x, ids_keep)
    token = weights["global_tokens"].expand(len(x), -1, -1)
    return blocks(weights, "encoder", torch.cat([x, token], dim=1), heads)


def multimae_predictions(
    weights: Weights, maps: Mapping[str, Tensor], is_masked: Tensor, heads: int, decoder_heads: int
) -> dict[str, Tensor]:
    """What each output adapter predicts, [B, channels, H, W]; `is_masked` is [B, task, patch], tasks as in `maps`."""
    tasks, num_patches = list(maps), is_masked.shape[2]
    side = math.isqrt(num_patches)
    order = is_masked.flatten(1).int().argsort(dim=1, stable=True)
    ids_keep, ids_restore = order[:, : int((~is_masked[0]).sum())], order.argsort(dim=1)
    x = multimae_tokens(weights, maps, heads, ids_keep)
    predictions = {}
    for adapter in ("semseg", "depth", "rgb", "norm_rgb"):
        if f"output_adapters.{adapter}.out_proj.weight" not in weights:
            continue
        prefix = f"output_adapters.{adapter}."
        own = {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}
        projected = linear(own, "proj_context", x)
        mask_tokens = own["mask_token"].expand(len(x), ids_restore.shape[1] - ids_keep.shape[1], -1)
        full = gather_tokens(torch.cat([projected[:, :-1], mask_tokens], dim=1), ids_restore)
        places = own["pos_emb"].flatten(2).transpose(1, 2)
        full = full + torch.cat([places + own[f"task_embeddings.{task}"] for task in tasks], dim=1)
        first = tasks.index(adapter.removeprefix("norm_")) * num_patches
        queries = norm(own, "query_norm", full[:, first : first + num_patches])
        context = norm(own, "context_norm", torch.cat([gather_tokens(full, ids_keep), projected[:, -1:]], dim=1))
        keys, values = linear(own, "decoder.kv", context).chunk(2, dim=2)
        y = linear(own, "decoder.proj", attend(linear(own, "decoder.q", queries), keys, values, decoder_heads))
        y = y + linear(own, "mlp.fc2", F.gelu(linear(own, "mlp.fc1", norm(own, "out_norm", y))))
        y = linear(own, "out_proj", blocks(own, "decoder_transformer", y, decoder_heads))
        cells = CELLS if adapter == "semseg" else PATCH
        tiles = y.unflatten(2, (-1, cells, cells)).unflatten(1, (side, side))
        predictions[adapter] = torch.einsum("bijcpq->bcipjq", tiles).flatten(4).flatten(2, 3)
    return predictions


def hidden_mean(error: Tensor, is_masked: Tensor) -> Tensor:
    """The mean over each image's hidden pixels [B, H, W], then over the images that have any."""
    side = math.isqrt(is_masked.shape[1])
    is_hidden = F.interpolate(is_masked.view(-1, 1, side, side).float(), error.shape[1:])[:, 0]
    counts = is_hidden.flatten(1).sum(dim=1)
    return ((error * is_hidden).flatten(1).sum(dim=1)[counts > 0] / counts[counts > 0]).mean()


def normalise_patches(images: Tensor) -> Tensor:
    """Each patch less its mean, over its deviation."""
    patches = F.unfold(images, PATCH, stride=PATCH)
    patches = (patches - patches.mean(dim=1, keepdim=True)) / (patches.var(dim=1, keepdim=True) + 1e-6).sqrt()
    return F.fold(patches, images.shape[2:], PATCH, stride=PATCH)
