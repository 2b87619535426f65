"""The classes that a whole image can be of."""

from typing import Annotated

from pydantic import ConfigDict, Field

from c2fmae.core.config import Config


class LabelInfo(Config):
    """One class that a whole image can be of."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1)]
    wnid: str | None = None
    """WordNet id, the name of the class's folder in ImageNet."""
