"""From tensors under timm's names, or ours, to a backbone that has them."""

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
from c2fmae.core.seeding import seed_of
from c2fmae.models.backbones.backbone import Backbone, vit_of, wrap
from c2fmae.models.backbones.load_report import LoadReport, check_names
from c2fmae.models.backbones.spec import BackboneSpec
from c2fmae.models.initialise import initialise
from c2fmae.models.positions import sincos_positions

HEAD = "head."
"""Before the names of a classifier's head."""
_HEADS = (HEAD, "head_dist.", "attn_pool.", "decoder_", "mask_token")
_POSITION_STD = 0.02  # of tables that are drawn anew, as timm draws them
_SAME = 1e-4  # between tables of positions that were computed in other precisions

Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a source holds, before anything is made of it."""

    source: str
    spec: BackboneSpec
    tensors: Mapping[str, Tensor]
    table_size: tuple[int, int] | None = None
    """Height and width of the photos that a table of positions is for, where they are not the spec's."""
    left: Mapping[str, int] = field(default_factory=dict)
    """Tensors that a backbone has no use for, counted by part."""
    resized: Mapping[str, str] = field(default_factory=dict)
    """What came out of reading it in another size."""
    notes: Sequence[str] = ()
    classifier: Mapping[str, Any] = field(default_factory=dict)
    """What it says of its classifier, whose head is among the tensors: `labels` and `crop`."""
    pools_alike: bool = True
    """Whether its head reads what a backbone makes of its tokens."""


def from_timm_names(found: Found, allow_missing: Sequence[str] = ()) -> Backbone:
    """Make a backbone of a plain ViT's tensors under timm's names; those of heads and decoders are left aside."""
    tensors, left = _without(_HEADS, found)
    notes = list(found.notes)
    spec = found.spec
    vit = vit_of(spec)
    del vit.attn_pool  # a head too
    resized, are_computed = _fit_table(vit, tensors, found)
    if are_computed:
        spec = spec.model_copy(update={"encoder": spec.encoder.model_copy(update={"keep_positions": False})})
        notes.append("its positions are sines and cosines: they are computed, for any size of photos")
    loaded, missing, unexpected = _load(vit, tensors, found.source, allow_missing)
    backbone = wrap(vit, spec)
    backbone.report = LoadReport(
        source=found.source,
        loaded=loaded,
        missing=missing,
        unexpected=unexpected,
        left=left,
        resized={**found.resized, **resized},
        notes=notes,
    )
    return backbone


def from_our_names(found: Found, allow_missing: Sequence[str] = ()) -> Backbone:
    """Make a backbone of tensors under our names, `embeddings.…`, `encoder.…`; without a norm it gets a new one."""
    vit = vit_of(found.spec)
    tensors, left = _without((HEAD,), found)
    backbone, notes = wrap(vit, found.spec), list(found.notes)
    if not found.spec.encoder.has_norm and not found.spec.has_fc_norm and "encoder.norm.weight" not in tensors:
        norm = {f"encoder.norm.{name}": each for name, each in backbone.encoder.norm.state_dict().items()}
        tensors |= norm
        notes.append("its training had no norm behind the last block: it carries a new one, of scale 1 and shift 0")
    else:
        norm = {}
    resized = dict(found.resized)
    if found.table_size and "encoder.pos_embed" in tensors:
        old = (found.table_size[0] // backbone.patch, found.table_size[1] // backbone.patch)
        tensors["encoder.pos_embed"], how = resize(tensors["encoder.pos_embed"], old, vit.patch_embed.grid_size)
        resized |= {"encoder.pos_embed": how} if how else {}
    loaded, missing, unexpected = _load(backbone, tensors, found.source, allow_missing)
    backbone.report = LoadReport(
        source=found.source,
        loaded=[name for name in loaded if name not in norm],
        missing=missing,
        unexpected=unexpected,
        left=left,
        resized=resized,
        notes=notes,
    )
    return backbone


def resize(table: Tensor, old: Grid, new: Grid, num_prefix: int = 0) -> tuple[Tensor, str]:
    """Return a table of positions for another grid, and in words what was done to it."""
    if old == new:
        return table, ""
    fitted = resample_abs_pos_embed(table.float(), new_size=list(new), old_size=list(old), num_prefix_tokens=num_prefix)
    return fitted, f"{old[0]}×{old[1]} → {new[0]}×{new[1]}, bicubic, antialiased, in float32"


def are_sincos(places: Tensor, grid: Grid) -> bool:
    """Return whether a grid's positions [patch, dim] are those that are computed here anyway, for any grid."""
    if places.shape[1] % 4 or not places.is_floating_point():
        return False
    same = max(_SAME, torch.finfo(places.dtype).eps)
    return bool(((places.float() - sincos_positions(grid, places.shape[1])).abs() < same).all())


def _without(prefixes: tuple[str, ...], found: Found) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the tensors without those that are left aside, and how many of each part are."""
    aside = Counter(name.partition(".")[0] for name in found.tensors if name.startswith(prefixes))
    tensors = {name: each for name, each in found.tensors.items() if not name.startswith(prefixes)}
    return tensors, dict(Counter(found.left) + aside)


def _load(
    model: torch.nn.Module, tensors: Mapping[str, Tensor], source: str, allow_missing: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    ours = model.state_dict()
    for name, tensor in tensors.items():
        if name in ours and not tensor.is_floating_point():
            raise UserError(f"{source}: {name} is of {tensor.dtype}: quantised weights are not read")
        if name in ours and tensor.shape != ours[name].shape:
            raise UserError(
                f"{source}: {name} is {tuple(tensor.shape)}, but the model's is {tuple(ours[name].shape)}. "
                "It is of another model"
            )
    loaded = [name for name in ours if name in tensors]
    missing = [name for name in ours if name not in tensors]
    unexpected = [name for name in tensors if name not in ours]
    missing, unexpected = check_names(source, missing, unexpected, allow_missing)
    if missing:
        _draw_anew(model, missing)
    model.load_state_dict({**ours, **{name: tensors[name].to(ours[name].dtype) for name in loaded}})
    return loaded, missing, unexpected


def _draw_anew(model: torch.nn.Module, missing: Sequence[str]) -> None:
    """Draw all that a model has, always alike, tables of positions too if they are missing: timm leaves them empty."""
    generator = torch.Generator().manual_seed(seed_of(0, "weights"))
    initialise(model, generator)
    for name in missing:
        if name.endswith("pos_embed"):
            model.state_dict()[name].normal_(0, _POSITION_STD, generator=generator)


def _fit_table(vit: VisionTransformer, tensors: dict[str, Tensor], found: Found) -> tuple[dict[str, str], bool]:
    """Bring a table of positions to the model's grid; say how, and whether it is one that is computed here anyway."""
    table, ours, grid = tensors.get("pos_embed"), vit.pos_embed, vit.patch_embed.grid_size
    if table is None or ours is None or table.ndim != 3 or table.shape[2] != ours.shape[2]:
        return {}, False
    prefix = ours.shape[1] - vit.patch_embed.num_patches
    count = table.shape[1] - prefix
    side, patch = math.isqrt(max(count, 0)), vit.patch_embed.patch_size[0]
    old = (side, side) if side**2 == count else grid
    if found.table_size:
        old = (found.table_size[0] // patch, found.table_size[1] // patch)
    if old[0] * old[1] != count or not count:
        raise UserError(
            f"{found.source}: pos_embed has {table.shape[1]} places, which are no square of patches. "
            "Say the photos' height and width with image_size"
        )
    before, places = table[0, :prefix], table[0, prefix:]
    if are_sincos(places, old) and bool((before.abs() < _SAME).all()):
        computed = sincos_positions(grid, vit.embed_dim)
        tensors["pos_embed"] = torch.cat([computed.new_zeros(prefix, vit.embed_dim), computed]).unsqueeze(0)
        return {}, True
    tensors["pos_embed"], how = resize(table, old, grid, prefix)
    return {"pos_embed": how} if how else {}, False
