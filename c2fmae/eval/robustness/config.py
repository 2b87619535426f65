"""Settings and protocol of the robustness of classifiers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import model_validator

from c2fmae.core.config import Config, PositiveInt, WorkerCount
from c2fmae.core.errors import UserError
from c2fmae.core.text import name_few
from c2fmae.eval.evaluation import EVALUATIONS, Evaluation, ModelKind, ModelUnderTest, Outcome, Precision

if TYPE_CHECKING:
    import c2fmae.eval.results


class EvaluationSetConfig(Config):
    """The suite and the location of an evaluation set."""

    suite: str = "custom"
    """Name of a registered suite."""
    source: str
    """A directory, a tar file, or any other source that the suite can open."""
    name: str | None = None
    """Name in tables. By default, that of the suite or of the data."""


@EVALUATIONS.register("robustness")
class RobustnessEvaluation(Evaluation):
    """Test classifiers on shifted images: ImageNet-A, -R, -Sketch and -C, or sets of your own."""

    model_kind: ClassVar[ModelKind] = "classifier"
    shares_work: ClassVar[bool] = True  # an image is decoded once for all models
    reuses_results: ClassVar[bool] = False  # but predictions are cached, cell by cell
    cache_name: ClassVar[str | None] = "predictions"
    neutral_fields: ClassVar[frozenset[str]] = frozenset({"workers", "batch_size", "sets", "clean", "limit"})
    option_fields: ClassVar[frozenset[str]] = frozenset({"sets", "clean"})
    limit_field: ClassVar[str | None] = "limit"

    sets: tuple[EvaluationSetConfig, ...] = ()
    """Shifted sets and corruption sets."""
    clean: EvaluationSetConfig | None = None
    """Clean images, to compute the drop of the accuracy."""
    limit: PositiveInt | None = None
    """Largest number of images of each set, and of each cell of a corruption set, evenly spaced. By default, all."""
    batch_size: PositiveInt = 64
    workers: WorkerCount = None
    """Processes that load images; by default, one for each core, up to 16."""
    precision: Precision = "fp32"
    """Precision of the forward passes; bf16 is autocast."""
    keep_probabilities: bool = False
    """Store all class probabilities with the predictions, in half precision."""
    reference: str | None = None
    """Source of the model that replaces AlexNet in an additional mCE."""

    @model_validator(mode="after")
    def _check_names(self) -> "RobustnessEvaluation":
        names = [config.name or config.suite for config in (*self.sets, *filter(None, [self.clean]))]
        if duplicate := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"sets: two sets are named {duplicate!r}. Give one of them another name")
        return self

    def set_labels(self) -> list[str]:
        """Return the names of the sets, for the names of directories of results; of many, their number."""
        sets = self.sets or tuple(filter(None, [self.clean]))
        return name_few([config.name or config.suite for config in sets], "sets")

    def run_models(self, models: Sequence[ModelUnderTest], *, recompute: bool = False) -> Iterator[Outcome]:
        """Yield the metrics of each model, with a `RobustnessResult` as details."""
        from c2fmae.eval.robustness.evaluation import run_robustness

        return run_robustness(self, models, recompute=recompute)

    def identify_inputs(self, model: ModelUnderTest) -> dict[str, str]:
        """Return the identity of each set."""
        from c2fmae.eval.robustness.evaluation import open_evaluation_sets

        clean, sets = open_evaluation_sets(self, model)
        return {shifted_set.name: shifted_set.identity for shifted_set in (*filter(None, [clean]), *sets)}

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Describe how predictions on each set are made and counted."""
        from c2fmae.eval.robustness.evaluation import describe_set_protocol, open_evaluation_sets

        clean, sets = open_evaluation_sets(self, model)
        all_sets = (*filter(None, [clean]), *sets)
        set_protocols = [describe_set_protocol(model.classifier, shifted_set) for shifted_set in all_sets]
        limited = f"At most {self.limit:,} evenly spaced images of each set and cell. " if self.limit else ""
        return (
            "Classes are matched by WordNet id, or by name if neither side has ids, never by their order. "
            f"{' '.join(set_protocols)} {limited}Clean images have the model's own transform or, for comparison with "
            "cropped sets, that of ImageNet-C (the central 87.5 %), with the same logits open; only images of the same "
            "classes count, and the drop is in points. Effective robustness (ImageNet-R, -Sketch and V2): top-1 minus "
            "that of a line at the same clean accuracy, fitted on the logit scale to models of timm that were trained "
            "on ImageNet-1k alone (Taori et al., 2020). mCE: the mean over the 15 corruptions of the sum of errors "
            "over severities divided by AlexNet's; the mean error is not divided. Calibration error: 15 bins of equal "
            "width, of the confidence among the open logits. Intervals are 95 %: Wilson's for accuracies; for means "
            "over cells, a normal interval over images with all their corruptions, since all cells have the same "
            "images."
        )

    def write_comparison(
        self, results: "Sequence[c2fmae.eval.results.EvaluationResult]", output_dir: Path | None
    ) -> list[Path]:
        """Write metrics, counts per cell and a page of tables and charts of all models."""
        from c2fmae.eval.robustness.comparison import write_comparison

        return write_comparison(results, self, output_dir)
