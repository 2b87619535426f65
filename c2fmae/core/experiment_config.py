"""Settings that every experiment has: training, checkpoints and logging."""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer

from c2fmae.core.config import RESUME_SAFE, Config, PositiveInt, format_override
from c2fmae.core.log import is_main_process
from c2fmae.core.specs import BackboneSpec
from c2fmae.core.trackers import TrackerName
from c2fmae.core.training import ALTERNATIVES, TrainingConfig, derive_training_settings

log = logging.getLogger(__name__)

RunKind = Literal["pretraining", "finetuning", "segmentation", "detection"]

RUN_COMMANDS: Mapping[RunKind, str] = {
    "pretraining": "pretrain",
    "finetuning": "eval finetune",
    "segmentation": "eval segment",
    "detection": "eval detect",
}
"""The command that starts and resumes runs of each kind, after `c2fmae`."""


class ConfigHeader(Config):
    """The first keys of a config file."""

    format: Literal[2] = 2
    """Version of the keys that follow. Files of format 1 (version 0.1) have none; they are migrated when read."""
    kind: RunKind


class SavingConfig(Config):
    """Intervals between checkpoints, and which of them to keep. Results do not depend on these settings."""

    steps: PositiveInt | None = None
    """Steps between checkpoints. The last step is always saved."""
    minutes: Annotated[float, Field(gt=0)] | None = 10.0
    """Largest number of minutes between checkpoints."""
    keep_last: PositiveInt = 2
    """Number of newest checkpoints to keep."""
    keep_every: PositiveInt | None = None
    """Steps between checkpoints that are never deleted."""

    def is_save_step(self, step: int, last_step: int) -> bool:
        """Return whether to save after this step, regardless of the time since the last checkpoint."""
        return step == last_step or any(every and step % every == 0 for every in (self.steps, self.keep_every))


class WatchingConfig(Config):
    """Logging, evaluation and figures during training. Results do not depend on these settings."""

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


class ExperimentConfig(ConfigHeader):
    """Base class of the configs of experiments."""

    training: TrainingConfig
    saving: Annotated[SavingConfig, RESUME_SAFE] = SavingConfig()
    watching: Annotated[WatchingConfig, RESUME_SAFE] = WatchingConfig()
    backbone: Annotated[BackboneSpec | None, RESUME_SAFE] = None
    """Spec of the trained backbone, recorded when the run starts. It follows from the other settings and the data."""

    @classmethod
    def derive_overrides(
        cls, values: Mapping[str, Any], overridden: Mapping[str, Any], keys: Collection[str]
    ) -> list[str]:
        """Return the overrides of training settings that follow from others, and log them."""
        field = cls.model_fields["training"]
        stored, changed = values.get("training"), overridden.get("training")
        if not isinstance(stored, Mapping) or not isinstance(changed, Mapping) or field.annotation is None:
            return []
        defaults = {name: info.default for name, info in field.annotation.model_fields.items()}
        given = {name: _parse_number(value) for name, value in changed.items() if f"training.{name}" in keys}
        derived = derive_training_settings({**defaults, **stored}, given)
        overrides = [format_override(f"training.{name}", value) for name, value in derived.items()]
        if overrides and is_main_process():
            causes = [name for pair in ALTERNATIVES for name in pair if given.get(name) is not None]
            log.info(
                "note: %s also sets %s",
                ", ".join(format_override(f"training.{name}", given[name]) for name in causes),
                ", ".join(overrides),
            )
        return overrides

    @model_serializer(mode="wrap")
    def _omit_missing_backbone(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        tree = dump(self)
        if self.backbone is None:
            tree.pop("backbone", None)
        return tree


def _parse_number(value: Any) -> Any:
    """Return the number that a text is, such as 1e2, which YAML reads as text; any other value as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
