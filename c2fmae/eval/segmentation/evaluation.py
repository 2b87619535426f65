"""Segmentation as an evaluation: the mIoU of a segmenter on a pre-trained ViT."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from c2fmae.core.experiment_config import ExperimentConfig
from c2fmae.core.registry import Registry
from c2fmae.core.specs import BackboneSpec
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest, Outcome
from c2fmae.eval.segmentation.config import SegmentConfig
from c2fmae.eval.training_evaluation import TrainingEvaluation, TrainingRecipe

if TYPE_CHECKING:
    import c2fmae.core.experiment
    import c2fmae.eval.results


@EVALUATIONS.register("segment")
class SegmentEvaluation(TrainingEvaluation):
    """Fine-tune ViTs for semantic segmentation, with the recipes of the papers or your own."""

    run_config: ClassVar[type[ExperimentConfig]] = SegmentConfig
    command: ClassVar[str] = "segment"

    retest: bool = False
    """Test finished runs again, with overrides of `testing`, instead of training."""

    def build_config(self, model: ModelUnderTest) -> SegmentConfig:
        """Return the config of a model's run."""
        return cast(SegmentConfig, super().build_config(model))

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
    def get_train_function(cls) -> "Callable[..., c2fmae.core.experiment.RunOutcome]":
        """Return `segment`."""
        from c2fmae.eval.segmentation.experiment import segment

        return segment

    @classmethod
    def read_result(cls, run_dir: Path) -> "c2fmae.eval.results.EvaluationResult":
        """Return the stored result of a finished run."""
        from c2fmae.eval.segmentation.result import read_segmentation_result

        return read_segmentation_result(run_dir)

    def run_models(self, models: Sequence[ModelUnderTest], *, recompute: bool = False) -> Iterator[Outcome]:
        """Train each model, or test finished runs again, and yield the result."""
        if not self.retest:
            yield from super().run_models(models, recompute=recompute)
            return
        from c2fmae.eval.segmentation.experiment import retest

        for model in models:
            options = model.load_options
            result = retest(
                self.build_config(model),
                model.output_dir,
                model.world,
                step=options.step,
                use_ema=options.use_ema,
                recompute=recompute,
            )
            yield Outcome(result.metrics, stored=result)
