"""The one shape of every evaluation: a frozen config in, metrics out, with a protocol in words.

An evaluation is a config class under a name in `EVALUATIONS`; another package adds one by registering it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from c2fmae.core.config import Config
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.registry import Registry
from c2fmae.eval.digests import compute_weights_digest
from c2fmae.eval.metrics import Metric
from c2fmae.models.backbones import Backbone


@dataclass(frozen=True)
class ModelUnderTest:
    """What is evaluated, where, and by whom."""

    name: str
    """The source as it was given."""
    backbone: Backbone
    cache_dir: Path
    """A folder for what takes long to compute and may be used again; processes of a run share it."""
    world: World = field(default_factory=World)
    memo: dict[str, Any] = field(default_factory=dict, compare=False)
    """What was found out once, as which data a config means."""

    @cached_property
    def digest(self) -> str:
        """What tells this backbone from others."""
        return compute_weights_digest(self.backbone)


class Evaluation(Config):
    """A protocol and its settings; what it computes does not depend on the number of processes."""

    @classmethod
    def resolve_data_options(cls, data: str | None, test: str | None) -> dict[str, Any]:
        """Return the settings that the command's --data and --test mean."""
        if test is not None or (data is not None and "data" not in cls.model_fields):
            raise UserError(f"this evaluation takes no {'--test' if test is not None else '--data'}")
        return {} if data is None else {"data": data}

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Compute the metrics; in each process the same."""
        raise NotImplementedError

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Say in a few sentences what is done, so that a number can stand beside another's."""
        raise NotImplementedError

    def identify_inputs(self, model: ModelUnderTest) -> dict[str, str]:
        """Name what the result depends on besides settings and weights, such as data: what tells whether it is new."""
        del model
        return {}


EVALUATIONS: Registry[type[Evaluation]] = Registry("evaluation")
