"""Detection as an evaluation: the AP of a detector on a pre-trained ViT."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from c2fmae.core.experiment_config import ExperimentConfig
from c2fmae.core.registry import Registry
from c2fmae.core.specs import BackboneSpec
from c2fmae.eval.detection.config import DetectConfig
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest
from c2fmae.eval.training_evaluation import RetestableEvaluation, TrainingRecipe

if TYPE_CHECKING:
    import c2fmae.core.experiment
    import c2fmae.eval.results


@EVALUATIONS.register("detect")
class DetectEvaluation(RetestableEvaluation):
    """Fine-tune ViTs for detection and instance segmentation, with the recipes of the papers or your own."""

    run_config: ClassVar[type[ExperimentConfig]] = DetectConfig
    command: ClassVar[str] = "detect"
    trained_model: ClassVar[str] = "detector"

    @classmethod
    def recipes(cls) -> Registry[TrainingRecipe[Any]]:
        """Return the registry of recipes."""
        from c2fmae.eval.detection.recipes import DETECT_RECIPES

        return DETECT_RECIPES

    @classmethod
    def choose_recipe(cls, spec: BackboneSpec, source: str) -> str:
        """Return the recipe for the size of a ViT."""
        from c2fmae.eval.detection.recipes import choose_recipe

        del source
        return choose_recipe(spec)

    def adapt_config(self, config: DetectConfig, model: ModelUnderTest, spec: BackboneSpec) -> DetectConfig:
        """Return the config of a recipe, with blocks for the depth of a ViT."""
        from c2fmae.eval.detection.recipes import fit_depths

        del model
        return fit_depths(config, spec)

    @classmethod
    def get_build_function(cls) -> "Callable[..., c2fmae.core.experiment.Experiment]":
        """Return `build_detection`."""
        from c2fmae.eval.detection.experiment import build_detection

        return build_detection

    @classmethod
    def get_retest_function(cls) -> "Callable[..., c2fmae.eval.results.EvaluationResult]":
        """Return the function of `Detection`."""
        from c2fmae.eval.detection.experiment import Detection

        return Detection.retest
