"""When a training is saved, and what of it."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from c2fmae.core.checkpoint import Checkpoint, CheckpointWriter, prune
from c2fmae.core.config import Config, Count
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.loop import Training
from c2fmae.core.sharding import norm_of

log = logging.getLogger(__name__)


class SavingConfig(Config):
    """When a run is saved, and what is kept of it. A resumed run is the same whatever is set here."""

    steps: Count | None = None
    """Save after so many steps …"""
    minutes: Annotated[float, Field(gt=0)] | None = 10.0
    """… and after so many minutes, whichever is sooner; always at the end."""
    keep_last: Count = 2
    keep_every: Count | None = None
    """Save at multiples of so many steps too, and keep these for good."""

    def is_due(self, step: int, last_step: int) -> bool:
        """Return whether a run is saved after this step, whatever the clock says."""
        return step == last_step or any(every and step % every == 0 for every in (self.steps, self.keep_every))


class Saver:
    """Saves a training off its path; all processes call it, the first one writes.

    `facts` are what a reader of the checkpoint alone should know: the config, the classes of the data.
    """

    def __init__(self, folder: Path, config: SavingConfig, world: World, facts: Mapping[str, Any]) -> None:
        self._folder, self._config, self._facts = folder, config, dict(facts)
        self._writer = None
        if world.is_first:
            self._writer = CheckpointWriter(folder, keep_last=config.keep_last, keep_every=config.keep_every)
        self._saved_step, self._saved_at = -1, time.monotonic()

    def __enter__(self) -> "Saver":
        if self._writer:  # a run that was killed may have left what its next save would have removed
            prune(self._folder, keep_last=self._config.keep_last, keep_every=self._config.keep_every)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer:
                self._writer.wait()  # before the folder is given to others
        except UserError as problem:
            if error is None:
                raise
            log.warning("%s", problem)

    @property
    def is_late(self) -> bool:
        """Whether the first process's clock says that it is time."""
        minutes = self._config.minutes
        return bool(self._writer and minutes) and time.monotonic() - self._saved_at > 60 * (minutes or 0)

    def save(self, training: Training) -> None:
        """Save, unless that is done already or the weights are spoilt: the newest checkpoint stays a good one."""
        if training.step == self._saved_step or not is_finite(training.model):
            return
        tensors = training.tensors()
        if self._writer:
            self._writer.save(Checkpoint(training.step, tensors, {**self._facts, "bad_steps": training.bad_steps}))
        self._saved_step, self._saved_at = training.step, time.monotonic()


def is_finite(model: nn.Module) -> bool:
    """Return whether all weights are numbers."""
    return bool(norm_of(model.parameters()).isfinite())
