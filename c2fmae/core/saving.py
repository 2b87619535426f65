"""Saving of checkpoints during training."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from c2fmae.core.checkpoint import CheckpointWriter, prune_checkpoints
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.experiment_config import SavingConfig
from c2fmae.core.loop import TrainingState
from c2fmae.core.sharding import compute_total_norm, iter_unsharded

log = logging.getLogger(__name__)


class Saver:
    """A saver of training states in the background. All ranks call it, and the main process writes.

    `metadata` is stored in every checkpoint: the kind of the run, its config and its data.
    """

    def __init__(self, checkpoint_dir: Path, config: SavingConfig, world: World, metadata: Mapping[str, Any]) -> None:
        self._checkpoint_dir, self._config, self._metadata = checkpoint_dir, config, dict(metadata)
        self._writer = None
        if world.is_main:
            self._writer = CheckpointWriter(checkpoint_dir, keep_last=config.keep_last, keep_every=config.keep_every)
        self.saved_step: int | None = None
        """Step of the last save; None before the first."""
        self._saved_at = time.monotonic()

    def __enter__(self) -> "Saver":
        if self._writer:  # a killed run may have left checkpoints that its next save would have removed
            prune_checkpoints(
                self._checkpoint_dir, keep_last=self._config.keep_last, keep_every=self._config.keep_every
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer:
                self._writer.wait()  # before the run directory is unlocked
        except UserError as problem:
            if error is None:
                raise
            log.warning("%s", problem)

    @property
    def is_overdue(self) -> bool:
        """Whether `SavingConfig.minutes` have passed since the last save, by the clock of the main process."""
        minutes = self._config.minutes
        return bool(self._writer and minutes) and time.monotonic() - self._saved_at > 60 * (minutes or 0)

    def save(self, training: TrainingState) -> bool:
        """Save a checkpoint, unless this step is saved already. Return whether it is saved.

        Weights that are not finite are not saved, so the newest checkpoint is always usable.
        """
        if training.step == self.saved_step:
            return True
        if not has_finite_weights(training.model):
            return False
        tensors = iter_unsharded(training.named_tensors())
        if self._writer:
            self._writer.save(training.step, tensors, {**self._metadata, "bad_steps": training.bad_steps})
        for _ in tensors:  # on other ranks, which take part in gathering them
            pass
        self.saved_step, self._saved_at = training.step, time.monotonic()
        return True


def has_finite_weights(model: nn.Module) -> bool:
    """Return whether all parameters are finite."""
    return bool(compute_total_norm(model.parameters()).isfinite())
