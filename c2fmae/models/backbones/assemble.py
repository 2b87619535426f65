"""From tensors under timm's names, or ours, to a backbone that has them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.models.backbones.backbone import Backbone, vit_of, wrap
from c2fmae.models.backbones.report import LoadReport, check_names
from c2fmae.models.backbones.spec import BackboneSpec
from c2fmae.models.positions import sincos_positions

_HEADS = ("head.", "head_dist.", "attn_pool.")
_SAME = 1e-4  # between tables of positions that were computed in other precisions


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a source holds, before anything is made of it."""

    source: str
    spec: BackboneSpec
    tensors: Mapping[str, Tensor]
    left: Mapping[str, int] = field(default_factory=dict)
    """Tensors that a backbone has no use for, counted by part."""
    notes: Sequence[str] = ()


def from_timm_names(found: Found, allow_missing: Sequence[str] = ()) -> Backbone:
    """Make a backbone of a plain ViT's tensors under timm's names; those of heads are left aside."""
    tensors, left = dict(found.tensors), dict(found.left)
    for name in [name for name in tensors if name.startswith(_HEADS)]:
        left[name.partition(".")[0]] = left.get(name.partition(".")[0], 0) + 1
        del tensors[name]
    spec = found.spec
    vit = vit_of(spec)
    resized = _fit_positions(vit, tensors, found.source)
    loaded, missing, unexpected = _load(vit, tensors, found.source, allow_missing)
    if _are_sincos(vit):
        spec = spec.model_copy(update={"encoder": spec.encoder.model_copy(update={"keep_positions": False})})
    backbone = wrap(vit, spec)
    backbone.report = LoadReport(
        source=found.source,
        loaded=loaded,
        missing=missing,
        unexpected=unexpected,
        left=left,
        resized=resized,
        notes=found.notes,
    )
    return backbone


def from_our_names(found: Found, allow_missing: Sequence[str] = ()) -> Backbone:
    """Make a backbone of tensors under our names, `embeddings.…`, `encoder.…`; without a norm it gets a new one."""
    backbone, tensors, notes = wrap(vit_of(found.spec), found.spec), dict(found.tensors), list(found.notes)
    if not found.spec.encoder.has_norm and not found.spec.has_fc_norm and "encoder.norm.weight" not in tensors:
        norm = {f"encoder.norm.{name}": each for name, each in backbone.encoder.norm.state_dict().items()}
        tensors |= norm
        notes.append("its training had no norm behind the last block: it carries a new one, of scale 1 and shift 0")
    else:
        norm = {}
    loaded, missing, unexpected = _load(backbone, tensors, found.source, allow_missing)
    backbone.report = LoadReport(
        source=found.source,
        loaded=[name for name in loaded if name not in norm],
        missing=missing,
        unexpected=unexpected,
        left=found.left,
        notes=notes,
    )
    return backbone


def _load(
    model: torch.nn.Module, tensors: Mapping[str, Tensor], source: str, allow_missing: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    ours = model.state_dict()
    for name, tensor in tensors.items():
        if name in ours and tensor.shape != ours[name].shape:
            raise UserError(
                f"{source}: {name} is {tuple(tensor.shape)}, but the model's is {tuple(ours[name].shape)}. "
                "It is of another model"
            )
    loaded = [name for name in ours if name in tensors]
    missing = [name for name in ours if name not in tensors]
    unexpected = [name for name in tensors if name not in ours]
    missing, unexpected = check_names(source, missing, unexpected, allow_missing)
    model.load_state_dict({**ours, **{name: tensors[name].to(ours[name].dtype) for name in loaded}})
    return loaded, missing, unexpected


def _fit_positions(vit: VisionTransformer, tensors: dict[str, Tensor], source: str) -> dict[str, str]:
    """Bring a table of positions to the model's grid."""
    table, ours = tensors.get("pos_embed"), vit.pos_embed
    if table is None or ours is None or table.shape == ours.shape or table.ndim != 3:
        return {}
    prefix = ours.shape[1] - vit.patch_embed.num_patches
    side = math.isqrt(max(table.shape[1] - prefix, 0))
    if side**2 + prefix != table.shape[1] or not side:
        raise UserError(
            f"{source}: pos_embed has {table.shape[1]} places, which are no square of patches. "
            "Say the photos' height and width with image_size"
        )
    grid = vit.patch_embed.grid_size
    tensors["pos_embed"] = resample_abs_pos_embed(
        table, new_size=list(grid), old_size=[side, side], num_prefix_tokens=prefix
    )
    return {"pos_embed": f"{side}×{side} → {grid[0]}×{grid[1]}, bicubic, antialiased, in float32"}


def _are_sincos(vit: VisionTransformer) -> bool:
    """Return whether a ViT's positions are those that are computed here anyway, for any grid."""
    if vit.pos_embed is None or vit.embed_dim % 4:
        return False
    table = vit.pos_embed.detach()[0]
    prefix = len(table) - vit.patch_embed.num_patches
    computed = sincos_positions(vit.patch_embed.grid_size, vit.embed_dim)
    return bool((table[:prefix].abs() < _SAME).all() and ((table[prefix:] - computed).abs() < _SAME).all())
