"""The description of an export: functions that write its files, reload them with their library, and compare outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from c2fmae.core.errors import RunError
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier
from c2fmae.models.segmenters import Segmenter

ExportableModel = Backbone | Classifier | Segmenter

TOLERANCE = 1e-4
_TYPICAL_MAGNITUDE = 10.0
"""The tolerance is absolute for outputs up to this size and relative above it, where float32 has fewer decimals."""


@dataclass(frozen=True, kw_only=True)
class ExportComparison:
    """The difference between the outputs of the exported model and of the original."""

    description: str
    """The compared outputs and the size of the images."""
    difference: float
    """The largest absolute difference in the tensor that comes nearest to its tolerance."""
    tolerance: float | None
    """None if the other library is expected to differ, so that the difference is only reported."""
    reason: str = ""
    """Why it is expected to differ."""

    @property
    def is_within_tolerance(self) -> bool:
        """Whether the difference is at most the tolerance; NaN never is."""
        return self.tolerance is None or self.difference <= self.tolerance

    def __str__(self) -> str:
        limit = f"allowed: {self.tolerance:.0e}" if self.tolerance is not None else f"not checked: {self.reason}"
        return f"{self.description}: {self.difference:.1e} ({limit})"


@dataclass(frozen=True, kw_only=True)
class ExportTarget:
    """An export of one model in one format."""

    model: ExportableModel
    """The exported model; of an autoencoder, its encoder."""
    tool: str
    """Name and version of the library that reloads the files."""
    weights_file: str
    """Name of the file that holds the weights."""
    library: str
    """The library as model hubs name it."""
    write: Callable[[Path], None]
    """Write the files into an empty directory."""
    compare: Callable[[Path], Sequence[ExportComparison]]
    """Reload the files with the library and compare its outputs with those of `model`."""
    usage: Callable[[str], str]
    """Return the lines of Python that load a directory of this name."""
    notes: Sequence[str] = ()
    """Notes for users of the export."""
    cautions: Sequence[str] = ()
    """Notes that the command prints too: what is not in the files, and what other tools report when they read them."""

    @property
    def backbone(self) -> Backbone:
        """The model without its head."""
        return get_backbone(self.model)


def get_backbone(model: ExportableModel) -> Backbone:
    """Return a model without its head, if it has one."""
    return model if isinstance(model, Backbone) else model.backbone


def compare_tensors(
    description: str, actual: Sequence[Tensor], expected: Sequence[Tensor], *, reason: str = ""
) -> ExportComparison:
    """Compare outputs tensor by tensor; with a `reason` to differ, the difference is reported and not checked."""
    differences = []
    for theirs, ours in zip(actual, expected, strict=True):
        if theirs.shape != ours.shape:
            raise RunError(
                f"{description}: the reloaded model returns shape {tuple(theirs.shape)} instead of {tuple(ours.shape)}"
            )
        if not ours.isfinite().all():
            raise RunError(
                f"{description}: not all values are finite, already before the export. Use another checkpoint"
            )
        difference = float((theirs - ours).abs().max().nan_to_num(nan=torch.inf))
        differences.append((difference, TOLERANCE * max(1.0, float(ours.abs().max()) / _TYPICAL_MAGNITUDE)))
    difference, limit = max(differences, key=lambda pair: pair[0] / pair[1])
    return ExportComparison(
        description=description, difference=difference, tolerance=None if reason else limit, reason=reason
    )


def describe_comparison(size: tuple[int, int], model: ExportableModel) -> str:
    """Return the outputs that most exports compare, with the height and width of the images."""
    outputs = "tokens, pooled features and logits" if isinstance(model, Classifier) else "tokens and pooled features"
    return f"{outputs} of images of {size[0]}×{size[1]}"


def different_size(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return another size that is not square.

    >>> different_size((32, 32), 8), different_size((32, 40), 8)
    ((32, 40), (40, 48))
    """
    return (size[0] if size[0] == size[1] else size[0] + patch, size[1] + patch)
