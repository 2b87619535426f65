"""The registry of segmentation heads, and what a head is built for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from c2fmae.core.choice import Choice
from c2fmae.core.registry import Registry
from c2fmae.core.specs import HeadSpec, NormKind


@dataclass(frozen=True, kw_only=True)
class HeadLayout:
    """Feature maps, classes and norm that a head is built for, independent of its options."""

    dim: int
    """Channels of each feature map."""
    num_maps: int
    """Number of feature maps: one for each depth, all of the size of the grid of patches."""
    num_classes: int
    norm: NormKind


@dataclass(frozen=True, kw_only=True)
class HeadModules:
    """The modules that follow a backbone. Each takes a list of feature maps.

    The head and the auxiliary head return logits [batch, class, rows, columns] at any resolution.
    """

    head: nn.Module
    pyramid: nn.Module | None = None
    """Returns the maps that the heads take, from those of the backbone; without one, they take the backbone's."""
    auxiliary: nn.Module | None = None
    """A second head for training only."""


SEGMENTATION_HEADS: Registry[Callable[..., HeadModules]] = Registry("segmentation head")


class HeadChoice(Choice):
    """A registered segmentation head with its options."""

    @classmethod
    def registry(cls) -> Registry[Any]:
        """Return the registry of segmentation heads."""
        import c2fmae.models.segmenters.heads  # noqa: F401 - registers the built-in heads

        return SEGMENTATION_HEADS


def choose_head(spec: HeadSpec) -> HeadChoice:
    """Return the head of a spec. Raise a `UserError` for an unknown name or option."""
    return HeadChoice.from_dict(spec.model_dump(), source="head")
