"""Settings and protocol of the measurement of costs."""

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
    shares_work: ClassVar[bool] = True  # models are timed in turn, so that their ratios are fair
    reuses_results: ClassVar[bool] = False  # speed depends on the present load of the machine
    option_fields: ClassVar[frozenset[str]] = frozenset({"check"})

    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of images. By default, those of the backbone's training."""
    batch_size: PositiveInt = 8
    """Number of images in a timed batch."""
    rounds: PositiveInt = 9
    """Number of timed batches per model and precision; intervals need at least 6."""
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32", "bf16")
    check: bool = False
    """Count operations with fvcore as well."""

    def run_models(self, models: Sequence[ModelUnderTest], *, recompute: bool = False) -> Iterator[Outcome]:
        """Yield the costs of each model, with an `EpochCost` as details if the model has a pre-training method.

        Only the main process measures. The other processes wait, so that they do not load the machine.
        """
        del recompute
        world = models[0].world
        outcomes: list[Outcome] = world.broadcast_object(self._measure(models) if world.is_main else None)
        yield from outcomes

    def _measure(self, models: Sequence[ModelUnderTest]) -> list[Outcome]:
        from c2fmae.eval.cost.backbone_cost import measure_backbones
        from c2fmae.eval.cost.epoch_cost import measure_epoch_costs

        device = models[0].world.device
        metrics = measure_backbones({index: model.backbone for index, model in enumerate(models)}, self, device)
        methods = {index: model.method for index, model in enumerate(models) if model.method is not None}
        epochs = measure_epoch_costs(methods, device=device, batch_size=self.batch_size, rounds=self.rounds)
        return [Outcome(tuple(metrics[index]), epochs.get(index)) for index in range(len(models))]

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Describe what is counted and what is timed."""
        from c2fmae.eval.cost.backbone_cost import resolve_cost_image_size
        from c2fmae.eval.cost.speed_and_memory import WARMUP_ROUNDS, describe_machine

        height, width = resolve_cost_image_size(model.backbone, self.image_size)
        return (
            f"For one image of {height}×{width}. Parameters: trained ones, without fixed position embeddings. "
            "Operations: of matrix products, including attention; a multiply-add counts as two. Activations: bytes "
            "that a forward pass saves for the backward pass per additional image, without gradient checkpointing. "
            "Peak memory: of the forward pass of one image without a backward pass. Speed: from the "
            f"median of {self.rounds} forward passes of {self.batch_size} images each, from standardised images to "
            f"pooled features, after {WARMUP_ROUNDS} rounds of warm-up, with models and precisions timed in turn, all "
            "of them eager, without torch.compile; "
            "bf16 is autocast, which casts the weights in every pass. "
            f"Measured on {describe_machine(model.world.device)}."
        )

    def identify_inputs(self, model: ModelUnderTest) -> dict[str, str]:
        """Return a description of the machine, on which speed and memory depend."""
        from c2fmae.eval.cost.speed_and_memory import describe_machine

        return {"machine": describe_machine(model.world.device)}

    def format_results(self, results: "Sequence[c2fmae.eval.results.EvaluationResult]") -> list[str]:
        """Return a table of costs and, if there are pre-training methods, a table of the costs of an epoch."""
        from c2fmae.eval.cost.tables import format_costs

        return format_costs(results)
