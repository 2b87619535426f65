"""Any source that has a head to a classifier."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.assemble import HEAD, Found
from c2fmae.models.backbones.load import Make, read_source
from c2fmae.models.backbones.load_report import check_names
from c2fmae.models.classifiers.classifier import Classifier
from c2fmae.models.classifiers.imagenet import are_imagenets, imagenet_labels
from c2fmae.models.classifiers.spec import ClassifierSpec

Labels = Sequence[LabelInfo | dict[str, Any] | None]

log = logging.getLogger(__name__)


def load_classifier(
    source: str | Path,
    *,
    allow_missing: Sequence[str] = (),
    step: int | None = None,
    average: bool = False,
    image_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> Classifier:
    """Return the classifier of a source, in evaluation mode, with a report of what became of every tensor.

    A source is what `load_backbone` takes, and its settings are the same; it has to have a head.
    """
    make, found = read_source(str(source), step=step, average=average, image_size=image_size, num_heads=num_heads)
    classifier = classifier_from(make, found, allow_missing)
    log.info("%s", classifier.report)
    return classifier


def load_whole(
    source: str | Path,
    *,
    allow_missing: Sequence[str] = (),
    step: int | None = None,
    average: bool = False,
    image_size: tuple[int, int] | None = None,
) -> Backbone | Classifier:
    """Return the classifier of a source that says itself what its classes are, and of any other its backbone."""
    make, found = read_source(str(source), step=step, average=average, image_size=image_size, num_heads=None)
    has_head = f"{HEAD}weight" in found.tensors and found.pools_alike
    is_classifier = has_head and found.classifier.get("labels") is not None
    model = classifier_from(make, found, allow_missing) if is_classifier else make(found, allow_missing)
    log.info("%s", model.report)
    return model


def classifier_from(make: Make, found: Found, allow_missing: Sequence[str] = ()) -> Classifier:
    """Make a classifier of what a source holds, by what makes its backbone."""
    source, weight = found.source, _weight(found)
    backbone = make(found, allow_missing)
    labels, notes = _labels(source, found, len(weight))
    told = {word: each for word, each in found.classifier.items() if word != "labels"}
    spec = ClassifierSpec.read({"backbone": backbone.spec, "labels": labels, **told}, source=source)
    head = nn.Linear(weight.shape[1], len(weight))
    loaded, missing, unexpected = _load_head(head, found, allow_missing)
    classifier = Classifier(spec, backbone, head).eval()
    report = backbone.report
    classifier.report = replace(
        report,
        loaded=[*report.loaded, *loaded],
        missing=[*report.missing, *missing],
        unexpected=[*report.unexpected, *unexpected],
        left={part: count for part, count in report.left.items() if part != HEAD.rstrip(".")},
        notes=[*report.notes, *notes],
    )
    return classifier


def _weight(found: Found) -> Tensor:
    """Return the matrix of a source's head, which has to be one on what a backbone makes of its tokens."""
    source, name, weight = found.source, found.spec.encoder.name, found.tensors.get(f"{HEAD}weight")
    if weight is None:
        raise UserError(
            f"{source}: is a ViT without a head ({name} of {', '.join(found.spec.channels)}): it tells no classes "
            f"apart. Fine-tune it first: c2fmae eval finetune {source}"
        )
    if not found.pools_alike:
        raise UserError(
            f"{source}: the head of {name} reads tokens that are pooled in another way than by the global token or the "
            "mean of patches: it is no classifier here"
        )
    if weight.ndim != 2 or not weight.is_floating_point():
        raise UserError(f"{source}: {HEAD}weight is {tuple(weight.shape)} of {weight.dtype}: no linear head")
    return weight


def _labels(source: str, found: Found, count: int) -> tuple[Labels, list[str]]:
    """Return what the logits mean, and a note where the source does not say so itself."""
    told: Labels | None = found.classifier.get("labels")
    if told is None:
        if count != len(imagenet_labels()):
            return [None] * count, [f"it does not say what its {count:,} classes are"]
        return imagenet_labels(), ["it does not say what its 1,000 classes are: they are taken for ImageNet's"]
    if len(told) != count:
        raise UserError(f"{source}: names {len(told):,} labels, but its head has {count:,}. It is of another model")
    if are_imagenets([each if isinstance(each, LabelInfo) else None for each in told]):
        return imagenet_labels(), ["its classes have the names of ImageNet's: they are taken for those"]
    return told, []


def _load_head(head: nn.Linear, found: Found, allow_missing: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    theirs = {name.removeprefix(HEAD): each for name, each in found.tensors.items() if name.startswith(HEAD)}
    ours = head.state_dict()
    nn.init.zeros_(head.bias)  # where it may be missing
    missing, unexpected = check_names(
        found.source,
        [HEAD + name for name in ours if name not in theirs],
        [HEAD + name for name in theirs if name not in ours],
        allow_missing,
    )
    loaded = [name for name in ours if name in theirs]
    head.load_state_dict({**ours, **{name: theirs[name] for name in loaded}})
    return [HEAD + name for name in loaded], missing, unexpected
