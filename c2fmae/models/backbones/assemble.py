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
from c2fmae.core.seeding import derive_seed
from c2fmae.core.specs import BackboneSpec
from c2fmae.models.backbones.backbone import Backbone, vit_from_spec, wrap_vit
from c2fmae.models.backbones.load_report import LoadReport, check_tensor_names
from c2fmae.models.initialise import initialise
from c2fmae.models.positions import sincos_positions

HEAD_PREFIX = "head."
"""Before the names of a classifier's head."""
_UNUSED_PREFIXES = (HEAD_PREFIX, "head_dist.", "attn_pool.", "decoder_", "mask_token")
_POSITION_STD = 0.02  # of tables that are drawn anew, as timm draws them
_POSITION_TOLERANCE = 1e-4  # between tables of positions that were computed in other precisions

PatchGrid = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SourceContents:
    """What a source holds, before anything is made of it."""

    source: str
    spec: BackboneSpec
    tensors: Mapping[str, Tensor]
    pos_embed_image_size: tuple[int, int] | None = None
    """Height and width of the photos that a table of positions is for, where they are not the spec's."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """Tensors that a backbone has no use for, counted by part."""
    resized: Mapping[str, str] = field(default_factory=dict)
    """What came out of reading it in another size."""
    notes: Sequence[str] = ()
    classifier_info: Mapping[str, Any] = field(default_factory=dict)
    """What it says of its classifier, whose head is among the tensors: `labels` and `crop`."""
    has_supported_pooling: bool = True
    """Whether its head reads what a backbone makes of its tokens."""


def backbone_from_timm_names(contents: SourceContents, allow_missing: Sequence[str] = ()) -> Backbone:
    """Make a backbone of a plain ViT's tensors under timm's names; those of heads and decoders are left aside."""
    tensors, left = _split_unused(_UNUSED_PREFIXES, contents)
    notes = list(contents.notes)
    spec = contents.spec
    vit = vit_from_spec(spec)
    del vit.attn_pool  # a head too
    resized, are_computed = _fit_positions(vit, tensors, contents)
    if are_computed:
        spec = spec.model_copy(update={"encoder": spec.encoder.model_copy(update={"keep_positions": False})})
        notes.append("its positions are sines and cosines: they are computed, for any size of photos")
    loaded, missing, unexpected = _load(vit, tensors, contents.source, allow_missing)
    backbone = wrap_vit(vit, spec)
    backbone.load_report = LoadReport(
        source=contents.source,
        loaded=loaded,
        missing=missing,
        unexpected=unexpected,
        unused=left,
        resized={**contents.resized, **resized},
        notes=notes,
    )
    return backbone


def backbone_from_c2fmae_names(contents: SourceContents, allow_missing: Sequence[str] = ()) -> Backbone:
    """Make a backbone of tensors under our names, `embeddings.…`, `encoder.…`; without a norm it gets a new one."""
    vit = vit_from_spec(contents.spec)
    tensors, left = _split_unused((HEAD_PREFIX,), contents)
    backbone, notes = wrap_vit(vit, contents.spec), list(contents.notes)
    if not contents.spec.encoder.has_norm and not contents.spec.has_fc_norm and "encoder.norm.weight" not in tensors:
        norm = {f"encoder.norm.{name}": each for name, each in backbone.encoder.norm.state_dict().items()}
        tensors |= norm
        notes.append("its training had no norm behind the last block: it carries a new one, of scale 1 and shift 0")
    else:
        norm = {}
    resized = dict(contents.resized)
    if contents.pos_embed_image_size and "encoder.pos_embed" in tensors:
        old = (contents.pos_embed_image_size[0] // backbone.patch, contents.pos_embed_image_size[1] // backbone.patch)
        tensors["encoder.pos_embed"], description = resize_positions(
            tensors["encoder.pos_embed"], old, vit.patch_embed.grid_size
        )
        resized |= {"encoder.pos_embed": description} if description else {}
    loaded, missing, unexpected = _load(backbone, tensors, contents.source, allow_missing)
    backbone.load_report = LoadReport(
        source=contents.source,
        loaded=[name for name in loaded if name not in norm],
        missing=missing,
        unexpected=unexpected,
        unused=left,
        resized=resized,
        notes=notes,
    )
    return backbone


def resize_positions(table: Tensor, old: PatchGrid, new: PatchGrid, num_prefix: int = 0) -> tuple[Tensor, str]:
    """Return a table of positions for another grid, and in words what was done to it."""
    if old == new:
        return table, ""
    fitted = resample_abs_pos_embed(table.float(), new_size=list(new), old_size=list(old), num_prefix_tokens=num_prefix)
    return fitted, f"{old[0]}×{old[1]} → {new[0]}×{new[1]}, bicubic, antialiased, in float32"


def is_sincos_table(positions: Tensor, grid: PatchGrid) -> bool:
    """Return whether a grid's positions [patch, dim] are those that are computed here anyway, for any grid."""
    if positions.shape[1] % 4 or not positions.is_floating_point():
        return False
    same = max(_POSITION_TOLERANCE, torch.finfo(positions.dtype).eps)
    return bool(((positions.float() - sincos_positions(grid, positions.shape[1])).abs() < same).all())


def _split_unused(prefixes: tuple[str, ...], contents: SourceContents) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the tensors without those that are left aside, and how many of each part are."""
    unused = Counter(name.partition(".")[0] for name in contents.tensors if name.startswith(prefixes))
    tensors = {name: each for name, each in contents.tensors.items() if not name.startswith(prefixes)}
    return tensors, dict(Counter(contents.unused) + unused)


def _load(
    model: torch.nn.Module, tensors: Mapping[str, Tensor], source: str, allow_missing: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    state_dict = model.state_dict()
    for name, tensor in tensors.items():
        if name in state_dict and not tensor.is_floating_point():
            raise UserError(f"{source}: {name} is of {tensor.dtype}: quantised weights are not read")
        if name in state_dict and tensor.shape != state_dict[name].shape:
            raise UserError(
                f"{source}: {name} is {tuple(tensor.shape)}, but the model's is {tuple(state_dict[name].shape)}. "
                "It is of another model"
            )
    loaded = [name for name in state_dict if name in tensors]
    missing = [name for name in state_dict if name not in tensors]
    unexpected = [name for name in tensors if name not in state_dict]
    missing, unexpected = check_tensor_names(source, missing, unexpected, allow_missing)
    if missing:
        _initialise_missing(model, missing)
    model.load_state_dict({**state_dict, **{name: tensors[name].to(state_dict[name].dtype) for name in loaded}})
    return loaded, missing, unexpected


def _initialise_missing(model: torch.nn.Module, missing: Sequence[str]) -> None:
    """Draw all that a model has, always alike, tables of positions too if they are missing: timm leaves them empty."""
    generator = torch.Generator().manual_seed(derive_seed(0, "weights"))
    initialise(model, generator)
    for name in missing:
        if name.endswith("pos_embed"):
            model.state_dict()[name].normal_(0, _POSITION_STD, generator=generator)


def _fit_positions(
    vit: VisionTransformer, tensors: dict[str, Tensor], contents: SourceContents
) -> tuple[dict[str, str], bool]:
    """Bring a table of positions to the model's grid; say how, and whether it is one that is computed here anyway."""
    table, model_table, grid = tensors.get("pos_embed"), vit.pos_embed, vit.patch_embed.grid_size
    if table is None or model_table is None or table.ndim != 3 or table.shape[2] != model_table.shape[2]:
        return {}, False
    prefix = model_table.shape[1] - vit.patch_embed.num_patches
    count = table.shape[1] - prefix
    side, patch = math.isqrt(max(count, 0)), vit.patch_embed.patch_size[0]
    old = (side, side) if side**2 == count else grid
    if contents.pos_embed_image_size:
        old = (contents.pos_embed_image_size[0] // patch, contents.pos_embed_image_size[1] // patch)
    if old[0] * old[1] != count or not count:
        raise UserError(
            f"{contents.source}: pos_embed has {table.shape[1]} places, which are no square of patches. "
            "Say the photos' height and width with image_size"
        )
    prefix_positions, positions = table[0, :prefix], table[0, prefix:]
    if is_sincos_table(positions, old) and bool((prefix_positions.abs() < _POSITION_TOLERANCE).all()):
        computed = sincos_positions(grid, vit.embed_dim)
        tensors["pos_embed"] = torch.cat([computed.new_zeros(prefix, vit.embed_dim), computed]).unsqueeze(0)
        return {}, True
    tensors["pos_embed"], description = resize_positions(table, old, grid, prefix)
    return {"pos_embed": description} if description else {}, False
