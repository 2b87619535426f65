"""Construction of classifiers from pre-trained backbones, for fine-tuning."""

from collections.abc import Collection, Sequence

import torch
from torch import nn

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.core.specs import ClassifierSpec, Pooling
from c2fmae.models.backbones import Backbone, restrict_granularities
from c2fmae.models.backbones.backbone import vit_from_spec, wrap_vit
from c2fmae.models.classifiers.classifier import Classifier

_HEAD_STD = 2e-5  # of MAE, whose truncation at ±2 has no effect


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
    """Return a classifier with a copy of a backbone's weights and a new head, in evaluation mode.

    It takes only these `granularities`, in the backbone's order. With mean pooling, the norm after the last block is
    replaced by a new one after pooling (MAE), unless the backbone was pre-trained with one there; with the class
    token, the norm stays. The drop path rate rises linearly from 0 at the first block to `drop_path` at the last.
    """
    restricted_backbone = restrict_granularities(backbone, granularities)
    if pool == "cls" and restricted_backbone.encoder.cls_token is None:
        raise UserError(f"{backbone.load_report.source}: has no class token. Set pool=mean")
    has_fc_norm = restricted_backbone.spec.has_fc_norm or pool == "mean"
    encoder = restricted_backbone.spec.encoder.model_copy(update={"drop_path": drop_path, "has_norm": True})
    update = {"encoder": encoder, "pool": pool, "has_fc_norm": has_fc_norm}
    spec = ClassifierSpec(backbone=restricted_backbone.spec.model_copy(update=update), labels=tuple(labels), crop=crop)
    classifier = classifier_from_spec(spec)
    tensors = restricted_backbone.state_dict()
    if has_fc_norm and not restricted_backbone.spec.has_fc_norm:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.norm.")}
        tensors |= {f"fc_norm.{name}": tensor for name, tensor in classifier.backbone.fc_norm.state_dict().items()}
    classifier.backbone.load_state_dict(tensors)
    with torch.no_grad():
        classifier.head.weight.normal_(0, _HEAD_STD, generator=generator)
        classifier.head.bias.zero_()
    classifier.load_report = backbone.load_report
    return classifier


def classifier_from_spec(spec: ClassifierSpec) -> Classifier:
    """Return the classifier of a spec, in evaluation mode; its weights are not initialised."""
    backbone = wrap_vit(vit_from_spec(spec.backbone), spec.backbone)
    return Classifier(spec, backbone, nn.Linear(backbone.dim, len(spec.labels))).eval()
