"""Options of the built-in segmentation heads, without torch, so that recipes can use them."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.errors import UserError
from c2fmae.core.specs import DropRate

RESCALES = (4.0, 2.0, 1.0, 0.5, 0.25)


def _check_rescale(rescale: float) -> float:
    if rescale not in RESCALES:
        raise UserError(f"expected one of {', '.join(f'{value:g}' for value in RESCALES)}, got {rescale:g}")
    return rescale


Rescale = Annotated[float, AfterValidator(_check_rescale)]
"""Size of a map of the pyramid, as a multiple of the grid of patches."""


class FcnOptions(Config):
    """Options of `fcn`."""

    channels: PositiveInt = 256
    num_convs: Annotated[int, Field(ge=0)] = 1
    """Number of 3×3 convolutions before the classifier."""
    dropout: DropRate = 0.1
    """Probability of dropping each channel before the classifier."""


class UperNetOptions(Config):
    """Options of `upernet`. The defaults are those of BEiT, MAE and CAE for a ViT-B."""

    channels: PositiveInt = 768
    """Width of the head. With 512 a ViT-B needs 56 % of the operations."""
    pool_scales: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 3, 6)
    """Sides of the grids that the coarsest map is pooled to."""
    rescales: Annotated[tuple[Rescale, ...], Field(min_length=2)] = (4, 2, 1, 0.5)
    """Sizes of the pyramid's maps, one for each depth, as multiples of the grid of patches."""
    dropout: DropRate = 0.1
    """Probability of dropping each channel before the classifier."""
    auxiliary: FcnOptions | None = FcnOptions()
    """The head on the map of the grid's own size that is trained beside this one; null for none."""

    @model_validator(mode="after")
    def _check(self) -> "UperNetOptions":
        if self.auxiliary is not None and 1 not in self.rescales:
            raise UserError("auxiliary: needs a map of the grid's size. Add 1 to rescales, or set auxiliary to null")
        return self


class LinearOptions(Config):
    """Options of `linear`."""

    dropout: DropRate = 0.0
    """Probability of dropping each channel before the classifier."""


class ConvNeXtOptions(Config):
    """Options of `convnext`. The defaults are those of MultiMAE."""

    dim: PositiveInt = 6144
    """Values of a patch after the projection; its cells share them."""
    cells: PositiveInt = 16
    """Cells of a patch, a square number: the head has that many logits of each class in a patch."""
    depth: Annotated[int, Field(ge=0)] = 4
    """Number of ConvNeXt blocks."""

    @model_validator(mode="after")
    def _check(self) -> "ConvNeXtOptions":
        if round(self.cells**0.5) ** 2 != self.cells:
            raise UserError(f"cells: expected a square number, got {self.cells}. Choose 4, 16 or 64")
        if self.dim % self.cells:
            raise UserError(f"dim: {self.cells} cells do not divide dim={self.dim}. Choose a multiple of cells")
        return self
