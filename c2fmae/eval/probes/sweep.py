"""Which linear probes are tried, and how each is fitted."""

from math import ceil
from typing import Annotated

from pydantic import Field

from c2fmae.core.config import Config, PositiveInt
from c2fmae.eval.probes.batching import num_batches
from c2fmae.eval.probes.linear_heads import ChosenHead, LinearHeadSetting

LearningRate = Annotated[float, Field(gt=0)]
WeightDecay = Annotated[float, Field(ge=0)]

_MIN_STEPS, _MIN_EPOCHS = 3000, 10  # of a fit, at least


class SweepConfig(Config):
    """Which linear probes are fitted, all in one pass over the features."""

    lrs: Annotated[tuple[LearningRate, ...], Field(min_length=1)] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Learning rates to choose from."""
    weight_decays: Annotated[tuple[WeightDecay, ...], Field(min_length=1)] = (0.0, 1e-4, 1e-3, 1e-2)
    """Weight decays to choose from."""
    epochs: PositiveInt | None = None
    """Unless given, as many as make 3,000 steps, and at least ten."""
    head_batch_size: PositiveInt = 256
    """Rows of a step of the probe."""

    def resolve_epochs(self, num_rows: int) -> int:
        """Return how often the probe sees so many rows."""
        return self.epochs or max(_MIN_EPOCHS, ceil(_MIN_STEPS / num_batches(num_rows, self.head_batch_size)))

    def describe_fit(self) -> str:
        """Say how a probe is fitted."""
        length = (
            f"{self.epochs} epochs"
            if self.epochs
            else f"{_MIN_STEPS:,} steps or {_MIN_EPOCHS} epochs, whichever is more,"
        )
        return (
            f"fitted with cross-entropy by gradient descent with momentum 0.9 for about {length} in batches of at "
            f"most {self.head_batch_size}, on a cosine"
        )

    def list_settings(self, columns: list[str]) -> list[LinearHeadSetting]:
        """Return every combination."""
        return [LinearHeadSetting(c, lr, decay) for c in columns for lr in self.lrs for decay in self.weight_decays]


def describe_chosen_head(chosen: ChosenHead) -> str:
    """Say which setting was chosen."""
    setting = chosen.setting
    return f"{setting.column}, learning rate {setting.lr:g}, weight decay {setting.weight_decay:g}"
