"""The base class of two-branch methods."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from c2fmae.config.branches import BranchConfig
from c2fmae.config.data import DataConfig
from c2fmae.core.distributed import gather_rows, gather_rows_with_gradient
from c2fmae.core.errors import UserError, check_patch_multiples
from c2fmae.core.loop import StepLoss
from c2fmae.core.operation_count import ForwardCost
from c2fmae.core.ramps import Ramp
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.core.training import CompiledParts, TrainingPlan
from c2fmae.data import CentralView, RandomView, Transform
from c2fmae.data.multi_view import MultiView
from c2fmae.masking.noise import RowGenerator
from c2fmae.methods.branches.model import BranchModel, batch_norms_of_step, create_teacher
from c2fmae.methods.branches.task import BranchTask
from c2fmae.methods.branches.views import ViewBatch, ViewPreparer
from c2fmae.methods.encoder import create_encoder
from c2fmae.methods.masked.model_inputs import standardise_maps
from c2fmae.models.heads import BatchStatisticsNorm
from c2fmae.models.initialise import initialise


class ImageLosses(NamedTuple):
    """What a method computes for the images of a micro-batch."""

    losses: dict[str, Float[Tensor, " batch"]]
    """The losses of each image, by name."""
    values: Mapping[str, Float[Tensor, "..."]] = MappingProxyType({})
    """Further numbers to log, one or one for each image, such as the accuracy of a contrast."""
    sums: Mapping[str, Float[Tensor, "..."]] = MappingProxyType({})
    """Tensors whose sums over the global batch `update_state` gets."""


@dataclass(frozen=True)
class BranchMethod(ABC):
    """A student whose views are compared with a teacher's or with each other.

    A method is one class. It defines which heads there are, what the teacher computes (`compute_targets`), and what the
    student's losses are (`compute_losses`). Everything else is here: views, tasks, held-out losses, costs.
    """

    config: Any
    model: BranchModel
    teacher: BranchModel | None
    patch_size: int

    teacher_heads: ClassVar[tuple[str, ...] | None] = None
    """Heads of the teacher; None for a method without a teacher."""
    gathered_targets: ClassVar[tuple[str, ...]] = ()
    """Targets that each image is compared with for all images of the global batch."""
    compares_students: ClassVar[bool] = False
    """Whether the loss of an image depends on outputs of the student for other images."""
    reads_class_token: ClassVar[bool] = True
    has_mask_token: ClassVar[bool] = False
    freezes_patch_projection: ClassVar[bool] = False

    @classmethod
    def build(cls, config: BranchConfig, *, seed: int) -> "BranchMethod":
        """Build the student with weights that depend on the seed, and a teacher that is a copy of a part of it."""
        parts = create_encoder(config)
        if cls.reads_class_token and parts.encoder.cls_token is None:
            raise UserError(
                f"method.encoder.name: {config.kind} reads the class token (expected a ViT that has one, got "
                f"{config.encoder.name}). Use one such as vit_base_patch16_224"
            )
        for name, view in config.views.items():
            if view.size is not None:
                origin = f"of {config.encoder.name}"
                check_patch_multiples(view.size, parts.patch_size, origin, key=f"method.views.{name}.size")
        model = BranchModel(
            parts.embeddings,
            parts.encoder,
            cls.create_heads(config, parts.encoder.dim, parts.patch_size),
            has_mask_token=cls.has_mask_token,
            freezes_patch_projection=cls.freezes_patch_projection,
        )
        if next(model.parameters()).device.type != "meta":
            cls.initialise(config, model, torch.Generator().manual_seed(derive_seed(seed, "weights")))
        teacher = None if cls.teacher_heads is None else create_teacher(model, cls.teacher_heads)
        return cls(config, model, teacher, parts.patch_size)

    @classmethod
    @abstractmethod
    def create_heads(cls, config: Any, dim: int, patch_size: int) -> dict[str, nn.Module]:
        """Return the modules besides the encoder, of whose outputs `dim` is the width."""

    @classmethod
    def initialise(cls, config: Any, model: BranchModel, generator: torch.Generator) -> None:
        """Initialise the student's weights: linear layers Xavier uniform, as in masked autoencoding."""
        del config
        initialise(model, generator, split_qkv=False)

    @staticmethod
    def draw_masks(
        config: Any, grid: tuple[int, int], rows: range, generator: RowGenerator
    ) -> dict[str, Shaped[Tensor, "row ..."]]:
        """Return the masks of views, in data workers, for rows of the global batch.

        Of masks that depend on a teacher, return what is random in them: the step does the rest.
        """
        del config, grid, rows, generator
        return {}

    def compute_targets(self, batch: ViewBatch) -> dict[str, Float[Tensor, "batch ..."]]:
        """Return what the student's outputs are compared with. It is called without gradient."""
        del batch
        return {}

    @abstractmethod
    def compute_losses(self, model: BranchModel, batch: ViewBatch) -> ImageLosses:
        """Return the losses of each image, given the targets."""

    def update_state(self, model: BranchModel, sums: Mapping[str, Tensor], condition: Bool[Tensor, ""]) -> None:
        """Update the buffers of the model after a step, if the condition holds."""
        del model, sums, condition

    def held_parameters(self, step: int, plan: TrainingPlan) -> Iterable[nn.Parameter]:
        """Return the parameters that a step leaves as they are."""
        del step, plan
        return ()

    @property
    @abstractmethod
    def loss_weights(self) -> Mapping[str, float]:
        """The weight of each loss, by name."""

    @abstractmethod
    def summarise(self) -> Mapping[str, str]:
        """Return what describes the method: who sees what, and which losses compare what."""

    # What follows is the same for all methods.

    def training_view(self, data: DataConfig, image_size: tuple[int, int]) -> Transform:
        """Return the transform that crops all views of training scenes."""
        return self._add_views(data.build_training_view(size=image_size))

    def held_out_view(self, data: DataConfig) -> Transform:
        """Return the transform of held-out scenes: a central main view, and random other views."""
        own_crops = data.build_training_view(size=self.config.image_size)
        return self._add_views(data.build_held_out_view(size=self.config.image_size), own_crops)

    def _add_views(self, main: RandomView | CentralView, own_crops: RandomView | None = None) -> MultiView:
        config = self.config
        return MultiView(main=main, others=config.views, main_colour=config.colour, own_crops=own_crops)

    @property
    def compares_images(self) -> bool:
        """Whether the heads or the losses of the student need all images of a process at once."""
        return self.compares_students or any(isinstance(module, BatchStatisticsNorm) for module in self.model.modules())

    def create_preparer(self, seed: int) -> ViewPreparer:
        """Return the part of the task that data workers do."""
        return ViewPreparer(
            self.config, self.patch_size, type(self).draw_masks, seed, divides_batch=not self.compares_images
        )

    def build_task(self, plan: TrainingPlan, *, seed: int, compiled_parts: CompiledParts = "off") -> BranchTask:
        """Return the training task. Raise a `UserError` if the plan does not fit the method."""
        if compiled_parts == "model":
            raise UserError("training.compile: expected blocks or off with two branches, got model. Set it to blocks")
        if plan.batch_size < 2:
            raise UserError(
                f"training.batch_size: {self.config.kind} compares images (expected at least 2, got "
                f"{plan.batch_size}). Set it higher"
            )
        return BranchTask(self, plan, seed)

    def standardise(self, batch: ViewBatch) -> ViewBatch:
        """Return a batch with standardised images."""
        views = {}
        for name, images in batch.views.items():
            flat = standardise_maps({"rgb": images.flatten(0, 1)}, self.config.mean_and_std)["rgb"]
            views[name] = flat.unflatten(0, images.shape[:2])
        return replace(batch, views=views)

    def add_targets(self, batches: Sequence[ViewBatch], *, is_training: bool = True) -> list[ViewBatch]:
        """Return the micro-batches of a step with the outputs of the teacher, those of all ranks where they are needed.

        Not in training, a process compares its own images alone.
        """
        with torch.no_grad(), self._batch_norms(is_training):
            targets = [self.compute_targets(batch) for batch in batches]
        of_batch = {}
        for name in self.gathered_targets:
            own = torch.cat([target[name] for target in targets])
            of_batch[name] = gather_rows(own) if is_training else own
        return [
            replace(batch, targets=target, keys_of_batch=of_batch)
            for batch, target in zip(batches, targets, strict=True)
        ]

    def _batch_norms(self, is_training: bool) -> Any:
        return batch_norms_of_step(self.teacher) if self.teacher is not None and is_training else nullcontext()

    def gather_students(self, model: BranchModel, outputs: Float[Tensor, "batch ..."]) -> Float[Tensor, "total ..."]:
        """Return the student's outputs of the whole global batch, with their gradient."""
        return gather_rows_with_gradient(outputs) if model.training else outputs

    def average(self, outputs: ImageLosses, total: int) -> StepLoss:
        """Return the share of a micro-batch in the loss of a global batch of `total` images."""
        terms = {name: losses.sum() / total for name, losses in outputs.losses.items()}
        weighted = sum(self.loss_weights[name] * term for name, term in terms.items())
        count = len(next(iter(outputs.losses.values())))
        return StepLoss(
            weighted,  # type: ignore[arg-type]  # a tensor, as there is a loss
            {name: term.detach() for name, term in terms.items()},
            {name: value.detach().float().mean() * count / total for name, value in outputs.values.items()},
            {name: value.detach() for name, value in outputs.sums.items()},
        )

    @property
    def final_numbers(self) -> dict[str, float]:
        """The values at the end of training of the settings that change."""
        numbers = self.config.changing_numbers().items()
        return {name: number.end if isinstance(number, Ramp) else number for name, number in numbers}

    def sum_held_out_losses(self, scenes: SceneBatch, *, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the sum and the count of each loss, with the numbers of the end of training."""
        rows = range(len(scenes))
        batch = self.create_preparer(seed).prepare_rows(scenes, rows, total=len(rows), generator_seed=seed)
        batch = replace(self.standardise(batch), numbers=self.final_numbers)
        (batch,) = self.add_targets([batch], is_training=False)
        losses = self.model(lambda model: self.compute_losses(model, batch)).losses
        return {name: (values.sum(), torch.full_like(values[0], len(scenes))) for name, values in losses.items()}

    def describe(self) -> str:
        """Return who sees what, which losses compare what, and what it costs."""
        from c2fmae.methods.branches.describe import describe_branches

        return describe_branches(self)

    def compute_cost(self) -> ForwardCost:
        """Return the cost of one image, all views together. The method is on the meta device."""
        from c2fmae.methods.branches.cost import compute_branch_cost

        return compute_branch_cost(self)
