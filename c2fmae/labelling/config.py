"""Settings of a labelling. Importing this module imports no torch."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from c2fmae.core.config import Config, PositiveInt, UnitInterval
from c2fmae.core.errors import UserError
from c2fmae.core.training import DeviceName


class LabelConfig(Config):
    """How images are labelled, and how their maps are written."""

    instances: dict[str, Any] = Field(default_factory=dict)
    """Options of the labeller of instance maps."""
    semantics: dict[str, Any] = Field(default_factory=dict)
    """Options of the labeller of semantic maps."""
    names: str = "things"
    """The names that an open-vocabulary detector searches for."""
    label_stride: Annotated[int, Field(ge=1, le=64)] = 4
    """Side in pixels of a cell of the stored maps: 4 as the paper's models predict, 1 for full-size maps."""
    images: Literal["keep", "leave-out"] = "keep"
    """Whether shards hold the images too, or only their maps."""
    shard_size: PositiveInt = 1000
    """Images per shard, the unit of work."""
    name: Annotated[str, Field(pattern=r"^\w[\w-]*$")] = "scenes"
    """Shards are named NAME-000000.tar and so on."""
    device: DeviceName = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """By default bf16 on a GPU, fp32 on a CPU."""
    batch_size: PositiveInt = 8
    """Largest number of images that a labeller gets at once. It is halved for a shard for which memory runs out."""
    max_failed: UnitInterval = 0.01
    """Largest fraction of images that may fail; for fewer than 1,000 images, all but one may."""
    decode_memory: PositiveInt = 512
    """Largest size in MB of the decoded images that wait for the labellers."""
    mixed_machines: bool = False
    """Continue although the kind of device or versions of packages differ; `dataset.json` then records it."""


@dataclass(frozen=True)
class Part:
    """One of several equal parts of the shards, each for a command of its own."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read `I/N`, in which I counts from 0.

        >>> Part.parse("1/3")
        Part(index=1, count=3)
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if not match or not int(match[1]) < int(match[2]):
            raise UserError(f"--part: expected I/N with I from 0 to N - 1, got {text!r}. Write 0/4 for the first of 4")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def select(self, num_shards: int) -> range:
        """Return the shards of this part."""
        return range(self.index, num_shards, self.count)
