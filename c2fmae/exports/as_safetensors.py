"""Tensors under our names with a config from which everything is built again: nothing that was learned is lost."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.core.tensor_file import write_tensors
from c2fmae.exports.example_inputs import BATCH, features, trial_maps
from c2fmae.exports.target import Comparison, Model, Target, another_size, at, backbone_of, compare
from c2fmae.methods import MaskedAutoencoding, MethodConfig, build_method
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.assemble import HEAD, Found, from_our_names
from c2fmae.models.backbones.export_reader import (
    AUTOENCODER,
    CLASSIFIER,
    CONFIG,
    WEIGHTS,
    ExportConfig,
    check_size,
    read_export,
    read_folder,
)
from c2fmae.models.classifiers import Classifier
from c2fmae.models.classifiers.load import classifier_from
from c2fmae.models.encoder import create_vit


def safetensors_target(model: Model) -> Target:
    """Return the way to a folder that `load_backbone` takes, with all granularities, and `load_classifier`."""
    backbone = backbone_of(model)
    taken = ", ".join(backbone.granularities)
    given = "photos" if "rgb" in backbone.granularities else "maps"

    def usage(folder: str) -> str:
        if isinstance(model, Classifier):
            return "\n".join(
                [
                    "from c2fmae.models.classifiers import load_classifier",
                    f"classifier = load_classifier({json.dumps(folder)})  # takes {taken}",
                    f"logits = classifier({given})  # [batch, {model.num_labels}]; classifier.spec.labels says of what",
                ]
            )
        return "\n".join(
            [
                "from c2fmae.models.backbones import load_backbone",
                f"backbone = load_backbone({json.dumps(folder)})  # takes {taken}",
                f"features = backbone.pooled({given})  # [batch, {backbone.dim}]; backbone.tokens gives all tokens",
            ]
        )

    def write(folder: Path) -> None:
        tensors, config = backbone.state_dict(), ExportConfig(spec=backbone.spec)
        if isinstance(model, Classifier):
            tensors |= {HEAD + name: each for name, each in model.head.state_dict().items()}
            told = model.spec.model_dump(mode="json", exclude={"backbone"})
            config = config.model_copy(update={"format": CLASSIFIER, "classifier": told})
        _write(folder, config, tensors)

    def compare_with_file(folder: Path) -> Sequence[Comparison]:
        found = read_export(folder)
        tensors = load_file(folder / WEIGHTS)
        found = Found(source=str(folder), spec=found.spec, tensors=tensors, classifier=found.classifier)
        is_classifier = isinstance(model, Classifier)
        again = classifier_from(from_our_names, found) if is_classifier else from_our_names(found)
        comparisons = []
        for size in (backbone.spec.image_size, another_size(backbone.spec.image_size, backbone.patch)):
            maps = trial_maps(backbone, size)
            of = at(size, model).replace("photos", taken)
            comparisons.append(compare(of, features(again, maps), features(model, maps)))
        return comparisons

    return Target(
        model=model,
        tool=f"safetensors {version('safetensors')}",
        weights=WEIGHTS,
        library="c2fmae",
        write=write,
        compare=compare_with_file,
        usage=usage,
    )


def autoencoder_target(method: MaskedAutoencoding, backbone: Backbone) -> Target:
    """Return the way to a folder from which the whole autoencoder is built again; `backbone` is its encoder."""
    taken = ", ".join(method.config.granularities)

    def usage(folder: str) -> str:
        return "\n".join(
            [
                "from c2fmae.exports import read_autoencoder",
                f"method = read_autoencoder({json.dumps(folder)})  # takes {taken}; load_backbone takes its encoder",
                "completed = method.predict(scenes, masks)",
            ]
        )

    def write(folder: Path) -> None:
        config = ExportConfig(
            format="c2fmae-autoencoder", spec=backbone.spec, method=method.config.model_dump(mode="json")
        )
        _write(folder, config, method.model.state_dict())

    def compare_with_file(folder: Path) -> Sequence[Comparison]:
        again = _build(folder, cast(Mapping[str, Any], read_folder(folder)[0].method), load_file(folder / WEIGHTS))
        size = backbone.spec.image_size
        maps = trial_maps(backbone, size)
        masks = _trial_masks(method, size)
        ours, theirs = _predictions(method, maps, masks), _predictions(again, maps, masks)
        of = f"predictions of {', '.join(ours)} of {size[0]}×{size[1]}"
        return [compare(of, [theirs[name] for name in ours], list(ours.values()))]

    return Target(
        model=backbone,
        tool=f"safetensors {version('safetensors')}",
        weights=WEIGHTS,
        library="c2fmae",
        write=write,
        compare=compare_with_file,
        usage=usage,
        notes=[
            f"With the encoder come its decoder ({method.config.decoder.name}) and heads for "
            f"{', '.join(head.name for head in method.config.heads())}."
        ],
    )


def read_autoencoder(path: str | Path) -> MaskedAutoencoding:
    """Build the autoencoder of an exported folder again, in evaluation mode."""
    config, tensors = read_folder(Path(path))
    if config.format != AUTOENCODER or config.method is None:
        raise UserError(f"{path}: holds an encoder alone. Export with --part autoencoder")
    return _build(Path(path), config.method, tensors)


def _build(path: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> MaskedAutoencoding:
    config = MethodConfig.read({**values}, source=f"{path / CONFIG}: method")
    depth = max(config.encoder.depth or 0, config.decoder.depth)
    check_size(path, lambda: _modules(config), depth, tensors)
    method = build_method(config)
    try:
        method.model.load_state_dict(tensors)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(f"{path / WEIGHTS}: does not fit its {CONFIG}: {first}. Export it again") from error
    method.model.eval()
    return method


def _modules(config: MethodConfig) -> list[nn.Module]:
    """Return all that comes into being with a method: the ViT too, with positions that do not stay."""
    channels = config.channels_of("rgb")
    vit = create_vit(config.encoder.name, image_size=config.image_size, channels=channels, **config.encoder.shape())
    return [vit, build_method(config).model]


def _write(folder: Path, config: ExportConfig, tensors: Mapping[str, Tensor]) -> None:
    write_tensors(folder / WEIGHTS, tensors)
    text = json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _trial_masks(method: MaskedAutoencoding, size: tuple[int, int]) -> Masks:
    num_patches = size[0] // method.patch * (size[1] // method.patch)
    num_visible = method.config.visible_of(num_patches)
    total = len(method.config.granularities) * num_patches
    order = torch.rand(BATCH, total, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    is_masked = (order >= num_visible).view(BATCH, -1, num_patches)
    return Masks.of(is_masked, method.config.granularities, num_visible=num_visible)


def _predictions(method: MaskedAutoencoding, maps: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    with torch.inference_mode():
        predictions: dict[str, Tensor] = method.model.eval()(maps, masks)
    return predictions
