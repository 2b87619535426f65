"""The robustness of classifiers: settings and protocol."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, model_validator

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.errors import UserError
from c2fmae.eval.evaluation import EVALUATIONS, Evaluation, ModelKind, ModelUnderTest, Outcome, Precision

if TYPE_CHECKING:
    import c2fmae.eval.results


class EvaluationSetConfig(Config):
    """An evaluation set, by its suite and where it is."""

    suite: str = "custom"
    """A registered suite."""
    source: str
    """A directory, a tar, or anything else that the suite's layout opens."""
    name: str | None = None
    """Name in tables. By default, that of the suite or of the data."""


@EVALUATIONS.register("robustness")
class RobustnessEvaluation(Evaluation):
    """Test classifiers on shifted images: ImageNet-A, -R, -Sketch and -C, or sets of your own."""

    model_kind: ClassVar[ModelKind] = "classifier"
    shares_work: ClassVar[bool] = True  # an image is decoded once for all models
    reuses_results: ClassVar[bool] = False  # but predictions are cached, cell by cell
    cache_name: ClassVar[str | None] = "predictions"
    neutral_fields: ClassVar[frozenset[str]] = frozenset({"workers", "batch_size", "sets", "clean"})
    option_fields: ClassVar[frozenset[str]] = frozenset({"sets", "clean"})

    sets: tuple[EvaluationSetConfig, ...] = ()
    """Shifted sets and corruption sets."""
    clean: EvaluationSetConfig | None = None
    """Images without a shift, for the drop of the accuracy."""
    batch_size: PositiveInt = 64
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that load images."""
    precision: Precision = "fp32"
    keep_probabilities: bool = False
    """Whether all probabilities are stored beside the predictions, in half precision."""
    reference: str | None = None
    """The model that takes AlexNet's place in a second mCE."""

    @model_validator(mode="after")
    def _check_names(self) -> "RobustnessEvaluation":
        names = [each.name or each.suite for each in (*self.sets, *filter(None, [self.clean]))]
        if duplicate := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"sets: two sets are named {duplicate!r}. Give one of them another name")
        return self

    def run_models(self, models: Sequence[ModelUnderTest], *, recompute: bool = False) -> Iterator[Outcome]:
        """Yield the metrics of each model; the predictions are in the details."""
        from c2fmae.eval.robustness.evaluation import run_robustness

        return run_robustness(self, models, recompute=recompute)

    def identify_inputs(self, model: ModelUnderTest) -> dict[str, str]:
        """Return the identity of each set."""
        from c2fmae.eval.robustness.evaluation import open_evaluation_sets

        clean, sets = open_evaluation_sets(self, model)
        return {each.name: each.identity for each in (*filter(None, [clean]), *sets)}

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Describe how predictions on each set are made and counted."""
        from c2fmae.eval.robustness.evaluation import describe_set_protocol, open_evaluation_sets

        clean, sets = open_evaluation_sets(self, model)
        set_protocols = [describe_set_protocol(model.classifier, each) for each in (*filter(None, [clean]), *sets)]
        return (
            "Classes are matched by WordNet id, or by name where neither side has any, never by their order. "
            f"{' '.join(set_protocols)} Clean images are transformed as the model does, or for comparison with cropped "
            "sets as ImageNet-C was made (the central 87.5 %), with the same logits open; those of the same classes "
            "count, and the drop is in points. mCE is the mean over the 15 corruptions of the error's sum over "
            "severities divided by AlexNet's; the mean error is divided by nothing. Calibration error: 15 bins of "
            "equal width, of the confidence among the open logits. Intervals are 95 %: Wilson's for accuracies; for "
            "means over cells a normal one over images, each with all its corruptions, as they are the same in all "
            "cells."
        )

    def write_comparison(
        self, results: "Sequence[c2fmae.eval.results.EvaluationResult]", output_dir: Path | None
    ) -> list[Path]:
        """Write metrics, counts by cell and a page of tables and charts about all models."""
        from c2fmae.eval.robustness.comparison import write_comparison

        return write_comparison(results, self, output_dir)
