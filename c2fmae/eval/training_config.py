"""Settings that trainings on a pre-trained backbone share. They need no torch."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from c2fmae.core.config import PositiveInt
from c2fmae.core.experiment_config import ConfigHeader
from c2fmae.core.specs import DropRate

if TYPE_CHECKING:
    import c2fmae.models.backbones


class BackboneInputs(ConfigHeader):
    """The initial weights of a backbone, and the blocks that are trained."""

    init: Annotated[str, Field(min_length=1)]
    """Source of the backbone: a run, a checkpoint, or anything else that `load_backbone` reads."""
    from_scratch: bool = False
    """Initialise the backbone's weights instead of loading them, for comparison."""
    step: PositiveInt | None = None
    """Step of the source's checkpoint. By default, the newest."""
    average: bool = False
    """Load the source's averaged weights (EMA)."""
    allow_missing: tuple[str, ...] = ()
    """Tensors that the source may lack, as in `load_backbone`."""
    drop_path: DropRate = 0.1
    train_blocks: Annotated[int, Field(ge=0)] | None = None
    """Number of last blocks to train, with the norms after them and the head. By default, everything."""

    @property
    def title(self) -> str:
        """The source in tables."""
        return f"{self.init}, from scratch" if self.from_scratch else self.init

    def load_backbone(
        self, seed: int, *, image_size: tuple[int, int] | None = None
    ) -> "c2fmae.models.backbones.Backbone":
        """Return the backbone with its initial weights."""
        from c2fmae.models.backbones import create_untrained_backbone, load_backbone

        backbone = load_backbone(
            self.init,
            allow_missing=self.allow_missing,
            step=self.step,
            use_ema=self.average,
            image_size=image_size,
        )
        return create_untrained_backbone(backbone.spec, seed) if self.from_scratch else backbone

    def describe_init(self) -> str:
        """Return the source of the weights in words."""
        if self.from_scratch:
            return "scratch"
        step = f", step {self.step:,}" if self.step else ""
        return f"{self.init}{step}{', averaged weights' * self.average}"
