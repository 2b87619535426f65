"""Export as a directory in the layout of timm's models on the Hugging Face hub."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.json_file import read_json, write_json
from c2fmae.core.labels import LabelInfo
from c2fmae.core.pixels import standardise
from c2fmae.core.tensor_file import write_tensors
from c2fmae.exports.example_inputs import compute_outputs, example_images
from c2fmae.exports.target import (
    ExportableModel,
    ExportComparison,
    ExportTarget,
    compare_tensors,
    describe_comparison,
    different_size,
    get_backbone,
)
from c2fmae.exports.timm_vit import timm_model_args, to_timm_vit
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier

_WEIGHTS_FILE, _CONFIG_FILE = "model.safetensors", "config.json"
_SKIP_INIT: dict[str, Any] = {
    "weight_init": "skip"
}  # drawing weights takes timm seconds, and all are loaded afterwards
_TIMM_NORM_EPS = 1e-6
_RESIZE_REASON = (
    "timm interpolates the table of position embeddings, c2fmae stretches their sines and cosines. For equal features "
    "at this size, export with --image-size"
)


def timm_target(model: ExportableModel) -> ExportTarget:
    """Return the export for `timm.create_model`: reloaded as a file, as a directory, and at another size."""
    backbone = get_backbone(model)
    args, classes = timm_model_args(backbone), model.num_labels if isinstance(model, Classifier) else 0
    name = backbone.spec.encoder.name
    usage_line = (
        f"logits = model(images)  # [batch, {classes}]"
        if classes
        else f"features = model(images)  # [batch, {backbone.dim}]"
    )

    def usage(folder: str) -> str:
        return "\n".join(
            [
                "import timm",
                f"model = timm.create_model({json.dumps(f'local-dir:{folder}')}, pretrained=True).eval()",
                f"{usage_line}; model.forward_features returns all tokens",
            ]
        )

    def write(folder: Path) -> None:
        vit = to_timm_vit(model)
        write_tensors(folder / _WEIGHTS_FILE, vit.state_dict())
        write_json(folder / _CONFIG_FILE, _hub_config(model, vit, args))

    def compare_with_timm(folder: Path) -> Sequence[ExportComparison]:
        size, patch = backbone.spec.image_size, backbone.patch
        written_args = read_json(folder / _CONFIG_FILE)["model_args"]
        from_file = timm.create_model(
            name, num_classes=classes, checkpoint_path=str(folder / _WEIGHTS_FILE), **_SKIP_INIT, **written_args
        )
        from_folder = timm.create_model(f"local-dir:{folder}", pretrained=True, **_SKIP_INIT)
        other = different_size(size, patch)
        resized = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=other, **_SKIP_INIT)
        norm = resolve_data_config(model=from_folder)  # type: ignore[no-untyped-call]
        reason = "" if backbone.spec.encoder.keep_positions else _RESIZE_REASON
        description = describe_comparison(size, model)
        models = {
            f"{description}, loaded from the file": from_file,
            f"{description}, loaded from the folder": from_folder,
        }
        return [
            *_compare_models(model, models, norm, size),
            *_compare_models(model, {describe_comparison(other, model): resized}, norm, other, reason),
        ]

    return ExportTarget(
        model=model,
        tool=f"timm {timm.__version__}",
        weights_file=_WEIGHTS_FILE,
        library="timm",
        write=write,
        compare=compare_with_timm,
        usage=usage,
        notes=[
            f"To load the file without its folder: `timm.create_model({name!r}, num_classes={classes}, "
            f"checkpoint_path=…, **{args})`.",
            *_norm_eps_notes(backbone),
        ],
    )


def _norm_eps_notes(backbone: Backbone) -> list[str]:
    """Return a note if the norms were trained with another eps than timm's; the comparison shows whether it matters."""
    ours = backbone.spec.encoder.norm_eps
    if ours in (None, _TIMM_NORM_EPS):
        return []
    return [f"It was trained with norms of eps {ours:g}, timm's have {_TIMM_NORM_EPS:g}: see the differences below."]


def _hub_config(model: ExportableModel, vit: VisionTransformer, args: dict[str, Any]) -> dict[str, Any]:
    backbone = get_backbone(model)
    spec = backbone.spec
    channels = spec.channels["rgb"]
    return {
        "architecture": spec.encoder.name,
        "num_classes": vit.num_classes,
        "num_features": backbone.dim,
        "global_pool": args["global_pool"],
        **(_label_config(model.spec.labels) if isinstance(model, Classifier) else {}),
        "model_args": args,
        "pretrained_cfg": {
            "tag": "c2fmae",
            "custom_load": False,
            "input_size": [channels, *spec.image_size],
            "fixed_input_size": not vit.dynamic_img_size,
            "interpolation": "bicubic",
            "crop_pct": model.spec.crop if isinstance(model, Classifier) else 1.0,
            "crop_mode": "center",
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": vit.num_classes,
            "pool_size": None,
            # The layer that timm converts for other numbers of channels, which it can from three only.
            "first_conv": "patch_embed.proj" if channels == 3 else None,
            "classifier": "head",
        },
    }


def _label_config(labels: Sequence[LabelInfo | None]) -> dict[str, Any]:
    """Return the labels as keys of timm's config: WordNet ids, or else names, by index, and descriptions by id."""
    known = {index: label for index, label in enumerate(labels) if label}
    names = {index: label.wnid or label.name for index, label in known.items()}
    described = {label.wnid: label.name for label in known.values() if label.wnid}
    return {
        "label_names": list(names.values()) if len(known) == len(labels) else names,
        "label_descriptions": described,
    }


def _compare_models(
    model: ExportableModel,
    models: Mapping[str, nn.Module],
    norm: dict[str, Any],
    size: tuple[int, int],
    reason: str = "",
) -> list[ExportComparison]:
    backbone = get_backbone(model)
    images = example_images(size, backbone.spec.channels["rgb"])
    standardised = standardise(images, torch.tensor(norm["mean"]), torch.tensor(norm["std"]))
    expected = compute_outputs(model, backbone.standardise(images))
    with torch.inference_mode():
        return [
            compare_tensors(description, compute_timm_outputs(other.eval(), standardised), expected, reason=reason)
            for description, other in models.items()
        ]


def compute_timm_outputs(vit: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Return the tokens, pooled features, and with a head the logits of a timm ViT."""
    assert isinstance(vit, VisionTransformer)
    tokens = vit.forward_features(images)
    pooled = vit.forward_head(tokens, pre_logits=True)
    return (tokens, pooled, vit.head(pooled)) if vit.num_classes else (tokens, pooled)
