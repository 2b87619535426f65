"""Construction of a backbone from the contents of a source, with tensors under timm's or c2fmae's names."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.seeding import derive_seed
from c2fmae.core.specs import BackboneSpec
from c2fmae.models.backbones.backbone import Backbone, vit_from_spec, wrap_vit
from c2fmae.models.backbones.load_report import LoadReport, check_tensor_names
from c2fmae.models.initialise import initialise
from c2fmae.models.positions import sincos_positions

HEAD_PREFIX = "head."
"""Prefix of the names of a classifier's head."""
_MODULES = ("embeddings", "encoder", "fc_norm", HEAD_PREFIX.rstrip("."))
_UNUSED_PREFIXES = (HEAD_PREFIX, "head_dist.", "attn_pool.", "decoder_", "mask_token")
_POSITION_STD = 0.02  # of newly initialised tables, as in timm
_POSITION_TOLERANCE = 1e-4  # between position tables that were computed in different precisions


@dataclass(frozen=True, kw_only=True)
class SourceContents:
    """The contents of a source, from which a model is built."""

    source: str
    spec: BackboneSpec
    tensors: Mapping[str, Tensor]
    pos_embed_image_size: tuple[int, int] | None = None
    """Height and width of the images that a position table is for, if not those of the spec."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """The number of tensors that a backbone does not use, by module."""
    resized: Mapping[str, str] = field(default_factory=dict)
    """Tensors that the reader resized, with a description."""
    notes: Sequence[str] = ()
    classifier_info: Mapping[str, Any] = field(default_factory=dict)
    """`labels` and `crop` of a classifier, whose head is among the tensors."""
    is_own_checkpoint: bool = False
    """Whether c2fmae wrote the tensors, so that another dtype than that of the model is damage."""
    has_supported_pooling: bool = True
    """Whether the head takes pooled features as `Backbone.pool` computes them."""


def backbone_from_timm_names(contents: SourceContents, allow_missing: Sequence[str] = ()) -> Backbone:
    """Build a backbone from tensors of a plain ViT under timm's names; those of heads and decoders are ignored."""
    tensors, unused = _split_unused(_UNUSED_PREFIXES, contents)
    notes = list(contents.notes)
    spec = contents.spec
    vit = vit_from_spec(spec)
    del vit.attn_pool  # part of the head
    resized, sincos_grid = _fit_positions(vit, tensors, contents)
    if sincos_grid:
        encoder = spec.encoder.model_copy(update={"keep_positions": False})
        spec = _with_position_grid(spec.model_copy(update={"encoder": encoder}), sincos_grid, vit)
        notes.append("its positions are sines and cosines, which are stretched to any image size")
    loaded, missing, unexpected, cast = _load(vit, tensors, contents, allow_missing)
    notes += describe_cast(cast)
    backbone = wrap_vit(vit, spec)
    backbone.load_report = LoadReport(
        source=contents.source,
        loaded=loaded,
        missing=missing,
        unexpected=unexpected,
        unused=unused,
        resized={**contents.resized, **resized},
        notes=notes,
    )
    return backbone


def backbone_from_c2fmae_names(contents: SourceContents, allow_missing: Sequence[str] = ()) -> Backbone:
    """Build a backbone from tensors under c2fmae's names (`encoder.blocks.…`). A missing last norm is added."""
    spec, vit = contents.spec, vit_from_spec(contents.spec)
    height, width = contents.pos_embed_image_size or spec.image_size
    old_grid = (height // vit.patch_embed.patch_size[0], width // vit.patch_embed.patch_size[0])
    if not spec.encoder.keep_positions:
        spec = _with_position_grid(spec, spec.encoder.position_grid or old_grid, vit)
    tensors, unused = _split_unused((HEAD_PREFIX,), contents)
    backbone, notes = wrap_vit(vit, spec), list(contents.notes)
    if not contents.spec.encoder.has_norm and not contents.spec.has_fc_norm and "encoder.norm.weight" not in tensors:
        norm = {f"encoder.norm.{name}": tensor for name, tensor in backbone.encoder.norm.state_dict().items()}
        tensors |= norm
        notes.append("it was trained without a norm after the last block: a new one with weight 1 and bias 0 was added")
    else:
        norm = {}
    resized = dict(contents.resized)
    if "encoder.pos_embed" in tensors:
        tensors["encoder.pos_embed"], description = resize_positions(
            tensors["encoder.pos_embed"], old_grid, vit.patch_embed.grid_size
        )
        resized |= {"encoder.pos_embed": description} if description else {}
    loaded, missing, unexpected, cast = _load(backbone, tensors, contents, allow_missing)
    notes += describe_cast(cast)
    backbone.load_report = LoadReport(
        source=contents.source,
        loaded=[name for name in loaded if name not in norm],
        missing=missing,
        unexpected=unexpected,
        unused=unused,
        resized=resized,
        notes=notes,
    )
    return backbone


def resize_positions(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], num_prefix: int = 0
) -> tuple[Tensor, str]:
    """Interpolate a position table for another grid; return it with a description, which is empty for the same grid."""
    if old == new:
        return table, ""
    if not all((*old, *new)):
        raise UserError(f"image_size: {new[0]}×{new[1]} patches, expected at least 1×1. Use larger images")
    resized = resample_abs_pos_embed(
        table.float(), new_size=list(new), old_size=list(old), num_prefix_tokens=num_prefix
    )
    return resized, f"{old[0]}×{old[1]} → {new[0]}×{new[1]}, bicubic with antialiasing, in float32"


def is_sincos_table(positions: Tensor, grid: tuple[int, int]) -> bool:
    """Return whether a grid's positions [patch, dim] equal `sincos_positions`, which can be stretched to any grid."""
    if positions.shape[1] % 4 or not positions.is_floating_point():
        return False
    tolerance = max(_POSITION_TOLERANCE, torch.finfo(positions.dtype).eps)
    return bool(((positions.float() - sincos_positions(grid, positions.shape[1])).abs() < tolerance).all())


def split_c2fmae_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Counter[str]]:
    """Split tensors under c2fmae's names: those of a backbone and its head, and the number of others by module."""
    modules = {name: name.partition(".")[0] for name in tensors}
    selected = {name: tensor for name, tensor in tensors.items() if modules[name] in _MODULES}
    return selected, Counter(module for name, module in modules.items() if name not in selected)


def _split_unused(prefixes: tuple[str, ...], contents: SourceContents) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the tensors without these prefixes, and the number of unused tensors by module."""
    unused = Counter(name.partition(".")[0] for name in contents.tensors if name.startswith(prefixes))
    tensors = {name: tensor for name, tensor in contents.tensors.items() if not name.startswith(prefixes)}
    return tensors, dict(Counter(contents.unused) + unused)


def _load(
    model: torch.nn.Module, tensors: Mapping[str, Tensor], contents: SourceContents, allow_missing: Sequence[str]
) -> tuple[list[str], list[str], list[str], list[Tensor]]:
    """Load tensors; return the names of those that were loaded, missing and unexpected, and those of another dtype."""
    state_dict, source = model.state_dict(), contents.source
    for name, tensor in tensors.items():
        if name in state_dict and not tensor.is_floating_point():
            raise UserError(
                f"{source}: {name} has dtype {tensor.dtype}, expected a floating-point type. Use weights that are not "
                "quantised"
            )
        if name in state_dict and tensor.shape != state_dict[name].shape:
            raise UserError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, expected {tuple(state_dict[name].shape)}. "
                "Use weights that match the config"
            )
    loaded = [name for name in state_dict if name in tensors]
    other_dtype = [name for name in loaded if tensors[name].dtype != state_dict[name].dtype]
    if other_dtype and contents.is_own_checkpoint:
        first = other_dtype[0]
        raise UserError(
            f"{source}: {first} has dtype {tensors[first].dtype}, expected {state_dict[first].dtype}, so the "
            "checkpoint was changed after it was written. Use another checkpoint"
        )
    missing = [name for name in state_dict if name not in tensors]
    unexpected = [name for name in tensors if name not in state_dict]
    missing, unexpected = check_tensor_names(source, missing, unexpected, allow_missing)
    if missing:
        _initialise_missing(model, missing)
    model.load_state_dict({**state_dict, **{name: tensors[name].to(state_dict[name].dtype) for name in loaded}})
    return loaded, missing, unexpected, [tensors[name] for name in other_dtype]


def describe_cast(tensors: Sequence[Tensor]) -> list[str]:
    """Return a note on tensors that were cast to the dtype of the model, if there are any."""
    dtypes = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
    return [f"{len(tensors)} tensors of {dtypes} were cast to the dtype of the model"] if tensors else []


def _initialise_missing(model: torch.nn.Module, missing: Sequence[str]) -> None:
    """Initialise the model with a fixed seed, including missing position tables, which timm leaves uninitialised."""
    generator = torch.Generator().manual_seed(derive_seed(0, "weights"))
    initialise(model, generator)
    for name in missing:
        if name.endswith("pos_embed"):
            model.state_dict()[name].normal_(0, _POSITION_STD, generator=generator)


def _with_position_grid(spec: BackboneSpec, trained_grid: tuple[int, int], vit: VisionTransformer) -> BackboneSpec:
    """Return the spec with the grid whose sines and cosines are stretched to that of its ViT, if they differ."""
    position_grid = None if trained_grid == vit.patch_embed.grid_size else trained_grid
    return spec.model_copy(update={"encoder": spec.encoder.model_copy(update={"position_grid": position_grid})})


def _fit_positions(
    vit: VisionTransformer, tensors: dict[str, Tensor], contents: SourceContents
) -> tuple[dict[str, str], tuple[int, int] | None]:
    """Resize a position table to the model's grid; return descriptions, or the grid of sines and cosines."""
    table, model_table, grid = tensors.get("pos_embed"), vit.pos_embed, vit.patch_embed.grid_size
    if table is None or model_table is None or table.ndim != 3 or table.shape[::2] != model_table.shape[::2]:
        return {}, None
    num_prefix = model_table.shape[1] - vit.patch_embed.num_patches
    num_positions = table.shape[1] - num_prefix
    side, patch = math.isqrt(max(num_positions, 0)), vit.patch_embed.patch_size[0]
    old_grid = (side, side) if side**2 == num_positions else grid
    if contents.pos_embed_image_size:
        old_grid = (contents.pos_embed_image_size[0] // patch, contents.pos_embed_image_size[1] // patch)
    if old_grid[0] * old_grid[1] != num_positions or not num_positions:
        raise UserError(
            f"{contents.source}: pos_embed has {table.shape[1]} positions, which is not a square grid of patches. "
            "Set image_size to the height and width of its images"
        )
    prefix_positions, positions = table[0, :num_prefix], table[0, num_prefix:]
    if is_sincos_table(positions, old_grid) and bool((prefix_positions.abs() < _POSITION_TOLERANCE).all()):
        computed = sincos_positions(grid, vit.embed_dim, trained_grid=old_grid)
        tensors["pos_embed"] = torch.cat([computed.new_zeros(num_prefix, vit.embed_dim), computed]).unsqueeze(0)
        return {}, old_grid
    tensors["pos_embed"], description = resize_positions(table, old_grid, grid, num_prefix)
    return {"pos_embed": description} if description else {}, None
