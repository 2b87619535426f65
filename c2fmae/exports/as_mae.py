"""Export as one `.pth` file with MAE's names, which MAE's fine-tuning and the ViTDets of detectron2 and mmdet read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.exports.as_timm import compute_timm_outputs
from c2fmae.exports.example_inputs import compute_outputs, example_images
from c2fmae.exports.plain_vit import not_plain_vit_reason
from c2fmae.exports.target import (
    ExportableModel,
    ExportComparison,
    ExportTarget,
    compare_tensors,
    describe_comparison,
    get_backbone,
)
from c2fmae.exports.timm_vit import restrict_to_rgb, to_timm_vit
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.infer import compute_mlp_ratio
from c2fmae.models.classifiers import Classifier
from c2fmae.models.encoder import create_vit

MAE_FILE = "mae.pth"
EXPECTED_MISSING: dict[str, tuple[str, ...]] = {
    "MAE's fine-tuning": ("head.*", "fc_norm.*"),
    "The ViTDet of detectron2 or mmdet": ("blocks.*.attn.rel_pos_h", "blocks.*.attn.rel_pos_w"),
}
"""Patterns of the names that each tool reports as missing: layers of its own, which it initialises."""

_FC_NORM_CAUTION = (
    "Its norm comes after pooling (fc_norm), as in MAE's fine-tuned files. MAE's fine-tuning expects a file without "
    "one: export the pre-training run for it."
)
_MAE_MODELS = {  # functions of models_vit.py by width, depth, heads and patch size
    (768, 12, 12, 16): "vit_base_patch16",
    (1024, 24, 16, 16): "vit_large_patch16",
    (1280, 32, 16, 14): "vit_huge_patch14",
}
_MAE_EPS = 1e-6  # of norms, in MAE and in detectron2's config
_PLAIN_VIT = "vit_base_patch16_224"


def mae_target(model: ExportableModel) -> ExportTarget:
    """Return the export for MAE, detectron2 and mmdet. Raise a `UserError` for a ViT that these would misread."""
    backbone = rgb_backbone(model)
    tensors = plain_vit_tensors(backbone, "MAE, detectron2 and mmdet")
    expected_missing = EXPECTED_MISSING
    if backbone.spec.has_fc_norm:  # it is in the file
        expected_missing = EXPECTED_MISSING | {"MAE's fine-tuning": ("head.*",)}

    def write(folder: Path) -> None:
        torch.save({"model": tensors}, folder / MAE_FILE)

    def read(folder: Path) -> Mapping[str, Tensor]:
        return cast(dict[str, Tensor], torch.load(folder / MAE_FILE, weights_only=True)["model"])

    return ExportTarget(
        model=backbone,
        tool=f"timm {timm.__version__}",
        weights_file=MAE_FILE,
        library="pytorch",
        write=write,
        compare=lambda folder: compare_with_plain_vit(backbone, read(folder)),
        usage=lambda folder: _usage(backbone, f"{folder}/{MAE_FILE}"),
        cautions=[
            *describe_omitted(model),
            *describe_expected_missing(expected_missing),
            *([_FC_NORM_CAUTION] if backbone.spec.has_fc_norm else []),
            *_describe_eps(backbone),
        ],
    )


def rgb_backbone(model: ExportableModel) -> Backbone:
    """Return the backbone of a model for images only."""
    return get_backbone(restrict_to_rgb(model))


def plain_vit_tensors(backbone: Backbone, readers: str) -> dict[str, Tensor]:
    """Return the tensors of a plain ViT under timm's names, with a square position table and a row for the class token.

    Raise a `UserError` for any other ViT: the readers ignore tensors that they do not know.
    """
    vit, source = to_timm_vit(backbone), backbone.load_report.source
    block: Any = vit.blocks[0]
    reason = not_plain_vit_reason(vit)
    if not reason and block.attn.qkv.bias is None:
        reason = "its queries, keys and values have no biases"
    if reason:
        raise UserError(f"{source}: {readers} cannot express this ViT: {reason}. Use: c2fmae export timm")
    rows, columns = vit.patch_embed.grid_size
    if rows != columns:
        side = rows * backbone.patch
        raise UserError(
            f"{source}: {readers} read square position tables only (this one is {rows}×{columns} patches). "
            f"Add --image-size {side} {side}"
        )
    tensors = {name: tensor.detach().contiguous() for name, tensor in vit.state_dict().items()}
    if vit.no_embed_class:
        table = tensors["pos_embed"]
        tensors["pos_embed"] = torch.cat([table.new_zeros(1, 1, table.shape[2]), table], dim=1)
    return tensors


def compare_with_plain_vit(backbone: Backbone, tensors: Mapping[str, Tensor]) -> Sequence[ExportComparison]:
    """Compare a backbone with timm's plain ViT of its sizes, from which those of MAE, detectron2 and mmdet derive."""
    spec, sizes = backbone.spec, vit_sizes(backbone)
    pool = {"cls": "token", "mean": "avg"}[spec.pool]
    vit = create_vit(
        _PLAIN_VIT,
        image_size=spec.image_size,
        channels=spec.channels["rgb"],
        fc_norm=spec.has_fc_norm,
        global_pool=pool,
        **sizes,
    )
    vit.load_state_dict(tensors)
    images = backbone.standardise(example_images(spec.image_size, spec.channels["rgb"]))
    with torch.inference_mode():
        outputs = compute_timm_outputs(vit.eval(), images)
    return [compare_tensors(describe_comparison(spec.image_size, backbone), outputs, compute_outputs(backbone, images))]


def vit_sizes(backbone: Backbone) -> dict[str, Any]:
    """Return the arguments of `create_vit` that describe the backbone's sizes, none of which is left to a default."""
    block: Any = backbone.encoder.blocks[0]
    return {
        "patch_size": backbone.patch,
        "embed_dim": backbone.dim,
        "depth": backbone.depth,
        "num_heads": block.attn.num_heads,
        "mlp_ratio": compute_mlp_ratio(block.mlp.fc1.out_features, backbone.dim),
        "norm_eps": block.norm1.eps,
    }


def describe_omitted(model: ExportableModel) -> list[str]:
    """Return a sentence that names the parts of a source which are not in the file, if there are any."""
    backbone = get_backbone(model)
    names = [*backbone.load_report.unused, *(["head"] if isinstance(model, Classifier) else [])]
    names += [f"embedding of {name}" for name in backbone.granularities if name != "rgb"]
    return [f"Not part of the file: {', '.join(dict.fromkeys(names))}."] if names else []


def describe_expected_missing(expected: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a sentence for each tool with the names that it reports as missing."""
    return [
        f"{tool} reports these tensors as missing, as it should: {', '.join(patterns)}."
        for tool, patterns in expected.items()
    ]


def preprocessor_lines(backbone: Backbone) -> str:
    """Return the arguments of the data preprocessor of mmdet and mmseg, which takes bytes in BGR order."""
    mean, std = pixel_statistics(backbone)
    return f"data_preprocessor=dict(mean={mean}, std={std}, bgr_to_rgb={len(mean) == 3}),"


def pixel_statistics(backbone: Backbone) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation for values from 0 to 255."""
    mean, std = ([round(255 * value, 3) for value in values] for values in (backbone.spec.mean, backbone.spec.std))
    return mean, std


def _describe_eps(backbone: Backbone) -> list[str]:
    eps = vit_sizes(backbone)["norm_eps"]
    return [] if eps == _MAE_EPS else [f"Its norms have eps {eps:g}, which the file does not store; MAE's have 1e-06."]


def _usage(backbone: Backbone, file: str) -> str:
    sizes, spec = vit_sizes(backbone), backbone.spec
    eps, side, channels = sizes.pop("norm_eps"), spec.image_size[0], spec.channels["rgb"]
    heads = (sizes["embed_dim"], sizes["depth"], sizes["num_heads"], sizes["patch_size"])
    name = _MAE_MODELS.get(heads, "NAME  # NAME: a function of these sizes, which you add to models_vit.py")
    net = sizes | {"in_chans": channels, "pretrain_img_size": side}
    mean, std = pixel_statistics(backbone)
    return "\n".join(
        [
            f"# MAE: python main_finetune.py --finetune {file} --input_size {side} --model {name}",
            "# detectron2, in a config of projects/ViTDet:",
            f'train.init_checkpoint = "{file}?matching_heuristics=True"',
            f"model.backbone.net.update(dict({_format_arguments(net)}))",
            *([f"model.backbone.net.norm_layer = partial(nn.LayerNorm, eps={eps:g})"] if eps != _MAE_EPS else []),
            f"model.pixel_mean, model.pixel_std = {mean}, {std}",
            "# mmdet, in a config of projects/ViTDet:",
            "model = dict(",
            f"    {preprocessor_lines(backbone)}",
            "    backbone=dict(",
            f"        {_format_arguments(net)},",
            f"        norm_cfg=dict(type='LN', eps={eps:g}),",
            f"        init_cfg=dict(type='Pretrained', checkpoint='{file}')))",
        ]
    )


def _format_arguments(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in arguments.items())
