"""Settings that every experiment has: training, checkpoints and logging."""

from typing import Annotated

from pydantic import Field

from c2fmae.core.config import RESUME_SAFE, Config, PositiveInt
from c2fmae.core.trackers import TrackerName
from c2fmae.core.training import TrainingConfig


class SavingConfig(Config):
    """When checkpoints are saved, and which are kept. The result does not depend on it."""

    steps: PositiveInt | None = None
    """Save every so many steps. The last step is always saved."""
    minutes: Annotated[float, Field(gt=0)] | None = 10.0
    """Save at least every so many minutes."""
    keep_last: PositiveInt = 2
    """Number of newest checkpoints to keep."""
    keep_every: PositiveInt | None = None
    """Save at multiples of so many steps too, and never delete these."""

    def is_save_step(self, step: int, last_step: int) -> bool:
        """Return whether a run is saved after this step, however much time has passed."""
        return step == last_step or any(every and step % every == 0 for every in (self.steps, self.keep_every))


class WatchingConfig(Config):
    """What is logged, evaluated and drawn during training. The result does not depend on it."""

    log_every: PositiveInt = 10
    """Steps between lines of progress, rows of timing and points of trackers. Metrics have a row for every step."""
    held_out_every: PositiveInt | None = None
    """Steps between evaluations on held-out data. By default, an epoch; the last step is always evaluated."""
    figures_every: PositiveInt | None = None
    """Steps between figures of reconstructions. By default, a tenth of the run; the last step is always drawn."""
    figures: Annotated[int, Field(ge=0, le=64)] = 6
    """Scenes in a figure; 0 draws none."""
    trackers: tuple[TrackerName, ...] = ()
    """Also send metrics and figures to tensorboard or wandb."""


class ExperimentConfig(Config):
    """Base class of the configs of experiments."""

    training: TrainingConfig
    saving: Annotated[SavingConfig, RESUME_SAFE] = SavingConfig()
    watching: Annotated[WatchingConfig, RESUME_SAFE] = WatchingConfig()
