"""What a classifier is, in words that go into a JSON file and come back."""

from typing import Annotated

from pydantic import Field

from c2fmae.core.config import Config
from c2fmae.core.labels import LabelInfo
from c2fmae.models.backbones import BackboneSpec


class ClassifierSpec(Config):
    """All that a classifier is but its weights."""

    backbone: BackboneSpec
    labels: Annotated[tuple[LabelInfo | None, ...], Field(min_length=1)]
    """By index of the logit; null for a class of which nobody says what it is."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    """The share of a photo's largest centre that it is shown: 224 pixels of 256."""
