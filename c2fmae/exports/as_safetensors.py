"""Export as safetensors under c2fmae's own names, with a config to rebuild the model: all granularities included."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from c2fmae.config.masked_method import MaskedConfig
from c2fmae.core.errors import UserError
from c2fmae.core.json_file import write_json
from c2fmae.core.masks import Masks
from c2fmae.core.tensor_file import write_tensors
from c2fmae.exports.example_inputs import EXAMPLE_BATCH_SIZE, compute_outputs, example_maps
from c2fmae.exports.target import (
    ExportableModel,
    ExportComparison,
    ExportTarget,
    compare_tensors,
    describe_comparison,
    different_size,
    get_backbone,
)
from c2fmae.methods import MaskedAutoencoding, build_method
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.assemble import HEAD_PREFIX, SourceContents, backbone_from_c2fmae_names
from c2fmae.models.backbones.export_reader import (
    AUTOENCODER_FORMAT,
    CLASSIFIER_FORMAT,
    CONFIG_FILE,
    WEIGHTS_FILE,
    ExportConfig,
    read_export,
    read_export_folder,
)
from c2fmae.models.backbones.model_size import check_model_size
from c2fmae.models.classifiers import Classifier
from c2fmae.models.classifiers.load import classifier_from_source


def safetensors_target(model: ExportableModel) -> ExportTarget:
    """Return the export for `load_backbone` or `load_classifier`, with all granularities."""
    backbone = get_backbone(model)
    granularities = ", ".join(backbone.granularities)
    input_name = "images" if "rgb" in backbone.granularities else "maps"

    def usage(folder: str) -> str:
        if isinstance(model, Classifier):
            return "\n".join(
                [
                    "from c2fmae.models.classifiers import load_classifier",
                    f"classifier = load_classifier({json.dumps(folder)})  # takes {granularities}",
                    f"logits = classifier({input_name})  # [batch, {model.num_labels}]; classifier.spec.labels "
                    "names them",
                ]
            )
        return "\n".join(
            [
                "from c2fmae.models.backbones import load_backbone",
                f"backbone = load_backbone({json.dumps(folder)})  # takes {granularities}",
                f"features = backbone.pooled({input_name})  # [batch, {backbone.dim}]; backbone.tokens returns "
                "all tokens",
            ]
        )

    def write(folder: Path) -> None:
        tensors, config = backbone.state_dict(), ExportConfig(spec=backbone.spec)
        if isinstance(model, Classifier):
            tensors |= {HEAD_PREFIX + name: tensor for name, tensor in model.head.state_dict().items()}
            classifier_info = model.spec.model_dump(mode="json", exclude={"backbone"})
            config = config.model_copy(update={"format": CLASSIFIER_FORMAT, "classifier": classifier_info})
        _write_folder(folder, config, tensors)

    def compare_with_file(folder: Path) -> Sequence[ExportComparison]:
        contents = read_export(folder)
        tensors = load_file(folder / WEIGHTS_FILE)
        contents = SourceContents(
            source=str(folder), spec=contents.spec, tensors=tensors, classifier_info=contents.classifier_info
        )
        is_classifier = isinstance(model, Classifier)
        reloaded = (
            classifier_from_source(backbone_from_c2fmae_names, contents)
            if is_classifier
            else backbone_from_c2fmae_names(contents)
        )
        comparisons = []
        for size in (backbone.spec.image_size, different_size(backbone.spec.image_size, backbone.patch)):
            maps = example_maps(backbone, size)
            description = describe_comparison(size, model).replace("images", granularities)
            comparisons.append(
                compare_tensors(description, compute_outputs(reloaded, maps), compute_outputs(model, maps))
            )
        return comparisons

    return ExportTarget(
        model=model,
        tool=f"safetensors {version('safetensors')}",
        weights_file=WEIGHTS_FILE,
        library="c2fmae",
        write=write,
        compare=compare_with_file,
        usage=usage,
    )


def autoencoder_target(method: MaskedAutoencoding, backbone: Backbone) -> ExportTarget:
    """Return the export for `read_autoencoder`; `backbone` is the encoder of the method's model."""
    granularities = ", ".join(method.config.granularities)

    def usage(folder: str) -> str:
        return "\n".join(
            [
                "from c2fmae.exports import read_autoencoder",
                f"method = read_autoencoder({json.dumps(folder)})  # takes {granularities}; load_backbone loads its "
                "encoder",
                "completed = method.predict(scenes, masks)",
            ]
        )

    def write(folder: Path) -> None:
        config = ExportConfig(
            format="c2fmae-autoencoder", spec=backbone.spec, method=method.config.model_dump(mode="json")
        )
        _write_folder(folder, config, method.model.state_dict())

    def compare_with_file(folder: Path) -> Sequence[ExportComparison]:
        reloaded = _build_method(
            folder, cast(Mapping[str, Any], read_export_folder(folder)[0].method), load_file(folder / WEIGHTS_FILE)
        )
        size = backbone.spec.image_size
        maps = example_maps(backbone, size)
        masks = _example_masks(method, size)
        expected_predictions, reloaded_predictions = (
            _compute_predictions(method, maps, masks),
            _compute_predictions(reloaded, maps, masks),
        )
        description = f"predictions of {', '.join(expected_predictions)} of {size[0]}×{size[1]}"
        return [
            compare_tensors(
                description,
                [reloaded_predictions[name] for name in expected_predictions],
                list(expected_predictions.values()),
            )
        ]

    return ExportTarget(
        model=backbone,
        tool=f"safetensors {version('safetensors')}",
        weights_file=WEIGHTS_FILE,
        library="c2fmae",
        write=write,
        compare=compare_with_file,
        usage=usage,
        notes=[
            f"Besides the encoder it holds the decoder ({method.config.decoder.name}) and heads for "
            f"{', '.join(head.name for head in method.config.head_plans())}."
        ],
    )


def read_autoencoder(path: str | Path) -> MaskedAutoencoding:
    """Return the method with the autoencoder of an exported directory, in evaluation mode."""
    config, tensors = read_export_folder(Path(path))
    if config.format != AUTOENCODER_FORMAT or config.method is None:
        raise UserError(f"{path}: holds only an encoder. Export the run again with --part autoencoder")
    return _build_method(Path(path), config.method, tensors)


def _build_method(path: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> MaskedAutoencoding:
    config = MaskedConfig.from_dict({**values}, source=f"{path / CONFIG_FILE}: method")
    check_model_size(
        str(path / CONFIG_FILE),
        config.backbone_spec(),
        tensors,
        lambda _: build_method(config).model,
        WEIGHTS_FILE,
        decoder_depth=getattr(config.decoder.options, "depth", 0),
    )
    method = build_method(config)
    try:
        method.model.load_state_dict(tensors)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(f"{path / WEIGHTS_FILE}: does not match its {CONFIG_FILE}: {first}. Export it again") from error
    method.model.eval()
    return method


def _write_folder(folder: Path, config: ExportConfig, tensors: Mapping[str, Tensor]) -> None:
    write_tensors(folder / WEIGHTS_FILE, tensors)
    write_json(folder / CONFIG_FILE, config.model_dump(mode="json"))


def _example_masks(method: MaskedAutoencoding, size: tuple[int, int]) -> Masks:
    num_patches = size[0] // method.patch_size * (size[1] // method.patch_size)
    num_visible = method.config.resolve_num_visible(num_patches)
    total = len(method.config.granularities) * num_patches
    order = torch.rand(EXAMPLE_BATCH_SIZE, total, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    is_masked = (order >= num_visible).view(EXAMPLE_BATCH_SIZE, -1, num_patches)
    return Masks.from_mask(is_masked, method.config.granularities, num_visible=num_visible)


def _compute_predictions(method: MaskedAutoencoding, maps: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    with torch.inference_mode():
        predictions: dict[str, Tensor] = method.model.eval()(maps, masks)
    return predictions
