"""From scenes to what a classifier takes."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from c2fmae.core.scene import GRANULARITIES, SceneBatch
from c2fmae.methods.model_inputs import prepare_maps
from c2fmae.models import label_stride
from c2fmae.models.backbones import Backbone, BackboneSpec
from c2fmae.models.classifiers import Classifier


def target_of(backbone: Backbone, size: tuple[int, int]) -> dict[str, Any]:
    """Return what scenes are cut to: the words of a view."""
    instances = backbone.spec.channels.get("instance", GRANULARITIES.get("instance").channels)
    return {"size": size, "label_stride": label_stride(backbone.patch), "max_instances": instances}


def inputs_of(classifier: Classifier, scenes: SceneBatch, names: Sequence[str]) -> dict[str, Tensor]:
    """Return these granularities of scenes as the classifier takes them."""
    backbone = classifier.backbone
    channels = {name: backbone.spec.channels[name] for name in names}
    return prepare_maps(scenes, channels, backbone.patch, lambda name: _normalisation(backbone.spec, name))


def _normalisation(spec: BackboneSpec, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return by which mean and deviation a picture is standardised; those of others than photos are the usual ones."""
    if name == "rgb":
        return spec.mean, spec.std
    return (0.5,) * spec.channels[name], (0.25,) * spec.channels[name]
