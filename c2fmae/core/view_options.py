"""Options of further views of a scene and of random changes of colour, without torch, so that configs can use them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from c2fmae.core.config import Config, Fraction, PositiveFloat, PositiveInt, UnitInterval
from c2fmae.core.errors import UserError, check_ascending

Strength = Annotated[float, Field(ge=0)]
HueStrength = Annotated[float, Field(ge=0, le=0.5)]
ViewSide = Annotated[int, Field(ge=1, le=4096)]


class ColourOptions(Config):
    """Random changes of an image's colours, in this order: jitter, greyscale, blur, solarisation. The default is none.

    They are those of `ColorJitter`, `RandomGrayscale`, `GaussianBlur` and `RandomSolarize(128)` in torchvision.
    """

    jitter: tuple[Strength, Strength, Strength, HueStrength] = (0.0, 0.0, 0.0, 0.0)
    """Strengths of brightness, contrast, saturation and hue, which are changed in random order."""
    jitter_chance: UnitInterval = 0.8
    grey_chance: UnitInterval = 0.0
    blur_chance: UnitInterval = 0.0
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels."""
    solarise_chance: UnitInterval = 0.0

    @model_validator(mode="after")
    def _check(self) -> "ColourOptions":
        check_ascending("blur_sigma", self.blur_sigma)
        return self


class ViewOptions(Config):
    """A further view of a scene's image, beside the main view, or several of one kind."""

    crop: Literal["own", "main", "shifted"] = "own"
    """`own`: random crops like that of the main view. `main`: the main view's crop. `shifted`: a crop `shift` pixels
    larger than the main view is drawn; the main view is its top left corner, and this view a random part of it."""
    shift: Annotated[int, Field(ge=0)] = 0
    """Largest shift of a shifted view, in pixels, down and to the right, each uniform in 0 … `shift`."""
    size: tuple[ViewSide, ViewSide] | None = None
    """Height and width; by default those of the main view, which shifted views always have."""
    scale: tuple[Fraction, Fraction] | None = None
    """Area of an own crop, as a fraction of the image's; by default as for the main view."""
    count: PositiveInt = 1
    """Number of such views."""
    colour: ColourOptions | None = None
    """Changes of colour, drawn for each view; only for images of 3 channels. By default none."""

    @model_validator(mode="after")
    def _check(self) -> "ViewOptions":
        if self.scale is not None:
            check_ascending("scale", self.scale)
            if self.crop != "own":
                raise UserError(f"scale: needs crop 'own', got crop {self.crop!r}. Remove scale, or set crop to 'own'")
        if (self.shift > 0) != (self.crop == "shifted"):
            raise UserError(
                f"shift: expected a number above 0 with crop 'shifted' and 0 with others, got {self.shift} with"
                f" {self.crop!r}. Change one of the two"
            )
        if self.crop == "shifted" and self.size is not None:
            raise UserError("size: shifted views have the size of the main view. Remove size")
        return self
