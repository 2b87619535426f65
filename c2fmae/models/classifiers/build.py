"""Classifiers on pre-trained backbones, as fine-tuning begins with them."""

from collections.abc import Collection, Sequence

import torch
from torch import nn

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.models.backbones import Backbone, Pool, restricted
from c2fmae.models.backbones.backbone import vit_of, wrap
from c2fmae.models.classifiers.classifier import Classifier
from c2fmae.models.classifiers.spec import ClassifierSpec

_HEAD_STD = 2e-5  # MAE's, which it cuts off at ±2: nothing comes near that


def classifier_on(
    backbone: Backbone,
    labels: Sequence[LabelInfo | None],
    *,
    pool: Pool,
    granularities: Collection[str],
    drop_path: float,
    crop: float,
    generator: torch.Generator,
) -> Classifier:
    """Return a new classifier with a copy of a backbone's weights, in evaluation mode; its head is drawn anew.

    It takes these `granularities` alone, in the backbone's order. Pooled by the mean, the norm behind the last block
    gives way to a new one behind the pooling (MAE), unless the backbone has learned with one there; by the global
    token, the norm stays. Blocks are left out in training with a chance that rises to `drop_path` from first to last.
    """
    alone = restricted(backbone, granularities)
    if pool == "cls" and alone.encoder.cls_token is None:
        raise UserError(f"{backbone.report.source}: has no global token. Pool by the mean")
    has_fc_norm = alone.spec.has_fc_norm or pool == "mean"
    encoder = alone.spec.encoder.model_copy(update={"drop_path": drop_path, "has_norm": True})
    update = {"encoder": encoder, "pool": pool, "has_fc_norm": has_fc_norm}
    spec = ClassifierSpec(backbone=alone.spec.model_copy(update=update), labels=tuple(labels), crop=crop)
    classifier = classifier_of(spec)
    tensors = alone.state_dict()
    if has_fc_norm and not alone.spec.has_fc_norm:
        tensors = {name: each for name, each in tensors.items() if not name.startswith("encoder.norm.")}
        tensors |= {f"fc_norm.{name}": each for name, each in classifier.backbone.fc_norm.state_dict().items()}
    classifier.backbone.load_state_dict(tensors)
    with torch.no_grad():
        classifier.head.weight.normal_(0, _HEAD_STD, generator=generator)
        classifier.head.bias.zero_()
    classifier.report = backbone.report
    return classifier


def classifier_of(spec: ClassifierSpec) -> Classifier:
    """Return the classifier that a spec means, in evaluation mode, its weights not yet drawn."""
    backbone = wrap(vit_of(spec.backbone), spec.backbone)
    return Classifier(spec, backbone, nn.Linear(backbone.dim, len(spec.labels))).eval()
