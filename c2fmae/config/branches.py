"""What the configs of two-branch methods share: a student, often a teacher, and several views of each image."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from c2fmae.config.method_base import MethodConfig
from c2fmae.core.errors import UserError
from c2fmae.core.ramps import Ramp
from c2fmae.core.specs import EncoderConfig
from c2fmae.core.view_options import ColourOptions, ViewOptions

Number = float | Ramp
"""A number, or one that changes in training."""
Temperature = Annotated[float, Field(gt=0)]


class BranchConfig(MethodConfig):
    """A method whose model compares views of an image, with a teacher or within a batch."""

    encoder: EncoderConfig = EncoderConfig(has_norm=True)
    views: dict[str, ViewOptions] = Field({})
    """Further views of each image, by name. The first view is `main`, which `data.scale` and the like crop."""
    colour: ColourOptions | None = None
    """Colour augmentation of the view `main`."""

    required_views: ClassVar[tuple[str, ...]] = ()
    """Names of the views that the method reads besides `main`."""

    @model_validator(mode="after")
    def _check_views(self) -> "BranchConfig":
        if self.granularities != ("rgb",):
            raise UserError(f"granularities: {self.kind} compares images (expected [rgb], got {self.granularities})")
        for name in self.required_views:
            if name not in self.views:
                raise UserError(f"views.{name}: {self.kind} reads this view, but it is missing. Add it")
        for name in self.views:
            if name not in self.required_views:
                known = ", ".join(self.required_views) or "none besides main"
                raise UserError(f"views.{name}: {self.kind} does not read this view. Its views: {known}")
        return self

    def changing_numbers(self) -> dict[str, Number]:
        """Return all settings that may change in training, by name."""
        return {name: value for name, value in self if isinstance(value, Ramp | float)}
