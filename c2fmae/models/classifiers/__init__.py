"""Classifiers: a backbone with a linear head, new for fine-tuning or loaded from any supported source."""

from c2fmae.models.classifiers.build import classifier_from_backbone, classifier_from_spec
from c2fmae.models.classifiers.classifier import Classifier
from c2fmae.models.classifiers.imagenet import imagenet_labels
from c2fmae.models.classifiers.load import load_classifier, load_model

__all__ = [
    "Classifier",
    "classifier_from_backbone",
    "classifier_from_spec",
    "imagenet_labels",
    "load_classifier",
    "load_model",
]
