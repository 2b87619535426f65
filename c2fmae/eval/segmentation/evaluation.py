"""Segmentation as an evaluation: the mIoU of a segmenter on a pre-trained ViT."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from c2fmae.core.experiment_config import ExperimentConfig
from c2fmae.core.registry import Registry
from c2fmae.core.specs import BackboneSpec
from c2fmae.eval.evaluation import EVALUATIONS
from c2fmae.eval.segmentation.config import SegmentConfig
from c2fmae.eval.training_evaluation import RetestableEvaluation, TrainingRecipe

if TYPE_CHECKING:
    import c2fmae.core.experiment
    import c2fmae.eval.results


@EVALUATIONS.register("segment")
class SegmentEvaluation(RetestableEvaluation):
    """Fine-tune ViTs for semantic segmentation, with the recipes of the papers or your own."""

    run_config: ClassVar[type[ExperimentConfig]] = SegmentConfig
    command: ClassVar[str] = "segment"
    trained_model: ClassVar[str] = "segmenter"

    @classmethod
    def recipes(cls) -> Registry[TrainingRecipe[Any]]:
        """Return the registry of recipes."""
        from c2fmae.eval.segmentation.recipes import SEGMENT_RECIPES

        return SEGMENT_RECIPES

    @classmethod
    def choose_recipe(cls, spec: BackboneSpec, source: str) -> str:
        """Return the recipe for the size of a ViT."""
        from c2fmae.eval.segmentation.recipes import choose_recipe

        del source
        return choose_recipe(spec)

    @classmethod
    def get_build_function(cls) -> "Callable[..., c2fmae.core.experiment.Experiment]":
        """Return `build_segmentation`."""
        from c2fmae.eval.segmentation.experiment import build_segmentation

        return build_segmentation

    @classmethod
    def get_retest_function(cls) -> "Callable[..., c2fmae.eval.results.EvaluationResult]":
        """Return the function of `Segmentation`."""
        from c2fmae.eval.segmentation.experiment import Segmentation

        return Segmentation.retest
