"""The cost of a model: settings and protocol."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from c2fmae.core.config import PositiveInt
from c2fmae.eval.evaluation import EVALUATIONS, Evaluation, ModelKind, ModelUnderTest, Outcome, Precision

if TYPE_CHECKING:
    import c2fmae.eval.results


@EVALUATIONS.register("cost")
class CostEvaluation(Evaluation):
    """Measure parameters, operations, memory and speed, and the cost of an epoch of pre-training relative to MAE's."""

    model_kind: ClassVar[ModelKind] = "method"
    shares_work: ClassVar[bool] = True  # models take turns, so that ratios are fair
    reuses_results: ClassVar[bool] = False  # speed is that of now
    option_fields: ClassVar[frozenset[str]] = frozenset({"check"})

    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of images. By default, those of the backbone's training."""
    batch_size: PositiveInt = 8
    """Images that are timed together."""
    rounds: PositiveInt = 9
    """Number of timed batches of each kind; intervals need at least 6."""
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32", "bf16")
    check: bool = False
    """Whether operations are counted by fvcore too."""

    def run_models(self, models: Sequence[ModelUnderTest], *, recompute: bool = False) -> Iterator[Outcome]:
        """Yield the costs of each model; the cost of an epoch is in the details."""
        from c2fmae.eval.cost.measure import measure_costs

        del recompute
        return measure_costs(self, models)

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Describe what is counted and what is timed."""
        from c2fmae.eval.cost.backbone import resolve_cost_image_size
        from c2fmae.eval.cost.timing import WARMUP_ROUNDS, describe_machine

        height, width = resolve_cost_image_size(model.backbone, self.image_size)
        return (
            f"For one image of {height}×{width}. Parameters are trained numbers: fixed position tables are not. "
            "Operations are those of matrix products, including attention; a multiply-add counts as two. Activations "
            "are the bytes that one more image makes a forward pass store for the backward pass, without gradient "
            "checkpointing; peak memory is that of the forward pass of one image without a backward pass. Speed is "
            f"that of the median of {self.rounds} forward passes of {self.batch_size} images each, from standardised "
            f"images to pooled features, after {WARMUP_ROUNDS} rounds of warm-up, with precisions and models taking "
            "turns; bf16 is autocast, which casts the weights in every pass. "
            f"Measured on {describe_machine(model.world.device)}."
        )

    def identify_inputs(self, model: ModelUnderTest) -> dict[str, str]:
        """Return the machine, on which speed and memory depend."""
        from c2fmae.eval.cost.timing import describe_machine

        return {"machine": describe_machine(model.world.device)}

    def format_results(self, results: "Sequence[c2fmae.eval.results.EvaluationResult]") -> list[str]:
        """Return a table of costs, and one of the costs of an epoch if there are pre-training methods."""
        from c2fmae.eval.cost.tables import format_costs

        return format_costs(results)
