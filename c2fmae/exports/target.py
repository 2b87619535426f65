"""What an export is: files, and the other tool that reads them back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from c2fmae.core.errors import RunError
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier

ExportableModel = Backbone | Classifier

TOLERANCE = 1e-4
_TYPICAL_MAGNITUDE = 10.0
"""Features up to this size are held to the limit, larger ones to as much of what they are: float32 knows no more."""


@dataclass(frozen=True, kw_only=True)
class ExportComparison:
    """How far the other tool is from us."""

    description: str
    """What was compared, of photos of which size."""
    difference: float
    """The largest, in absolute numbers, of the tensor that comes nearest to its limit."""
    tolerance: float | None
    """None where the other tool does something else on purpose, so that the difference is only told."""
    reason: str = ""
    """What it does there."""

    @property
    def is_within_tolerance(self) -> bool:
        """Whether the difference is no larger than it may be; nothing is smaller than what is no number."""
        return self.tolerance is None or self.difference <= self.tolerance

    def __str__(self) -> str:
        held = f"allowed: {self.tolerance:.0e}" if self.tolerance is not None else f"only told: {self.reason}"
        return f"{self.description}: {self.difference:.1e} ({held})"


@dataclass(frozen=True, kw_only=True)
class ExportTarget:
    """A way out: how files are written, and read back by whoever they are for."""

    model: ExportableModel
    """What goes out; of an autoencoder, its encoder."""
    tool: str
    """Name and version of what reads the files back."""
    weights_file: str
    """The file that holds the weights."""
    library: str
    """As model hubs name it."""
    write: Callable[[Path], None]
    """Write the files into an empty folder."""
    compare: Callable[[Path], Sequence[ExportComparison]]
    """Read them back with the tool and compare what it says with what we say."""
    usage: Callable[[str], str]
    """The lines of Python that load a folder of this name."""
    notes: Sequence[str] = ()
    """What whoever loads it has to know."""

    @property
    def backbone(self) -> Backbone:
        """What goes out without a head."""
        return get_backbone(self.model)


def get_backbone(model: ExportableModel) -> Backbone:
    """Return a model without its head, if it has one."""
    return model.backbone if isinstance(model, Classifier) else model


def compare_tensors(
    description: str, actual: Sequence[Tensor], expected: Sequence[Tensor], *, reason: str = ""
) -> ExportComparison:
    """Return the largest difference between tensors that ought to be the same."""
    differences = []
    for theirs, ours in zip(actual, expected, strict=True):
        if theirs.shape != ours.shape:
            raise RunError(
                f"{description}: what was loaded back is {tuple(theirs.shape)} instead of {tuple(ours.shape)}"
            )
        if not ours.isfinite().all():
            raise RunError(f"{description}: are not all finite before anything is exported. The weights are broken")
        difference = float((theirs - ours).abs().max().nan_to_num(nan=torch.inf))
        differences.append((difference, TOLERANCE * max(1.0, float(ours.abs().max()) / _TYPICAL_MAGNITUDE)))
    difference, limit = max(differences, key=lambda each: each[0] / each[1])
    return ExportComparison(
        description=description, difference=difference, tolerance=None if reason else limit, reason=reason
    )


def describe_comparison(size: tuple[int, int], model: ExportableModel) -> str:
    """Return what is compared of most exports."""
    what = "tokens, pooled features and logits" if isinstance(model, Classifier) else "tokens and pooled features"
    return f"{what} of photos of {size[0]}×{size[1]}"


def different_size(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return a size that is neither this nor square.

    >>> different_size((32, 32), 8), different_size((32, 40), 8)
    ((32, 40), (40, 48))
    """
    return (size[0] if size[0] == size[1] else size[0] + patch, size[1] + patch)
