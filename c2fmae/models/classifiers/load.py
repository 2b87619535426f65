"""Loading of classifiers from all supported sources that have a head."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.core.specs import ClassifierSpec
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.assemble import HEAD_PREFIX, SourceContents
from c2fmae.models.backbones.load import BackboneBuilder, read_source
from c2fmae.models.backbones.load_report import check_tensor_names
from c2fmae.models.classifiers.classifier import Classifier
from c2fmae.models.classifiers.imagenet import are_imagenet_labels, imagenet_labels

RawLabels = Sequence[LabelInfo | dict[str, Any] | None]

log = logging.getLogger(__name__)


def load_classifier(
    source: str | Path,
    *,
    allow_missing: Sequence[str] = (),
    step: int | None = None,
    use_ema: bool = False,
    image_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> Classifier:
    """Return the classifier of a source, in evaluation mode, with a `load_report`.

    Sources and options are those of `load_backbone`; the source must have a classification head.
    """
    build_backbone, contents = read_source(
        str(source), step=step, use_ema=use_ema, image_size=image_size, num_heads=num_heads
    )
    classifier = classifier_from_source(build_backbone, contents, allow_missing)
    log.info("%s", classifier.load_report)
    return classifier


def load_model(
    source: str | Path,
    *,
    allow_missing: Sequence[str] = (),
    step: int | None = None,
    use_ema: bool = False,
    image_size: tuple[int, int] | None = None,
) -> Backbone | Classifier:
    """Return the classifier of a source that has a head and class names, or else its backbone."""
    build_backbone, contents = read_source(
        str(source), step=step, use_ema=use_ema, image_size=image_size, num_heads=None
    )
    has_head = f"{HEAD_PREFIX}weight" in contents.tensors and contents.has_supported_pooling
    is_classifier = has_head and contents.classifier_info.get("labels") is not None
    model = (
        classifier_from_source(build_backbone, contents, allow_missing)
        if is_classifier
        else build_backbone(contents, allow_missing)
    )
    log.info("%s", model.load_report)
    return model


def classifier_from_source(
    build_backbone: BackboneBuilder, contents: SourceContents, allow_missing: Sequence[str] = ()
) -> Classifier:
    """Return the classifier of a source's contents, given the function that builds its backbone."""
    source, weight = contents.source, _head_weight(contents)
    backbone = build_backbone(contents, allow_missing)
    labels, notes = _resolve_labels(source, contents, len(weight))
    classifier_options = {key: value for key, value in contents.classifier_info.items() if key != "labels"}
    spec = ClassifierSpec.from_dict({"backbone": backbone.spec, "labels": labels, **classifier_options}, source=source)
    head = nn.Linear(weight.shape[1], len(weight))
    loaded, missing, unexpected = _load_head(head, contents, allow_missing)
    classifier = Classifier(spec, backbone, head).eval()
    report = backbone.load_report
    classifier.load_report = replace(
        report,
        loaded=[*report.loaded, *loaded],
        missing=[*report.missing, *missing],
        unexpected=[*report.unexpected, *unexpected],
        unused={part: count for part, count in report.unused.items() if part != HEAD_PREFIX.rstrip(".")},
        notes=[*report.notes, *notes],
    )
    return classifier


def _head_weight(contents: SourceContents) -> Tensor:
    """Return the weight of a source's head, which must be a linear head on pooled features."""
    source, name, weight = contents.source, contents.spec.encoder.name, contents.tensors.get(f"{HEAD_PREFIX}weight")
    if weight is None:
        raise UserError(
            f"{source}: is a ViT without a classification head ({name} of {', '.join(contents.spec.channels)}). "
            f"Fine-tune it first: c2fmae eval finetune {source}"
        )
    if not contents.has_supported_pooling:
        raise UserError(
            f"{source}: the head of {name} needs another pooling than the class token or the mean of the patch tokens, "
            "which is not supported. Use another classifier"
        )
    if weight.ndim != 2 or not weight.is_floating_point():
        raise UserError(
            f"{source}: {HEAD_PREFIX}weight: expected a floating-point matrix, got {weight.dtype} "
            f"{tuple(weight.shape)}. Use another classifier"
        )
    return weight


def _resolve_labels(source: str, contents: SourceContents, count: int) -> tuple[RawLabels, list[str]]:
    """Return the labels of the logits, and a note if they are not stored."""
    source_labels: RawLabels | None = contents.classifier_info.get("labels")
    if source_labels is None:
        if count != len(imagenet_labels()):
            return [None] * count, [f"the names of its {count:,} classes are not stored"]
        return imagenet_labels(), ["the names of its 1,000 classes are not stored: those of ImageNet are assumed"]
    if len(source_labels) != count:
        raise UserError(
            f"{source}: has {len(source_labels):,} labels, but its head has {count:,} logits. Use the config of these "
            "weights"
        )
    if are_imagenet_labels([label if isinstance(label, LabelInfo) else None for label in source_labels]):
        return imagenet_labels(), ["its class names are those of ImageNet: the classes of ImageNet are assumed"]
    return source_labels, []


def _load_head(
    head: nn.Linear, contents: SourceContents, allow_missing: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    source_tensors = {
        name.removeprefix(HEAD_PREFIX): tensor
        for name, tensor in contents.tensors.items()
        if name.startswith(HEAD_PREFIX)
    }
    head_tensors = head.state_dict()
    for name, tensor in source_tensors.items():
        if name in head_tensors and tensor.shape != head_tensors[name].shape:
            raise UserError(
                f"{contents.source}: {HEAD_PREFIX}{name} has shape {tuple(tensor.shape)}, expected "
                f"{tuple(head_tensors[name].shape)}. Use weights that match the config"
            )
    nn.init.zeros_(head.bias)  # if it is missing
    missing, unexpected = check_tensor_names(
        contents.source,
        [HEAD_PREFIX + name for name in head_tensors if name not in source_tensors],
        [HEAD_PREFIX + name for name in source_tensors if name not in head_tensors],
        allow_missing,
    )
    loaded = [name for name in head_tensors if name in source_tensors]
    head.load_state_dict({**head_tensors, **{name: source_tensors[name] for name in loaded}})
    return [HEAD_PREFIX + name for name in loaded], missing, unexpected
