"""Config of pre-training."""

from typing import Annotated, Any, Literal

from c2fmae.config.any_method import AnyMethodConfig
from c2fmae.config.data import DataConfig
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.migrations import migrate_pretraining
from c2fmae.config.watching import PretrainWatchingConfig
from c2fmae.core.config import RESUME_SAFE
from c2fmae.core.errors import UserError
from c2fmae.core.experiment_config import ConfigHeader, ExperimentConfig
from c2fmae.core.training import TrainingConfig


class PretrainInputs(ConfigHeader):
    """Method, data and initial weights."""

    method: AnyMethodConfig
    data: DataConfig = DataConfig()
    init: str | None = None
    """Source of initial weights: a run, or anything else that `load_backbone` reads. By default, from scratch."""

    @property
    def masked_method(self) -> MaskedConfig:
        """The method, for what only masked autoencoders have. Raise a `UserError` if it is of another kind."""
        if not isinstance(self.method, MaskedConfig):
            raise UserError(
                f"method.kind: expected masked, got {self.method.kind}, which has no decoder that predicts hidden "
                "patches. Use a recipe or a run of a masked autoencoder"
            )
        return self.method


class PretrainConfig(ExperimentConfig, PretrainInputs):  # in this order YAML begins with the method
    """Everything that determines a pre-training run, how it is saved and what is logged."""

    kind: Literal["pretraining"] = "pretraining"
    training: TrainingConfig = TrainingConfig(epochs=400, base_lr=1e-4, warmup_epochs=40)
    watching: Annotated[PretrainWatchingConfig, RESUME_SAFE] = PretrainWatchingConfig()

    @classmethod
    def migrate(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return values in the current format."""
        return migrate_pretraining(values)
