"""Classifiers: a backbone with a head, made anew for fine-tuning or loaded from anywhere."""

from c2fmae.models.classifiers.build import classifier_of, classifier_on
from c2fmae.models.classifiers.classifier import Classifier
from c2fmae.models.classifiers.imagenet import imagenet_labels
from c2fmae.models.classifiers.load import load_classifier, load_whole
from c2fmae.models.classifiers.spec import ClassifierSpec

__all__ = [
    "Classifier",
    "ClassifierSpec",
    "classifier_of",
    "classifier_on",
    "imagenet_labels",
    "load_classifier",
    "load_whole",
]
