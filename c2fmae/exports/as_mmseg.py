"""Export as one `.pth` file with the names of mmseg's `MAE` backbone, which BEiT and CAE use for segmentation too."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from c2fmae.core.errors import UserError
from c2fmae.exports.as_mae import (
    compare_with_plain_vit,
    describe_expected_missing,
    describe_omitted,
    plain_vit_tensors,
    preprocessor_lines,
    rgb_backbone,
    vit_sizes,
)
from c2fmae.exports.target import ExportableModel, ExportComparison, ExportTarget
from c2fmae.models.backbones import Backbone

MMSEG_FILE = "mmseg.pth"
EXPECTED_MISSING: dict[str, tuple[str, ...]] = {
    "mmseg": (
        "layers.*.gamma_1",
        "layers.*.gamma_2",
        "layers.*.attn.relative_position_bias_table",
        "layers.*.attn.relative_position_index",
    )
}
"""Patterns of the names that mmseg reports as missing: scales of value `init_values`, and relative positions from 0."""

_RENAMES = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^norm\.", "ln1."),
    (r"^blocks\.(\d+)\.norm", r"layers.\1.ln"),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"layers.\1.ffn.layers.0.0."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"layers.\1.ffn.layers.1."),
    (r"^blocks\.", "layers."),
)
_LAST_NORM_CAUTION = "mmseg ignores the last norm (ln1.*), unless its config sets final_norm=True."
_FC_NORM_CAUTION = "Its norm after pooling (fc_norm) is not part of the file: mmseg does not pool."


def mmseg_target(model: ExportableModel) -> ExportTarget:
    """Return the export for mmseg's `MAE` backbone. Raise a `UserError` for a ViT that it would misread."""
    backbone = rgb_backbone(model)
    has_fc_norm = backbone.spec.has_fc_norm
    if (ratio := vit_sizes(backbone)["mlp_ratio"]) != int(ratio):
        raise UserError(
            f"{backbone.load_report.source}: mmseg cannot express this ViT: the width of its MLPs is {ratio:g} times "
            "its own, not a whole number. Use: c2fmae export mae"
        )
    plain = plain_vit_tensors(backbone, "mmseg")
    fc_norm = {name: tensor for name, tensor in plain.items() if name.startswith("fc_norm.")}
    tensors = {to_mmseg_name(name): tensor for name, tensor in plain.items() if name not in fc_norm}

    def write(folder: Path) -> None:
        torch.save(tensors, folder / MMSEG_FILE)

    def compare_with_timm(folder: Path) -> Sequence[ExportComparison]:
        read = torch.load(folder / MMSEG_FILE, weights_only=True)
        names = {name: to_mmseg_name(name) for name in plain if name not in fc_norm}
        return compare_with_plain_vit(backbone, {name: read.pop(theirs) for name, theirs in names.items()} | fc_norm)

    return ExportTarget(
        model=backbone,
        tool=f"PyTorch {torch.__version__}",
        weights_file=MMSEG_FILE,
        library="mmsegmentation",
        write=write,
        compare=compare_with_timm,
        usage=lambda folder: _usage(backbone, f"{folder}/{MMSEG_FILE}"),
        cautions=[
            *describe_omitted(model),
            *describe_expected_missing(EXPECTED_MISSING),
            _FC_NORM_CAUTION if has_fc_norm else _LAST_NORM_CAUTION,
        ],
    )


def to_mmseg_name(name: str) -> str:
    """Return the name that a tensor of timm's ViT has in mmseg's `MAE`.

    >>> to_mmseg_name("blocks.11.mlp.fc1.weight"), to_mmseg_name("blocks.0.norm2.bias")
    ('layers.11.ffn.layers.0.0.weight', 'layers.0.ln2.bias')
    """
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _usage(backbone: Backbone, file: str) -> str:
    sizes, depth = vit_sizes(backbone), backbone.depth
    indices = [round(depth * part) - 1 for part in (1 / 3, 1 / 2, 2 / 3, 1)]  # 3, 5, 7, 11 of 12 blocks
    return "\n".join(
        [
            "# mmseg, in a config of configs/mae:",
            "model = dict(",
            f"    {preprocessor_lines(backbone)}",
            f"    pretrained='{file}',",
            "    backbone=dict(",
            "        type='MAE',",
            f"        in_channels={backbone.spec.channels['rgb']}, patch_size={sizes['patch_size']}, "
            f"embed_dims={sizes['embed_dim']},",
            f"        num_layers={depth}, num_heads={sizes['num_heads']}, mlp_ratio={sizes['mlp_ratio']:g},",
            f"        norm_cfg=dict(type='LN', eps={sizes['norm_eps']:g}),",
            "        init_values=1.0,  # another value would scale every block",
            f"        out_indices={indices}),",
            f"    neck=dict(embed_dim={sizes['embed_dim']}))",
        ]
    )
