"""Export of a segmenter for transformers' `UperNetForSemanticSegmentation` on a `BeitBackbone`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.exports.example_inputs import example_images
from c2fmae.exports.hf_folder import BILINEAR, import_transformers, label_maps, save_model, without_progress_bars
from c2fmae.exports.hf_support import hf_unsupported_reason
from c2fmae.exports.target import ExportComparison, ExportTarget, compare_tensors, different_size
from c2fmae.exports.timm_vit import to_timm_vit
from c2fmae.models.relative_bias import RelativePositionBias
from c2fmae.models.segmenters import Segmenter
from c2fmae.models.segmenters.upsampling import upsample_logits

_MODEL = "UperNetForSemanticSegmentation"
_RESCALES = [4, 2, 1, 0.5]
_RESIZE_REASON = "transformers interpolates position embeddings differently"


def hf_segmenter_target(segmenter: Segmenter) -> ExportTarget:
    """Return the export of a segmenter for transformers. Raise a `UserError` for one that it cannot express."""
    transformers = import_transformers()
    if reason := _unsupported_reason(segmenter):
        raise UserError(
            f"{segmenter.load_report.source}: transformers' {_MODEL} cannot express this segmenter: {reason}. "
            "Use it with c2fmae predict, or export its backbone: c2fmae export timm"
        )
    vit = to_timm_vit(segmenter.backbone)
    if reason := hf_unsupported_reason(vit):
        raise UserError(
            f"{segmenter.load_report.source}: transformers' BeitBackbone cannot express its ViT: {reason}. "
            "Use it with c2fmae predict, or export its backbone: c2fmae export timm"
        )
    spec = segmenter.spec.backbone

    def usage(folder: str) -> str:
        return "\n".join(
            [
                "from transformers import AutoModelForSemanticSegmentation  # AutoImageProcessor standardises images",
                f"model = AutoModelForSemanticSegmentation.from_pretrained({json.dumps(folder)}).eval()",
                "logits = model(images).logits  # [batch, class, height, width]; model.config.id2label names the "
                "classes",
            ]
        )

    def write(folder: Path) -> None:
        model = create_upernet(transformers, segmenter)
        processor = transformers.SegformerImageProcessor(
            size=dict(zip(("height", "width"), spec.image_size, strict=True)),
            image_mean=list(spec.mean),
            image_std=list(spec.std),
            resample=BILINEAR,
            do_reduce_labels=False,  # ids of this package start at 0
        )
        with without_progress_bars(transformers):
            save_model(folder, model, processor)

    def compare_with_transformers(folder: Path) -> Sequence[ExportComparison]:
        with without_progress_bars(transformers):
            loaded = transformers.AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
            processor = transformers.AutoImageProcessor.from_pretrained(folder)
        comparisons = []
        for size in (spec.image_size, different_size(spec.image_size, segmenter.backbone.patch)):
            images = example_images(size, spec.channels["rgb"])
            processed = processor(
                list(images), do_resize=False, return_tensors="pt", input_data_format="channels_first"
            )
            with torch.inference_mode():
                expected = upsample_logits(segmenter.logits(segmenter.backbone.standardise(images)), size)
                comparisons.append(
                    compare_tensors(
                        f"logits of images of {size[0]}×{size[1]}, by model and image processor",
                        [loaded(**processed).logits],
                        [expected],
                        reason="" if size == spec.image_size else _RESIZE_REASON,
                    )
                )
        return comparisons

    return ExportTarget(
        model=segmenter,
        tool=f"transformers {transformers.__version__}",
        weights_file="model.safetensors",
        library="transformers",
        write=write,
        compare=compare_with_transformers,
        usage=usage,
        notes=[
            f"transformers' image processor resizes the whole image to {spec.image_size[0]}×{spec.image_size[1]}. For "
            "the results of `c2fmae eval segment`, use it with do_resize=False on windows of that size.",
        ],
    )


def create_upernet(transformers: Any, segmenter: Segmenter) -> Any:
    """Return the same model of transformers."""
    vit = to_timm_vit(segmenter.backbone)
    model = transformers.UperNetForSemanticSegmentation(_config(transformers, segmenter, vit))
    model.load_state_dict(_to_upernet_state_dict(segmenter, vit))
    return model


def _to_upernet_state_dict(segmenter: Segmenter, vit: VisionTransformer) -> dict[str, Tensor]:
    """Return a segmenter's tensors under the names of `UperNetForSemanticSegmentation`; `vit` is its backbone.

    BEiT has no bias of keys. It adds one number to all products of a query, so the softmax does not depend on it.
    """
    assert segmenter.pyramid is not None
    blocks: list[Any] = list(vit.blocks)
    modules: dict[str, Any] = {"backbone.beit.embeddings.patch_embeddings.projection": vit.patch_embed.proj}
    tensors: dict[str, Any] = {
        "backbone.beit.embeddings.cls_token": vit.cls_token,
        "backbone.beit.embeddings.position_embeddings": vit.pos_embed,
    }
    for index, block in enumerate(blocks):
        layer = f"backbone.beit.layers.{index}"
        modules |= {
            f"{layer}.layernorm_before": block.norm1,
            f"{layer}.attention.o_proj": block.attn.proj,
            f"{layer}.layernorm_after": block.norm2,
            f"{layer}.mlp.fc1": block.mlp.fc1,
            f"{layer}.mlp.fc2": block.mlp.fc2,
        }
        weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
        biases = torch.zeros(len(weight)) if bias is None else bias
        for name, part, bias_part in zip("qkv", weight.chunk(3), biases.chunk(3), strict=True):
            tensors[f"{layer}.attention.{name}_proj.weight"] = part
            if name != "k":
                tensors[f"{layer}.attention.{name}_proj.bias"] = bias_part
        if isinstance(segmenter.relative, RelativePositionBias):
            table = f"{layer}.relative_position_bias.relative_position_bias_table"
            tensors[table] = segmenter.relative.tables[index]
    heads = {"pyramid.": segmenter.pyramid, "head.": segmenter.head, "auxiliary.": segmenter.auxiliary}
    for prefix, module in heads.items():
        if module is not None:
            tensors |= {_head_name(prefix + name): tensor for name, tensor in module.state_dict().items()}
    for name, module in modules.items():
        tensors |= {f"{name}.{kind}": tensor for kind, tensor in module.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _head_name(name: str) -> str:
    """Return the name of a pyramid's or head's tensor in `UperNetForSemanticSegmentation`.

    >>> _head_name("head.bottleneck.norm.weight"), _head_name("pyramid.levels.1.bias")
    ('decode_head.bottleneck.batch_norm.weight', 'backbone.fpn.fpn2.bias')
    """
    prefixes = {
        "pyramid.levels.0.0.": "backbone.fpn.fpn1.conv_transpose1.",
        "pyramid.levels.0.1.": "backbone.fpn.fpn1.normalization.",
        "pyramid.levels.0.3.": "backbone.fpn.fpn1.conv_transpose2.",
        "pyramid.levels.1.": "backbone.fpn.fpn2.",
        "head.": "decode_head.",
        "auxiliary.": "auxiliary_head.",
    }
    ours = next(prefix for prefix in prefixes if name.startswith(prefix))
    return prefixes[ours] + name.removeprefix(ours).replace(".norm.", ".batch_norm.")


def _unsupported_reason(segmenter: Segmenter) -> str:
    """Return the first feature of a segmenter that UPerNet on BEiT lacks; empty if it can express the segmenter."""
    spec = segmenter.spec
    height, width = spec.backbone.image_size
    options: Mapping[str, Any] = spec.head.options
    if spec.head.name != "upernet":
        return f"its head is {spec.head.name}, not upernet"
    reasons = {
        f"its norms are {spec.norm} norms, not batch norms": spec.norm != "batch",
        "its maps are not those of four different blocks from the first to the last": [*spec.depths]
        != sorted(set(spec.depths)),
        f"its pyramid has rescales {options['rescales']}, not {_RESCALES}": [*options["rescales"]] != _RESCALES,
        f"its auxiliary head has {_num_convs(options)} convolutions, not at least one": _num_convs(options) == 0,
        "the map of its last block is normed": spec.backbone.encoder.has_norm,
        "its relative positions are decomposed": spec.relative == "decomposed",
        f"it was trained on crops of {height}×{width}, which are not square": height != width,
    }
    return next((reason for reason, is_true in reasons.items() if is_true), "")


def _num_convs(head_options: Mapping[str, Any]) -> int | None:
    """Return the number of convolutions of the auxiliary head; None without one."""
    return None if head_options["auxiliary"] is None else head_options["auxiliary"]["num_convs"]


def _config(transformers: Any, segmenter: Segmenter, vit: VisionTransformer) -> Any:
    spec, options = segmenter.spec, segmenter.spec.head.options
    auxiliary = options["auxiliary"]
    block: Any = vit.blocks[0]
    backbone = transformers.BeitConfig(
        hidden_size=vit.embed_dim,
        num_hidden_layers=len(vit.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        layer_norm_eps=block.norm1.eps,
        image_size=spec.backbone.image_size[0],
        patch_size=segmenter.backbone.patch,
        num_channels=spec.backbone.channels["rgb"],
        use_absolute_position_embeddings=True,
        use_relative_position_bias=segmenter.relative is not None,
        layer_scale_init_value=0.0,  # none
        drop_path_rate=spec.backbone.encoder.drop_path,
        out_features=[f"stage{depth}" for depth in spec.depths],
        add_fpn=True,
    )
    return transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=options["channels"],
        pool_scales=list(options["pool_scales"]),
        use_auxiliary_head=auxiliary is not None,
        auxiliary_in_channels=vit.embed_dim,
        **{f"auxiliary_{key}": auxiliary[key] for key in ("channels", "num_convs") if auxiliary is not None},
        **label_maps([entry.name for entry in spec.classes]),
    )
