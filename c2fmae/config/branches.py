"""What the configs of two-branch methods share: a student, often a teacher, and several views of each image."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from c2fmae.config.method import MethodConfig
from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.core.ramps import Ramp
from c2fmae.core.specs import EncoderConfig
from c2fmae.core.view_options import ColourOptions, ViewOptions

Number = float | Ramp
"""A number, or one that changes in training."""
Temperature = Annotated[float, Field(gt=0)]


def _check_temperature(number: Number) -> Number:
    lowest = min(_ends(number))
    if lowest <= 0:
        raise UserError(f"expected a temperature above 0, got {lowest:g}. Set it higher")
    return number


def _check_momentum(number: Number) -> Number:
    for end in _ends(number):
        if not 0 <= end <= 1:
            raise UserError(f"expected a momentum from 0 to 1, got {end:g}. Change it")
    return number


def _ends(number: Number) -> tuple[float, float]:
    return (number.start, number.end) if isinstance(number, Ramp) else (number, number)


TeacherTemperature = Annotated[Number, AfterValidator(_check_temperature)]
Momentum = Annotated[Number, AfterValidator(_check_momentum)]
"""Momentum of the teacher."""


class BranchConfig(MethodConfig):
    """A method whose model compares views of an image, with a teacher or within a batch."""

    encoder: EncoderConfig = EncoderConfig(has_norm=True)
    views: dict[str, ViewOptions] = Field({})
    """Further views of each image, by name. The first view is `main`, which `data.scale` and the like crop."""
    colour: ColourOptions | None = None
    """Colour augmentation of the view `main`."""

    required_views: ClassVar[tuple[str, ...]] = ()
    """Names of the views that the method reads besides `main`."""
    local_views: ClassVar[tuple[str, ...]] = ()
    """Those of which there may be several, and of another size than that of `main`."""

    @field_validator("encoder", mode="before")
    @classmethod
    def _add_norm(cls, encoder: Any) -> Any:
        """Let the encoder end with a norm, also where a config sets other options of it alone."""
        given = encoder.model_dump(exclude_unset=True) if isinstance(encoder, EncoderConfig) else encoder
        return {"has_norm": True, **given} if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _check_views(self) -> "BranchConfig":
        if self.granularities != ("rgb",):
            raise UserError(f"granularities: {self.kind} compares images (expected [rgb], got {self.granularities})")
        for name in self.required_views:
            if name not in self.views:
                raise UserError(f"views.{name}: {self.kind} reads this view, but it is missing. Add it")
        for name in self.views:
            if name not in self.required_views:
                hint = did_you_mean(name, self.required_views) or "Remove it."
                known = ", ".join(self.required_views) or "none besides main"
                raise UserError(f"views.{name}: {self.kind} does not read this view. {hint} Its views: {known}")
        for name, view in self.views.items():
            size = view.size or self.image_size
            if name not in self.local_views and (view.count > 1 or size != self.image_size):
                height, width = self.image_size
                raise UserError(
                    f"views.{name}: {self.kind} reads one image like main (expected count 1 and size {height}×{width}, "
                    f"got count {view.count} and size {size[0]}×{size[1]}). Remove count and size"
                )
        colours = {"colour": self.colour, **{f"views.{name}.colour": view.colour for name, view in self.views.items()}}
        if self.num_channels("rgb") != 3 and (key := next((key for key, value in colours.items() if value), None)):
            raise UserError(
                f"{key}: changes of colour need images of 3 channels, got {self.num_channels('rgb')}. Set it to null"
            )
        return self

    @property
    def num_image_sizes(self) -> int:
        """The number of different sizes of images that the model is trained on, of all views."""
        return len({self.image_size, *(view.size or self.image_size for view in self.views.values())})

    def changing_numbers(self) -> dict[str, Number]:
        """Return all settings that may change in training, by name."""
        return {name: value for name, value in self if isinstance(value, Ramp | float)}
