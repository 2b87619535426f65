"""Decoder of a method."""

from typing import Annotated, Any, Literal

from pydantic import Field

from c2fmae.core.choice import Choice
from c2fmae.core.decoder_options import BlockOptions
from c2fmae.core.registry import Registry


class DecoderConfig(Choice):
    """The decoder that predicts from the encoder's latents, and its options."""

    name: str = "cascaded"
    options: BlockOptions = BlockOptions()
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the patches of each granularity that a training step decodes: hidden ones, drawn for each step. Held-out
    losses and predictions always decode all patches."""

    @classmethod
    def registry(cls) -> Registry[Any]:
        """Return the registry of decoders."""
        from c2fmae.models.decoders import DECODERS

        return DECODERS

    def resolve_num_decoded(self, num_patches: int) -> int | None:
        """Return how many patches of each granularity a training step decodes, at least one; None means all."""
        num_decoded = max(1, round(self.share * num_patches))
        return num_decoded if num_decoded < num_patches else None

    # Decoders need not have all options.

    def resolve_dim(self, encoder_dim: int) -> int:
        """Return the width of the features: the option `dim`, or the encoder's width for a decoder without it."""
        return getattr(self.options, "dim", encoder_dim)

    @property
    def order(self) -> tuple[str, ...] | None:
        """Granularities in the order of their stages; None if the order was not given."""
        return getattr(self.options, "order", None)

    @property
    def stage_per(self) -> Literal["granularity", "target"]:
        """Whether there is one stage per granularity or one per target."""
        return getattr(self.options, "stage_per", "granularity")
