"""From scenes to what a classifier takes."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.scene import SceneBatch
from c2fmae.core.specs import BackboneSpec
from c2fmae.methods.masked.model_inputs import prepare_input_maps
from c2fmae.models import label_stride
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier


def build_view_options(backbone: Backbone, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return what scenes are cut to: the words of a view."""
    instances = backbone.spec.channels.get("instance", GRANULARITIES.get("instance").channels)
    return {"size": image_size, "label_stride": label_stride(backbone.patch), "max_instances": instances}


def prepare_classifier_inputs(
    classifier: Classifier, scenes: SceneBatch, granularities: Sequence[str]
) -> dict[str, Tensor]:
    """Return these granularities of scenes as the classifier takes them."""
    backbone = classifier.backbone
    channels = {name: backbone.spec.channels[name] for name in granularities}
    return prepare_input_maps(scenes, channels, backbone.patch, lambda name: _normalisation(backbone.spec, name))


def _normalisation(spec: BackboneSpec, granularity: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return by which mean and deviation a picture is standardised; those of others than photos are the usual ones."""
    if granularity == "rgb":
        return spec.mean, spec.std
    return (0.5,) * spec.channels[granularity], (0.25,) * spec.channels[granularity]
