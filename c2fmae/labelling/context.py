"""What a labeller gets from the command besides its own options."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from c2fmae.data.info import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class LabellerContext:
    """The data to label, and how to run a model."""

    info: DatasetInfo = field(default_factory=DatasetInfo)
    """The classes and labels of the source of images."""
    names: str = "things"
    """The names that an open-vocabulary detector searches for."""
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_size: int = 1
    """Number of images in a batch, at most."""
    granularities: frozenset[str] = frozenset({"semantic", "instance"})
    """The maps that are wanted. A labeller that can make others too leaves them out."""
    shared: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)
    """What labellers of one command share, such as a backbone, by its settings."""
