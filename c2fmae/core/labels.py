"""Labels of images, and classes of pixels."""

import re
from typing import Annotated

from pydantic import ConfigDict, Field

from c2fmae.core.config import Config


class LabelInfo(Config):
    """One image class."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1)]
    wnid: str | None = None
    """WordNet id: the name of the class's directory in ImageNet."""


class ClassInfo(Config):
    """The class of one semantic id, or of objects."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1)]
    is_thing: bool | None = None
    """Whether its instances can be counted (a car) or not (the sky)."""
    coco_id: int | None = None
    """Category id in files of COCO's format, whose numbering may have gaps."""


def is_wnid(name: str) -> bool:
    """Return whether a name has the form of a WordNet id.

    >>> is_wnid("n01440764"), is_wnid("night")
    (True, False)
    """
    return re.fullmatch(r"n\d{8}", name) is not None
