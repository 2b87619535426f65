"""A folder as timm's hub has it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.labels import LabelInfo
from c2fmae.core.pixels import standardise
from c2fmae.core.tensor_file import write_tensors
from c2fmae.exports.example_inputs import features, trial_photos
from c2fmae.exports.target import Comparison, Model, Target, another_size, at, backbone_of, compare
from c2fmae.exports.timm_vit import model_args, timm_vit
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier

_FILE, _CONFIG = "model.safetensors", "config.json"
_SKIP: dict[str, Any] = {"weight_init": "skip"}  # timm's own draw takes seconds, and all of it is loaded over
_EPS = 1e-6
_RESIZES = (
    "timm resizes the table of positions, and c2fmae computes them anew for every size. For features like these there, "
    "export with --image-size"
)


def timm_target(model: Model) -> Target:
    """Return the way to timm: the file is loaded by itself and as a folder, and at another size."""
    backbone = backbone_of(model)
    args, classes = model_args(backbone), model.num_labels if isinstance(model, Classifier) else 0
    name = backbone.spec.encoder.name
    given = (
        f"logits = model(photos)  # [batch, {classes}]"
        if classes
        else f"features = model(photos)  # [batch, {backbone.dim}]"
    )

    def usage(folder: str) -> str:
        return "\n".join(
            [
                "import timm",
                f"model = timm.create_model({json.dumps(f'local-dir:{folder}')}, pretrained=True).eval()",
                f"{given}; model.forward_features gives all tokens",
            ]
        )

    def write(folder: Path) -> None:
        vit = timm_vit(model)
        write_tensors(folder / _FILE, vit.state_dict())
        text = json.dumps(_config(model, vit, args), indent=2, ensure_ascii=False) + "\n"
        (folder / _CONFIG).write_text(text, encoding="utf-8")

    def compare_with_timm(folder: Path) -> Sequence[Comparison]:
        size, patch = backbone.spec.image_size, backbone.patch
        said = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))["model_args"]  # what others will be told
        alone = timm.create_model(name, num_classes=classes, checkpoint_path=str(folder / _FILE), **_SKIP, **said)
        whole = timm.create_model(f"local-dir:{folder}", pretrained=True, **_SKIP)
        other = another_size(size, patch)
        resized = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=other, **_SKIP)
        norm = resolve_data_config(model=whole)  # type: ignore[no-untyped-call]
        why = "" if backbone.spec.encoder.keep_positions else _RESIZES
        of = at(size, model)
        same = {f"{of}, the file loaded by itself": alone, f"{of}, the folder loaded": whole}
        return [*_compare(model, same, norm, size), *_compare(model, {at(other, model): resized}, norm, other, why)]

    return Target(
        model=model,
        tool=f"timm {timm.__version__}",
        weights=_FILE,
        library="timm",
        write=write,
        compare=compare_with_timm,
        usage=usage,
        notes=[
            f"By itself, the file is of `timm.create_model({name!r}, num_classes={classes}, checkpoint_path=…, "
            f"**{args})`.",
            *_other_eps(backbone),
        ],
    )


def _other_eps(backbone: Backbone) -> list[str]:
    """Say where timm's norms are not quite those of the training: whether that matters, the comparison tells."""
    ours = backbone.spec.encoder.norm_eps
    if ours in (None, _EPS):
        return []
    return [f"Its norms add {ours:g} to variances, and timm's {_EPS:g}: the difference is among those below."]


def _config(model: Model, vit: VisionTransformer, args: dict[str, Any]) -> dict[str, Any]:
    backbone = backbone_of(model)
    spec = backbone.spec
    channels = spec.channels["rgb"]
    return {
        "architecture": spec.encoder.name,
        "num_classes": vit.num_classes,
        "num_features": backbone.dim,
        "global_pool": args["global_pool"],
        **(_labels(model.spec.labels) if isinstance(model, Classifier) else {}),
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
            # What timm turns into other channels, which it can do with three.
            "first_conv": "patch_embed.proj" if channels == 3 else None,
            "classifier": "head",
        },
    }


def _labels(labels: Sequence[LabelInfo | None]) -> dict[str, Any]:
    """Return timm's words for labels: names by index, WordNet's ids where they are known, and what these mean."""
    known = {index: label for index, label in enumerate(labels) if label}
    names = {index: label.wnid or label.name for index, label in known.items()}
    described = {label.wnid: label.name for label in known.values() if label.wnid}
    return {
        "label_names": list(names.values()) if len(known) == len(labels) else names,
        "label_descriptions": described,
    }


def _compare(
    model: Model, models: Mapping[str, nn.Module], norm: dict[str, Any], size: tuple[int, int], why: str = ""
) -> list[Comparison]:
    backbone = backbone_of(model)
    photos = trial_photos(size, backbone.spec.channels["rgb"])
    given = standardise(photos, torch.tensor(norm["mean"]), torch.tensor(norm["std"]))
    expected = features(model, backbone.standardise(photos))
    with torch.inference_mode():
        return [compare(of, timm_features(each.eval(), given), expected, why=why) for of, each in models.items()]


def timm_features(vit: nn.Module, photos: Tensor) -> tuple[Tensor, ...]:
    """Return what timm's model says of photos: tokens, pooled features, and logits where it has a head."""
    assert isinstance(vit, VisionTransformer)
    tokens = vit.forward_features(photos)
    vector = vit.forward_head(tokens, pre_logits=True)
    return (tokens, vector, vit.head(vector)) if vit.num_classes else (tokens, vector)
