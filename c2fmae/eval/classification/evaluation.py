"""Fine-tuning as an evaluation: the accuracy of a classifier on a pre-trained ViT."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

from c2fmae.core.experiment_config import ExperimentConfig
from c2fmae.core.registry import Registry
from c2fmae.core.specs import BackboneSpec
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest
from c2fmae.eval.training_evaluation import TrainingEvaluation, TrainingRecipe

if TYPE_CHECKING:
    import c2fmae.core.experiment

log = logging.getLogger(__name__)


@EVALUATIONS.register("finetune")
class FinetuneEvaluation(TrainingEvaluation):
    """Fine-tune ViTs as image classifiers, with the recipes of the papers or your own."""

    run_config: ClassVar[type[ExperimentConfig]] = FinetuneConfig
    command: ClassVar[str] = "finetune"

    def build_config(self, model: ModelUnderTest) -> FinetuneConfig:
        """Return the config of a model's run."""
        return cast(FinetuneConfig, super().build_config(model))

    @classmethod
    def recipes(cls) -> Registry[TrainingRecipe[Any]]:
        """Return the registry of recipes."""
        from c2fmae.eval.classification.recipes import FINETUNE_RECIPES

        return FINETUNE_RECIPES

    @classmethod
    def choose_recipe(cls, spec: BackboneSpec, source: str) -> str:
        """Return the recipe for the size of a ViT and the length of its pre-training."""
        from c2fmae.eval.classification.recipes import choose_recipe, read_pretrain_epochs

        return choose_recipe(spec, read_pretrain_epochs(source))

    @classmethod
    def get_build_function(cls) -> "Callable[..., c2fmae.core.experiment.Experiment]":
        """Return `build_finetuning`."""
        from c2fmae.eval.classification.experiment import build_finetuning

        return build_finetuning

    def adapt_config(self, config: FinetuneConfig, model: ModelUnderTest, spec: BackboneSpec) -> FinetuneConfig:
        """Return the config of a recipe, without RandAugment for images of other than 3 channels."""
        from c2fmae.eval.classification.recipes import without_rand_augment

        channels = spec.channels.get("rgb", 3)
        if channels == 3 or config.data.rand_augment is None:
            return config
        if model.world.is_main:
            log.info("%s: without RandAugment, which is for 3 channels and not for %d", model.name, channels)
        return without_rand_augment(config)
