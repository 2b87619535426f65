"""The protocol of methods: what pre-training, its evaluation, `describe` and `eval cost` use of one."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from c2fmae.config.data import DataConfig
from c2fmae.config.method import ImageSize, MethodConfig
from c2fmae.core.distributed import World
from c2fmae.core.loop import Task
from c2fmae.core.operation_count import ForwardCost
from c2fmae.core.scene import SceneBatch
from c2fmae.core.training import CompiledParts, TrainingPlan
from c2fmae.data import Transform

P = TypeVar("P")


@runtime_checkable
class BatchPreparer(Protocol):
    """The part of a task that data workers do. It is sent to their processes, so it holds no model."""

    def prepare(
        self, scenes: SceneBatch, *, num_micro_batches: int, step: int, progress: float, world: World
    ) -> Sequence[Any]:
        """Return the batch of a rank in micro-batches, with all random choices that need no model.

        They depend on the seed, the step and the number of each scene in the global batch alone. The micro-batches have
        the methods `pin_memory()` and `to(device)`.
        """
        ...


@runtime_checkable
class MethodTask(Task[Any, P], Protocol[P]):
    """The training task of a method. Its batches are those of its preparer, or scenes, which it prepares first."""

    @property
    def preparer(self) -> BatchPreparer:
        """The part of the task that data workers do."""
        ...

    def compute_sample_losses(self, model: nn.Module, micro_batch: P) -> Mapping[str, Tensor]:
        """Return the losses of each sample, or nothing if a sample has no loss of its own."""
        ...


@runtime_checkable
class Method(Protocol):
    """A pre-training method: a model, and what it is trained to do. Its config's `implementation` builds it.

    The model has the submodules `embeddings` and `encoder` of `MultiGranularAutoencoder`, with which its runs are
    evaluated, exported and continued as all others are.
    """

    @property
    def config(self) -> MethodConfig:
        """The config, which builds an equal method."""
        ...

    @property
    def model(self) -> nn.Module:
        """Everything that is trained."""
        ...

    @property
    def teacher(self) -> nn.Module | None:
        """A module whose parameters are averages of those of the model with the same names, if the method has one."""
        ...

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The weight of each loss, by name."""
        ...

    def training_view(self, data: DataConfig, image_size: ImageSize) -> Transform:
        """Return the transform that crops training scenes to a size of the config's `image_size_schedule`."""
        ...

    def held_out_view(self, data: DataConfig) -> Transform:
        """Return the transform that crops held-out scenes."""
        ...

    def build_task(self, plan: TrainingPlan, *, seed: int, compiled_parts: CompiledParts = "off") -> MethodTask[Any]:
        """Return the training task."""
        ...

    def sum_held_out_losses(self, scenes: SceneBatch, *, seed: int) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return the sum and the count of each loss over scenes of the held-out view. The seed is that of the draw."""
        ...

    def describe(self) -> str:
        """Return a description: who sees what, and which losses compare what."""
        ...

    def compute_cost(self) -> ForwardCost:
        """Return the cost of a step for one image; the method was built on the meta device."""
        ...
