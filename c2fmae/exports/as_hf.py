"""Export for transformers, for the models that it can express: ViTs here, segmenters in `as_hf_segmenter`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.exports.as_hf_segmenter import hf_segmenter_target
from c2fmae.exports.example_inputs import compute_outputs, example_images
from c2fmae.exports.hf_folder import BICUBIC, import_transformers, label_maps, save_model, without_progress_bars
from c2fmae.exports.hf_support import hf_unsupported_reason
from c2fmae.exports.target import (
    ExportableModel,
    ExportComparison,
    ExportTarget,
    compare_tensors,
    different_size,
    get_backbone,
)
from c2fmae.exports.timm_vit import to_timm_vit
from c2fmae.models.backbones.hugging_face_reader import CROP_KEY, POOLING_KEY, UNNAMED_LABEL
from c2fmae.models.classifiers import Classifier
from c2fmae.models.segmenters import Segmenter

_NO_CENTRE_CROP = "transformers' image processor resizes the whole image to that size, without a central crop."
_RESIZE_REASON = (
    "transformers interpolates position embeddings differently. For equal features at this size, export with "
    "--image-size"
)


def hf_target(model: ExportableModel) -> ExportTarget:
    """Return the export for transformers. Raise a `UserError` for a model that it cannot express."""
    if isinstance(model, Segmenter):
        return hf_segmenter_target(model)
    transformers = import_transformers()
    vit, backbone, is_classifier = to_timm_vit(model), get_backbone(model), isinstance(model, Classifier)
    kind = "ViTForImageClassification" if is_classifier else "ViTModel"
    if reason := hf_unsupported_reason(vit):
        raise UserError(
            f"{backbone.load_report.source}: transformers' {kind} cannot express this ViT: {reason}. "
            "Use: c2fmae export timm"
        )
    spec = backbone.spec
    is_square = spec.image_size[0] == spec.image_size[1]
    model_class, options = getattr(transformers, kind), {} if is_classifier else {"add_pooling_layer": False}

    def usage(folder: str) -> str:
        if isinstance(model, Classifier):
            return "\n".join(
                [
                    f"from transformers import {kind}  # ViTImageProcessor of the same folder standardises images",
                    f"model = {kind}.from_pretrained({json.dumps(folder)}).eval()",
                    f"logits = model(images).logits  # [batch, {model.num_labels}]; model.config.id2label names them",
                ]
            )
        vector = "[:, 0]" if spec.pool == "cls" else "[:, 1:].mean(dim=1)"
        return "\n".join(
            [
                "from transformers import ViTModel  # ViTImageProcessor of the same folder standardises images",
                f"model = ViTModel.from_pretrained({json.dumps(folder)}, add_pooling_layer=False).eval()",
                f"features = model(images).last_hidden_state{vector}  # [batch, {backbone.dim}]",
            ]
        )

    def write(folder: Path) -> None:
        first: Any = vit.blocks[0]
        height, width = spec.image_size
        config = transformers.ViTConfig(
            hidden_size=vit.embed_dim,
            num_hidden_layers=len(vit.blocks),
            num_attention_heads=first.attn.num_heads,
            intermediate_size=first.mlp.fc1.out_features,
            layer_norm_eps=first.norm1.eps,
            image_size=height if is_square else [height, width],
            patch_size=backbone.patch,
            num_channels=spec.channels["rgb"],
            qkv_bias=first.attn.qkv.bias is not None,
            **{POOLING_KEY: spec.pool},  # transformers has no option for it and stores unknown ones
            **(_label_config(model) if isinstance(model, Classifier) else {}),
        )
        processor = transformers.ViTImageProcessor(
            size={"height": height, "width": width},
            image_mean=list(spec.mean),
            image_std=list(spec.std),
            resample=BICUBIC,
        )
        with without_progress_bars(transformers):
            # Every version of transformers reads the parameter names of the first ViTs on the hub.
            written = model_class.from_pretrained(None, config=config, state_dict=to_hub_state_dict(vit), **options)
            save_model(folder, written, processor)

    def compare_with_transformers(folder: Path) -> Sequence[ExportComparison]:
        with without_progress_bars(transformers):
            loaded = model_class.from_pretrained(folder, **options).eval()
            processor = transformers.ViTImageProcessor.from_pretrained(folder)
        sizes = [spec.image_size, *([different_size(spec.image_size, backbone.patch)] if is_square else [])]
        comparisons = []
        for size in sizes:
            is_resized = size != spec.image_size
            images = example_images(size, spec.channels["rgb"])
            processed = processor(
                list(images), do_resize=False, return_tensors="pt", input_data_format="channels_first"
            )
            inner = loaded.vit if is_classifier else loaded
            with torch.inference_mode():
                outputs = [inner(**processed, interpolate_pos_encoding=is_resized).last_hidden_state]
                outputs += [loaded(**processed, interpolate_pos_encoding=is_resized).logits] if is_classifier else []
            tokens, _, *logits = compute_outputs(model, backbone.standardise(images))
            names = "tokens and logits" if is_classifier else "tokens"
            description = f"{names} of images of {size[0]}×{size[1]}, by model and image processor"
            comparisons.append(
                compare_tensors(description, outputs, [tokens, *logits], reason=_RESIZE_REASON if is_resized else "")
            )
        return comparisons

    notes = [
        _NO_CENTRE_CROP
        if is_classifier
        else "transformers' own pooling layer is not part of it, because it was never trained."
    ]
    if not is_square:
        notes.append(
            f"It takes images of {spec.image_size[0]}×{spec.image_size[1]} only: transformers resizes square tables."
        )
    return ExportTarget(
        model=model,
        tool=f"transformers {transformers.__version__}",
        weights_file="model.safetensors",
        library="transformers",
        write=write,
        compare=compare_with_transformers,
        usage=usage,
        notes=notes,
    )


def to_hub_state_dict(vit: VisionTransformer) -> dict[str, Tensor]:
    """Return a ViT's tensors under the names of the first ViTs on the Hugging Face hub."""
    blocks: list[Any] = list(vit.blocks)
    modules: dict[str, Any] = {"embeddings.patch_embeddings.projection": vit.patch_embed.proj, "layernorm": vit.norm}
    tensors: dict[str, Any] = {"embeddings.cls_token": vit.cls_token, "embeddings.position_embeddings": vit.pos_embed}
    if vit.no_embed_class:
        blank = torch.zeros(1, 1, vit.embed_dim)
        tensors["embeddings.position_embeddings"] = torch.cat([blank, tensors["embeddings.position_embeddings"]], dim=1)
    for index, block in enumerate(blocks):
        layer = f"encoder.layer.{index}"
        modules |= {
            f"{layer}.layernorm_before": block.norm1,
            f"{layer}.attention.output.dense": block.attn.proj,
            f"{layer}.layernorm_after": block.norm2,
            f"{layer}.intermediate.dense": block.mlp.fc1,
            f"{layer}.output.dense": block.mlp.fc2,
        }
        for kind, tensor in block.attn.qkv.named_parameters():
            for name, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                tensors[f"{layer}.attention.attention.{name}.{kind}"] = part
    for prefix, module in modules.items():
        tensors |= {f"{prefix}.{kind}": tensor for kind, tensor in module.named_parameters()}
    if vit.num_classes:
        tensors = {f"vit.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {f"classifier.{kind}": tensor for kind, tensor in vit.head.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _label_config(classifier: Classifier) -> dict[str, Any]:
    """Return the labels as options of transformers' config, which cannot hold WordNet ids."""
    enumerated = enumerate(classifier.spec.labels)
    names = [label.name if label else UNNAMED_LABEL.format(index) for index, label in enumerated]
    return {**label_maps(names), CROP_KEY: classifier.spec.crop}
