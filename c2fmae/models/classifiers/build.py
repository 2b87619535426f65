"""Classifiers on pre-trained backbones, as fine-tuning begins with them."""

from collections.abc import Collection, Sequence

import torch
from torch import nn

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.core.specs import ClassifierSpec, Pooling
from c2fmae.models.backbones import Backbone, restrict_granularities
from c2fmae.models.backbones.backbone import vit_from_spec, wrap_vit
from c2fmae.models.classifiers.classifier import Classifier

_HEAD_STD = 2e-5  # MAE's, which it cuts off at ±2: nothing comes near that


def classifier_from_backbone(
    backbone: Backbone,
    labels: Sequence[LabelInfo | None],
    *,
    pool: Pooling,
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
    restricted_backbone = restrict_granularities(backbone, granularities)
    if pool == "cls" and restricted_backbone.encoder.cls_token is None:
        raise UserError(f"{backbone.load_report.source}: has no global token. Pool by the mean")
    has_fc_norm = restricted_backbone.spec.has_fc_norm or pool == "mean"
    encoder = restricted_backbone.spec.encoder.model_copy(update={"drop_path": drop_path, "has_norm": True})
    update = {"encoder": encoder, "pool": pool, "has_fc_norm": has_fc_norm}
    spec = ClassifierSpec(backbone=restricted_backbone.spec.model_copy(update=update), labels=tuple(labels), crop=crop)
    classifier = classifier_from_spec(spec)
    tensors = restricted_backbone.state_dict()
    if has_fc_norm and not restricted_backbone.spec.has_fc_norm:
        tensors = {name: each for name, each in tensors.items() if not name.startswith("encoder.norm.")}
        tensors |= {f"fc_norm.{name}": each for name, each in classifier.backbone.fc_norm.state_dict().items()}
    classifier.backbone.load_state_dict(tensors)
    with torch.no_grad():
        classifier.head.weight.normal_(0, _HEAD_STD, generator=generator)
        classifier.head.bias.zero_()
    classifier.load_report = backbone.load_report
    return classifier


def classifier_from_spec(spec: ClassifierSpec) -> Classifier:
    """Return the classifier that a spec means, in evaluation mode, its weights not yet drawn."""
    backbone = wrap_vit(vit_from_spec(spec.backbone), spec.backbone)
    return Classifier(spec, backbone, nn.Linear(backbone.dim, len(spec.labels))).eval()
